"""How sure a score is: the paired bootstrap over images (Efron and Tibshirani, 1993, chapters 6, 13 and 16).

A resample of the validation set draws as many images as it has, with replacement, and is held as how often each image
was drawn. Two models are compared on the same resamples, so that the noise they share cancels. An image that was drawn
twice counts twice, as if it were in the data set twice with its detections; to count it once makes intervals too
narrow. What the intervals cover was measured: benchmarks/bootstrap.md.

    weights = image_weights(len(a.image_ids), 1000, seed=0)
    scores_a, _ = resampled_scores(a, weights)
    scores_b, _ = resampled_scores(b, weights)
    print(interval(estimate_b - estimate_a, scores_b["mAP"] - scores_a["mAP"]))
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from stats.image_statistics import Hits, Losses, Matches, Statistics

RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)  # bit for bit those of pycocotools
CHUNK_ELEMENTS = 2**19  # of the largest array of a chunk of resamples: several are in use at once, best in the cache
THREADS = 2  # each works on a class of its own


# ---- scores on resamples -----------------------------------------------------------------------------------


def image_weights(num_images: int, replicates: int, seed: int) -> np.ndarray:
    """Resample a validation set: how often each image is drawn when as many are drawn as there are, with replacement.

    Returns (replicates, num_images) int32, each row sums to num_images. Equal arguments give equal draws, so that
    experiments on one validation set are compared on the same images."""
    generator = np.random.default_rng(seed)
    weights = np.empty((replicates, num_images), dtype=np.int32)
    for row in weights:
        row[:] = np.bincount(generator.integers(num_images, size=num_images), minlength=num_images)
    return weights


def resampled_scores(statistics: Statistics, weights: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The scores of a model on each resample, and its main one class by class.

    weights: (R, I) integers from 0 up, how often each of the I images was drawn; all ones are the full set.

    Returns name in results.json -> (R,), and (R, C), float64: mAP, and AP by class; or top1 and top5, and top1 by
    class, all from 0 to 1; or a mean loss, and the same by class. nan where a resample has nothing to score.
    Raises ValueError if weights are not integers, one per image."""
    if isinstance(statistics, Hits):
        scores = {"top1": drawn_mean(statistics.hits, weights), "top5": drawn_mean(statistics.in_top5, weights)}
        return scores, class_means(statistics.hits, statistics, weights)
    if isinstance(statistics, Losses):
        losses = statistics.losses
        return {str(statistics.name): drawn_mean(losses, weights)}, class_means(losses, statistics, weights)
    per_class = average_precision(statistics, weights)
    return {"mAP": mean_average_precision(per_class)}, per_class


