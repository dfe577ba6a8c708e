"""The check that loss and gradient of every step are finite, which never makes a GPU wait.

Whether a step was finite is known on the GPU, where the optimizer skips it if not. The CPU looks one step later, when
the next step is on its way."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from engine import distributed
from engine.command import RunError
from engine.train_state import TrainState

MAX_OVERFLOWS = 20  # in a row; each halves the loss scale


class _Outcome(NamedTuple):
    """The outcome of a step that has not been checked yet."""

    step: int
    losses: dict[str, Tensor]
    batches: list[dict[str, Tensor]]
    finite: Tensor  # (2,) bool: gradient norm and loss; on its way to the CPU
    arrival: torch.cuda.Event | None  # when it is there; None if it is already


class FiniteCheck:
    """Check each step of `state` one step late."""

    def __init__(self, state: TrainState) -> None:
        self.state = state
        self.pending: _Outcome | None = None

    def watch(self, losses: dict[str, Tensor], batches: list[dict[str, Tensor]], finite: Tensor) -> None:
        """Keep the step that was just taken for the next `check`.

        losses, batches: for the error message. finite: (2,) bool, of gradient norm and loss, the same on every rank."""
        self.pending = _Outcome(self.state.step, losses, batches, *_copy_to_host(finite))

    def check(self) -> None:
        """Raise RunError, on all ranks together, if loss or gradient of the last step was not finite.

        In fp16 a gradient that overflows is counted, and is an error only after MAX_OVERFLOWS in a row."""
        last, self.pending = self.pending, None
        if last is None:
            return
        if last.arrival:
            last.arrival.synchronize()
        state = self.state
        finite_norm, finite_total = last.finite.tolist()
        overflow = not finite_norm and state.scaler.is_enabled()
        state.overflows += overflow
        state.overflows_in_a_row = state.overflows_in_a_row + 1 if overflow else 0
        if not finite_total or not (finite_norm or overflow) or state.overflows_in_a_row == MAX_OVERFLOWS:
            raise RunError(_describe(last))

    @property
    def device_is_busy(self) -> bool:
        """Whether a GPU still computes the last step, so that waiting for the next batch costs nothing."""
        return bool(self.pending and self.pending.arrival and not self.pending.arrival.query())


def _copy_to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Return `values` in the CPU's memory, and the event after which they are there, without waiting for it."""
    if values.device.type != "cuda":
        return values, None
    copy = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
    arrival = torch.cuda.Event()
    arrival.record()
    return copy, arrival


def _describe(outcome: _Outcome) -> str:
    """Name the losses and images of the ranks whose losses are not finite, or of all ranks if only the gradient is."""
    values = {name: float(value) for name, value in outcome.losses.items()}
    image_ids = [image_id for batch in outcome.batches for image_id in batch["image_ids"].tolist()]
    reports = distributed.broadcast(distributed.gather((distributed.rank(), values, image_ids)))
    culprits = [report for report in reports if not all(map(math.isfinite, report[1].values()))]
    ranks = "; ".join(f"rank {rank}: {values}, image ids {ids}" for rank, values, ids in culprits or reports)
    return (
        f"step {outcome.step}: loss or gradient is not finite; {ranks}; the weights are those before this step. "
        "Lower optim.learning_rate, or look at these images"
    )
