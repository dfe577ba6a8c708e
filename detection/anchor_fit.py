"""Measure how well the default boxes fit the objects of the training set.

The recall of the default boxes is the share of objects whose IoU with some default box is at least `loss.match_iou`.
Every other object is matched only to its best box, or to no box if a different object has that box. Training and the
dry run warn of a low recall. `detection.show --what matches` draws the boxes. Crowds and augmentation are ignored.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert

from detection.coco.annotations import CocoFile
from detection.network.anchors import ANCHOR_SCALES, default_boxes
from detection.network.matching import pairwise_iou
from detection.network.ssd import SSD, ModelConfig
from engine.logbook import logger, progress_bar

MAX_IOUS_AT_ONCE = 2**21
MIN_RECALL = 0.8  # a lower recall is a warning
MAX_MEASURED = 20_000  # objects; if there are more, a random sample is measured
MAX_TRIED = 2_000  # objects in the sample on which alternative settings are tried


class AnchorFit(NamedTuple):
    """Fit of the default boxes to the objects of a data set."""

    objects: int  # number of objects
    measured: int  # number of objects that were measured: all, or a deterministic random sample
    recall: float  # share of the measured objects whose best IoU is at least iou_threshold
    iou_threshold: float
    median_size: float  # median square root of the object areas, in input pixels

    def __str__(self) -> str:
        sample = "" if self.measured == self.objects else f"a sample of {self.measured:,} of "
        share = math.floor(100 * self.recall)
        return f"{share}% of {sample}{self.objects:,} training objects have one with IoU >= {self.iou_threshold:g}"


def object_boxes(coco: CocoFile) -> Tensor:
    """Return the boxes of all objects except crowds: xyxy (N, 4) float32, fractions of the image sides."""
    sizes = np.array([(record.width, record.height) for record in coco.images], np.float32)
    sizes = np.repeat(sizes, np.diff(coco.first_object), axis=0)  # (objects, 2)
    return torch.from_numpy((coco.boxes_xyxy / np.tile(sizes, 2))[~coco.is_crowd])


def sample_boxes(boxes_xyxy: Tensor, most: int) -> Tensor:
    """Return boxes_xyxy (N, 4), or a deterministic random sample of `most` of them if there are more."""
    if len(boxes_xyxy) <= most:
        return boxes_xyxy
    return boxes_xyxy[np.sort(np.random.default_rng(0).choice(len(boxes_xyxy), most, replace=False))]


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
    boxes_xyxy = object_boxes(coco)
    measured = sample_boxes(boxes_xyxy, MAX_MEASURED)
    sizes = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(dim=1).sqrt() * model.input_size
    recall = recall_of(measured, model.anchors_cxcywh.cpu(), iou_threshold)
    return AnchorFit(len(boxes_xyxy), len(measured), recall, iou_threshold, float(sizes.median()))


def report_fit(fit: AnchorFit, coco: CocoFile, model: SSD, config: ModelConfig) -> None:
    """Log the recall of the default boxes. If it is low, warn and suggest settings that raise it."""
    if fit.recall >= MIN_RECALL:
        logger.info("default boxes: %s", fit)
        return
    smallest = ANCHOR_SCALES[config.anchor_scales][0] * model.input_size
    tried = try_settings(coco, model, config, fit.iou_threshold)
    better = [f"{name} ({math.floor(100 * recall)}%)" for name, recall in tried.items() if recall > fit.recall + 0.01]
    logger.warning(
        "default boxes: only %s, so the remaining objects are hard to learn. At model.input_size=%d the median object "
        "has a side of %.0f pixels, the smallest default box %.0f pixels. Settings with a higher recall: %s. You can "
        "also add scales to ANCHOR_SCALES in detection/network/anchors.py",
        fit, model.input_size, fit.median_size, smallest, ", ".join(better) or "none of those tried",
    )  # fmt: skip


def try_settings(coco: CocoFile, model: SSD, config: ModelConfig, iou_threshold: float) -> dict[str, float]:
    """Return a dict from overrides to recall, for different scales and twice the input size, best recall first."""
    boxes_xyxy = sample_boxes(object_boxes(coco), MAX_TRIED)
    tried = {}
    for side in (model.input_size, 2 * model.input_size):
        grid_sizes = model.grid_sizes(side)
        for name, scales in ANCHOR_SCALES.items():
            changes = {f"model.anchor_scales={name}": name != config.anchor_scales}
            changes |= {f"model.input_size={side}": side != model.input_size}
            if setting := " ".join(text for text, is_change in changes.items() if is_change):
                tried[setting] = recall_of(boxes_xyxy, default_boxes(grid_sizes, scales), iou_threshold)
    return dict(sorted(tried.items(), key=lambda item: -item[1]))
