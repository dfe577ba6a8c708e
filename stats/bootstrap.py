"""Scores on resamples of the validation images: the paired bootstrap (Efron and Tibshirani, 1993, chapters 6, 13, 16).

A resample draws as many images as the validation set has, with replacement. It is stored as image weights: how often
each image was drawn. Two models are compared on the same resamples, so that the noise they share cancels. An image that
was drawn twice counts twice, as if the data set had two copies of the image and its detections. Counting it once would
make intervals too narrow. benchmarks/bootstrap.md measures the coverage of the intervals.

    weights = image_weights(len(a.image_ids), 10_000, seed=0)
    scores_a, _ = resampled_scores(a, weights)
    scores_b, _ = resampled_scores(b, weights)
    print(interval(estimate_b - estimate_a, scores_b["mAP"] - scores_a["mAP"]))
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike
from scipy.sparse import csr_array

from stats.image_statistics import Hits, Losses, Matches, Statistics

MIN_IMAGES = 10  # with fewer images, resamples repeat the same few images
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)  # bitwise equal to pycocotools' recall thresholds
RESAMPLES_PER_CHUNK = 2048  # more keep Python's overhead small; fewer keep the arrays of a step in the CPU's cache
THREADS = 2  # each thread works on one class at a time


# ---- scores on resamples -----------------------------------------------------------------------------------


def image_weights(num_images: int, replicates: int, seed: int) -> np.ndarray:
    """Draw num_images images with replacement for each resample, and return how often each image was drawn.

    Returns (replicates, num_images) int16; each row sums to num_images. The draws depend only on the arguments, so
    that experiments with the same validation set are compared on the same resamples."""
    generator = np.random.default_rng(seed)
    weights = np.empty((replicates, num_images), dtype=np.int16)
    for row in weights:
        row[:] = np.bincount(generator.integers(num_images, size=num_images), minlength=num_images)
    return weights


def resampled_scores(statistics: Statistics, weights: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Compute the scores of a model on each resample, and its main score per class.

    weights: (R, I) integers from 0 to 65535, how often each resample drew each image. Ones give the full set.

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
    return _group_means(values, np.zeros(len(values), dtype=int), 1, weights)[:, 0]


def resampled_class_means(values: np.ndarray, statistics: Hits | Losses, weights: np.ndarray) -> np.ndarray:
    """Return the mean of per-image values over the images of each class, for each resample.

    values, weights: see resampled_mean. Returns (R, C) float64; nan if no image of the class was drawn."""
    return _group_means(values, statistics.labels, len(statistics.class_names), weights)


def _group_means(values: np.ndarray, groups: np.ndarray, num_groups: int, weights: np.ndarray) -> np.ndarray:
    """Return the mean of per-image values over the images of each group, for each resample.

    groups: (I,) int, group of each image. Returns (R, num_groups) float64; nan if no image of the group was drawn."""
    _check_weights(weights, len(values))
    shape, places = (num_groups, len(values)), (groups, np.arange(len(values)))
    members = csr_array((np.ones(len(values)), places), shape)
    sums = csr_array((values.astype(np.float64), places), shape)
    result = np.full((len(weights), num_groups), np.nan)
    for chunk, drawn in _chunks(weights, 64, np.float64):  # 64 resamples of 50,000 images: 26 MB
        num_drawn = members @ drawn
        np.divide(sums @ drawn, num_drawn, out=result[chunk].T, where=num_drawn > 0)
    return result


def average_precision(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """Compute COCO's AP of each class on each resample: mean over IoUs, all areas, 100 detections per image.

    AP is the mean over all IoU thresholds. pycocotools computes the same AP for a data set that contains w consecutive
    copies of each image that was drawn w times.
    weights: (R, I), see resampled_scores. Returns (R, C) float64 in [0, 1]; nan if a class has no object in the
    resample. Raises ValueError if the weights are not integers, one per image."""
    _check_weights(weights, len(matches.image_ids))
    num_classes, max_copies = len(matches.class_names), weights.max(axis=0, initial=0).astype(np.int64)
    chunks = list(_chunks(weights, RESAMPLES_PER_CHUNK, np.uint16))
    result = np.empty((len(weights), num_classes))

    def fill(class_index: int) -> None:
        ranking = _rank(matches, class_index, max_copies)
        for chunk, drawn in chunks:
            result[chunk, class_index] = _class_average_precision(ranking, drawn)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fill, range(num_classes)))
    return result


def mean_average_precision(per_class: np.ndarray) -> np.ndarray:
    """Return mAP, the mean AP over the classes that have an object in the resample.

    per_class: (R, C), see average_precision. Returns (R,); nan if no class has an object."""
    defined = ~np.isnan(per_class)
    count = defined.sum(axis=1)
    return np.where(count > 0, np.where(defined, per_class, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan)


def _check_weights(weights: np.ndarray, num_images: int) -> None:
    """Raise ValueError if the weights are not integers, one per image."""
    if weights.ndim != 2 or weights.shape[1] != num_images or weights.dtype.kind not in "iu":
        got = f"{weights.dtype} of shape {weights.shape}"
        raise ValueError(f"image weights: got {got}, expected integers of shape (replicates, {num_images})")


def _chunks(weights: np.ndarray, size: int, dtype: DTypeLike) -> Iterator[tuple[slice, np.ndarray]]:
    """Split the weights into chunks of resamples. Yield the slice of resamples and their weights, (I, resamples)."""
    for start in range(0, len(weights), size):
        chunk = slice(start, start + size)
        yield chunk, np.ascontiguousarray(weights[chunk].T, dtype=dtype)


@dataclass(frozen=True)
class _Ranking:
    """The detections of one class in all images by descending score, cut into P segments that each end with a match.

    A match is a detection that is a true positive or ignored at any of the T IoU thresholds. AP needs the number of
    detections only at matches. All counts are sums of image weights: counts @ weights. Each of the K detections that
    belong to one copy of an image (see _rank) has its own row of the weights, after the rows of the I images.

    counts: (P + 2 T + 1, I + K) sparse. The rows count the detections of each segment, the true positives at each IoU
    threshold, the ignored detections at each IoU threshold, and the objects.
    tied_images, tied_copies: (K,) int, the image and the copy (0, 1, ...) of the last K rows of the weights.
    sources: for each match, its row of the weights.
    true_positives, ignored: for each match, the ranges of IoU thresholds at which it is a true positive or ignored.
    peaks: the ranges of IoU thresholds at which it is a true positive and the next detection is not."""

    counts: csr_array
    tied_images: np.ndarray
    tied_copies: np.ndarray
    sources: list[int]
    true_positives: list[list[slice]]
    ignored: list[list[slice]]
    peaks: list[list[slice]]


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
    num_images, tied = len(max_copies), np.flatnonzero(tied[rows])
    sources = images[rows].astype(np.int64)
    tied_images, sources[tied] = sources[tied], num_images + np.arange(len(tied))

    true_positives, ignored = matches.true_positives[order[rows]], matches.ignored[order[rows]]
    peaks = true_positives.copy()
    peaks[:-1] &= ~true_positives[1:]
    matched = np.concatenate([true_positives, ignored], axis=1)  # (D, 2 T)
    ends = np.flatnonzero(matched.any(axis=1))
    segments = np.searchsorted(ends, np.arange(len(rows)))
    ranked = np.flatnonzero(segments < len(ends))  # detections after the last match do not matter
    match_rows, thresholds = np.nonzero(matched)
    objects = matches.object_images[matches.object_classes == class_index]

    num_counts = len(ends) + matched.shape[1] + 1
    counted_in = np.concatenate([segments[ranked], len(ends) + thresholds, np.full(len(objects), num_counts - 1)])
    counted = np.concatenate([sources[ranked], sources[match_rows], objects])
    largest = np.bincount(counted_in).max(initial=0) * max_copies.max(initial=0)  # a count cannot be larger
    ones = np.ones(len(counted), np.uint16 if largest <= np.iinfo(np.uint16).max else np.uint32)
    return _Ranking(
        csr_array((ones, (counted_in, counted)), shape=(num_counts, num_images + len(tied))),
        tied_images,
        copies[tied],
        sources[ends].tolist(),
        _runs(true_positives[ends]),
        _runs(ignored[ends]),
        _runs(peaks[ends]),
    )


def _runs(mask: np.ndarray) -> list[list[slice]]:
    """Return the ranges of True in each row of a mask."""
    changes = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, stops = np.argwhere(changes == 1).tolist(), np.argwhere(changes == -1).tolist()
    runs = [[] for _ in mask]
    for (row, start), (_, stop) in zip(starts, stops, strict=True):
        runs[row].append(slice(start, stop))
    return runs


def _class_average_precision(ranking: _Ranking, weights: np.ndarray) -> np.ndarray:
    """Compute the AP of one class on each resample, (R,); nan if the class has no objects in the resample.

    Go from the last match to the first. Arrays are (T, R), so that NumPy handles all resamples and several IoU
    thresholds in one step. The envelope is the highest precision so far. When it rises, it rises for all recall
    thresholds that the current recall reaches. From one true positive to the next, precision only rises if no other
    detection is between them. Therefore only peaks can raise the envelope.
    weights: (I, R) uint16."""
    if ranking.tied_images.size:
        is_drawn = weights[ranking.tied_images] > ranking.tied_copies[:, None]
        weights = np.concatenate([weights, is_drawn], dtype=np.uint16)
    counts = ranking.counts @ weights.astype(ranking.counts.dtype, copy=False)
    in_segments, others = np.split(counts, [len(ranking.sources)])
    *hits_and_ignored, num_objects = others.astype(np.int64)
    hits, ignored = np.split(np.stack(hits_and_ignored), 2)  # up to and including the current match, (T, R) each
    detections, has_ignored = in_segments.sum(axis=0, dtype=np.float64), ignored.any()
    reached, offset = _thresholds_reached(num_objects)
    envelope, total = np.zeros(hits.shape), np.zeros(hits.shape)
    for match in reversed(range(len(in_segments))):
        drawn = weights[ranking.sources[match]]
        for t in ranking.peaks[match]:
            counted = detections - ignored[t] if has_ignored else detections
            precision = np.maximum(envelope[t], hits[t] / np.maximum(counted, 1))
            total[t] += (precision - envelope[t]) * reached.take(hits[t] + offset)
            envelope[t] = precision
        for t in ranking.true_positives[match]:
            hits[t] -= drawn
        for t in ranking.ignored[match]:
            ignored[t] -= drawn
        detections -= in_segments[match]
    return np.where(num_objects > 0, total.sum(axis=0) / (len(RECALL_THRESHOLDS) * len(total)), np.nan)


def _thresholds_reached(num_objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a table of the number of recall thresholds that recall reaches, with the same comparisons as pycocotools.

    num_objects: (R,) int. Returns the table (uint8) and the offset of each resample: table[true positives + offset]."""
    values, which = np.unique(num_objects, return_inverse=True)
    recall = np.arange(values[-1] + 1) / np.maximum(values, 1)[:, None]
    table = np.searchsorted(RECALL_THRESHOLDS, recall, side="right").astype(np.uint8)
    return table.ravel(), which * table.shape[1]
