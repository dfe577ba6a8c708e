"""Which default box answers for which object (SSD, arXiv 1512.02325, section 2.2, "Matching strategy").

The rule of torchvision's SSDMatcher, for the whole batch at once: the number of operators does not grow with
the batch, and none of them needs a value on the host, so a GPU never waits and a compiler sees one graph.
"""

import torch
from torch import Tensor
from torchvision.ops import box_convert

NO_OBJECT = -1


@torch.no_grad()
def match_anchors(boxes_xyxy: Tensor, labels: Tensor, anchors_cxcywh: Tensor, iou_threshold: float = 0.5) -> Tensor:
    """Give each anchor the object it overlaps most, if by iou_threshold; and each object its best anchor.

    The second rule wins over the first, whatever the overlap, so that no object goes untrained. Where several
    objects claim one anchor, the last of them has it. Among equal overlaps the first object, the first anchor wins.

    boxes_xyxy: (B, M, 4) float, fractions of the image side, padded to the batch's largest number of objects.
    labels: (B, M) int64, 0 = padding. Padding and boxes without an area match nothing.
    anchors_cxcywh: (A, 4) float, fractions of the image side.
    iou_threshold: in (0, 1].
    Returns matched (B, A) int64: the object's index in 0..M-1, or NO_OBJECT (-1) for background.
    """
    is_object = (labels > 0) & (boxes_xyxy[..., 2:] > boxes_xyxy[..., :2]).all(dim=-1)  # (B, M)
    boxes_xyxy = boxes_xyxy.masked_fill(~is_object[..., None], 0)  # no area, no overlap
    iou = _pairwise_iou(boxes_xyxy, box_convert(anchors_cxcywh, "cxcywh", "xyxy"))  # (B, M, A)

    best_iou, best_object = iou.max(dim=1)  # (B, A)
    matched = best_object.masked_fill_(best_iou < iou_threshold, NO_OBJECT)

    # Several objects may write to one anchor. A plain scatter would leave the winner to the order in which
    # threads happen to run; the largest index is the same everywhere.
    objects = torch.arange(labels.shape[1], device=labels.device)
    claims = torch.where(is_object, objects, NO_OBJECT)  # (B, M)
    claimed_by = torch.full_like(matched, NO_OBJECT).scatter_reduce(1, iou.argmax(dim=2), claims, "amax")
    return torch.where(claimed_by == NO_OBJECT, matched, claimed_by)


def _pairwise_iou(boxes_xyxy: Tensor, anchors_xyxy: Tensor) -> Tensor:
    """Return the intersection over union of every box (B, M, 4) with every anchor (A, 4): (B, M, A).

    torchvision.ops.box_iou to the last bit, with the coordinates as the outermost axis: (B, M, A) is the largest
    tensor of training on a CPU, so it is walked with unit stride, and written in place where that is possible.
    """
    boxes = boxes_xyxy.movedim(-1, 0)[..., None]  # (4, B, M, 1)
    anchors = anchors_xyxy.T.contiguous()[:, None, None]  # (4, 1, 1, A)
    overlap = torch.minimum(boxes[2:], anchors[2:])
    overlap = overlap.sub_(torch.maximum(boxes[:2], anchors[:2])).clamp_(min=0)  # (2, B, M, A)
    intersection = overlap[0].mul_(overlap[1])
    box_area = (boxes[2:] - boxes[:2]).prod(dim=0)  # (B, M, 1)
    anchor_area = (anchors[2:] - anchors[:2]).prod(dim=0)  # (1, 1, A)
    union = (box_area + anchor_area).sub_(intersection)
    return intersection.div_(union)
