"""Select the anchors whose losses are computed, and gather what the losses need of them.

On a CPU, only the selected anchors are computed. On a GPU, selecting would synchronise, because the number of selected
anchors is not known in advance. So all anchors are computed there, and the losses set the others to zero.
"""

from types import EllipsisType
from typing import NamedTuple

import torch
from torch import Tensor

# tensor[index] selects rows from a tensor (B, A, ...). R stands for the shape of the rows. It is (B, A) if the index is
# `...`, which selects all anchors. On a CPU, it is (n,) for an index of used_rows, and (B, K) for one of positive_rows.
RowIndex = EllipsisType | tuple[Tensor, Tensor]


class Rows(NamedTuple):
    """Values of some or all anchors, one row each."""

    index: RowIndex  # of these rows
    image: Tensor  # (R) int64, index of the image in the batch
    anchor: Tensor  # (R) int64, index of the anchor
    is_positive: Tensor  # (R) bool
    labels: Tensor  # (R) int64, 1..num_classes, 0 for a negative
    objects: Tensor  # (R) int64, index of the matched object in its image; 0 for a negative
    deltas: Tensor  # (R, 4) float32, predicted
    anchors_cxcywh: Tensor  # (R, 4)
    boxes_xyxy: Tensor  # (R, 4), the matched object; any object for a negative


def used_rows(is_used: Tensor) -> RowIndex:
    """Return an index of the anchors where is_used (B, A) is true or, on a GPU, of all anchors."""
    return is_used.nonzero(as_tuple=True) if is_used.is_cpu else ...


def positive_rows(is_positive: Tensor) -> RowIndex:
    """Return an index of the positives (B, A) and of as many negatives as needed so that all images have K rows.

    K is the largest number of positives of an image, at least 1. On a GPU, the index selects all A anchors."""
    if not is_positive.is_cpu:
        return ...
    most = max(1, int(is_positive.sum(dim=1).max()))
    columns = is_positive.float().topk(most, dim=1).indices.sort(dim=1).values  # (B, K)
    return torch.arange(len(is_positive))[:, None], columns


def select_rows(
    index: RowIndex, matched: Tensor, box_deltas: Tensor, boxes_xyxy: Tensor, labels: Tensor, anchors_cxcywh: Tensor
) -> Rows:
    """Return the rows that `index` selects.

    matched: (B, A) int64, the index of the object, or -1. box_deltas: (B, A, 4). boxes_xyxy: (B, M, 4).
    labels: (B, M) int64. anchors_cxcywh: (A, 4)."""
    num_images, num_anchors = matched.shape
    is_positive, objects = (matched >= 0)[index], matched.clamp(min=0)[index]
    image = torch.arange(num_images, device=matched.device)[:, None].expand(-1, num_anchors)[index]
    anchor = torch.arange(num_anchors, device=matched.device).expand(num_images, -1)[index]
    return Rows(
        index,
        image,
        anchor,
        is_positive,
        labels[image, objects].masked_fill(~is_positive, 0),
        objects,
        box_deltas[index].float(),
        anchors_cxcywh[anchor],
        boxes_xyxy[image, objects],
    )
