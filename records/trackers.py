"""Extra trackers to log each epoch to, enabled in the config by `train.trackers: [tensorboard, wandb]`.

    tensorboard --logdir experiments                                   pip install -e '.[tensorboard]'
    wandb sync experiments/experiment_3/wandb/offline-run-*            pip install -e '.[wandb]'

After each epoch, trackers receive the epoch's line of metrics.jsonl and all new pictures. W&B runs offline if no
API key is set (`wandb login`), and under Slurm, where nodes may have no network. Failing trackers are disabled.
"""

import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from PIL import Image

from engine.files import write_text
from engine.logbook import logger
from engine.strict_yaml import read_yaml
from engine.terminal import first_line
from records.experiment import slurm_job
from records.metrics import read_metrics

TrackerName = Literal["tensorboard", "wandb"]

PROJECT = "ssd-workbench"  # W&B project, unless WANDB_PROJECT is set
WAIT_SECONDS = 60  # timeout for W&B's server at start and end; `wandb sync` uploads the rest later
TRAIN_NAMES = ("epoch", "learning_rate", "overflowed_steps")
NOT_SENT = ("step", "curves.png")  # the x axis, and a plot of the same numbers


def check_installed(names: Sequence[str]) -> None:
    """Raise ValueError with the install command if the package of a tracker is missing."""
    for name in names:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            raise ValueError(
                f"train.trackers: {name} is not installed; pip install -e '.[{name}]', or remove it"
            ) from None


class Trackers:
    """The trackers of a run on rank 0. They are open from `start` to the end of the `with` block, even on errors."""

    def __init__(self, names: Sequence[str], experiment: Path) -> None:
        self.names, self.experiment = names, experiment
        self.open: dict[str, TensorBoard | Wandb] = {}
        self.sent: dict[Path, int] = {}  # pictures already sent, and their modification times

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._attempt(self.open, lambda name: self.open[name].close(failed=kind is not None))

    def start(self) -> None:
        """Open the trackers. They continue after the last line of metrics.jsonl. Requires config.yaml."""
        self._new_pictures()  # existing pictures were sent by an earlier start
        self._attempt(self.names, lambda name: self.open.update({name: TRACKERS[name](self.experiment, self._step())}))

    def log(self, line: Mapping[str, Any]) -> None:
        """Log a line of metrics.jsonl and all new pictures."""
        numbers = {prefixed(name): value for name, value in line.items() if name not in NOT_SENT and value is not None}
        pictures = self._new_pictures()
        self._attempt(self.open, lambda name: self.open[name].log(numbers, pictures, line["step"]))

    def finish(self) -> None:
        """Log the pictures of the finished run."""
        if self.open:
            self.log({"step": self._step()})

    def _step(self) -> int:
        lines = read_metrics(self.experiment)
        return lines[-1]["step"] if lines else 0

    def _new_pictures(self) -> dict[str, Path]:
        """Return the pictures written since the last call, by name."""
        files = [path for path in self.experiment.glob("*.png") if path.name not in NOT_SENT]
        before, self.sent = self.sent, {path: path.stat().st_mtime_ns for path in files}
        return {path.stem: path for path, time in self.sent.items() if before.get(path) != time}

    def _attempt(self, names: Iterable[str], action: Callable[[str], None]) -> None:
        """Call `action` on each tracker. Warn if one fails, and stop using it."""
        for name in list(names):
            try:
                action(name)
            except Exception as error:  # no error of a tracker may end the run
                self.open.pop(name, None)
                logger.warning("train.trackers: %s failed and is disabled (%s)", name, first_line(error))


def prefixed(name: str) -> str:
    """Prefix a name of metrics.jsonl with its group: 'train/loss_total', 'speed/epoch_seconds', 'validation/mAP'."""
    if "second" in name:
        return f"speed/{name}"
    if name in TRAIN_NAMES or name.startswith("train_"):
        return f"train/{name.removeprefix('train_')}"
    return f"validation/{name}"


class TensorBoard:
    """Writer of event files in tensorboard/. Entries that an earlier start wrote after `step` are hidden."""

    def __init__(self, experiment: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(experiment / "tensorboard"), purge_step=step + 1)
        self.writer.add_text("config", f"```yaml\n{(experiment / 'config.yaml').read_text()}\n```")

    def log(self, numbers: Mapping[str, float], pictures: Mapping[str, Path], step: int) -> None:
        """Log the results of an epoch. pictures: name to file. step: optimizer steps so far, the x axis of charts."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        for name, path in pictures.items():
            with Image.open(path) as image:
                self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self.writer.flush()  # the run may be killed before the next epoch

    def close(self, failed: bool) -> None:
        self.writer.close()


class Wandb:
    """A Weights & Biases run with its files in wandb/. W&B ignores steps that it already has."""

    def __init__(self, experiment: Path, step: int) -> None:
        import wandb

        self.image = wandb.Image
        mode = os.environ.get("WANDB_MODE")
        if mode is None:
            mode = "offline" if slurm_job() or not wandb.login(prompt=False, verify=False) else "online"
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=experiment.name,
            id=run_id(experiment),
            resume="allow",
            dir=experiment,
            mode=mode,
            config=read_yaml(experiment / "config.yaml")[0],
            # Do not upload the log, which is in the experiment, or the code, which is in the commit.
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, save_code=False,
                init_timeout=WAIT_SECONDS, finish_timeout=WAIT_SECONDS,
            ),
        )  # fmt: skip
        place = self.run.url if mode == "online" else f"{mode}; to upload it: wandb sync {Path(self.run.dir).parent}"
        logger.info("wandb: run %s, %s", self.run.id, place)

    def log(self, numbers: Mapping[str, float], pictures: Mapping[str, Path], step: int) -> None:
        self.run.log({**numbers, **{name: self.image(str(path)) for name, path in pictures.items()}}, step=step)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def run_id(experiment: Path) -> str:
    """Return the W&B run id of the experiment. The first start creates it."""
    path = experiment / "wandb/run_id.txt"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        write_text(path, uuid.uuid4().hex[:8] + "\n")
    return path.read_text().strip()


TRACKERS = {"tensorboard": TensorBoard, "wandb": Wandb}
