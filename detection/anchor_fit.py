"""Measure how well the default boxes fit the objects of the training set.

The recall of the default boxes is the share of objects whose IoU with some default box is at least `loss.match_iou`.
Every other object is matched only to its best box, or to no box if a different object has that box. Training and the
dry run warn of a low recall. `detection.show --what matches` draws the boxes. Crowds and augmentation are ignored.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert

from detection.coco.annotations import CocoFile
from detection.network.anchor_scales import MAX_FITTED, MAX_MEASURED, fit_scales, sample_boxes
from detection.network.anchors import AUTO, default_boxes
from detection.network.assignment.matching import pairwise_iou
from detection.network.ssd import SSD
from engine.logbook import logger, progress_bar

MAX_IOUS_AT_ONCE = 2**21
MIN_RECALL = 0.8  # a lower recall is a warning


class AnchorFit(NamedTuple):
    """Fit of the default boxes to the objects of a data set."""

    objects: int  # number of objects
    measured: int  # number of objects that were measured: all, or a deterministic random sample
    recall: float  # share of the measured objects whose best IoU is at least iou_threshold
    iou_threshold: float
    median_size: float  # median square root of the object areas, in input pixels
    scales: list[float]  # of the default boxes, fractions of the input side

    def __str__(self) -> str:
        sample = "" if self.measured == self.objects else f"a sample of {self.measured:,} of "
        share = math.floor(100 * self.recall)
        return f"{share}% of {sample}{self.objects:,} training objects have one with IoU >= {self.iou_threshold:g}"


def best_boxes(boxes_xyxy: Tensor, anchors_cxcywh: Tensor) -> tuple[Tensor, Tensor]:
    """Return each box's highest IoU (N,) with a default box, and the index (N,) of that default box."""
    anchors_xyxy = box_convert(anchors_cxcywh, "cxcywh", "xyxy")
    parts = boxes_xyxy.split(max(1, MAX_IOUS_AT_ONCE // len(anchors_xyxy)))
    bar = progress_bar(parts, desc="measuring IoUs", leave=False)
    best_iou, best_anchor = zip(*(pairwise_iou(part[None], anchors_xyxy)[0].max(dim=1) for part in bar), strict=True)
    return torch.cat(best_iou), torch.cat(best_anchor)


def recall_of(boxes_xyxy: Tensor, anchors_cxcywh: Tensor, iou_threshold: float) -> float:
    """Return the share of boxes (N, 4), N > 0, whose IoU with some default box (A, 4) reaches `iou_threshold`."""
    return float((best_boxes(boxes_xyxy, anchors_cxcywh)[0] >= iou_threshold).double().mean())


def fit_anchors(coco: CocoFile, model: SSD, iou_threshold: float) -> AnchorFit:
    """Measure how the default boxes of a detector fit the objects of an annotation file (at least one object)."""
    boxes_xyxy = torch.from_numpy(coco.fractions_xyxy)
    measured = sample_boxes(boxes_xyxy, MAX_MEASURED)
    sizes = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(dim=1).sqrt() * model.input_size
    recall = recall_of(measured, model.anchors_cxcywh.cpu(), iou_threshold)
    median_size = float(sizes.median())
    return AnchorFit(len(boxes_xyxy), len(measured), recall, iou_threshold, median_size, list(model.anchor_scales))


def report_fit(fit: AnchorFit, coco: CocoFile, model: SSD) -> None:
    """Log the recall of the default boxes. If it is low, warn and suggest settings that raise it."""
    if fit.recall >= MIN_RECALL:
        logger.info("default boxes: %s; scales %s", fit, fit.scales)
        return
    smallest = fit.scales[0] * model.input_size
    tried = try_settings(coco, model, fit.iou_threshold)
    better = [f"{name} ({math.floor(100 * recall)}%)" for name, recall in tried.items() if recall > fit.recall + 0.01]
    logger.warning(
        "default boxes: only %s with scales %s, so the remaining objects are hard to learn. At model.input_size=%d the "
        "median object has a side of %.0f pixels, the smallest default box %.0f. Settings with a higher recall: %s",
        fit, fit.scales, model.input_size, fit.median_size, smallest, ", ".join(better) or "none of those tried",
    )  # fmt: skip


def try_settings(coco: CocoFile, model: SSD, iou_threshold: float) -> dict[str, float]:
    """Return a dict from overrides to recall, for fitted scales, twice the input size and both, best recall first."""
    boxes_xyxy = sample_boxes(torch.from_numpy(coco.fractions_xyxy), MAX_FITTED)
    grid_sizes, finer = (model.grid_sizes(side) for side in (model.input_size, 2 * model.input_size))
    auto, twice = f"model.anchor_scales={AUTO}", f"model.input_size={2 * model.input_size}"
    tried = {
        auto: default_boxes(grid_sizes, fit_scales(boxes_xyxy, grid_sizes, iou_threshold)),
        twice: default_boxes(finer, model.anchor_scales),
        f"{auto} {twice}": default_boxes(finer, fit_scales(boxes_xyxy, finer, iou_threshold)),
    }
    recalls = {setting: recall_of(boxes_xyxy, anchors, iou_threshold) for setting, anchors in tried.items()}
    return dict(sorted(recalls.items(), key=lambda item: -item[1]))
