"""The MultiBox loss with hard negative mining (SSD, arXiv 1512.02325, section 2.2, eq. 1), and its plateau.

Equal to torchvision's SSD.compute_loss in value and gradient, for the whole batch at once and without waits for a GPU.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detection.network.boxes import encode_boxes
from detection.network.matching import CPU_PIECES
from engine.config import Config


class LossConfig(Config):
    """What counts as a positive, how many negatives train beside it, and how much its box weighs."""

    box_weight: float = Field(
        1.0,
        ge=0,
        description="weight of the box loss, smooth L1 summed over the four coordinates, beside the classification "
        "loss: 1.0 is the SSD paper's; 0.25 is the reference code's, which averaged over the four coordinates",
    )
    negatives_per_positive: int = Field(3, gt=0, description="hardest background boxes trained per matched box")
    match_iou: float = Field(
        0.5, gt=0, le=1, description="overlap (IoU) from which a default box is matched to an object"
    )


def multibox_loss(
    box_deltas: Tensor,
    class_logits: Tensor,
    matched: Tensor,
    boxes_xyxy: Tensor,
    labels: Tensor,
    anchors_cxcywh: Tensor,
    negatives_per_positive: int,
) -> dict[str, Tensor]:
    """Sum both losses over the batch; the caller divides by the number of positives of the global batch.

    Classification is the softmax cross-entropy of the positives (the matched anchors) and of each image's hardest
    negatives, which have the lowest probability of background. Box regression is smooth L1 over the positives, summed
    over the four coordinates. Computed in float32, also under autocast. Without a positive in the batch the sums are
    zero and still differentiable, so that under DDP such a rank stays in step.

    box_deltas: (B, A, 4) float. class_logits: (B, A, num_classes + 1) float, 0 = background.
    matched: (B, A) int64, from match_anchors: the object's index, or -1.
    boxes_xyxy: (B, M, 4) float, fractions of the image side. labels: (B, M) int64, 1..num_classes, 0 = padding.
    anchors_cxcywh: (A, 4) float, fractions of the image side.
    negatives_per_positive: hardest negatives per positive of the same image, as far as the image has them.
    Returns {"classification": (), "box": (), "num_positives": ()}: float32 sums, int64 count.
    """
    num_images, num_anchors = matched.shape
    is_positive = matched >= 0  # (B, A)
    num_positives = is_positive.sum()
    is_trained = _trained_anchors(class_logits, is_positive, negatives_per_positive)  # (B, A)

    # A CPU pays for every row, so it selects those trained; a GPU would wait to know how many these are, so it takes
    # all rows and lets the others count nothing.
    rows = is_trained.nonzero(as_tuple=True) if is_trained.is_cpu else ...  # R: n, or B, A
    is_positive, is_trained, object_index = is_positive[rows], is_trained[rows], matched.clamp(min=0)[rows]  # (R)
    image = torch.arange(num_images, device=matched.device)[:, None].expand(-1, num_anchors)[rows]  # (R)

    row_labels = labels[image, object_index].masked_fill(~is_positive, 0)  # (R)
    row_logits = class_logits[rows].float()  # (R, num_classes + 1)
    cross_entropy = F.cross_entropy(row_logits.flatten(0, -2), row_labels.flatten(), reduction="none")
    classification = cross_entropy.where(is_trained.flatten(), 0).sum()

    # The target of an anchor that is not positive is its own prediction: no loss and no gradient, exactly.
    row_deltas = box_deltas[rows].float()  # (R, 4)
    row_anchors = anchors_cxcywh.expand(num_images, -1, -1)[rows]  # (R, 4)
    box_targets = encode_boxes(boxes_xyxy[image, object_index], row_anchors)
    box_targets = box_targets.where(is_positive[..., None], row_deltas.detach())
    box = F.smooth_l1_loss(row_deltas, box_targets, reduction="sum")

    return {"classification": classification, "box": box, "num_positives": num_positives}


@torch.no_grad()
def _trained_anchors(class_logits: Tensor, is_positive: Tensor, negatives_per_positive: int) -> Tensor:
    """Choose the anchors whose class is trained: the positives and each image's hardest negatives. (B, A) bool."""
    num_trained = is_positive.sum(dim=1, keepdim=True) * (1 + negatives_per_positive)  # (B, 1)
    hardness = _background_cross_entropy(class_logits).masked_fill(is_positive, torch.inf)  # (B, A)
    if hardness.is_cpu:  # sorts no more than the fullest image needs, a number that a GPU would have to wait for
        most = min(int(num_trained.max()), hardness.shape[1])
        hardest_first = hardness.topk(most, dim=1).indices
    else:
        hardest_first = hardness.argsort(dim=1, descending=True, stable=True)
    is_among_first = torch.arange(hardest_first.shape[1], device=hardness.device) < num_trained
    return torch.zeros_like(is_positive).scatter_(1, hardest_first, is_among_first)


def _background_cross_entropy(class_logits: Tensor) -> Tensor:
    """Return -log of the background's softmax probability for class_logits (B, A, num_classes + 1): (B, A) float32."""
    if not class_logits.is_cpu or torch.compiler.is_compiling():
        return -class_logits.log_softmax(dim=-1, dtype=torch.float32)[..., 0]
    # On a CPU it takes longer to get memory for all classes' probabilities than to fill it: one piece at a time.
    rows, result = class_logits.flatten(0, 1), torch.empty(class_logits.shape[:2])
    pieces = rows.chunk(CPU_PIECES)
    buffer = torch.empty_like(pieces[0], dtype=torch.float32)
    for piece, piece_result in zip(pieces, result.flatten().chunk(CPU_PIECES), strict=True):
        log_probabilities = torch.log_softmax(piece, dim=-1, dtype=torch.float32, out=buffer[: len(piece)])
        torch.neg(log_probabilities[:, 0], out=piece_result)
    return result


def constant_predictor_loss(class_counts: Sequence[int] | Tensor, negatives_per_positive: int) -> float:
    """Return the classification loss per positive of the best constant predictor: the plateau of a network that learns
    nothing.

    If every anchor gets the same probabilities p, a fraction f_c of the positives is of class c, and beside each
    positive k negatives are trained, the loss per positive is (k + 1) H(q, p), q = (k, f_1, ..., f_C) / (k + 1), a
    cross-entropy, which is least at p = q: (k + 1) H(q), with H the entropy in nats.

    class_counts: (num_classes,) positives of each foreground class, estimated by the counts of the objects.
    negatives_per_positive: k. Raises ValueError if there is nothing to count."""
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    if not counts.sum() > 0:
        raise ValueError(f"class counts {counts.tolist()}: expected at least one object")
    k = negatives_per_positive
    target = torch.cat([counts.new_tensor([k]), counts / counts.sum()]) / (k + 1)
    return (k + 1) * torch.special.entr(target).sum().item()
