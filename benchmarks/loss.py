"""Matching, MultiBox loss and gradients of a batch, beside torchvision's SSD.

    OMP_NUM_THREADS=1 python -m benchmarks.loss

32 images of 8,732 default boxes, 81 logits each, with 0 to 60 objects, 7 on average as in COCO. Beside the time, the
operators that PyTorch dispatches: on a CPU, and on an accelerator (counted on the meta device, which has no values to
wait for: anything that asks for one raises). Compiled means torch.compile of matching and loss as one function.

Memory decides: a gradient of 90 MB must be written, and most of the time goes into getting new pages from the system.
MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ of a gigabyte keep them and make all contenders faster, torchvision
most of all; the table says what was set.

Asked: no slower than torchvision, compiled 2.5 times as fast, a tenth of its operators, gradients equal to 1e-6; at
most two waits for the device, not growing with the batch. Takes two minutes, most of it the compiler's.
"""

import argparse
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection._utils import SSDMatcher
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_convert, box_iou

from benchmarks.comparison import Row, turn_by_turn, write_page
from detection.network.anchors import ANCHOR_SCALES, ASPECT_RATIOS, default_boxes
from detection.network.loss import multibox_loss
from detection.network.matching import match_anchors
from engine.command import RunError, run_command

ANCHORS = default_boxes([(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)], ANCHOR_SCALES["ssd_coco"])
NUM_CLASSES, BATCH_SIZE, MEAN_OBJECTS, MOST_OBJECTS, SIDE = 80, 32, 7.3, 60, 300
MATCH_IOU, NEGATIVES_PER_POSITIVE = 0.5, 3
TOLERANCE = 1e-6
ROUNDS = 9

Gradients = tuple[Tensor, ...]  # of box_deltas and class_logits


