"""Box losses of the positive anchors: smooth L1 of the offsets (SSD), and 1 - GIoU or 1 - CIoU of the decoded boxes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, generalized_box_iou_loss

from detection.network.boxes import decode_boxes, encode_boxes
from detection.network.matching import paired_iou

# torchvision's losses add 1e-7 to areas, which would matter for small boxes in fractions of the image side.
PIXELS = 1024


class Rows(NamedTuple):
    """Values of some or all anchors, one row each. Their shape R is (n,), (B, K) or (B, A)."""

    index: Any  # selects the rows from a tensor (B, A, ...)
    is_positive: Tensor  # (R) bool
    labels: Tensor  # (R) int64, 1..num_classes, 0 for a negative
    objects: Tensor  # (R) int64, index of the matched object in its image; 0 for a negative
    deltas: Tensor  # (R, 4) float32, predicted
    anchors_cxcywh: Tensor  # (R, 4)
    boxes_xyxy: Tensor  # (R, 4), the matched object; any object for a negative


def select_rows(
    index: Any, matched: Tensor, box_deltas: Tensor, boxes_xyxy: Tensor, labels: Tensor, anchors_cxcywh: Tensor
) -> Rows:
    """Return the rows that `index` selects from a tensor (B, A, ...).

    matched: (B, A) int64, the index of the object, or -1. box_deltas: (B, A, 4). boxes_xyxy: (B, M, 4).
    labels: (B, M) int64. anchors_cxcywh: (A, 4)."""
    num_images, num_anchors = matched.shape
    is_positive, object_index = (matched >= 0)[index], matched.clamp(min=0)[index]
    image = torch.arange(num_images, device=matched.device)[:, None].expand(-1, num_anchors)[index]
    return Rows(
        index,
        is_positive,
        labels[image, object_index].masked_fill(~is_positive, 0),
        object_index,
        box_deltas[index].float(),
        anchors_cxcywh.expand(num_images, -1, -1)[index],
        boxes_xyxy[image, object_index],
    )


def used_rows(is_used: Tensor) -> Any:
    """Return an index of the anchors where is_used (B, A) is true: on a CPU of these only, on a GPU of all anchors.

    On a GPU, selecting rows would synchronise, because their number is not known in advance."""
    return is_used.nonzero(as_tuple=True) if is_used.is_cpu else ...


def smooth_l1(rows: Rows) -> Tensor:
    """Return smooth L1 of each row's offsets from the anchor, (R, 4): one value per coordinate.

    The target of a negative row is its own prediction, so that its loss and gradient are exactly zero."""
    targets = encode_boxes(rows.boxes_xyxy, rows.anchors_cxcywh)
    targets = targets.where(rows.is_positive[..., None], rows.deltas.detach())
    return F.smooth_l1_loss(rows.deltas, targets, reduction="none")


def iou_loss(function: Callable[..., Tensor], rows: Rows) -> Tensor:
    """Return a loss of torchvision.ops for each row's decoded box, (R, 1); zero for a negative row."""
    predicted, targets = _decoded(rows)
    loss = function(predicted.flatten(0, -2) * PIXELS, targets.flatten(0, -2) * PIXELS)
    return loss.view(rows.is_positive.shape).where(rows.is_positive, 0)[..., None]


@torch.no_grad()
def predicted_iou(rows: Rows) -> Tensor:
    """Return the IoU (R,) of each positive row's decoded box with its object; 0 for a negative row."""
    return paired_iou(*_decoded(rows)).where(rows.is_positive, 0)


def _decoded(rows: Rows) -> tuple[Tensor, Tensor]:
    """Return the predicted boxes and the objects, both xyxy (R, 4). For a negative row, both are the anchor."""
    is_positive = rows.is_positive[..., None]
    predicted = decode_boxes(rows.deltas.where(is_positive, 0), rows.anchors_cxcywh)
    return predicted, rows.boxes_xyxy.where(is_positive, predicted.detach())


def giou(rows: Rows) -> Tensor:
    """Return 1 - GIoU (arXiv 1902.09630) of each row, (R, 1)."""
    return iou_loss(generalized_box_iou_loss, rows)


def ciou(rows: Rows) -> Tensor:
    """Return 1 - CIoU (arXiv 1911.08287) of each row, (R, 1)."""
    return iou_loss(complete_box_iou_loss, rows)


# Each returns the loss of every row, of which the sum over the last dimension and over the rows is the box loss.
BOX_LOSSES: dict[str, Callable[[Rows], Tensor]] = {"smooth_l1": smooth_l1, "giou": giou, "ciou": ciou}
