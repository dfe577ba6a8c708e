"""Where else the numbers and pictures of a run go, if its config asks for it: `train.trackers: [tensorboard, wandb]`.

    tensorboard --logdir experiments                                   pip install -e '.[tensorboard]'
    wandb sync experiments/experiment_3/wandb/offline-run-*            pip install -e '.[wandb]'

Both keep their files in the experiment: tensorboard/ and wandb/. Names are those of metrics.jsonl, which is always
written, under train/, speed/ and validation/. After each epoch they get its line and every picture in the experiment
that is new; at the end of a detector also precision by recall, class by class.

W&B is offline under Slurm, where nodes may have no network, and where no key is known (`wandb login`); WANDB_MODE,
WANDB_PROJECT and WANDB_ENTITY are heeded. A resumed run keeps its id, which is in wandb/run_id.txt.

A tracker that fails is warned of once and left out; no run ends for it.
"""

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
from PIL import Image

from engine.files import file_sha256, write_text
from engine.logbook import logger
from engine.strict_yaml import read_yaml
from engine.terminal import printable
from records.experiment import slurm_job
from records.metrics import read_metrics
from stats.bootstrap import RECALL_THRESHOLDS
from stats.image_statistics import Matches, load_statistics
from stats.precision_recall import counts_by_score, precision_by_recall

TrackerName = Literal["tensorboard", "wandb"]

PROJECT = "ssd-workbench"  # at W&B, unless WANDB_PROJECT says otherwise
WAIT_SECONDS = 60  # for W&B's server, at the start and at the end; what was not sent can be, with `wandb sync`
SCORE_THRESHOLDS = 127  # of a curve in TensorBoard; as many as it takes by itself
TRAINING = ("epoch", "learning_rate", "overflowed_steps")
NOT_SENT = ("step", "curves.png")  # the axis, and the numbers themselves once more


class Tracker(Protocol):
    """One of them, open. step: optimizer steps so far, the axis of all that it shows."""

    def log(self, numbers: Mapping[str, float], pictures: Mapping[str, Path], step: int) -> None:
        """After an epoch, or at the end. pictures: name to file."""
        ...

    def draw_precision(self, matches: Matches, step: int) -> None:
        """Precision by recall at IoU 0.5, class by class."""
        ...

    def close(self, failed: bool) -> None:
        """See that all is written."""
        ...


def check_installed(names: Sequence[str]) -> None:
    """Raises ValueError, with the cure, if the package of one is missing."""
    for name in names:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            raise ValueError(
                f"train.trackers: {name} is not installed; pip install -e '.[{name}]', or leave it out"
            ) from None


class Trackers:
    """The trackers of a run, on its rank 0: open from `start` to the end of the `with` block, whatever ends it."""

    def __init__(self, names: Sequence[str], experiment: Path) -> None:
        self.names, self.experiment = names, experiment
        self.open: dict[str, Tracker] = {}
        self.sent: dict[Path, str] = {}  # pictures, and the SHA-256 of each

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._each(lambda tracker: tracker.close(failed=kind is not None))

    def start(self) -> None:
        """Open them, to go on after the last line of metrics.jsonl; config.yaml is there by now."""
        if self.names:
            self._new_pictures()  # those of an earlier start, which has sent them
        for name in self.names:
            self._attempt(name, partial(self._open, name))

    def log(self, line: Mapping[str, Any]) -> None:
        """Tell of an epoch: its line of metrics.jsonl, and the pictures that it left."""
        if not self.open:
            return
        numbers = {grouped(name): value for name, value in line.items() if name not in NOT_SENT and value is not None}
        pictures = self._new_pictures()
        self._each(lambda tracker: tracker.log(numbers, pictures, line["step"]))

    def finish(self) -> None:
        """Tell of what the finished run has left in its experiment."""
        if not self.open:
            return
        pictures = self._new_pictures()
        self._each(lambda tracker: tracker.log({}, pictures, self._step))
        self._each(self._draw_precision)

    def _draw_precision(self, tracker: Tracker) -> None:
        statistics = load_statistics(self.experiment)
        if isinstance(statistics, Matches):
            tracker.draw_precision(statistics, self._step)

    def _open(self, name: str) -> None:
        self.open[name] = TRACKERS[name](self.experiment, self._step)

    @property
    def _step(self) -> int:
        """Of the last epoch that is written down."""
        lines = read_metrics(self.experiment)
        return lines[-1]["step"] if lines else 0

    def _new_pictures(self) -> dict[str, Path]:
        """Those in the experiment that are others than at the last call."""
        pictures = {path: file_sha256(path) for path in self.experiment.glob("*.png") if path.name not in NOT_SENT}
        new = {path.stem: path for path, digest in pictures.items() if self.sent.get(path) != digest}
        self.sent = pictures
        return new

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.open.items()):
            self._attempt(name, partial(act, tracker))

    def _attempt(self, name: str, act: Callable[[], None]) -> None:
        """Do something with a tracker, or warn, and do nothing more with it."""
        try:
            act()
        except Exception as error:  # whatever they raise, a run is worth more
            self.open.pop(name, None)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning("train.trackers: %s fails and is left out from here on (%s)", name, reason)


