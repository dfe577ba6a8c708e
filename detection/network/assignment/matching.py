"""Match default boxes to objects (SSD, arXiv 1512.02325, section 2.2, "Matching strategy").

Implements the rule of torchvision's SSDMatcher for a whole batch, without GPU synchronisation. `paired_iou`,
`is_inside` and `resolve_conflicts` are shared with the other assignment rules, `atss` and `task_aligned`, which choose
a few candidate anchors for each object.
"""

import torch
from torch import Tensor
from torchvision.ops import box_convert

NO_OBJECT = -1

# In eager mode on a CPU, a batch is processed in this many chunks, so that the large tensors reuse memory.
CPU_CHUNKS = 4


@torch.no_grad()
def match_anchors(boxes_xyxy: Tensor, labels: Tensor, anchors_cxcywh: Tensor, iou_threshold: float = 0.5) -> Tensor:
    """Match each anchor to an object or to background.

    1. Each anchor matches the object with the highest IoU, if that IoU is at least iou_threshold.
    2. For each object, the anchor with the highest IoU matches this object, even if the IoU is low or rule 1 chooses a
       different object. An anchor that is the best one for several objects matches the last of these objects.
    If several IoUs are equal, the lowest index is chosen.

    boxes_xyxy: (B, M, 4) float, fractions of the image side. M is the largest number of objects per image, at least 1.
    labels: (B, M) int64, 0 = padding. Padding and boxes without an area match nothing.
    anchors_cxcywh: (A, 4) float, fractions of the image side. iou_threshold: in (0, 1].
    Returns matched (B, A) int64: the index of the matched object, 0..M-1, or NO_OBJECT (-1) for background."""
    is_object = (labels > 0) & (boxes_xyxy[..., 2:] > boxes_xyxy[..., :2]).all(dim=-1)  # (B, M)
    boxes_xyxy = boxes_xyxy.masked_fill(~is_object[..., None], 0)  # an empty box overlaps nothing
    anchors_xyxy = box_convert(anchors_cxcywh, "cxcywh", "xyxy")
    num_chunks = CPU_CHUNKS if boxes_xyxy.is_cpu and not torch.compiler.is_compiling() else 1
    overlaps = [_best_overlaps(boxes, anchors_xyxy) for boxes in boxes_xyxy.chunk(num_chunks)]
    best_iou, best_object, best_anchor = map(torch.cat, zip(*overlaps, strict=True))
    matched = torch.where(best_iou >= iou_threshold, best_object, NO_OBJECT)  # (B, A)

    # If several objects claim an anchor, the largest index wins. A plain scatter would not be deterministic.
    objects = torch.arange(labels.shape[1], device=labels.device)
    claims = torch.where(is_object, objects, NO_OBJECT)  # (B, M)
    claimed_by = torch.full_like(matched, NO_OBJECT).scatter_reduce(1, best_anchor, claims, "amax")
    return torch.where(claimed_by == NO_OBJECT, matched, claimed_by)


def _best_overlaps(boxes_xyxy: Tensor, anchors_xyxy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the highest IoU and best box of each anchor, both (B, A), and the best anchor of each box, (B, M).

    boxes_xyxy: (B, M, 4). anchors_xyxy: (A, 4). Returns indices of boxes and anchors, the lowest if IoUs are equal."""
    iou = pairwise_iou(boxes_xyxy, anchors_xyxy)  # (B, M, A)
    # The result is the same as for iou.max(dim=1), but compilers can vectorise this code.
    num_boxes = iou.shape[1]
    index = torch.arange(num_boxes, dtype=torch.int32, device=iou.device)
    best_iou = iou.amax(dim=1)
    best_box = torch.where(iou == best_iou[:, None], index[:, None], num_boxes).amin(dim=1)
    return best_iou, best_box.long(), iou.argmax(dim=2)


def pairwise_iou(boxes_xyxy: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """Return the intersection over union (B, M, A) of every box (B, M, 4) with every anchor (A, 4).

    The result is bitwise equal to torchvision.ops.box_iou. It is the largest tensor in matching, so the code uses
    contiguous memory and operates in place where possible."""
    left, top, right, bottom = boxes_xyxy[..., None].unbind(dim=2)  # (B, M, 1) each
    anchor_left, anchor_top, anchor_right, anchor_bottom = anchors_xyxy.T.contiguous()  # (A,) each
    width = torch.minimum(right, anchor_right).sub_(torch.maximum(left, anchor_left)).clamp_(min=0)
    height = torch.minimum(bottom, anchor_bottom).sub_(torch.maximum(top, anchor_top)).clamp_(min=0)
    intersection = width.mul_(height)
    anchor_area = (anchor_right - anchor_left) * (anchor_bottom - anchor_top)
    union = ((right - left) * (bottom - top) + anchor_area).sub_(intersection)
    return intersection.div_(union)


def paired_iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Return the intersection over union (...) of pairs of boxes, (..., 4) each. The boxes are broadcast."""
    left, top, right, bottom = boxes_xyxy.unbind(dim=-1)
    other_left, other_top, other_right, other_bottom = others_xyxy.unbind(dim=-1)
    width = (torch.minimum(right, other_right) - torch.maximum(left, other_left)).clamp(min=0)
    height = (torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)).clamp(min=0)
    intersection = width * height
    areas = (right - left) * (bottom - top) + (other_right - other_left) * (other_bottom - other_top)
    return intersection / (areas - intersection)


def is_inside(x: Tensor, y: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Return a mask (...) bool of the points (x, y), (...) each, that are strictly inside boxes (..., 4).

    No point is inside a box without an area. Points and boxes are broadcast."""
    left, top, right, bottom = boxes_xyxy.unbind(dim=-1)
    return (x > left) & (x < right) & (y > top) & (y < bottom)


def resolve_conflicts(candidates: Tensor, iou: Tensor, is_positive: Tensor, num_anchors: int) -> tuple[Tensor, Tensor]:
    """Give an anchor that is positive for several objects to the object with the highest IoU, the first if equal.

    candidates: (B, M, K) int64, anchor indices. iou: (B, M, K) float, of the object and the anchor.
    is_positive: (B, M, K) bool; the positives of an object are distinct anchors. num_anchors: A.
    Returns matched (B, A) int64, the index of the object or NO_OBJECT; and has_won (B, M, K) bool, true for the
    positives that their object keeps."""
    num_images, num_objects, num_candidates = candidates.shape
    anchors = candidates.flatten(1)  # (B, M * K)
    claims = iou.where(is_positive, -1).flatten(1)
    best_iou = claims.new_full((num_images, num_anchors), -1).scatter_reduce(1, anchors, claims, "amax")
    is_best = is_positive.flatten(1) & (claims == best_iou.gather(1, anchors))

    objects = torch.arange(num_objects, device=candidates.device).repeat_interleave(num_candidates)  # (M * K,)
    best_objects = torch.where(is_best, objects, num_objects)  # (B, M * K)
    first_best = best_objects.new_full((num_images, num_anchors), num_objects)
    first_best = first_best.scatter_reduce(1, anchors, best_objects, "amin")  # (B, A)
    has_won = is_best & (objects == first_best.gather(1, anchors))
    return torch.where(first_best < num_objects, first_best, NO_OBJECT), has_won.unflatten(1, (num_objects, -1))
