"""The MultiBox loss with hard negative mining (SSD, arXiv 1512.02325, section 2.2, eq. 1), and its plateau.

Equal to torchvision's SSD.compute_loss in value and gradient, for the whole batch at once: the number of
operators does not grow with the batch, and none of them needs a value on the host, so a GPU never waits.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detection.boxes import encode_boxes
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
    negatives: those that the network least believes to be background. Box regression is smooth L1 over the
    positives, summed over the four coordinates. Computed in float32, also under autocast. Without a positive in
    the batch the sums are zero and still differentiable, so that under DDP such a rank stays in step.

    box_deltas: (B, A, 4) float. class_logits: (B, A, num_classes + 1) float, 0 = background.
    matched: (B, A) int64, from match_anchors: the object's index, or -1.
    boxes_xyxy: (B, M, 4) float, fractions of the image side. labels: (B, M) int64, 1..num_classes, 0 = padding.
    anchors_cxcywh: (A, 4) float, fractions of the image side.
    negatives_per_positive: hardest negatives per positive of the same image, as far as the image has them.
    Returns {"classification": (), "box": (), "num_positives": ()}: float32 sums, int64 count.
    """
    num_anchors = matched.shape[1]
    is_positive = matched >= 0  # (B, A)
    num_positives = is_positive.sum(dim=1, keepdim=True)  # (B, 1)
    object_index = matched.clamp(min=0)

    anchor_labels = labels.gather(1, object_index).masked_fill(~is_positive, 0)  # (B, A)
    row_losses = F.cross_entropy(class_logits.float().flatten(0, 1), anchor_labels.flatten(), reduction="none")
    cross_entropy = row_losses.view_as(matched)  # (B, A)
    hardest_first = cross_entropy.masked_fill(is_positive, -torch.inf).sort(dim=1, descending=True).values
    num_negatives = torch.minimum(num_positives * negatives_per_positive, num_anchors - num_positives)
    is_mined = torch.arange(num_anchors, device=matched.device) < num_negatives  # (B, A), of hardest_first
    classification = cross_entropy.where(is_positive, 0).sum() + hardest_first.where(is_mined, 0).sum()

    # Selecting the positives would make a GPU wait for their number. Instead the target of every other anchor is
    # its own prediction: no loss and no gradient, exactly.
    box_deltas = box_deltas.float()
    object_boxes_xyxy = boxes_xyxy.gather(1, object_index[..., None].expand(-1, -1, 4))  # (B, A, 4)
    box_targets = encode_boxes(object_boxes_xyxy, anchors_cxcywh).where(is_positive[..., None], box_deltas.detach())
    box = F.smooth_l1_loss(box_deltas, box_targets, reduction="sum")

    return {"classification": classification, "box": box, "num_positives": num_positives.sum()}


def constant_predictor_loss(class_counts: Sequence[int] | Tensor, negatives_per_positive: int) -> float:
    """Return the classification loss per positive of the best predictor that tells no two anchors apart.

    It is the plateau on which a network that learns nothing settles; training has begun to work when the logged
    loss falls below it. Derivation: let every anchor get the same probabilities p. Of the positives, a fraction
    f_c is of class c; beside each positive, k negatives are trained, all equally hard. Per positive the loss is

        -sum_c f_c log p_c - k log p_0  =  (k + 1) H(q, p)   with   q = (k, f_1, ..., f_C) / (k + 1),

    a cross-entropy, which is least at p = q (Gibbs' inequality): (k + 1) H(q), with H the entropy in nats.

    class_counts: (num_classes,) positives of each foreground class, at least 0; the counts of the objects serve
        as an estimate.
    negatives_per_positive: k.
    Raises ValueError if there is nothing to count.
    """
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    if not counts.sum() > 0:
        raise ValueError(f"class counts {counts.tolist()}: expected at least one object")
    k = negatives_per_positive
    target = torch.cat([counts.new_tensor([k]), counts / counts.sum()]) / (k + 1)
    return (k + 1) * torch.special.entr(target).sum().item()
