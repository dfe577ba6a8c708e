"""How the default boxes fit the objects that are trained on.

Their recall is the share of objects that one of them overlaps with an IoU of `loss.match_iou` or more. Any other object
is trained on its best box alone, or on none if another object has that box, so training and the dry run report a low
recall; `detection.show --what matches` draws it. Crowds do not count. Images are whole, without augmentation.
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

IOUS_AT_ONCE = 2**21
LEAST_RECALL = 0.8  # below it, a warning
MOST_MEASURED = 20_000  # objects; of more, a sample
MOST_TRIED = 2_000  # objects on which other settings are tried


class AnchorFit(NamedTuple):
    """How the default boxes fit the objects of a data set."""

    objects: int  # all of them
    measured: int  # of these, at random but always the same
    recall: float  # share of the measured ones that a default box overlaps with at least the IoU
    iou_threshold: float
    median_size: float  # of an object, the root of its area, pixels of the input

    def __str__(self) -> str:
        of = "" if self.measured == self.objects else f"a sample of {self.measured:,} of "
        share = math.floor(100 * self.recall)
        return f"{share}% of {of}{self.objects:,} training objects have one with IoU >= {self.iou_threshold:g}"


def object_boxes(coco: CocoFile) -> Tensor:
    """Return every object that is not a crowd: boxes_xyxy (N, 4) float32, fractions of its image's sides."""
    sizes = np.array([(record.width, record.height) for record in coco.images], np.float32)
    sizes = np.repeat(sizes, np.diff(coco.first_object), axis=0)  # (objects, 2)
    return torch.from_numpy((coco.boxes_xyxy / np.tile(sizes, 2))[~coco.is_crowd])


def sampled(boxes_xyxy: Tensor, most: int) -> Tensor:
    """Return at most so many of the boxes (N, 4), drawn at random, the same ones each time."""
    if len(boxes_xyxy) <= most:
        return boxes_xyxy
    return boxes_xyxy[np.sort(np.random.default_rng(0).choice(len(boxes_xyxy), most, replace=False))]


def best_boxes(boxes_xyxy: Tensor, anchors_cxcywh: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest IoU of each box (N, 4) with a default box (A, 4), (N,) float, and which one, (N,) int64."""
    anchors_xyxy = box_convert(anchors_cxcywh, "cxcywh", "xyxy")
    parts = boxes_xyxy.split(max(1, IOUS_AT_ONCE // len(anchors_xyxy)))
    bar = progress_bar(parts, desc="measuring overlaps", leave=False)
    best_iou, best_anchor = zip(*(pairwise_iou(part[None], anchors_xyxy)[0].max(dim=1) for part in bar), strict=True)
    return torch.cat(best_iou), torch.cat(best_anchor)


def recall_of(boxes_xyxy: Tensor, anchors_cxcywh: Tensor, iou_threshold: float) -> float:
    """Return the share of boxes (N, 4), N > 0, that a default box (A, 4) overlaps with at least that IoU."""
    return float((best_boxes(boxes_xyxy, anchors_cxcywh)[0] >= iou_threshold).double().mean())


def fit_anchors(coco: CocoFile, model: SSD, iou_threshold: float) -> AnchorFit:
    """Return how the default boxes of a detector fit the objects of a file that has some."""
    boxes_xyxy = object_boxes(coco)
    measured = sampled(boxes_xyxy, MOST_MEASURED)
    sizes = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(dim=1).sqrt() * model.input_size
    recall = recall_of(measured, model.anchors_cxcywh.cpu(), iou_threshold)
    return AnchorFit(len(boxes_xyxy), len(measured), recall, iou_threshold, float(sizes.median()))


def report_fit(fit: AnchorFit, coco: CocoFile, model: SSD, config: ModelConfig) -> None:
    """Log the recall of the default boxes; where it is low, warn, with the settings that would raise it."""
    if fit.recall >= LEAST_RECALL:
        logger.info("default boxes: %s", fit)
        return
    smallest = ANCHOR_SCALES[config.anchor_scales][0] * model.input_size
    tried = try_settings(coco, model, config, fit.iou_threshold)
    better = [f"{name} ({math.floor(100 * recall)}%)" for name, recall in tried.items() if recall > fit.recall + 0.01]
    logger.warning(
        "default boxes: only %s, so the others are hard to learn: at an input of %d pixels the median object is %.0f "
        "pixels wide and high, the smallest default box %.0f. Other model.anchor_scales or a larger model.input_size "
        "may fit: %s; or add scales that fit to ANCHOR_SCALES in detection/network/anchors.py",
        fit, model.input_size, fit.median_size, smallest, ", ".join(better) or "of those tried, none is better",
    )  # fmt: skip


def try_settings(coco: CocoFile, model: SSD, config: ModelConfig, iou_threshold: float) -> dict[str, float]:
    """Return the recall on a few objects with other scales and with twice the input size, the highest first."""
    boxes_xyxy = sampled(object_boxes(coco), MOST_TRIED)
    tried = {}
    for side in (model.input_size, 2 * model.input_size):
        grid_sizes = model.grid_sizes(side)
        for name, scales in ANCHOR_SCALES.items():
            changes = {f"model.anchor_scales={name}": name != config.anchor_scales}
            changes |= {f"model.input_size={side}": side != model.input_size}
            if setting := " ".join(text for text, is_change in changes.items() if is_change):
                tried[setting] = recall_of(boxes_xyxy, default_boxes(grid_sizes, scales), iou_threshold)
    return dict(sorted(tried.items(), key=lambda item: -item[1]))
