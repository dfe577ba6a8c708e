"""Matching, MultiBox loss and gradients of a batch, compared with torchvision's SSD.

    OMP_NUM_THREADS=1 python -m benchmarks.loss

32 images, each with 8,732 default boxes of 81 logits and 0 to 60 objects (7 on average, as in COCO). Operators are also
counted, on a CPU and on the meta device (in place of a GPU). Gradients may differ by 1e-6. All contenders are faster if
MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ are set to a gigabyte. Takes two minutes.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection._utils import SSDMatcher
from torchvision.ops import box_iou

from benchmarks.comparison import Page, Row, run_benchmark, time_alternating
from benchmarks.peers import ANCHORS, ANCHORS_XYXY, NUM_CLASSES, torchvision_ssd
from detection.network.loss import multibox_loss
from detection.network.matching import match_anchors
from engine.command import RunError

BATCH_SIZE, MEAN_OBJECTS, MAX_OBJECTS = 32, 7.3, 60
TOLERANCE = 1e-6
ROUNDS = 9

Gradients = tuple[Tensor, ...]  # with respect to box_deltas and class_logits


def random_batch(seed: int) -> dict[str, Tensor]:
    """Return a batch of random objects and random network outputs. The first image has no objects."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.empty(BATCH_SIZE).exponential_(1 / MEAN_OBJECTS, generator=generator).round()
    counts = counts.long().clamp(max=MAX_OBJECTS)
    counts[0] = 0
    shape = (BATCH_SIZE, int(counts.max()))
    is_padding = torch.arange(shape[1]) >= counts[:, None]
    size = (torch.randn(*shape, 2, generator=generator) * 0.8 - 1.7).exp().clamp(0.02, 0.95)
    corner = torch.rand(*shape, 2, generator=generator) * (1 - size)
    class_logits = torch.randn(BATCH_SIZE, len(ANCHORS), NUM_CLASSES + 1, generator=generator)
    class_logits[..., 0] += 5  # so that most anchors are predicted as background
    return {
        "boxes_xyxy": torch.cat([corner, corner + size], dim=-1).masked_fill(is_padding[..., None], 0),
        "labels": torch.randint(1, NUM_CLASSES + 1, shape, generator=generator).masked_fill(is_padding, 0),
        "box_deltas": torch.randn(BATCH_SIZE, len(ANCHORS), 4, generator=generator).requires_grad_(),
        "class_logits": class_logits.requires_grad_(),
    }


def torchvision_step(batch: dict[str, Tensor]) -> Callable[[], Gradients]:
    """Return a function that computes matching, loss and gradients as in torchvision's SSD.forward."""
    ssd, matcher = torchvision_ssd(), SSDMatcher(0.5)
    pairs = zip(batch["boxes_xyxy"], batch["labels"], strict=True)
    targets = [{"boxes": boxes[labels > 0], "labels": labels[labels > 0]} for boxes, labels in pairs]
    outputs = {"bbox_regression": batch["box_deltas"], "cls_logits": batch["class_logits"]}
    none = torch.full((len(ANCHORS),), -1)

    def step() -> Gradients:
        matched = [
            matcher(box_iou(target["boxes"], ANCHORS_XYXY)) if len(target["boxes"]) else none for target in targets
        ]
        losses = ssd.compute_loss(targets, outputs, [ANCHORS_XYXY] * BATCH_SIZE, matched)
        return torch.autograd.grad(losses["bbox_regression"] + losses["classification"], list(outputs.values()))

    return step


def loss_per_positive(batch: dict[str, Tensor], anchors_cxcywh: Tensor) -> Tensor:
    """Match anchors and return the sum of both losses, divided by the number of positives as in torchvision."""
    matched = match_anchors(batch["boxes_xyxy"], batch["labels"], anchors_cxcywh, 0.5)
    sums = multibox_loss(**batch, matched=matched, anchors_cxcywh=anchors_cxcywh, negatives_per_positive=3)
    return (sums["box"] + sums["classification"]) / sums["num_positives"]


def our_step(batch: dict[str, Tensor], loss: Callable[[dict[str, Tensor], Tensor], Tensor]) -> Callable[[], Gradients]:
    """Return a function that computes the gradients of `loss`, which is loss_per_positive or a compiled version."""
    outputs = [batch["box_deltas"], batch["class_logits"]]
    anchors_cxcywh = ANCHORS.to(outputs[0].device)
    return lambda: torch.autograd.grad(loss(batch, anchors_cxcywh), outputs)


class OperatorCount(TorchDispatchMode):
    """Count dispatched operators, and operators that synchronise with a GPU because the host needs a value."""

    SYNCHRONISING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
    operators = synchronisations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators += 1
        self.synchronisations += func.name().partition(".")[0] in self.SYNCHRONISING or (
            func.name() == "aten::index.Tensor"
            and any(index is not None and index.dtype == torch.bool for index in args[1])
        )
        return func(*args, **(kwargs or {}))


def measure(device: torch.device) -> Page:
    """Time all contenders and count their operators. Raises RunError if the gradients differ."""
    batch = random_batch(seed=0)
    for name in ("boxes_xyxy", "labels"):  # M, the padded number of objects, varies
        torch._dynamo.maybe_mark_dynamic(batch[name], 1)
    theirs, eager = torchvision_step(batch), our_step(batch, loss_per_positive)
    compiled = our_step(batch, torch.compile(loss_per_positive))
    expected = theirs()
    for name, step in (("eager", eager), ("compiled", compiled)):
        error = max((a - b).abs().max().item() for a, b in zip(step(), expected, strict=True))
        if error > TOLERANCE:
            raise RunError(f"{name}: gradients differ from torchvision's by {error:.2g}")
    theirs_ms, eager_ms, compiled_ms = (1000 * s for s in time_alternating([theirs, eager, compiled], ROUNDS))

    on_meta = {name: tensor.detach().to("meta").requires_grad_(tensor.requires_grad) for name, tensor in batch.items()}
    peer, on_cpu, on_gpu = counts = [OperatorCount() for _ in range(3)]
    for count, step in zip(counts, (theirs, eager, our_step(on_meta, loss_per_positive)), strict=True):
        with count:
            step()
    rows = [
        Row("matching, loss, gradients", "torchvision", theirs_ms, eager_ms, "ms", 1.0),
        Row("the same, compiled", "torchvision", theirs_ms, compiled_ms, "ms", 2.5),
        Row("operators on a CPU", "torchvision", peer.operators, on_cpu.operators, "", 10),
        Row("operators on an accelerator", "torchvision", peer.operators, on_gpu.operators, "", 10),
    ]
    trim_threshold = os.environ.get("MALLOC_TRIM_THRESHOLD_", "the system's default")
    text = f"""# Matching and MultiBox loss

{BATCH_SIZE} images of 8,732 boxes and {NUM_CLASSES + 1} logits, {(batch["labels"] > 0).sum()} objects, forward and \
backward; process time; MALLOC_TRIM_THRESHOLD_: {trim_threshold}. Gradients equal torchvision's to {TOLERANCE:g}.

{{rows}}

Synchronisations with the device: torchvision {peer.synchronisations}, ours {on_gpu.synchronisations} on an \
accelerator (and {on_cpu.synchronisations} on a CPU, where they cost nothing).
"""
    return Page(text, rows)


if __name__ == "__main__":
    run_benchmark(measure)
