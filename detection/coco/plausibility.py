"""Mistakes that show only in an annotation file as a whole: its boxes are not what `bbox` means in COCO's format.

Each record of such a file is possible, so annotations.py finds nothing wrong with it. What is refused here
cannot happen in a correct file of more than a few boxes: `what_boxes_are` is silent unless nearly all boxes agree.
"""

import numpy as np

AGREE = 0.99  # share of the boxes that must fit an explanation
FAR_OVER = 0.1  # of the image's side: a box that reaches further over the edge than this was not meant to
MANY = 0.2  # share of the boxes that must reach so far over before anything is suspected
FEW_BOXES = 4  # fewer prove nothing about corners, centres or swapped sides
EXPECTED = "expected bbox as [x, y, width, height] in pixels"


def what_boxes_are(boxes_xywh: np.ndarray, sizes: np.ndarray) -> str | None:
    """Return what the boxes of a file seem to be, with the cure; None if they can be what they should be.

    boxes_xywh: (N, 4) float64, as the file has them. sizes: (N, 2) width and height of their images, pixels."""
    has_area = (boxes_xywh[:, 2:] > 0).all(axis=1)  # empty boxes fit everything
    boxes_xywh, sizes = boxes_xywh[has_area], sizes[has_area]
    if len(boxes_xywh) == 0:
        return None
    if _share((boxes_xywh[:, 2:] <= 1).all(axis=1) & (sizes > 2).all(axis=1)) >= AGREE:
        if _share((np.abs(boxes_xywh) <= 1).all(axis=1)) >= AGREE:
            cure = "multiply x and width by the width of the image, y and height by its height"
            pixels = _misread_pixels(boxes_xywh * np.tile(sizes, 2), sizes)
            then = f". Multiplied so, {pixels}" if pixels else ""
            return f"all boxes are smaller than a pixel: are these fractions of the image? {EXPECTED}; {cure}{then}"
        return f"all boxes are smaller than a pixel, so no object can be seen; {EXPECTED}"
    misread = _misread_pixels(boxes_xywh, sizes)
    return misread and f"{misread}; {EXPECTED}"


def _misread_pixels(boxes_xywh: np.ndarray, sizes: np.ndarray) -> str | None:
    """Return what boxes in pixels seem to be if not [x, y, width, height], with the cure; None if they seem right."""
    ends = boxes_xywh[:, :2] + boxes_xywh[:, 2:]
    is_far_over = (ends > sizes * (1 + FAR_OVER)).any(axis=1)
    if len(boxes_xywh) < FEW_BOXES or _share(is_far_over) < MANY:
        return None
    many = f"{is_far_over.sum():,} of {len(ends):,} boxes reach far over the right or bottom edge of their image"
    starts, corners = boxes_xywh[:, :2], boxes_xywh[:, 2:]
    if _share(((corners > starts) & _within(corners, sizes)).all(axis=1)) >= AGREE:
        return f"{many}, and none as corners: are these [x1, y1, x2, y2]? Subtract x and y from the other two numbers"
    if _share(_within(ends, sizes[:, ::-1]).all(axis=1)) >= AGREE:
        return f"{many}, and none if width and height of the images are swapped: swap them in the file's images"
    halves = boxes_xywh[:, 2:] / 2
    if _share((_within(starts + halves, sizes) & (starts - halves >= -1)).all(axis=1)) >= AGREE:
        cure = "subtract half the width from x and half the height from y"
        return f"{many}, and none if x and y are the centre of the box: are these [cx, cy, width, height]? {cure}"
    return None


def _within(points: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return points <= sizes + 1  # a pixel more: some count them from 1


def _share(is_so: np.ndarray) -> float:
    return float(is_so.mean())
