"""Assignment, losses and gradients of a batch, compared with torchvision's SSD and RetinaNet.

    OMP_NUM_THREADS=1 python -m benchmarks.loss

32 images, each with 8,732 default boxes, 80 classes and 0 to 60 objects (7 on average, as in COCO). Operators are also
counted, on a CPU and on the meta device (in place of a GPU). Where torchvision defines the same losses, gradients may
differ by 1e-6. All contenders are faster if MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ are set to a gigabyte.
Takes four minutes.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou

from benchmarks.comparison import Page, Row, run_benchmark, time_alternating
from benchmarks.peers import ANCHORS, ANCHORS_XYXY, CELLS_PER_LEVEL, NUM_CLASSES, torchvision_ssd
from detection.network.assignment.matching import match_anchors
from detection.network.loss import SCORE_FUNCTIONS, Criterion
from engine.command import RunError

BATCH_SIZE, MEAN_OBJECTS, MAX_OBJECTS = 32, 7.3, 60
TOLERANCE = 1e-6
ROUNDS = 9

# Settings of LossConfig besides the defaults and focal loss. torchvision has no such criterion, so each is compared
# with the loss of torchvision's SSD.
VARIANTS = {
    "giou": {"box": "giou"},
    "ciou": {"box": "ciou"},
    "atss": {"assignment": "atss"},
    "pisa": {"reweight": "pisa"},
    "quality_focal": {"classification": "quality_focal"},
    "quality_focal, atss, giou": {"classification": "quality_focal", "assignment": "atss", "box": "giou"},
    "quality_focal, task_aligned, giou": {
        "classification": "quality_focal",
        "assignment": "task_aligned",
        "box": "giou",
    },
}

Batch = dict[str, Tensor]
Gradients = tuple[Tensor, ...]  # with respect to box_deltas and class_logits


def random_batch(seed: int) -> Batch:
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


def retinanet_head() -> RetinaNetHead:
    """Return the head of torchvision's RetinaNet, for its loss, with SSD's box loss."""
    head = RetinaNetHead(in_channels=1, num_anchors=1, num_classes=NUM_CLASSES)
    head.regression_head.box_coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    head.regression_head._loss_type = "smooth_l1"
    return head


def torchvision_step(batch: Batch, compute_loss: Callable[..., dict[str, Tensor]], first_label: int) -> Callable:
    """Return a function that computes matching, loss and gradients as in torchvision's SSD.forward.

    compute_loss: method of an SSD or a RetinaNetHead. first_label: column of the first class in the logits."""
    matcher = SSDMatcher(0.5)
    pairs = zip(batch["boxes_xyxy"], batch["labels"], strict=True)
    targets = [{"boxes": boxes[labels > 0], "labels": labels[labels > 0] - 1 + first_label} for boxes, labels in pairs]
    outputs = {"bbox_regression": batch["box_deltas"], "cls_logits": batch["class_logits"]}
    none = torch.full((len(ANCHORS),), -1)

    def step() -> Gradients:
        matched = [
            matcher(box_iou(target["boxes"], ANCHORS_XYXY)) if len(target["boxes"]) else none for target in targets
        ]
        losses = compute_loss(targets, outputs, [ANCHORS_XYXY] * BATCH_SIZE, matched)
        return torch.autograd.grad(losses["bbox_regression"] + losses["classification"], list(outputs.values()))

    return step


def our_step(batch: Batch, criterion: Callable) -> Callable[[], Gradients]:
    """Return a function that computes assignment, loss and gradients of a criterion, which may be compiled.

    The losses are divided by the count, as in training."""
    outputs = [batch["box_deltas"], batch["class_logits"]]
    anchors_cxcywh = ANCHORS.to(outputs[0].device)

    def step() -> Gradients:
        losses, count = criterion(**batch, anchors_cxcywh=anchors_cxcywh)
        return torch.autograd.grad(sum(losses.values()) / count, outputs)

    return step


def with_sigmoids(batch: Batch) -> Batch:
    """Return the batch without the logits of background."""
    return batch | {"class_logits": batch["class_logits"].detach()[..., 1:].contiguous().requires_grad_()}


def per_image(gradients: Gradients, batch: Batch) -> Gradients:
    """Rescale gradients of a loss that was divided by the number of positives of the batch.

    The result is as if the loss of each image was divided by its own number of positives, then averaged (RetinaNet)."""
    num_positives = (match_anchors(batch["boxes_xyxy"], batch["labels"], ANCHORS) >= 0).sum(dim=1)
    scale = num_positives.sum() / num_positives.clamp(min=1) / BATCH_SIZE
    return tuple(gradient * scale[:, None, None] for gradient in gradients)


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


def count_operators(step: Callable[[], Gradients]) -> OperatorCount:
    """Count the operators and synchronisations of one call."""
    with OperatorCount() as count:
        step()
    return count


def on_accelerator(batch: Batch, criterion: Criterion, batch_size: int = BATCH_SIZE) -> Callable[[], Gradients]:
    """Return our_step for the first images of the batch on the meta device, which takes the code path of a GPU."""
    tensors = {name: tensor[:batch_size].detach().to("meta") for name, tensor in batch.items()}
    return our_step({name: t.requires_grad_(t.is_floating_point()) for name, t in tensors.items()}, criterion)


def check(name: str, gradients: Gradients, expected: Gradients) -> None:
    """Raise RunError if gradients differ from torchvision's."""
    error = max((a - b).abs().max().item() for a, b in zip(gradients, expected, strict=True))
    if error > TOLERANCE:
        raise RunError(f"{name}: gradients differ from torchvision's by {error:.2g}")


