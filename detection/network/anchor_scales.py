"""Fit the scales of the default boxes to the objects of the training set, for `model.anchor_scales: auto`.

The recall of the default boxes is the share of objects whose IoU with some default box is at least `loss.match_iou`.
`fit_scales` maximises it by coordinate descent from many starts. One scale of a level determines all its boxes except
the larger square, which depends on the product of this scale and the next one. So on a logarithmic grid of scales,
the IoUs of all boxes that the search can choose fit in memory, and only maxima and a count are needed to try a scale.

Several sets of scales can have the same recall. Of these, the search chooses those with the highest mean IoU.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detection.network.anchors import ANCHOR_SCALES, ASPECT_RATIOS, MAX_SCALE, box_sizes

MAX_MEASURED = 20_000  # objects; if there are more, the recall is measured on a random sample
MAX_FITTED = 2_000  # objects; if there are more, scales are fitted to a smaller random sample
STEP = 1.04  # ratio of neighbouring scales of the search grid
MIN_SCALE = 0.01
# Rounded so that configs are short, and the grid is the same on platforms that compute powers differently.
GRID = [round(MIN_SCALE * STEP**n, 4) for n in range(int(math.log(MAX_SCALE / MIN_SCALE, STEP)) + 1)]
MAX_BOXES_AT_ONCE = 2**12  # default boxes times objects; few enough that the tensors fit in the cache of the CPU
LEVELS = len(ASPECT_RATIOS)
RANDOM_STARTS = 50


def fit_scales(boxes_xyxy: Tensor, grid_sizes: Sequence[tuple[int, int]], iou_threshold: float) -> tuple[float, ...]:
    """Return the scales for which the default boxes have the highest recall that the search finds.

    boxes_xyxy: (N, 4) float32 with N > 0, the objects, fractions of the image sides. grid_sizes: as for default_boxes.
    The result is deterministic. Its recall on MAX_MEASURED objects is never below that of an entry of ANCHOR_SCALES."""
    search = ScaleSearch(sample_boxes(boxes_xyxy, MAX_FITTED), grid_sizes, iou_threshold)
    fitted = [tuple(GRID[index] for index in search.climb(start)) for start in starts()]
    measured = sample_boxes(boxes_xyxy, MAX_MEASURED)
    return max(
        dict.fromkeys([*fitted, *ANCHOR_SCALES.values()]),
        key=lambda scales: int(score(best_ious(measured, grid_sizes, scales), iou_threshold)),
    )


def sample_boxes(boxes_xyxy: Tensor, most: int) -> Tensor:
    """Return boxes_xyxy (N, 4), or a deterministic random sample of `most` of them if there are more."""
    if len(boxes_xyxy) <= most:
        return boxes_xyxy
    return boxes_xyxy[np.sort(np.random.default_rng(0).choice(len(boxes_xyxy), most, replace=False))]


# ---- search ---------------------------------------------------------------------------------------------------


class ScaleSearch:
    """Coordinate descent over seven increasing indices of GRID.

    boxes_xyxy: (N, 4), the objects. G: length of GRID.
    own[level] (G, N): best IoU of each object with the boxes of a level that depend on its scale only.
    larger[level] (2G - 1, N): best IoU with the larger square of the scales i and j, in row i + j."""

    def __init__(self, boxes_xyxy: Tensor, grid_sizes: Sequence[tuple[int, int]], iou_threshold: float) -> None:
        self.iou_threshold = iou_threshold
        squares = [math.sqrt(GRID[n // 2] * GRID[n - n // 2]) for n in range(2 * len(GRID) - 1)]
        self.own, self.larger = [], []
        for grid_size, ratios in zip(grid_sizes, ASPECT_RATIOS, strict=True):
            own = [size for scale in GRID for size in box_sizes(scale, scale, ratios)[1:]]
            own_iou = ious_of_sizes(boxes_xyxy, grid_size, own).view(len(GRID), -1, len(boxes_xyxy))
            self.own.append(own_iou.amax(dim=1))
            self.larger.append(ious_of_sizes(boxes_xyxy, grid_size, [(side, side) for side in squares]))

    def climb(self, indices: Sequence[int]) -> list[int]:
        """Return a local optimum near these indices: no change of one of them is an improvement."""
        indices, before = list(indices), None
        while indices != before:
            before = list(indices)
            for position in range(LEVELS + 1):
                indices[position] = self.best_index(indices, position)
        return indices

    def best_index(self, indices: Sequence[int], position: int) -> int:
        """Return the best index at a position, between its neighbours, if the other indices do not change."""
        low = indices[position - 1] + 1 if position else 0
        high = indices[position + 1] if position < LEVELS else len(GRID)
        iou = self.own[0].new_zeros(high - low, self.own[0].shape[1])  # (candidates, N)
        for level in range(LEVELS):
            if level == position:
                iou = iou.maximum(self.own[level][low:high])
                iou = iou.maximum(self.larger[level][low + indices[level + 1] : high + indices[level + 1]])
            elif level == position - 1:
                iou = iou.maximum(self.own[level][indices[level]])
                iou = iou.maximum(self.larger[level][indices[level] + low : indices[level] + high])
            else:
                iou = iou.maximum(self.ious(level, indices))
        return low + int(score(iou, self.iou_threshold).argmax())

    def ious(self, level: int, indices: Sequence[int]) -> Tensor:
        """Return the best IoU (N,) of each object with the boxes of a level."""
        square = self.larger[level][indices[level] + indices[level + 1]]
        return self.own[level][indices[level]].maximum(square)


def starts() -> list[list[int]]:
    """Return seven increasing indices of GRID for each start of the search: the presets and random ones."""
    rng = np.random.default_rng(0)
    drawn = [np.sort(rng.choice(len(GRID), LEVELS + 1, replace=False)).tolist() for _ in range(RANDOM_STARTS)]
    return [*map(nearest_indices, ANCHOR_SCALES.values()), *drawn]


def nearest_indices(scales: Sequence[float]) -> list[int]:
    """Return the indices of GRID closest to these scales, which are further apart than the grid."""
    return [int(np.abs(np.log(GRID) - math.log(scale)).argmin()) for scale in scales]


def score(iou: Tensor, iou_threshold: float) -> Tensor:
    """Return the quality of scales, which sorts by recall, then by the sum of IoUs.

    iou: (..., N) best IoUs of the objects. Returns (...) int64, which does not depend on the order of summation."""
    hits, sum_of_ious = (iou >= iou_threshold).sum(dim=-1), (iou * 2**16).int().sum(dim=-1)
    return hits * (2**16 * iou.shape[-1] + 1) + sum_of_ious


# ---- best IoUs ------------------------------------------------------------------------------------------------


def best_ious(boxes_xyxy: Tensor, grid_sizes: Sequence[tuple[int, int]], scales: Sequence[float]) -> Tensor:
    """Return the highest IoU of each object with a default box (N,), without computing the IoUs of all of them.

    boxes_xyxy: (N, 4). grid_sizes, scales: as for default_boxes."""
    levels = zip(grid_sizes, scales[:-1], scales[1:], ASPECT_RATIOS, strict=True)
    best = [ious_of_sizes(boxes_xyxy, grid_size, box_sizes(*sizes)).amax(dim=0) for grid_size, *sizes in levels]
    return torch.stack(best).amax(dim=0)


def ious_of_sizes(boxes_xyxy: Tensor, grid_size: tuple[int, int], sizes: Sequence[tuple[float, float]]) -> Tensor:
    """Return the highest IoU of each object (N, 4) with the default boxes of each size, one per cell: (K, N).

    grid_size: rows and columns. sizes: K pairs (width, height)."""
    rows, columns = grid_size
    left, top, right, bottom = boxes_xyxy.T.contiguous()
    area = (right - left) * (bottom - top)
    best = []
    for part in torch.tensor(sizes).split(max(1, MAX_BOXES_AT_ONCE // len(boxes_xyxy))):
        overlap_x, excess_x = _best_cells(left, right, part[:, :1], columns)  # (2, K, N) each
        overlap_y, excess_y = _best_cells(top, bottom, part[:, 1:], rows)
        overlap = overlap_x[:, None] * overlap_y  # (2, 2, K, N)
        best.append((area / overlap + excess_x[:, None] * excess_y - 1).reciprocal().amax(dim=(0, 1)))
    return torch.cat(best)


def _best_cells(low: Tensor, high: Tensor, lengths: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Find, along one axis, the cells whose default boxes can have the highest IoU with an object.

    With excess = length / overlap, 1 / IoU = area / (overlap_x overlap_y) + excess_x excess_y - 1. So the best cell has
    either the largest overlap or the smallest excess. They differ only if boxes are clipped, which shortens them.
    low, high: (N,) ends of the objects. lengths: (K, 1) of the boxes before clipping. cells: number of cells.
    Returns overlaps and excesses, (2, K, N) each: of the cell with the largest overlap, then of the smallest excess."""
    half = lengths / 2
    aligned = torch.stack([high - half, low + half])  # (2, K, N) centres of boxes that share an end with the object
    below = (aligned * cells - 0.5).floor_()
    centers = (torch.cat([below, below + 1]).clamp_(0, cells - 1) + 0.5) / cells  # (4, K, N)
    start, end = (centers - half).clamp_(min=0), (centers + half).clamp_(max=1)
    overlap = (end.minimum(high) - start.maximum(low)).clamp_(min=0)
    excess = (end - start) / overlap  # infinite without overlap
    most, least = overlap.amax(dim=0), excess.amin(dim=0)
    excess_of_most = excess.where(overlap == most, math.inf).amin(dim=0)
    overlap_of_least = overlap.where(excess == least, 0).amax(dim=0)
    return torch.stack([most, overlap_of_least]), torch.stack([excess_of_most, least])