def drawn_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean over the drawn images, such as the share of them that are hits: a class counts by how many it has.

    values: (I,) bool or float. weights: (R, I), see resampled_scores. Returns (R,) float64; nan where no image is
    drawn."""
    weights = _checked(weights, len(values))
    drawn = weights.sum(axis=1)
    return np.where(drawn > 0, weights @ values / np.maximum(drawn, 1), np.nan)


def class_means(values: np.ndarray, statistics: Hits | Losses, weights: np.ndarray) -> np.ndarray:
    """The mean over the drawn images of each class; of hits, its recall.

    values, weights: see drawn_mean. Returns (R, C) float64; nan where no image of the class is drawn."""
    weights = _checked(weights, len(values))
    members = [np.flatnonzero(statistics.labels == label) for label in range(len(statistics.class_names))]
    return np.stack([drawn_mean(values[images], weights[:, images]) for images in members], axis=1)


def average_precision(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """COCO's AP per class, averaged over the IoU thresholds, on each resample (objects of any size, 100 detections).

    weights: (R, I), see resampled_scores.

    Returns (R, C) float64 from 0 to 1: what pycocotools gives on a data set in which an image drawn w times is there
    w times, one copy beside the other; nan where a class has no object in the resample.
    Raises ValueError if weights are not integers, one per image."""
    weights, num_classes = _checked(weights, len(matches.image_ids)), len(matches.class_names)
    most = weights.max(axis=0, initial=0)
    result = np.full((len(weights), num_classes), np.nan)

    def fill(class_index: int) -> None:
        ranking = _rank(matches, class_index, most)
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
    """mAP: the mean over the classes that have an object in the resample.

    per_class: (R, C), see average_precision. Returns (R,); nan where no class has an object."""
    defined = ~np.isnan(per_class)
    count = defined.sum(axis=1)
    return np.where(count > 0, np.where(defined, per_class, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan)


def _checked(weights: np.ndarray, num_images: int) -> np.ndarray:
    """Return the weights as (R, num_images) int32. Raises ValueError if they are not integers, one per image."""
    if weights.ndim != 2 or weights.shape[1] != num_images or weights.dtype.kind not in "iu":
        got = f"{weights.dtype} of shape {weights.shape}"
        raise ValueError(f"weights: got {got}, expected integers of shape (replicates, {num_images}), one per image")
    return np.ascontiguousarray(weights, dtype=np.int32)


@dataclass(frozen=True)
class _Ranking:
    """The detections of one class over all images, best first.

    images: (D,) int, position among the images.
    copies: (D,) int, the row counts `weight` times if -1, else once where weight > copies (see _rank).
    true_positives, ignored: (D, T) bool."""

    images: np.ndarray
    copies: np.ndarray
    true_positives: np.ndarray
    ignored: np.ndarray

    def drawn(self, rows: np.ndarray | slice, weights: np.ndarray) -> np.ndarray:
        """How often each of these rows occurs: (R, rows) int32, from weights (R, I)."""
        times = weights.take(self.images[rows], axis=1)
        copies = self.copies[rows]
        tied = np.flatnonzero(copies >= 0)
        if tied.size:
            times[:, tied] = times[:, tied] > copies[tied]
        return times


def _rank(matches: Matches, class_index: int, most: np.ndarray) -> _Ranking:
    """Order one class as pycocotools would, by score, equal scores by image.

    The copies of an image stand side by side, so that weights alone say where they rank, but for one case: detections
    d and e of equal score in one image become d e d e, not d d e e. They are written out, `most` (I,) times at the
    most, and the j-th copy occurs where the image was drawn more than j times."""
    first, last = np.searchsorted(matches.detection_classes, [class_index, class_index + 1])
    order = first + np.argsort(-matches.scores[first:last], kind="stable")
    scores, images = matches.scores[order], matches.detection_images[order]

    starts_run = np.ones(len(order), dtype=bool)
    starts_run[1:] = (scores[1:] != scores[:-1]) | (images[1:] != images[:-1])
    runs = np.cumsum(starts_run) - 1
    tied = np.bincount(runs)[runs] > 1 if len(runs) else starts_run

    times = np.where(tied, most[images], 1)
    copies = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
    rows = np.repeat(np.arange(len(order)), times)
    by_copy = np.lexsort((copies, runs[rows]))  # stable: within a copy the evaluator's own order
    rows, copies = rows[by_copy], copies[by_copy]
    return _Ranking(
        images[rows],
        np.where(tied[rows], copies, -1),
        matches.true_positives[order[rows]],
        matches.ignored[order[rows]],
    )


def _class_average_precision(ranking: _Ranking, weights: np.ndarray, num_objects: np.ndarray) -> np.ndarray:
    """AP of one class on each resample. weights: (R, I) int32. num_objects: (R,) int. Returns (R,), nan for no object.

    Precision rises at true positives and falls elsewhere, so that its envelope is set by them alone: AP is the sum
    over true positives of the envelope there, times the number of recall thresholds that they are first to reach."""
    detections = np.cumsum(ranking.drawn(slice(None), weights), axis=1, dtype=np.int32)  # (R, D)
    total = np.zeros(len(weights))
    num_thresholds = ranking.true_positives.shape[1]
    for t in range(num_thresholds):
        rows = np.flatnonzero(ranking.true_positives[:, t])
        if not rows.size:
            continue
        hits = np.cumsum(ranking.drawn(rows, weights), axis=1, dtype=np.int32)  # (R, P)
        found = detections.take(rows, axis=1)
        ignored = np.flatnonzero(ranking.ignored[:, t])
        if ignored.size:
            not_counted = np.cumsum(ranking.drawn(ignored, weights), axis=1, dtype=np.int32)
            before = np.searchsorted(ignored, rows)  # how many of the ignored rank higher
            found[:, before > 0] -= not_counted[:, before[before > 0] - 1]
        envelope = hits / np.maximum(found, 1)
        np.maximum.accumulate(envelope[:, ::-1], axis=1, out=envelope[:, ::-1])
        reached = _thresholds_reached(hits / np.maximum(num_objects, 1)[:, None])
        total += envelope[:, 0] * reached[:, 0] + np.einsum("rp,rp->r", envelope[:, 1:], np.diff(reached, axis=1))
    return np.where(num_objects > 0, total / (len(RECALL_THRESHOLDS) * num_thresholds), np.nan)


def _thresholds_reached(recall: np.ndarray) -> np.ndarray:
    """How many recall thresholds are <= recall, compared bit for bit as pycocotools does. Returns int32."""
    reached = (recall * 100 + 1e-9).astype(np.int32)  # right, or one short of right
    reached += RECALL_THRESHOLDS.take(reached) <= recall
    return reached


# ---- from resamples to intervals ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """An estimate and what the resamples say about it; all but the estimate are nan where they cannot say.

    low, high: of the 95% interval. p: two-sided, of the estimate being 0.
    standard_error: half the interval's width / 1.96. With few seeds the replicates have the long tails of Student's
    t, whose standard deviation may be infinite."""

    estimate: float
    low: float
    high: float
    p: float
    standard_error: float


def cell_replicates(estimates: Sequence[Sequence[float]], replicates: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Return replicates of the mean score of each cell of a table, trained from one or more seeds each.

    estimates: for each of K cells the scores of its n_k runs on the full set.
    replicates: for each cell (n_k, R), the runs' scores on the same resamples of one validation set.

    Image part: the mean over a cell's runs on each resample. Seed part: resampling two or three runs would keep only
    (n - 1) / n of their variance, so seeds are assumed to spread equally in every cell. The sample variance s2 within
    cells, pooled over those with several runs, has df = sum(n_k - 1). Each replicate draws a variance
    s2 * df / chi2(df), one for all cells, so that differences follow Student's t, and subtracts what the image part
    already has: runs also differ because each errs on other images, which their replicates show. What is left, not
    below 0, divided by n_k, is the variance of a normal draw that is added to the cell (measured in
    benchmarks/bootstrap.md). Without several runs in any cell there is no seed part.

    Returns (K, R); nan where a run has no score on a resample. Equal arguments give equal draws."""
    assert [len(scores) for scores in estimates] == [len(part) for part in replicates]
    result = np.stack([np.mean(part, axis=0) for part in replicates])
    degrees = sum(len(scores) - 1 for scores in estimates)
    if degrees == 0:
        return result
    spread = sum(np.var(scores) * len(scores) for scores in estimates) / degrees
    of_images = sum(np.nanvar(part - np.mean(part, axis=0), axis=1).sum() for part in replicates) / degrees
    generator = np.random.default_rng([seed, 1])  # another stream than that of image_weights
    variance = np.maximum(spread * degrees / generator.chisquare(degrees, result.shape[1]) - of_images, 0)
    runs = np.array([[len(scores)] for scores in estimates])
    return result + generator.standard_normal(result.shape) * np.sqrt(variance / runs)


