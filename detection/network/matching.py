"""Which default box matches which object (SSD, arXiv 1512.02325, section 2.2, "Matching strategy").

The rule of torchvision's SSDMatcher, for the whole batch at once and without waits for a GPU.
"""

import torch
from torch import Tensor
from torchvision.ops import box_convert

NO_OBJECT = -1

# An eager CPU goes through the largest tensors in so many pieces of the batch, which are given the same memory again.
CPU_PIECES = 4


@torch.no_grad()
def match_anchors(boxes_xyxy: Tensor, labels: Tensor, anchors_cxcywh: Tensor, iou_threshold: float = 0.5) -> Tensor:
    """Match each anchor to the object with the highest IoU, if that is at least iou_threshold, and each object to its
    best anchor.

    The second rule overrides the first, so that no object goes untrained. If several objects claim one anchor, the last
    one gets it. Among equal IoUs the first object, the first anchor wins.

    boxes_xyxy: (B, M, 4) float, fractions of the image side, M the largest number of objects in the batch, at least 1.
    labels: (B, M) int64, 0 = padding. Padding and boxes without an area match nothing.
    anchors_cxcywh: (A, 4) float, fractions of the image side. iou_threshold: in (0, 1].
    Returns matched (B, A) int64: the object's index in 0..M-1, or NO_OBJECT (-1) for background."""
    is_object = (labels > 0) & (boxes_xyxy[..., 2:] > boxes_xyxy[..., :2]).all(dim=-1)  # (B, M)
    boxes_xyxy = boxes_xyxy.masked_fill(~is_object[..., None], 0)  # no area, no overlap
    anchors_xyxy = box_convert(anchors_cxcywh, "cxcywh", "xyxy")
    pieces = CPU_PIECES if boxes_xyxy.is_cpu and not torch.compiler.is_compiling() else 1
    overlaps = [_best_overlaps(boxes, anchors_xyxy) for boxes in boxes_xyxy.chunk(pieces)]
    best_iou, best_object, best_anchor = map(torch.cat, zip(*overlaps, strict=True))
    matched = torch.where(best_iou >= iou_threshold, best_object, NO_OBJECT)  # (B, A)

    # Of several objects that claim an anchor the largest index wins: a plain scatter would leave that to chance.
    objects = torch.arange(labels.shape[1], device=labels.device)
    claims = torch.where(is_object, objects, NO_OBJECT)  # (B, M)
    claimed_by = torch.full_like(matched, NO_OBJECT).scatter_reduce(1, best_anchor, claims, "amax")
    return torch.where(claimed_by == NO_OBJECT, matched, claimed_by)


def _best_overlaps(boxes_xyxy: Tensor, anchors_xyxy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for boxes (B, M, 4) and anchors (A, 4) each anchor's best IoU and its box (B, A), and each box's best
    anchor (B, M). Among equals the first."""
    iou = pairwise_iou(boxes_xyxy, anchors_xyxy)  # (B, M, A)
    # iou.max(dim=1), but compilers vectorise it, which they do not for the index of a maximum across rows.
    num_boxes = iou.shape[1]
    index = torch.arange(num_boxes, dtype=torch.int32, device=iou.device)
    best_iou = iou.amax(dim=1)
    best_box = torch.where(iou == best_iou[:, None], index[:, None], num_boxes).amin(dim=1)
    return best_iou, best_box.long(), iou.argmax(dim=2)


def pairwise_iou(boxes_xyxy: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """Return the intersection over union of every box (B, M, 4) with every anchor (A, 4): (B, M, A).

    torchvision.ops.box_iou to the last bit. This is the largest tensor of matching, so it is walked with unit stride,
    and written in place where possible."""
    left, top, right, bottom = boxes_xyxy[..., None].unbind(dim=2)  # (B, M, 1) each
    anchor_left, anchor_top, anchor_right, anchor_bottom = anchors_xyxy.T.contiguous()  # (A,) each
    width = torch.minimum(right, anchor_right).sub_(torch.maximum(left, anchor_left)).clamp_(min=0)
    height = torch.minimum(bottom, anchor_bottom).sub_(torch.maximum(top, anchor_top)).clamp_(min=0)
    intersection = width.mul_(height)
    anchor_area = (anchor_right - anchor_left) * (anchor_bottom - anchor_top)
    union = ((right - left) * (bottom - top) + anchor_area).sub_(intersection)
    return intersection.div_(union)
