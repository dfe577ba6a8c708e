"""Default boxes: the anchors that SSD places at every cell of six feature maps (arXiv 1512.02325, section 2.2).

Maps of side 38, 19, 10, 5, 3, 1 (the paper's SSD300) have 8,732 boxes; maps of side 42, 21, 11, 6, 3, 1 have 10,684.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert

# Each scale is the side of a level's smaller square / image side. The larger square's side is sqrt(scale * next scale).
ANCHOR_SCALES: dict[str, tuple[float, ...]] = {
    "ssd": (0.1, 0.2, 0.375, 0.55, 0.725, 0.9, 1.0),  # the paper's scales for Pascal VOC
    "ssd_coco": (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),  # the authors' scales for COCO, which has smaller objects
}

# Aspect ratios of each level. A ratio r adds two boxes to the level's two squares: one of w/h = r and one of w/h = 1/r.
ASPECT_RATIOS: tuple[tuple[int, ...], ...] = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))

AUTO = "auto"  # scales fitted to the objects of the training set, see detection/network/anchor_scales.py
MAX_SCALE = 1.5  # boxes are clipped to the image; a larger scale is probably a size in pixels

BOXES_PER_CELL = tuple(2 + 2 * len(ratios) for ratios in ASPECT_RATIOS)


def default_boxes(grid_sizes: Sequence[tuple[int, int]], scales: Sequence[float]) -> Tensor:
    """Return the default boxes of all feature maps, clipped to the image.

    The boxes are ordered by level, row, column and index within the cell, like the rows of the SSD model's outputs.
    Apart from clipping, they equal the boxes of torchvision's DefaultBoxGenerator.

    grid_sizes: (rows, columns) of each level's map, high to low resolution.
    scales: one for each level plus one extra, fractions of the image side; see ANCHOR_SCALES.
    Returns anchors_cxcywh (A, 4) float32, fractions of the image side; the corners of every box are in [0, 1].
    Raises ValueError if the number of grid sizes or scales does not match ASPECT_RATIOS."""
    levels = len(ASPECT_RATIOS)
    if len(grid_sizes) != levels or len(scales) != levels + 1:
        raise ValueError(
            f"default boxes for {len(grid_sizes)} maps and {len(scales)} scales: "
            f"expected {levels} maps and {levels + 1} scales"
        )
    anchors = []
    for level, (rows, columns) in enumerate(grid_sizes):
        sizes = torch.tensor(box_sizes(scales[level], scales[level + 1], ASPECT_RATIOS[level]))  # (K, 2)
        center_y = (torch.arange(rows) + 0.5) / rows
        center_x = (torch.arange(columns) + 0.5) / columns
        centers = torch.stack(torch.meshgrid(center_x, center_y, indexing="xy"), dim=-1)  # (rows, columns, 2)
        centers = centers[:, :, None].expand(-1, -1, len(sizes), -1)  # (rows, columns, K, 2)
        anchors.append(torch.cat([centers, sizes.expand_as(centers)], dim=-1).reshape(-1, 4))
    anchors_xyxy = box_convert(torch.cat(anchors), "cxcywh", "xyxy").clamp(0, 1)
    return box_convert(anchors_xyxy, "xyxy", "cxcywh")


def box_sizes(scale: float, next_scale: float, ratios: Sequence[float]) -> list[tuple[float, float]]:
    """Return the (width, height) of each box in a cell: two squares, then a wide and a tall box per ratio."""
    larger = math.sqrt(scale * next_scale)
    sizes = [(scale, scale), (larger, larger)]
    for ratio in ratios:
        long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
        sizes += [(long, short), (short, long)]
    return sizes
