"""MultiBox loss with hard negative mining (SSD, arXiv 1512.02325, section 2.2, eq. 1).

Value and gradient equal those of torchvision's SSD.compute_loss. A whole batch is computed without GPU synchronisation.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detection.network.boxes import encode_boxes
from detection.network.matching import CPU_CHUNKS
from engine.config import Config


class LossConfig(Config):
    """Settings of anchor matching and of the MultiBox loss."""

    box_weight: float = Field(
        1.0,
        ge=0,
        description="weight of the box loss (smooth L1 summed over four coordinates) relative to the classification "
        "loss: 1.0 in the SSD paper; 0.25 equals the reference code, which averaged over the coordinates",
    )
    negatives_per_positive: int = Field(3, gt=0, description="hardest background boxes to train on per matched box")
    match_iou: float = Field(0.5, gt=0, le=1, description="smallest IoU at which a default box matches an object")


def multibox_loss(
    box_deltas: Tensor,
    class_logits: Tensor,
    matched: Tensor,
    boxes_xyxy: Tensor,
    labels: Tensor,
    anchors_cxcywh: Tensor,
    negatives_per_positive: int,
) -> dict[str, Tensor]:
    """Compute the two MultiBox losses, summed over the batch.

    The caller divides the sums by the number of positives in the global batch. The classification loss is the softmax
    cross-entropy of the positives (the matched anchors) and of each image's hardest negatives, those with the lowest
    background probability. The box loss is smooth L1 over the positives, summed over the four coordinates. Both are
    computed in float32, also under autocast. Without positives, both sums are zero but differentiable, so that the rank
    still takes part in DDP's all-reduce.

    box_deltas: (B, A, 4) float. class_logits: (B, A, num_classes + 1) float, 0 = background.
    matched: (B, A) int64, from match_anchors: the index of the matched object, or -1.
    boxes_xyxy: (B, M, 4) float, fractions of the image side. labels: (B, M) int64, 1..num_classes, 0 = padding.
    anchors_cxcywh: (A, 4) float, fractions of the image side.
    negatives_per_positive: negatives to train on per positive of the same image, if the image has that many.
    Returns {"classification": (), "box": (), "num_positives": ()}: float32 sums and an int64 count."""
    num_images, num_anchors = matched.shape
    is_positive = matched >= 0  # (B, A)
    num_positives = is_positive.sum()
    is_trained = _trained_anchors(class_logits, is_positive, negatives_per_positive)  # (B, A)

    # On the CPU only trained rows are computed. On a GPU, selecting them would synchronise (their number is not known
    # in advance), so all rows are computed and the untrained ones are masked.
    rows = is_trained.nonzero(as_tuple=True) if is_trained.is_cpu else ...  # R is (n,) on the CPU, (B, A) on a GPU
    is_positive, is_trained, object_index = is_positive[rows], is_trained[rows], matched.clamp(min=0)[rows]  # (R)
    image = torch.arange(num_images, device=matched.device)[:, None].expand(-1, num_anchors)[rows]  # (R)

    row_labels = labels[image, object_index].masked_fill(~is_positive, 0)  # (R)
    row_logits = class_logits[rows].float()  # (R, num_classes + 1)
    cross_entropy = F.cross_entropy(row_logits.flatten(0, -2), row_labels.flatten(), reduction="none")
    classification = cross_entropy.where(is_trained.flatten(), 0).sum()

    # The target of a negative anchor is its own prediction, so its loss and gradient are exactly zero.
    row_deltas = box_deltas[rows].float()  # (R, 4)
    row_anchors = anchors_cxcywh.expand(num_images, -1, -1)[rows]  # (R, 4)
    box_targets = encode_boxes(boxes_xyxy[image, object_index], row_anchors)
    box_targets = box_targets.where(is_positive[..., None], row_deltas.detach())
    box = F.smooth_l1_loss(row_deltas, box_targets, reduction="sum")

    return {"classification": classification, "box": box, "num_positives": num_positives}


@torch.no_grad()
def _trained_anchors(class_logits: Tensor, is_positive: Tensor, negatives_per_positive: int) -> Tensor:
    """Return which anchors the classification loss uses: positives and each image's hardest negatives, (B, A) bool."""
    num_trained = is_positive.sum(dim=1, keepdim=True) * (1 + negatives_per_positive)  # (B, 1)
    hardness = _background_cross_entropy(class_logits).masked_fill(is_positive, torch.inf)  # (B, A)
    if hardness.is_cpu:  # sort only as many anchors as needed; on a GPU, reading this number would synchronise
        max_trained = min(int(num_trained.max()), hardness.shape[1])
        hardest_first = hardness.topk(max_trained, dim=1).indices
    else:
        hardest_first = hardness.argsort(dim=1, descending=True, stable=True)
    is_among_first = torch.arange(hardest_first.shape[1], device=hardness.device) < num_trained
    return torch.zeros_like(is_positive).scatter_(1, hardest_first, is_among_first)


def _background_cross_entropy(class_logits: Tensor) -> Tensor:
    """Return -log of the softmax probability of background, (B, A) float32, from logits (B, A, num_classes + 1)."""
    if not class_logits.is_cpu or torch.compiler.is_compiling():
        return -class_logits.log_softmax(dim=-1, dtype=torch.float32)[..., 0]
    # On a CPU, allocating memory for all log probabilities takes longer than computing them, so chunks share a buffer.
    rows, result = class_logits.flatten(0, 1), torch.empty(class_logits.shape[:2])
    chunks = rows.chunk(CPU_CHUNKS)
    buffer = torch.empty_like(chunks[0], dtype=torch.float32)
    for chunk, chunk_result in zip(chunks, result.flatten().chunk(CPU_CHUNKS), strict=True):
        log_probabilities = torch.log_softmax(chunk, dim=-1, dtype=torch.float32, out=buffer[: len(chunk)])
        torch.neg(log_probabilities[:, 0], out=chunk_result)
    return result


def constant_predictor_loss(class_counts: Sequence[int] | Tensor, negatives_per_positive: int) -> float:
    """Return the classification loss per positive of the best constant predictor.

    A network that has learned nothing plateaus at this loss. Let a constant predictor give every anchor the
    probabilities p. If a fraction f_c of the positives has class c and k negatives are trained per positive, the loss
    per positive is (k + 1) H(q, p), where H(q, p) is the cross-entropy and q = (k, f_1, ..., f_C) / (k + 1). The
    minimum, at p = q, is (k + 1) H(q), where H(q) is the entropy in nats.

    class_counts: (num_classes,) number of objects of each class, whose shares estimate f_c.
    negatives_per_positive: k. Raises ValueError if all counts are zero."""
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    if not counts.sum() > 0:
        raise ValueError(f"class counts {counts.tolist()}: expected at least one object")
    k = negatives_per_positive
    target = torch.cat([counts.new_tensor([k]), counts / counts.sum()]) / (k + 1)
    return (k + 1) * torch.special.entr(target).sum().item()