def grouped(name: str) -> str:
    """A name of metrics.jsonl with the group that trackers show it in: 'train/loss_total', 'validation/mAP'."""
    if "second" in name:
        return f"speed/{name}"
    if name in TRAINING or name.startswith("train_"):
        return f"train/{name.removeprefix('train_')}"
    return f"validation/{name}"


class TensorBoard:
    """Event files in tensorboard/."""

    def __init__(self, experiment: Path, step: int) -> None:
        """step: of the last epoch that is to be kept: what an interrupted start has told after it is forgotten."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(experiment / "tensorboard"), purge_step=step + 1)
        self.writer.add_text("config", f"```yaml\n{(experiment / 'config.yaml').read_text()}\n```")

    def log(self, numbers: Mapping[str, float], pictures: Mapping[str, Path], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        for name, path in pictures.items():
            with Image.open(path) as image:
                self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self.writer.flush()  # seen at once, and there is no later if the run is killed

    def draw_precision(self, matches: Matches, step: int) -> None:
        scores = np.linspace(0, 1, SCORE_THRESHOLDS)
        for label, name in enumerate(matches.class_names):
            objects = np.count_nonzero(matches.object_classes == label)
            right, wrong = counts_by_score(matches, label, scores)
            precision = np.where(right + wrong > 0, right / np.maximum(right + wrong, 1), 1)  # of none, by convention
            self.writer.add_pr_curve_raw(
                f"precision by recall/{printable(name)}", right, wrong, np.zeros_like(right), objects - right,
                precision, right / max(objects, 1), step, SCORE_THRESHOLDS,
            )  # fmt: skip

    def close(self, failed: bool) -> None:
        self.writer.close()


class Wandb:
    """A run of Weights & Biases, its files in wandb/."""

    def __init__(self, experiment: Path, step: int) -> None:
        """step: is not needed: W&B drops what comes with a step that it has, and it would be the same again."""
        import wandb

        mode = os.environ.get("WANDB_MODE")
        if mode is None:
            mode = "offline" if slurm_job() or not wandb.login(prompt=False, verify=False) else "online"
        self.wandb = wandb
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=experiment.name,
            id=run_id(experiment),
            resume="allow",
            dir=experiment,
            mode=mode,
            config=read_yaml(experiment / "config.yaml")[0],
            # The log and the code are in the experiment and its commit; nothing is sent that was not asked for.
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, save_code=False,
                init_timeout=WAIT_SECONDS, finish_timeout=WAIT_SECONDS,
            ),
        )  # fmt: skip
        place = self.run.url if mode == "online" else f"{mode}; to send it: wandb sync {Path(self.run.dir).parent}"
        logger.info("wandb: run %s, %s", self.run.id, place)

    def log(self, numbers: Mapping[str, float], pictures: Mapping[str, Path], step: int) -> None:
        images = {name: self.wandb.Image(str(path)) for name, path in pictures.items()}
        self.run.log({**numbers, **images}, step=step)

    def draw_precision(self, matches: Matches, step: int) -> None:
        precision = precision_by_recall(matches)[0]  # (101, C) at IoU 0.5
        rows = [
            [printable(name), recall, value]
            for name, values in zip(matches.class_names.tolist(), precision.T, strict=True)
            for recall, value in zip(RECALL_THRESHOLDS, values, strict=True)
            if not np.isnan(value)
        ]
        table = self.wandb.Table(["class", "recall", "precision"], rows)
        title = "precision by recall"
        self.run.log(
            {title: self.wandb.plot.line(table, "recall", "precision", stroke="class", title=title)}, step=step
        )

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def run_id(experiment: Path) -> str:
    """The experiment's id at W&B: made up by its first start, kept for those after it."""
    path = experiment / "wandb/run_id.txt"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        write_text(path, uuid.uuid4().hex[:8] + "\n")
    return path.read_text().strip()


TRACKERS: dict[str, Callable[[Path, int], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb}
