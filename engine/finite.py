"""Check that loss and gradient of every step are finite, without making the GPU wait.

The optimizer skips a step that is not finite on the GPU. The CPU reads the result one step later, when the GPU is
already computing the next step."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from engine import distributed
from engine.command import DivergedError
from engine.train_state import TrainState

MAX_OVERFLOWS = 20  # consecutive steps whose gradients overflow fp16; each halves the loss scale


class _Outcome(NamedTuple):
    """The outcome of a step that has not been checked yet."""

    step: int
    losses: dict[str, Tensor]
    batches: list[dict[str, Tensor]]
    finite: Tensor  # (2,) bool, whether gradient norm and loss are finite; copied to the CPU asynchronously
    arrival: torch.cuda.Event | None  # event at the end of the copy; None on the CPU


class FiniteCheck:
    """Checks whether each training step was finite, one step later."""

    def __init__(self, state: TrainState) -> None:
        self.state = state
        self.pending: _Outcome | None = None

    def watch(self, losses: dict[str, Tensor], batches: list[dict[str, Tensor]], finite: Tensor) -> None:
        """Store the outcome of the step that was just taken, for the next `check`.

        losses, batches: for the error message. finite: (2,) bool for gradient norm and loss, identical on all ranks."""
        self.pending = _Outcome(self.state.step, losses, batches, *_copy_to_host(finite))

    def check(self) -> None:
        """Raise DivergedError on all ranks if the loss or gradient of the stored step was not finite.

        With fp16, overflows of the gradient are only counted, until MAX_OVERFLOWS consecutive steps overflow."""
        last, self.pending = self.pending, None
        if last is None:
            return
        if last.arrival:
            last.arrival.synchronize()
        state = self.state
        finite_norm, finite_total = last.finite.tolist()
        overflow = not finite_norm and state.scaler.is_enabled()
        state.overflows += overflow
        state.consecutive_overflows = state.consecutive_overflows + 1 if overflow else 0
        if not finite_total or not (finite_norm or overflow) or state.consecutive_overflows == MAX_OVERFLOWS:
            raise DivergedError(_describe(last))

    @property
    def is_device_busy(self) -> bool:
        """Whether the GPU still computes the last step, so that waiting for data costs no time."""
        return bool(self.pending and self.pending.arrival and not self.pending.arrival.query())


def _copy_to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start copying `values` to the CPU; return the copy, and an event at its end (None if no copy is needed)."""
    if values.device.type != "cuda":
        return values, None
    copy = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
    arrival = torch.cuda.Event()
    arrival.record()
    return copy, arrival


def _describe(outcome: _Outcome) -> str:
    """Return an error message with losses and image ids of the ranks whose loss is not finite, or of all ranks."""
    values = {name: float(value) for name, value in outcome.losses.items()}
    image_ids = [image_id for batch in outcome.batches for image_id in batch["image_ids"].tolist()]
    reports = distributed.broadcast(distributed.gather((distributed.rank(), values, image_ids)))
    not_finite = [report for report in reports if not all(map(math.isfinite, report[1].values()))]
    ranks = "; ".join(f"rank {rank}: {values}, image ids {ids}" for rank, values, ids in not_finite or reports)
    return (
        f"step {outcome.step}: loss or gradient is not finite; {ranks}; the step was not applied to the weights. "
        "Lower optim.learning_rate, or check these images"
    )