def interval(estimate: float, replicates: np.ndarray) -> Interval:
    """95% percentile interval and two-sided p of an estimate, from its replicates (R,).

    p = 2 * min(P(replicate <= 0), P(replicate >= 0)), each with one more on either side, so that it is never 0.

    Plain percentiles, because shifted or reversed ones were measured to cover less where classes have few objects
    (benchmarks/bootstrap.md). Undefined (nan) replicates are left out; with more than 5% of them the interval is
    undefined."""
    replicates = np.asarray(replicates, dtype=np.float64)
    defined = replicates[~np.isnan(replicates)]
    if np.isnan(estimate) or defined.size == 0 or defined.size < 0.95 * replicates.size:
        return Interval(float(estimate), np.nan, np.nan, np.nan, np.nan)
    low, high = np.quantile(defined, (0.025, 0.975))
    fewer_side = min(np.sum(defined <= 0), np.sum(defined >= 0))
    p = min(1.0, 2 * (fewer_side + 1) / (defined.size + 1))
    return Interval(float(estimate), float(low), float(high), float(p), float((high - low) / (2 * 1.96)))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjust p values for being several (Holm, 1979): below 0.05 all hold together with 95% confidence.

    The smallest of m is multiplied by m, the next by m - 1, and so on, never falling. nan, no test, stays nan."""
    p_values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_values)[: np.sum(~np.isnan(p_values))]  # nan come last
    adjusted = np.full(p_values.shape, np.nan)
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return adjusted
