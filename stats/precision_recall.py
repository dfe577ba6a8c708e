"""Precision-recall curves from the matches of a finished run. The area under a curve is the average precision."""

import numpy as np

from stats.bootstrap import RECALL_THRESHOLDS
from stats.image_statistics import Matches


def precision_by_recall(matches: Matches) -> np.ndarray:
    """Compute the interpolated precision at the recalls 0, 0.01, ..., 1, exactly as pycocotools does.

    The interpolated precision is the highest precision at this recall or any higher recall. Objects of any size count,
    with at most 100 detections per image and class. Returns (T, 101, C) float64 in [0, 1]; nan for a class without
    objects. The mean over the recalls is the AP."""
    thresholds, classes = len(matches.iou_thresholds), len(matches.class_names)
    precision = np.full((thresholds, len(RECALL_THRESHOLDS), classes), np.nan)
    for label in range(classes):
        num_objects = np.count_nonzero(matches.object_classes == label)
        if num_objects:
            rows = np.flatnonzero(matches.detection_classes == label)
            rows = rows[np.argsort(-matches.scores[rows], kind="stable")]  # stable, so ties keep the evaluator's order
            precision[:, :, label] = _interpolate(matches.true_positives[rows], matches.ignored[rows], num_objects)
    return precision


def image_average_precision(matches: Matches) -> np.ndarray:
    """Compute COCO's AP of each image, as if it were the only image of the data set.

    It is the mean over the IoU thresholds and over the classes that have an object in the image, so it depends on the
    order of an image's scores but not on their size. False positives of other classes do not count. The mean over
    images is not the mAP, which ranks the detections of all images together.
    Returns (I,) float64 in [0, 1]; nan for an image without objects."""
    num_images = len(matches.image_ids)
    # Detections are ordered by class, then by image, then best first, so those of an image and class are adjacent
    keys = matches.detection_classes.astype(np.int64) * num_images + matches.detection_images
    of_objects = matches.object_classes.astype(np.int64) * num_images + matches.object_images
    groups, counts = np.unique(of_objects, return_counts=True)
    sums, classes = np.zeros(num_images), np.bincount(groups % num_images, minlength=num_images)
    spans = zip(np.searchsorted(keys, groups, "left"), np.searchsorted(keys, groups, "right"), strict=True)
    for group, num_objects, (first, last) in zip(groups, counts, spans, strict=True):
        found = _interpolate(matches.true_positives[first:last], matches.ignored[first:last], num_objects)
        sums[group % num_images] += found.mean()
    return np.divide(sums, classes, out=np.full(num_images, np.nan), where=classes > 0)


def _interpolate(true_positives: np.ndarray, ignored: np.ndarray, num_objects: int) -> np.ndarray:
    """Return the interpolated precision of ranked detections at the recalls 0, 0.01, ..., 1, (T, 101).

    true_positives, ignored: (D, T) bool, best detection first. num_objects: at least 1."""
    hits = np.cumsum(true_positives, axis=0, dtype=np.float64)  # (D, T)
    misses = np.cumsum(~true_positives & ~ignored, axis=0)
    precision = np.empty((true_positives.shape[1], len(RECALL_THRESHOLDS)))
    for t, curve in enumerate(precision):
        envelope = hits[:, t] / (hits[:, t] + misses[:, t] + np.spacing(1))  # like pycocotools, to avoid 0 / 0
        envelope = np.append(np.maximum.accumulate(envelope[::-1])[::-1], 0)  # 0 for recalls never reached
        curve[:] = envelope[np.searchsorted(hits[:, t] / num_objects, RECALL_THRESHOLDS)]
    return precision
