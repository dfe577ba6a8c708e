"""MultiBox loss with hard negative mining (SSD, arXiv 1512.02325, section 2.2, eq. 1).

Losses and gradients are the same as in torchvision's SSD.compute_loss. A batch is computed without GPU synchronisation.
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
        description="weight of the box loss (smooth L1, summed over four coordinates) relative to the classification "
        "loss; 1.0 as in the SSD paper; 0.25 as in the reference code, which averages over the coordinates",
    )
    negatives_per_positive: int = Field(3, gt=0, description="number of hard negatives to train on per matched box")
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

    Positives are the matched anchors. An image's hardest negatives are the unmatched anchors with the lowest background
    probability. The classification loss is the softmax cross-entropy of the positives and hardest negatives. The box
    loss is smooth L1 of the positives, summed over the four coordinates. Both losses are computed in float32, also
    under autocast. The caller divides the sums by the number of positives in the global batch. Without positives, both
    sums are zero but differentiable, so that the rank still takes part in DDP's all-reduce.

    box_deltas: (B, A, 4) float. class_logits: (B, A, num_classes + 1) float, 0 = background.
    matched: (B, A) int64, from match_anchors: the index of the matched object, or -1.
    boxes_xyxy: (B, M, 4) float, fractions of the image side. labels: (B, M) int64, 1..num_classes, 0 = padding.
    anchors_cxcywh: (A, 4) float, fractions of the image side.
    negatives_per_positive: number of negatives per positive of the same image; fewer if the image has not enough.
    Returns {"classification": (), "box": (), "num_positives": ()}: float32 sums and an int64 count."""
    num_images, num_anchors = matched.shape
    is_positive = matched >= 0  # (B, A)
    num_positives = is_positive.sum()
    is_trained = _trained_anchors(class_logits, is_positive, negatives_per_positive)  # (B, A)

    # A row holds the values of one anchor. On the CPU, only rows of trained anchors are computed. On a GPU, selecting
    # rows would synchronise, because their number is not known in advance. So untrained rows are computed and masked.
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
    """Return a mask (B, A) bool of the anchors in the classification loss: positives and hardest negatives."""
    num_trained = is_positive.sum(dim=1, keepdim=True) * (1 + negatives_per_positive)  # (B, 1)
    hardness = _background_cross_entropy(class_logits).masked_fill(is_positive, torch.inf)  # (B, A)
    if hardness.is_cpu:  # find only as many anchors as needed; on a GPU, reading this number would synchronise
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

    The loss stays at this value if a network learns nothing from the images. A constant predictor gives every anchor
    the same class probabilities p, background first. Let a fraction f_c of the positives have class c, let k
    negatives be trained per positive, and let q = (k, f_1, ..., f_C) / (k + 1). The loss per positive is (k + 1) times
    the cross-entropy H(q, p). Its minimum, at p = q, is (k + 1) times the entropy H(q) in nats.

    class_counts: (num_classes,) number of objects of each class; f_c is estimated as the share of class c.
    negatives_per_positive: k. Raises ValueError if all counts are zero."""
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    if not counts.sum() > 0:
        raise ValueError(f"class counts {counts.tolist()}: expected at least one object")
    k = negatives_per_positive
    target = torch.cat([counts.new_tensor([k]), counts / counts.sum()]) / (k + 1)
    return (k + 1) * torch.special.entr(target).sum().item()
