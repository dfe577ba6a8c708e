"""Scores on resamples of the validation images: the paired bootstrap (Efron and Tibshirani, 1993, chapters 6, 13, 16).

A resample draws as many images as the validation set has, with replacement. It is stored as image weights: how often
each image was drawn. Two models are compared on the same resamples, so that the noise they share cancels. An image that
was drawn twice counts twice, as if the data set had two copies of the image and its detections. Counting it once would
make intervals too narrow. benchmarks/bootstrap.md measures the coverage of the intervals.

    weights = image_weights(len(a.image_ids), 1000, seed=0)
    scores_a, _ = resampled_scores(a, weights)
    scores_b, _ = resampled_scores(b, weights)
    print(interval(estimate_b - estimate_a, scores_b["mAP"] - scores_a["mAP"]))
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from stats.image_statistics import Hits, Losses, Matches, Statistics

RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)  # bitwise equal to pycocotools' recall thresholds
CHUNK_ELEMENTS = 2**19  # size of the largest array of a chunk of resamples; several such arrays should fit in the cache
THREADS = 2  # each thread works on one class at a time


# ---- scores on resamples -----------------------------------------------------------------------------------


def image_weights(num_images: int, replicates: int, seed: int) -> np.ndarray:
    """Draw num_images images with replacement for each resample, and return how often each image was drawn.

    Returns (replicates, num_images) int32; each row sums to num_images. The draws depend only on the arguments, so
    that experiments with the same validation set are compared on the same resamples."""
    generator = np.random.default_rng(seed)
    weights = np.empty((replicates, num_images), dtype=np.int32)
    for row in weights:
        row[:] = np.bincount(generator.integers(num_images, size=num_images), minlength=num_images)
    return weights


def resampled_scores(statistics: Statistics, weights: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Compute the scores of a model on each resample, and its main score per class.

    weights: (R, I) non-negative integers, how often each resample drew each of the I images. Ones give the full set.

    Returns a dict from score name (as in results.json) to scores, (R,) float64, and the main score per class, (R, C)
    float64. For Matches: mAP; AP per class. For Hits: top1, top5; top1 per class. For Losses: mean loss; mean loss per
    class. All scores but the loss are in [0, 1]. A score is nan if the resample has nothing to score.
    Raises ValueError if the weights are not integers, one per image."""
    if isinstance(statistics, Hits):
        scores = {"top1": resampled_mean(statistics.hits, weights), "top5": resampled_mean(statistics.in_top5, weights)}
        return scores, resampled_class_means(statistics.hits, statistics, weights)
    if isinstance(statistics, Losses):
        scores = {str(statistics.name): resampled_mean(statistics.losses, weights)}
        return scores, resampled_class_means(statistics.losses, statistics, weights)
    per_class = average_precision(statistics, weights)
    return {"mAP": mean_average_precision(per_class)}, per_class