def measure(device: torch.device) -> Page:
    """Time all contenders and count their operators. Raises RunError if the gradients differ."""
    softmax = random_batch(seed=0)
    batches = {"softmax": softmax, "sigmoid": with_sigmoids(softmax)}
    default, focal = Criterion(CELLS_PER_LEVEL), Criterion(CELLS_PER_LEVEL, classification="focal")
    variants = {what: Criterion(CELLS_PER_LEVEL, **settings) for what, settings in VARIANTS.items()}
    criteria = {"default": default, "focal": focal} | variants
    batch_of = {what: batches[SCORE_FUNCTIONS[criterion.classification]] for what, criterion in criteria.items()}

    ssd = torchvision_step(softmax, torchvision_ssd().compute_loss, first_label=1)
    retinanet = torchvision_step(batches["sigmoid"], retinanet_head().compute_loss, first_label=0)
    steps = {what: our_step(batch_of[what], criterion) for what, criterion in criteria.items()}
    compiled = our_step(softmax, torch.compile(default, dynamic=True))  # as in DetectionTask.compile
    expected = ssd()
    check("eager", steps["default"](), expected)
    check("compiled", compiled(), expected)
    check("focal", per_image(steps["focal"](), softmax), retinanet())

    seconds = time_alternating([ssd, retinanet, compiled, *steps.values()], ROUNDS)
    ssd_ms, retinanet_ms, compiled_ms, *our_ms = (1000 * s for s in seconds)
    our_ms = dict(zip(steps, our_ms, strict=True))

    peer, on_cpu = count_operators(ssd), count_operators(steps["default"])
    on_gpu = {what: count_operators(on_accelerator(batch_of[what], criteria[what])) for what in criteria}
    of_two = {what: count_operators(on_accelerator(batch_of[what], criteria[what], batch_size=2)) for what in criteria}
    most = max(count.operators for count in on_gpu.values())
    synchronisations = sum(count.synchronisations for count in on_gpu.values())
    grows = [what for what in criteria if on_gpu[what].operators != of_two[what].operators]
    rows = [
        Row("matching, loss, gradients", "torchvision SSD", ssd_ms, our_ms["default"], "ms", 1.0),
        Row("the same, compiled", "torchvision SSD", ssd_ms, compiled_ms, "ms", 2.5),
        Row("with focal", "torchvision RetinaNet", retinanet_ms, our_ms["focal"], "ms", 1.0),
        *(Row(f"with {what}", "torchvision SSD", ssd_ms, our_ms[what], "ms", 1.0) for what in VARIANTS),
        Row("operators on a CPU", "torchvision SSD", peer.operators, on_cpu.operators, "", 10),
        Row("operators on an accelerator", "torchvision SSD", peer.operators, on_gpu["default"].operators, "", 10),
        Row("operators on an accelerator, maximum of all losses above", "torchvision SSD", peer.operators, most, "", 3),
    ]
    trim_threshold = os.environ.get("MALLOC_TRIM_THRESHOLD_", "the system's default")
    text = f"""# Assignment and losses

{BATCH_SIZE} images of 8,732 boxes and {NUM_CLASSES} classes, {(softmax["labels"] > 0).sum()} objects, forward and \
backward; process time; MALLOC_TRIM_THRESHOLD_: {trim_threshold}. The gradients of the first three rows equal \
torchvision's to {TOLERANCE:g}.

{{rows}}

Synchronisations with the device: torchvision {peer.synchronisations}, ours {synchronisations} on an accelerator for \
all losses together, and {on_cpu.synchronisations} on a CPU, where they cost nothing. On an accelerator, 2 images need \
as many operators as {BATCH_SIZE}.
"""
    return Page(text, rows, [f"{what}: operators grow with the batch" for what in grows])


if __name__ == "__main__":
    run_benchmark(measure)
