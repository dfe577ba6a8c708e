"""Boxes as offsets from anchors, and back (SSD, arXiv 1512.02325, section 2.2, eq. 2).

Boxes inside the network are fractions of the square input's side, float32. Two formats, carried in the names:
`xyxy` is (left, top, right, bottom); `cxcywh` is (centre x, centre y, width, height).
"""

import math

import torch
from torch import Tensor
from torchvision.ops import box_convert

# The paper's "variances": the network regresses the offset divided by these (torchvision's weights 10, 10, 5, 5).
CENTER_VARIANCE = 0.1
SIZE_VARIANCE = 0.2

# A box may grow to 62.5 times its anchor: an untrained network must not overflow exp (torchvision's bound).
MAX_LOG_GROWTH = math.log(1000 / 16)


def encode_boxes(boxes_xyxy: Tensor, anchors_cxcywh: Tensor) -> Tensor:
    """Express boxes as offsets from anchors: the regression targets; decode_boxes inverts it.

    boxes_xyxy: (..., 4) float, fractions of the image side, each with an area, which is not checked: a look at the
    values would make a GPU wait. anchors_cxcywh: (..., 4) float, fractions; broadcast against the boxes.
    Returns box_deltas (..., 4) float: centre x, centre y, log width, log height, each over its variance."""
    boxes_cxcywh = box_convert(boxes_xyxy, "xyxy", "cxcywh")
    center, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    anchor_center, anchor_size = anchors_cxcywh[..., :2], anchors_cxcywh[..., 2:]
    center_deltas = (center - anchor_center) / anchor_size / CENTER_VARIANCE
    size_deltas = torch.log(size / anchor_size) / SIZE_VARIANCE
    return torch.cat([center_deltas, size_deltas], dim=-1)


def decode_boxes(box_deltas: Tensor, anchors_cxcywh: Tensor) -> Tensor:
    """Turn the network's offsets from anchors into boxes; not clipped to the image.

    box_deltas: (..., 4) float, as encode_boxes makes them. anchors_cxcywh: (..., 4) float, fractions of the image
    side; broadcast against the deltas. Returns boxes_xyxy (..., 4) float, fractions of the image side."""
    anchor_center, anchor_size = anchors_cxcywh[..., :2], anchors_cxcywh[..., 2:]
    center = anchor_center + box_deltas[..., :2] * CENTER_VARIANCE * anchor_size
    size = anchor_size * torch.exp((box_deltas[..., 2:] * SIZE_VARIANCE).clamp(max=MAX_LOG_GROWTH))
    return torch.cat([center - size / 2, center + size / 2], dim=-1)
