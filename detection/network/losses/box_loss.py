"""Box losses of the positive anchors: smooth L1 of the offsets (SSD), and 1 - GIoU or 1 - CIoU of the decoded boxes.

torchvision.ops also has GIoU and CIoU, but its functions synchronise with a GPU, because they select boxes with a mask.
The gradient of its CIoU is NaN for a predicted box whose width and height are rounded to 0.

R stands for the shape of the rows of anchors; see rows.py.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from detection.network.assignment.matching import paired_iou
from detection.network.boxes import decode_boxes, encode_boxes
from detection.network.losses.rows import Rows

MIN_SIDE = 1e-6  # smaller sides are raised to this in CIoU's aspect ratio, so that ratio and gradient are finite
MIN_DENOMINATOR = 1e-7  # in CIoU's alpha, which would be 0 / 0 for a perfect prediction; as in torchvision


def smooth_l1(rows: Rows) -> Tensor:
    """Return the smooth L1 loss of each row's offsets from the anchor, (R, 4): one value per coordinate.

    The target of a negative row is its own prediction, so that its loss and gradient are exactly zero."""
    targets = encode_boxes(rows.boxes_xyxy, rows.anchors_cxcywh)
    targets = targets.where(rows.is_positive[..., None], rows.deltas.detach())
    return F.smooth_l1_loss(rows.deltas, targets, reduction="none")


def giou(rows: Rows) -> Tensor:
    """Return 1 - GIoU (arXiv 1902.09630) of each row's decoded box, (R, 1); zero for a negative row."""
    predicted, targets = _decoded(rows)
    iou = paired_iou(predicted, targets)
    union = (_area(predicted) + _area(targets)) / (1 + iou)  # because iou = (sum of areas - union) / union
    width, height = _enclosing_sides(predicted, targets)
    enclosing = width * height
    return _of_positives(1 - iou + (enclosing - union) / enclosing, rows)


def ciou(rows: Rows) -> Tensor:
    """Return 1 - CIoU (arXiv 1911.08287) of each row's decoded box, (R, 1); zero for a negative row."""
    predicted, targets = _decoded(rows)
    iou = paired_iou(predicted, targets)
    shift = predicted - targets
    centers = (shift[..., :2] + shift[..., 2:]) / 2  # (R, 2), the distances in x and y
    width, height = _enclosing_sides(predicted, targets)
    distance = centers.square().sum(dim=-1) / (width.square() + height.square())
    v = 4 / math.pi**2 * (_angle(targets) - _angle(predicted)).square()
    alpha = (v / (1 - iou + v).clamp(min=MIN_DENOMINATOR)).detach()  # a constant, as in the paper's eq. 11
    return _of_positives(1 - iou + distance + alpha * v, rows)


@torch.no_grad()
def predicted_iou(rows: Rows) -> Tensor:
    """Return the IoU (R,) of each positive row's decoded box with its object; 0 for a negative row."""
    return paired_iou(*_decoded(rows)).where(rows.is_positive, 0)


def _decoded(rows: Rows) -> tuple[Tensor, Tensor]:
    """Return the predicted boxes and the objects, both xyxy (R, 4). For a negative row, both are the anchor."""
    is_positive = rows.is_positive[..., None]
    predicted = decode_boxes(rows.deltas.where(is_positive, 0), rows.anchors_cxcywh)
    return predicted, rows.boxes_xyxy.where(is_positive, predicted.detach())


def _of_positives(losses: Tensor, rows: Rows) -> Tensor:
    """Return the losses (R,) of positive rows, and 0 for negative rows, as (R, 1)."""
    return losses.where(rows.is_positive, 0)[..., None]


def _sides(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Return width and height (R,) of boxes (R, 4)."""
    left, top, right, bottom = boxes_xyxy.unbind(dim=-1)
    return right - left, bottom - top


def _area(boxes_xyxy: Tensor) -> Tensor:
    """Return the area (R,) of boxes (R, 4)."""
    width, height = _sides(boxes_xyxy)
    return width * height


def _angle(boxes_xyxy: Tensor) -> Tensor:
    """Return the arc tangent of width / height (R,) of boxes (R, 4)."""
    width, height = (side.clamp(min=MIN_SIDE) for side in _sides(boxes_xyxy))
    return torch.atan(width / height)


def _enclosing_sides(boxes_xyxy: Tensor, others_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Return width and height (R,) of the smallest boxes that contain pairs of boxes, (R, 4) each."""
    low = torch.minimum(boxes_xyxy[..., :2], others_xyxy[..., :2])
    high = torch.maximum(boxes_xyxy[..., 2:], others_xyxy[..., 2:])
    return _sides(torch.cat([low, high], dim=-1))


# Each function returns losses (R, 4) or (R, 1). The box loss is the sum of all of them.
BOX_LOSSES: dict[str, Callable[[Rows], Tensor]] = {"smooth_l1": smooth_l1, "giou": giou, "ciou": ciou}
