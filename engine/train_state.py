"""State of a training run, saved to and loaded from checkpoints."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from engine import distributed
from engine.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_newest_intact,
    prune_checkpoints,
    save_checkpoint,
    step_path,
)
from engine.command import DivergedError
from engine.loading import load_exactly
from engine.logbook import logger

KEYS = (
    "processes", "data", "step", "model", "ema", "optimizer", "scheduler", "scaler", "overflows", "loss_sums",
    "epoch_seconds", "line", "lines", "best",
)  # fmt: skip


@dataclass
class TrainState:
    """Everything that changes during training."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: GradScaler  # loss scaling, enabled only for fp16
    ema: AveragedModel | None
    data: dict  # identifies the training data; a run can only resume if this is unchanged
    step: int = 0  # number of optimizer steps, including steps skipped because of fp16 overflows
    overflows: int = 0  # number of steps of this epoch that were skipped because of fp16 overflows
    consecutive_overflows: int = 0
    loss_sums: dict[str, Tensor] = field(default_factory=dict)  # sums over the steps of this epoch, on this rank
    epoch_seconds: float = 0.0  # time spent on this epoch so far
    line: dict | None = None  # line of metrics.jsonl for an epoch that is trained, but not evaluated or logged yet
    lines: list[dict] = field(default_factory=list)  # lines of metrics.jsonl for earlier epochs
    best: dict = field(default_factory=dict)  # {"epoch": ..., "score": ...}

    @property
    def scored_model(self) -> nn.Module:
        """The model to evaluate: the moving average if there is one."""
        return self.ema.module if self.ema else self.model

    def update_best(self, epoch: int, score: float | None, lower_is_better: bool) -> bool:
        """Set `best` to this epoch if its score is the best so far; return whether it is the best."""
        if score is None or not math.isfinite(score):
            return False
        if self.best and not (score < self.best["score"] if lower_is_better else score > self.best["score"]):
            return False
        self.best = {"epoch": epoch, "score": score}
        return True

    def state_dict(self) -> dict | None:
        """Return plain data for `save_checkpoint` on rank 0, None on other ranks. All ranks must call it."""
        loss_sums = distributed.gather({name: float(value) for name, value in self.loss_sums.items()})
        if loss_sums is None:
            return None
        return {
            "processes": distributed.world_size(),
            "data": self.data,
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema and {"count": int(self.ema.n_averaged), "weights": self.ema.module.state_dict()},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "overflows": [self.overflows, self.consecutive_overflows],
            "loss_sums": loss_sums,
            "epoch_seconds": self.epoch_seconds,
            "line": self.line,
            "lines": self.lines,
            "best": self.best,
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore a state from `state_dict`. Raises CheckpointError if keys, data or number of processes differ."""
        if missing := [name for name in KEYS if not isinstance(state, dict) or name not in state]:
            raise CheckpointError(
                f"not the state of a run, or from a different version (no {', '.join(missing)}). Start a new run "
                "from the experiment's config.yaml"
            )
        if state["processes"] != distributed.world_size():
            raise CheckpointError(
                f"saved by {state['processes']} processes, but this run has {distributed.world_size()}: start the same "
                "number of processes, because the global batch size and the schedule depend on it"
            )
        if changed := [name for name, value in self.data.items() if state["data"].get(name) != value]:
            differences = "; ".join(
                f"{name} {state['data'].get(name)!r:.200}, now {self.data[name]!r:.200}" for name in changed
            )
            raise CheckpointError(f"trained on different data: {differences}. Use the original data or start a new run")
        load_exactly(self.model, state["model"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"]["weights"])
            self.ema.n_averaged.fill_(state["ema"]["count"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.overflows, self.consecutive_overflows = state["overflows"]
        self.step, self.epoch_seconds = state["step"], state["epoch_seconds"]
        # Python floats represent float32 exactly, so a resumed epoch has the same mean losses.
        self.loss_sums = {
            name: torch.tensor(value, device=next(self.model.parameters()).device)
            for name, value in state["loss_sums"][distributed.rank()].items()
        }
        self.line, self.lines, self.best = state["line"], state["lines"], state["best"]

    def resume(self, folder: Path) -> None:
        """Load the newest undamaged checkpoint. Raises CheckpointError if none matches this run."""
        path, state = load_newest_intact(folder) if distributed.is_main() else (None, None)
        path = distributed.broadcast(path)
        try:
            self.load_state_dict(state or load_checkpoint(path))
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
        logger.info("resumed after step %d from %s", self.step, path)

    def save(self, folder: Path, keep: int, name: str | None = None) -> None:
        """Write a checkpoint, by default named by its step; keep only the newest `keep` step checkpoints.

        Raises DivergedError on all ranks, and writes nothing, if a weight is not finite."""
        if not torch.stack([weight.isfinite().all() for weight in self.model.parameters()]).all():
            raise DivergedError(
                f"step {self.step}: the weights are not finite after this step, so they are not saved. "
                "Lower optim.learning_rate"
            )
        state = self.state_dict()
        if state is not None:
            save_checkpoint(folder / name if name else step_path(folder, self.step), state)
            prune_checkpoints(folder, keep)


def mean_losses(sums: dict[str, Tensor], steps: int) -> dict[str, float]:
    """Return the mean of each loss, and of their sum ("total"), over steps and ranks. All ranks must call it."""
    names = list(sums)
    values = torch.stack([sums[name] for name in names]).double() / steps
    values = distributed.sum_over_ranks(values) / distributed.world_size()
    means = dict(zip(names, values.tolist(), strict=True))
    return {"total": sum(means.values()), **means}
