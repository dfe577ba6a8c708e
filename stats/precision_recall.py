"""Precision by recall, from the matches of a finished run: the curves whose areas are the average precisions."""

import numpy as np

from stats.bootstrap import RECALL_THRESHOLDS
from stats.image_statistics import Matches


def precision_by_recall(matches: Matches) -> np.ndarray:
    """The best precision at each of the recalls 0, 0.01, ..., 1 or at a higher one, as pycocotools has it.

    Returns (T, 101, C) float64 from 0 to 1, for objects of any size and at most 100 detections per image and class;
    nan for a class without objects. The mean over the recalls is the AP."""
    thresholds, classes = len(matches.iou_thresholds), len(matches.class_names)
    precision = np.full((thresholds, len(RECALL_THRESHOLDS), classes), np.nan)
    for label in range(classes):
        num_objects = np.count_nonzero(matches.object_classes == label)
        if not num_objects:
            continue
        rows = np.flatnonzero(matches.detection_classes == label)
        rows = rows[
            np.argsort(-matches.scores[rows], kind="stable")
        ]  # best first, equal ones as the evaluator had them
        hits = np.cumsum(matches.true_positives[rows], axis=0, dtype=np.float64)  # (D, T)
        misses = np.cumsum(~matches.true_positives[rows] & ~matches.ignored[rows], axis=0)
        for t in range(thresholds):
            envelope = hits[:, t] / (hits[:, t] + misses[:, t] + np.spacing(1))  # pycocotools' own way not to be 0 / 0
            envelope = np.append(np.maximum.accumulate(envelope[::-1])[::-1], 0)  # 0 where recall is never reached
            precision[t, :, label] = envelope[np.searchsorted(hits[:, t] / num_objects, RECALL_THRESHOLDS)]
    return precision