def resampled_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean of per-image values over each resample, such as the fraction of correct predictions.

    values: (I,) bool or float. weights: (R, I), see resampled_scores. Returns (R,); nan if no image was drawn."""
    weights = _check_weights(weights, len(values))
    num_drawn = weights.sum(axis=1)
    return np.where(num_drawn > 0, weights @ values / np.maximum(num_drawn, 1), np.nan)


def resampled_class_means(values: np.ndarray, statistics: Hits | Losses, weights: np.ndarray) -> np.ndarray:
    """Return the mean of per-image values over the images of each class, for each resample.

    values, weights: see resampled_mean. Returns (R, C) float64; nan if no image of the class was drawn."""
    weights = _check_weights(weights, len(values))
    members = [np.flatnonzero(statistics.labels == label) for label in range(len(statistics.class_names))]
    return np.stack([resampled_mean(values[images], weights[:, images]) for images in members], axis=1)


def average_precision(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """Compute COCO's AP of each class on each resample: mean over IoUs, all areas, 100 detections per image.

    AP is the mean over all IoU thresholds. pycocotools computes the same AP for a data set that contains w consecutive
    copies of each image that was drawn w times.
    weights: (R, I), see resampled_scores. Returns (R, C) float64 in [0, 1]; nan if a class has no object in the
    resample. Raises ValueError if the weights are not integers, one per image."""
    weights, num_classes = _check_weights(weights, len(matches.image_ids)), len(matches.class_names)
    max_copies = weights.max(axis=0, initial=0)
    result = np.full((len(weights), num_classes), np.nan)

    def fill(class_index: int) -> None:
        ranking = _rank(matches, class_index, max_copies)
        objects = matches.object_images[matches.object_classes == class_index]
        chunk = max(1, CHUNK_ELEMENTS // max(1, len(ranking.images), len(objects)))
        for start in range(0, len(weights), chunk):
            part = weights[start : start + chunk]
            num_objects = part.take(objects, axis=1).sum(axis=1)
            result[start : start + chunk, class_index] = _class_average_precision(ranking, part, num_objects)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fill, range(num_classes)))
    return result


def mean_average_precision(per_class: np.ndarray) -> np.ndarray:
    """Return mAP, the mean AP over the classes that have an object in the resample.

    per_class: (R, C), see average_precision. Returns (R,); nan if no class has an object."""
    defined = ~np.isnan(per_class)
    count = defined.sum(axis=1)
    return np.where(count > 0, np.where(defined, per_class, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan)


def _check_weights(weights: np.ndarray, num_images: int) -> np.ndarray:
    """Return the weights as (R, num_images) int32. Raises ValueError if they are not integers, one per image."""
    if weights.ndim != 2 or weights.shape[1] != num_images or weights.dtype.kind not in "iu":
        got = f"{weights.dtype} of shape {weights.shape}"
        raise ValueError(f"image weights: got {got}, expected integers of shape (replicates, {num_images})")
    return np.ascontiguousarray(weights, dtype=np.int32)


@dataclass(frozen=True)
class _Ranking:
    """The detections of one class in all images, by descending score.

    images: (D,) int, index of each detection's image.
    copies: (D,) int, the copy of the image (0, 1, ...) to which the row belongs, or -1 for all copies (see _rank).
    true_positives, ignored: (D, T) bool."""

    images: np.ndarray
    copies: np.ndarray
    true_positives: np.ndarray
    ignored: np.ndarray

    def counts(self, rows: np.ndarray | slice, weights: np.ndarray) -> np.ndarray:
        """Return how often each of these rows occurs in each resample, (R, rows) int32. weights: (R, I)."""
        counts = weights.take(self.images[rows], axis=1)
        copies = self.copies[rows]
        tied = np.flatnonzero(copies >= 0)
        if tied.size:
            counts[:, tied] = counts[:, tied] > copies[tied]
        return counts


def _rank(matches: Matches, class_index: int, max_copies: np.ndarray) -> _Ranking:
    """Order the detections of one class like pycocotools: by score, then by image.

    An image that was drawn several times gives several copies of its detections. Copies of the same detection are
    adjacent in this order, so one row with a weight can represent them. There is one exception: if detections d and e
    of an image have equal scores, the order is d e d e, not d d e e. Such detections get one row per copy. Copy j (0,
    1, ...) occurs in resamples that drew the image more than j times. max_copies: (I,), most copies in any resample."""
    first, last = np.searchsorted(matches.detection_classes, [class_index, class_index + 1])
    order = first + np.argsort(-matches.scores[first:last], kind="stable")
    scores, images = matches.scores[order], matches.detection_images[order]

    starts_run = np.ones(len(order), dtype=bool)
    starts_run[1:] = (scores[1:] != scores[:-1]) | (images[1:] != images[:-1])
    runs = np.cumsum(starts_run) - 1
    tied = np.bincount(runs)[runs] > 1 if len(runs) else starts_run

    num_rows = np.where(tied, max_copies[images], 1)
    copies = np.arange(num_rows.sum()) - np.repeat(np.cumsum(num_rows) - num_rows, num_rows)
    rows = np.repeat(np.arange(len(order)), num_rows)
    by_copy = np.lexsort((copies, runs[rows]))  # stable, so each copy keeps the evaluator's order
    rows, copies = rows[by_copy], copies[by_copy]
    return _Ranking(
        images[rows],
        np.where(tied[rows], copies, -1),
        matches.true_positives[order[rows]],
        matches.ignored[order[rows]],
    )


def _class_average_precision(ranking: _Ranking, weights: np.ndarray, num_objects: np.ndarray) -> np.ndarray:
    """Compute the AP of one class on each resample, (R,); nan if the class has no objects in the resample.

    Precision only rises at true positives, so only true positives determine its envelope. AP is a weighted sum of the
    envelope at the true positives. The weight is the number of recall thresholds that are first reached there.
    weights: (R, I) int32. num_objects: (R,) int."""
    detections = np.cumsum(ranking.counts(slice(None), weights), axis=1, dtype=np.int32)  # (R, D)
    total = np.zeros(len(weights))
    num_thresholds = ranking.true_positives.shape[1]
    for t in range(num_thresholds):
        rows = np.flatnonzero(ranking.true_positives[:, t])
        if not rows.size:
            continue
        hits = np.cumsum(ranking.counts(rows, weights), axis=1, dtype=np.int32)  # (R, P)
        counted = detections.take(rows, axis=1)
        ignored = np.flatnonzero(ranking.ignored[:, t])
        if ignored.size:
            num_ignored = np.cumsum(ranking.counts(ignored, weights), axis=1, dtype=np.int32)
            before = np.searchsorted(ignored, rows)  # number of ignored rows that rank higher
            counted[:, before > 0] -= num_ignored[:, before[before > 0] - 1]
        envelope = hits / np.maximum(counted, 1)
        np.maximum.accumulate(envelope[:, ::-1], axis=1, out=envelope[:, ::-1])
        reached = _thresholds_reached(hits / np.maximum(num_objects, 1)[:, None])
        total += envelope[:, 0] * reached[:, 0] + np.einsum("rp,rp->r", envelope[:, 1:], np.diff(reached, axis=1))
    return np.where(num_objects > 0, total / (len(RECALL_THRESHOLDS) * num_thresholds), np.nan)


def _thresholds_reached(recall: np.ndarray) -> np.ndarray:
    """Return the number of recall thresholds <= recall, as int32, with the same comparisons as in pycocotools."""
    reached = (recall * 100 + 1e-9).astype(np.int32)  # the correct number, or one less
    reached += RECALL_THRESHOLDS.take(reached) <= recall
    return reached
