"""Encode boxes as offsets from anchors, and decode them (SSD, arXiv 1512.02325, section 2.2, eq. 2).

Inside the network, box coordinates are float32 fractions of the side of the square input. Variable names contain the
format: `xyxy` is (left, top, right, bottom); `cxcywh` is (centre x, centre y, width, height).
"""

import math

import torch
from torch import Tensor
from torchvision.ops import box_convert

# SSD's code calls these "variances" and divides offsets by them. torchvision multiplies by weights (10, 10, 5, 5).
CENTER_VARIANCE = 0.1
SIZE_VARIANCE = 0.2

# The sides of a decoded box are at most 1000 / 16 times the anchor's, as in torchvision, so that exp cannot overflow.
MAX_LOG_GROWTH = math.log(1000 / 16)


def encode_boxes(boxes_xyxy: Tensor, anchors_cxcywh: Tensor) -> Tensor:
    """Encode boxes as offsets from anchors, for use as regression targets. `decode_boxes` is the inverse.

    boxes_xyxy: (..., 4) float, fractions of the image side. Every box must have an area. This is not checked, because
    a check would synchronise the GPU. anchors_cxcywh: (..., 4) float, fractions; broadcast against the boxes.
    Returns box_deltas (..., 4) float: centre x, centre y, log width, log height, each divided by its variance."""
    boxes_cxcywh = box_convert(boxes_xyxy, "xyxy", "cxcywh")
    center, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    anchor_center, anchor_size = anchors_cxcywh[..., :2], anchors_cxcywh[..., 2:]
    center_deltas = (center - anchor_center) / anchor_size / CENTER_VARIANCE
    size_deltas = torch.log(size / anchor_size) / SIZE_VARIANCE
    return torch.cat([center_deltas, size_deltas], dim=-1)


def decode_boxes(box_deltas: Tensor, anchors_cxcywh: Tensor) -> Tensor:
    """Decode offsets from anchors into boxes, without clipping them to the image.

    box_deltas: (..., 4) float, in the format of `encode_boxes`. anchors_cxcywh: (..., 4) float, fractions of the image
    side; broadcast against the deltas. Returns boxes_xyxy (..., 4) float, fractions of the image side."""
    anchor_center, anchor_size = anchors_cxcywh[..., :2], anchors_cxcywh[..., 2:]
    center = anchor_center + box_deltas[..., :2] * CENTER_VARIANCE * anchor_size
    size = anchor_size * torch.exp((box_deltas[..., 2:] * SIZE_VARIANCE).clamp(max=MAX_LOG_GROWTH))
    return torch.cat([center - size / 2, center + size / 2], dim=-1)
