"""Match default boxes to objects by statistics of their IoUs (ATSS, arXiv 1912.02424, algorithm 1).

An alternative to `matching.match_anchors` without a fixed IoU threshold, for a whole batch and without GPU
synchronisation.
"""

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert

from detection.network.anchors import BOXES_PER_CELL
from detection.network.assignment.matching import is_inside, paired_iou, resolve_conflicts

NEAREST_CELLS = 9  # k in the paper

# The nine cells nearest to a point of the image are in a window of 7 x 7 cells around the point's cell. (A window that
# crosses the border is moved inside.) Distances in sides of a cell: the centres of the cells outside the window are at
# least 3.5 away, and the ninth nearest centre is at most 2.92 away. Only if the point is in a corner cell, the ninth
# nearest may be up to 3.54 away, but then the cells outside the window are at least 6.5 away.
WINDOW = 7


@torch.no_grad()
def match_atss(boxes_xyxy: Tensor, labels: Tensor, anchors_cxcywh: Tensor, cells_per_level: Sequence[int]) -> Tensor:
    """Match each anchor to an object or to background.

    1. The candidates of an object are the default boxes of the k = 9 cells of each level that are nearest to the
       object's centre (of all cells, if the level has fewer). If distances are equal, the lowest index is chosen.
    2. The object's threshold is the mean plus the standard deviation of its candidates' IoUs.
    3. The object's positives are the candidates whose IoU is at least the threshold and whose centre is inside the
       object.
    4. An anchor that is positive for several objects matches the one with the highest IoU, the lowest index if equal.
    An object may have no positive, as in the paper: for example, if it is small and contains no centre of a cell.

    The centre of an anchor is the centre of its cell, as in the paper, where anchors are not clipped. Our anchors are
    clipped at the border of the image. This moves their centres inwards, so small objects at the border would not
    contain them.

    boxes_xyxy: (B, M, 4) float, fractions of the image side. M is the largest number of objects per image, at least 1.
    labels: (B, M) int64, 0 = padding. Padding and boxes without an area match nothing.
    anchors_cxcywh: (A, 4) float, fractions of the image side, in the order of anchors.default_boxes.
    cells_per_level: number of cells of each level's map, which is square.
    Returns matched (B, A) int64: the index of the matched object, 0..M-1, or NO_OBJECT (-1) for background."""
    boxes_xyxy = boxes_xyxy.masked_fill((labels == 0)[..., None], 0)  # a box without an area contains no centre
    centers = (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2  # (B, M, 2)
    candidates, x, y = _candidates(centers, cells_per_level)  # (B, M, C) each
    anchors_xyxy = box_convert(anchors_cxcywh, "cxcywh", "xyxy")
    boxes_xyxy = boxes_xyxy[:, :, None]  # (B, M, 1, 4)
    iou = paired_iou(boxes_xyxy, anchors_xyxy[candidates])  # (B, M, C)
    threshold = iou.mean(dim=2, keepdim=True) + iou.std(dim=2, keepdim=True)
    is_positive = (iou >= threshold) & is_inside(x, y, boxes_xyxy)
    return resolve_conflicts(candidates, iou, is_positive, len(anchors_cxcywh))[0]


def _candidates(object_centers: Tensor, cells_per_level: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the C candidates of each object on all levels, and x and y of the centres of their cells.

    object_centers: (B, M, 2), fractions of the image side. Returns anchor indices (B, M, C) int64, and x and y,
    (B, M, C) float each, fractions of the image side."""
    levels = []
    first_anchor = 0
    for num_cells, boxes_per_cell in zip(cells_per_level, BOXES_PER_CELL, strict=True):
        side = math.isqrt(operator.index(num_cells))  # index() makes it constant for torch.compile(dynamic=True)
        cells, x, y = _nearest_cells(object_centers, side)  # (B, M, K) each
        boxes = torch.arange(boxes_per_cell, device=cells.device)
        anchors = first_anchor + cells[..., None] * boxes_per_cell + boxes  # (B, M, K, boxes)
        levels.append([t.flatten(2) for t in torch.broadcast_tensors(anchors, x[..., None], y[..., None])])
        first_anchor += num_cells * boxes_per_cell
    candidates, x, y = (torch.cat(tensors, dim=2) for tensors in zip(*levels, strict=True))
    return candidates, x, y


def _nearest_cells(points: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the K cells of a map that are nearest to each point, (B, M, K) int64, and x and y of their centres.

    points: (B, M, 2), fractions of the image side. side: number of rows and columns of the map."""
    window = min(side, WINDOW)
    points = points * side  # in units of cells, so that equal distances are exactly equal
    first = (points.long() - WINDOW // 2).clamp(0, side - window)  # (B, M, 2): first column, first row
    cells = first[..., None] + torch.arange(window, device=points.device)  # (B, M, 2, window)
    centers = cells + 0.5
    distances = (centers - points[..., None]) ** 2
    distance = distances[:, :, 1, :, None] + distances[:, :, 0, None, :]  # (B, M, window rows, window columns)
    nearest = distance.flatten(2).argsort(dim=2, stable=True)[..., :NEAREST_CELLS]  # (B, M, K)
    row, column = nearest // window, nearest % window
    index = cells[:, :, 1].gather(2, row) * side + cells[:, :, 0].gather(2, column)
    return index, centers[:, :, 0].gather(2, column) / side, centers[:, :, 1].gather(2, row) / side
