"""Extra trackers to log each epoch to, if the config asks for them: `train.trackers: [tensorboard, wandb]`.

    tensorboard --logdir experiments                                   pip install -e '.[tensorboard]'
    wandb sync experiments/experiment_3/wandb/offline-run-*            pip install -e '.[wandb]'

After each epoch both get its line of metrics.jsonl and every new picture. W&B is offline under Slurm, where nodes may
have no network, and if no key is known (`wandb login`). A tracker that fails is left out with one warning.
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

PROJECT = "ssd-workbench"  # at W&B, unless WANDB_PROJECT says otherwise
WAIT_SECONDS = 60  # for W&B's server, at the start and at the end; `wandb sync` sends the rest later
TRAINING = ("epoch", "learning_rate", "overflowed_steps")
NOT_SENT = ("step", "curves.png")  # the axis, and a picture of the same numbers


def check_installed(names: Sequence[str]) -> None:
    """Raise ValueError, with the cure, if the package of a tracker is missing."""
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
        self.open: dict[str, TensorBoard | Wandb] = {}
        self.sent: dict[Path, int] = {}  # pictures, and when each was written

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._attempt(self.open, lambda name: self.open[name].close(failed=kind is not None))

    def start(self) -> None:
        """Open them, to continue after the last line of metrics.jsonl; config.yaml must be there."""
        self._new_pictures()  # an earlier start has sent these
        self._attempt(self.names, lambda name: self.open.update({name: TRACKERS[name](self.experiment, self._step())}))

    def log(self, line: Mapping[str, Any]) -> None:
        """Log a line of metrics.jsonl, and the pictures of its epoch."""
        numbers = {grouped(name): value for name, value in line.items() if name not in NOT_SENT and value is not None}
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
        """Return the pictures that were written since the last call, by name."""
        files = [path for path in self.experiment.glob("*.png") if path.name not in NOT_SENT]
        before, self.sent = self.sent, {path: path.stat().st_mtime_ns for path in files}
        return {path.stem: path for path, time in self.sent.items() if before.get(path) != time}

    def _attempt(self, names: Iterable[str], act: Callable[[str], None]) -> None:
        """Do something with each tracker; warn of one that fails, and leave it out from now on."""
        for name in list(names):
            try:
                act(name)
            except Exception as error:  # a run is worth more than whatever a tracker raises
                self.open.pop(name, None)
                logger.warning("train.trackers: %s failed and is left out from now on (%s)", name, first_line(error))


def grouped(name: str) -> str:
    """Return a name of metrics.jsonl with its group: 'train/loss_total', 'speed/epoch_seconds', 'validation/mAP'."""
    if "second" in name:
        return f"speed/{name}"
    if name in TRAINING or name.startswith("train_"):
        return f"train/{name.removeprefix('train_')}"
    return f"validation/{name}"


class TensorBoard:
    """Event files in tensorboard/. What an earlier start has logged after `step` is hidden."""

    def __init__(self, experiment: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(experiment / "tensorboard"), purge_step=step + 1)
        self.writer.add_text("config", f"```yaml\n{(experiment / 'config.yaml').read_text()}\n```")

    def log(self, numbers: Mapping[str, float], pictures: Mapping[str, Path], step: int) -> None:
        """Log what an epoch found. pictures: name to file. step: optimizer steps so far, the axis of all charts."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        for name, path in pictures.items():
            with Image.open(path) as image:
                self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self.writer.flush()  # the run may be killed before the next epoch

    def close(self, failed: bool) -> None:
        self.writer.close()


class Wandb:
    """A run of Weights & Biases, its files in wandb/. W&B itself drops a step that it already has."""

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
            # Send nothing else: the log and the code are in the experiment and its commit.
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, save_code=False,
                init_timeout=WAIT_SECONDS, finish_timeout=WAIT_SECONDS,
            ),
        )  # fmt: skip
        place = self.run.url if mode == "online" else f"{mode}; to send it: wandb sync {Path(self.run.dir).parent}"
        logger.info("wandb: run %s, %s", self.run.id, place)

    def log(self, numbers: Mapping[str, float], pictures: Mapping[str, Path], step: int) -> None:
        self.run.log({**numbers, **{name: self.image(str(path)) for name, path in pictures.items()}}, step=step)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def run_id(experiment: Path) -> str:
    """Return the experiment's id at W&B; the first start makes it."""
    path = experiment / "wandb/run_id.txt"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        write_text(path, uuid.uuid4().hex[:8] + "\n")
    return path.read_text().strip()


TRACKERS = {"tensorboard": TensorBoard, "wandb": Wandb}