def draw(seed: int) -> dict[str, Tensor]:
    """A batch, one image of it without an object, and a network's outputs for it."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.empty(BATCH_SIZE).exponential_(1 / MEAN_OBJECTS, generator=generator).round()
    counts = counts.long().clamp(max=MOST_OBJECTS)
    counts[0] = 0
    shape = (BATCH_SIZE, int(counts.max()))
    is_padding = torch.arange(shape[1]) >= counts[:, None]
    size = (torch.randn(*shape, 2, generator=generator) * 0.8 - 1.7).exp().clamp(0.02, 0.95)
    corner = torch.rand(*shape, 2, generator=generator) * (1 - size)
    class_logits = torch.randn(BATCH_SIZE, len(ANCHORS), NUM_CLASSES + 1, generator=generator)
    class_logits[..., 0] += 5  # most anchors are background, and most are known to be
    return {
        "boxes_xyxy": torch.cat([corner, corner + size], dim=-1).masked_fill(is_padding[..., None], 0),
        "labels": torch.randint(1, NUM_CLASSES + 1, shape, generator=generator).masked_fill(is_padding, 0),
        "box_deltas": torch.randn(BATCH_SIZE, len(ANCHORS), 4, generator=generator).requires_grad_(),
        "class_logits": class_logits.requires_grad_(),
    }


def torchvision_step(batch: dict[str, Tensor]) -> Callable[[], Gradients]:
    """Matching, loss and gradients as SSD.forward has them, given the targets as its data loaders do."""
    boxes = DefaultBoxGenerator([list(ratios) for ratios in ASPECT_RATIOS])
    ssd = SSD(nn.Identity(), boxes, (SIDE, SIDE), NUM_CLASSES + 1, head=nn.Identity())
    anchors_xyxy, matcher = box_convert(ANCHORS, "cxcywh", "xyxy"), SSDMatcher(MATCH_IOU)
    pairs = zip(batch["boxes_xyxy"], batch["labels"], strict=True)
    targets = [{"boxes": boxes[labels > 0], "labels": labels[labels > 0]} for boxes, labels in pairs]
    outputs = {"bbox_regression": batch["box_deltas"], "cls_logits": batch["class_logits"]}

    def step() -> Gradients:
        matched = [
            matcher(box_iou(target["boxes"], anchors_xyxy))
            if len(target["boxes"])
            else torch.full((len(ANCHORS),), -1, dtype=torch.int64)
            for target in targets
        ]
        losses = ssd.compute_loss(targets, outputs, [anchors_xyxy] * BATCH_SIZE, matched)
        return torch.autograd.grad(losses["bbox_regression"] + losses["classification"], list(outputs.values()))

    return step


def loss_per_positive(batch: dict[str, Tensor], anchors_cxcywh: Tensor) -> Tensor:
    """Matching and both losses, as torchvision divides them."""
    matched = match_anchors(batch["boxes_xyxy"], batch["labels"], anchors_cxcywh, MATCH_IOU)
    sums = multibox_loss(
        **batch, matched=matched, anchors_cxcywh=anchors_cxcywh, negatives_per_positive=NEGATIVES_PER_POSITIVE
    )
    return (sums["box"] + sums["classification"]) / sums["num_positives"]


def our_step(batch: dict[str, Tensor], loss: Callable[[dict[str, Tensor], Tensor], Tensor]) -> Callable[[], Gradients]:
    """Matching, loss and gradients by `loss`, which is loss_per_positive or what a compiler made of it."""
    outputs = [batch["box_deltas"], batch["class_logits"]]
    anchors_cxcywh = ANCHORS.to(outputs[0].device)
    return lambda: torch.autograd.grad(loss(batch, anchors_cxcywh), outputs)


class OperatorCount(TorchDispatchMode):
    """Counts the operators dispatched, and those that need a value on the host: a GPU would be waited for."""

    WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators += 1
        self.waits += func.name().partition(".")[0] in self.WAITS or (
            func.name() == "aten::index.Tensor"
            and any(index is not None and index.dtype == torch.bool for index in args[1])
        )
        return func(*args, **(kwargs or {}))


def count(step: Callable[[], Gradients]) -> OperatorCount:
    """Of one call."""
    with OperatorCount() as counted:
        step()
    return counted


def main(device: torch.device) -> None:
    """Compare, and write the page. Raises RunError if the gradients differ."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()  # --help measures nothing
    torch.set_num_threads(1)
    batch = draw(seed=0)
    for name in ("boxes_xyxy", "labels"):  # the padding differs from batch to batch
        torch._dynamo.maybe_mark_dynamic(batch[name], 1)
    theirs, eager = torchvision_step(batch), our_step(batch, loss_per_positive)
    compiled = our_step(batch, torch.compile(loss_per_positive))
    expected = theirs()
    for name, step in (("eager", eager), ("compiled", compiled)):
        error = max((a - b).abs().max().item() for a, b in zip(step(), expected, strict=True))
        if error > TOLERANCE:
            raise RunError(f"{name}: gradients differ from torchvision's by {error:.2g}")
    seconds = turn_by_turn([theirs, eager, compiled], ROUNDS)
    theirs_ms, eager_ms, compiled_ms = (1000 * taken for taken in seconds)

    on_meta = {name: tensor.detach().to("meta").requires_grad_(tensor.requires_grad) for name, tensor in batch.items()}
    counts = [count(step) for step in (theirs, eager, our_step(on_meta, loss_per_positive))]
    operators = [counted.operators for counted in counts]
    rows = [
        Row("matching, loss, gradients", "torchvision", theirs_ms, eager_ms, "ms", 1.0),
        Row("the same, compiled", "torchvision", theirs_ms, compiled_ms, "ms", 2.5),
        Row("operators on a CPU", "torchvision", operators[0], operators[1], "", 10),
        Row("operators on an accelerator", "torchvision", operators[0], operators[2], "", 10),
    ]
    kept = os.environ.get("MALLOC_TRIM_THRESHOLD_", "the system's default")
    write_page(
        __file__,
        f"""# Matching and MultiBox loss

{BATCH_SIZE} images of 8,732 boxes and {NUM_CLASSES + 1} logits, {(batch["labels"] > 0).sum()} objects, forward and \
backward; process time; MALLOC_TRIM_THRESHOLD_: {kept}. Gradients are torchvision's to {TOLERANCE:g}.

{{rows}}

Waits for the device: torchvision {counts[0].waits}, ours {counts[2].waits} on an accelerator (and {counts[1].waits} \
on a CPU, where they cost nothing).
""",
        rows,
        device,
    )


if __name__ == "__main__":
    run_command(main)
