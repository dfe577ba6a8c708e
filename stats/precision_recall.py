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
        if not num_objects:
            continue
        rows = np.flatnonzero(matches.detection_classes == label)
        rows = rows[np.argsort(-matches.scores[rows], kind="stable")]  # stable, so ties keep the evaluator's order
        hits = np.cumsum(matches.true_positives[rows], axis=0, dtype=np.float64)  # (D, T)
        misses = np.cumsum(~matches.true_positives[rows] & ~matches.ignored[rows], axis=0)
        for t in range(thresholds):
            envelope = hits[:, t] / (hits[:, t] + misses[:, t] + np.spacing(1))  # like pycocotools, to avoid 0 / 0
            envelope = np.append(np.maximum.accumulate(envelope[::-1])[::-1], 0)  # 0 for recalls never reached
            precision[t, :, label] = envelope[np.searchsorted(hits[:, t] / num_objects, RECALL_THRESHOLDS)]
    return precision
