"""Tuning budgets: trial points, the expected best of n trials, and the budget at which the winner changes.

Every row of a table is tuned with the same N trials, drawn before the first one starts, so the trials of a row are
exchangeable and any n of them show what a smaller budget would have found (Dodge et al., arXiv 1909.03004).

**Bands.** A percentile bootstrap of trials covers the true best of N = 6 in only half of all experiments, because a
resample never contains anything better than the best trial (see also Tang et al., arXiv 2004.13705). Lourie et al.,
arXiv 2311.09480, give exact bands, but with 6 trials these reach up to the highest possible score.
Here, a band is (curve + quantile * scale). The scale is the variation between trials that are neighbours in the
space of the hyperparameters, so it contains the noise of a trial and what a small step changes, but not the smooth
response, which the quasi-random points repeat in every experiment. The quantiles are those of trials that differ by
normal noise only, from a simulation with the same N and the same neighbours, so that they contain the error of the
scale too, as Student's t does. A band holds for the whole curve (all n at once). It contains the true curve in 95% of
experiments if the noise dominates, and in more if the response does: with few trials, a steep response cannot be
distinguished from noise, so the band is wide. That of a lead contains the truth in 93% or more, but in 88% if half of
the trials fail in both rows, because a score of 0 hides the noise. benchmarks/tuning.md measures all of this.

    points = draw_points(ranges, trials=6, seed=0)    # stats/trial_points.py
    curves = budget_curves(values, replicates, points, seed=0)
    flip = flip_budget(values, replicates, points, seed=0)
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import comb
from scipy.stats import kendalltau

from stats.trial_points import Points, neighbours

EVEN_WEIGHT = 0.3  # of a pair of neighbours in the scale, beside its weight in the curve; 0 makes bands much wider


# ---- curves ------------------------------------------------------------------------------------------------


def comparable(values: np.ndarray, lower_is_better: bool = False) -> np.ndarray:
    """Return scores for which higher is better, with a number for failed trials (nan: diverged, or without a score).

    A failed trial used up its budget, so it counts as a trial with the worst score: 0 for mAP or accuracy, which is
    what a model without any correct output has. A loss has no worst value, so the worst loss of any trial of any row
    counts. The failure may have been worse, but it does not become the best of its row unless all its trials failed.
    values: (..., K, N) or (N,). Raises ValueError if lower is better, and there is no score at all."""
    values = np.asarray(values, dtype=np.float64)
    if not lower_is_better:
        return np.nan_to_num(values, nan=0.0)
    worst = np.max(np.nan_to_num(values, nan=-np.inf), axis=(-1, -2)[: values.ndim], keepdims=True)
    if np.isneginf(worst).any():
        raise ValueError("trials: got no score at all, expected at least one trial that finished")
    return -np.where(np.isnan(values), worst, values)


def best_weights(trials: int) -> np.ndarray:
    """Return the weight of the i-th lowest of N scores in the expected best of n, (N, N): n in rows, i in columns."""
    i = np.arange(1, trials + 1)
    return np.stack([comb(i - 1, n - 1) / comb(trials, n) for n in i])


def expected_best(values: np.ndarray, lower_is_better: bool = False) -> np.ndarray:
    """Return the expected best score of n of these N trials, for n = 1 to N.

    It is the mean over all subsets of n trials, so it is unbiased (Tang et al., arXiv 2004.13705).
    values: (..., N); nan: see comparable. Returns (..., N)."""
    best = np.sort(comparable(values, lower_is_better), axis=-1) @ best_weights(np.shape(values)[-1]).T
    return -best if lower_is_better else best


@dataclass(frozen=True)
class Curve:
    """Expected best score, or a difference of two, of n = 1 to N trials, with a band for the whole curve. (N,) each."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray


def budget_curves(
    values: np.ndarray, replicates: np.ndarray, points: Points, seed: int, *,
    lower_is_better: bool = False, level: float = 0.05,
) -> list[Curve]:  # fmt: skip
    """Return the expected best score of n trials of each row, with a band that holds for this row with 1 - level.

    values: (K, N), scores of the trials on the images; nan: see comparable. replicates: (K, N, R), on R resamples of
    the images, the same for all. points: the N points, the same for all rows. The draws depend only on the arguments.
    The true curve is that of new points and seeds on all images of this kind."""
    arguments = (values, replicates, points, seed, lower_is_better, level)
    curves = [_curve({row: 1.0}, *arguments) for row in range(len(values))]
    return [Curve(-each.estimate, -each.high, -each.low) for each in curves] if lower_is_better else curves


def lead_curve(
    row: int, other: int, values: np.ndarray, replicates: np.ndarray, points: Points, seed: int, *,
    lower_is_better: bool = False, level: float = 0.05,
) -> Curve:  # fmt: skip
    """Return by how much `row` is better than `other` after n trials each. What the points do to both rows cancels.

    A positive lead is better, also if lower scores are better. The other arguments: see budget_curves."""
    return _curve({row: 1.0, other: -1.0}, values, replicates, points, seed, lower_is_better, level)


@dataclass(frozen=True)
class Flip:
    """How the winner changes with the number of trials. Rows are numbers; a change is (number of trials, new winner).

    leader: the best row with one trial. estimated: the first change of the row with the highest curve, which may be
    chance. shown: the first change to a row whose lead over the leader is significant. None: there is no such change.
    leads: for each other row, its lead over the leader. All these bands hold together with 1 - level."""

    leader: int
    estimated: tuple[int, int] | None
    shown: tuple[int, int] | None
    leads: dict[int, Curve]


def flip_budget(
    values: np.ndarray, replicates: np.ndarray, points: Points, seed: int, *,
    lower_is_better: bool = False, level: float = 0.05,
) -> Flip:  # fmt: skip
    """Return the smallest number of trials at which the winner changes. See budget_curves for the arguments.

    A change is shown if the band of the lead excludes 0. The bands are corrected for the number of rows (Bonferroni),
    so that rows with equal curves have a shown change in at most a share `level` of experiments."""
    best = expected_best(comparable(values, lower_is_better))
    leader = int(np.argmax(best[:, 0]))
    options = {"lower_is_better": lower_is_better, "level": level / max(1, len(best) - 1)}
    rivals = [row for row in range(len(best)) if row != leader]
    leads = {row: lead_curve(row, leader, values, replicates, points, seed, **options) for row in rivals}
    winners = np.argmax(best, axis=0)
    changes = np.flatnonzero(winners != leader)
    estimated = (int(changes[0]) + 1, int(winners[changes[0]])) if changes.size else None
    is_shown = np.array([leads[row].low > 0 for row in rivals]).reshape(len(rivals), best.shape[1])  # (K - 1, N)
    shown = None
    if is_shown.any():
        n = int(np.argmax(is_shown.any(axis=0)))
        shown = (n + 1, max((rivals[k] for k in np.flatnonzero(is_shown[:, n])), key=lambda row: best[row, n]))
    return Flip(leader, estimated, shown, leads)


def _curve(
    signs: Mapping[int, float], values: np.ndarray, replicates: np.ndarray, points: Points, seed: int,
    lower_is_better: bool, level: float,
) -> Curve:  # fmt: skip
    """Return a weighted sum of the curves of some rows, for scores of which higher is better, with its band.

    signs: dict from row to 1 or -1. A replicate is: estimate - bias + deviation on a resample of the images + noise of
    the trials. The bias is that of the best of several scores with image noise: resampling the images adds this noise,
    and this bias, a second time. The variance of the noise is that of the scale without the part that comes from the
    images, with the error of the scale, as in stats.replicates.cell_replicates."""
    rows, factors = list(signs), np.array(list(signs.values()))
    scores = comparable(values, lower_is_better)[rows]  # (k, N)
    resampled = comparable(np.moveaxis(replicates, 2, 0), lower_is_better)[:, rows]  # (R, k, N)
    first, second = neighbours(points)

    def steps(trials: np.ndarray) -> np.ndarray:
        return (trials[..., second] - trials[..., first]) / math.sqrt(2)

    def best(trials: np.ndarray) -> np.ndarray:
        return factors @ expected_best(trials)  # (..., N)

    def scale(trials: np.ndarray, weights: np.ndarray) -> np.ndarray:
        of_pairs = np.sqrt(weights) * steps(trials)[..., None, :]  # (..., k, n, pair)
        return (np.tensordot(of_pairs, factors, (-3, 0)) ** 2).sum(axis=-1)  # a variance, (..., N)

    estimate, on_images = best(scores), best(resampled)
    bias = on_images.mean(axis=0) - estimate
    weights = _pair_weights(scores, first, second)
    measured = scale(scores, weights)
    of_images = scale(resampled - resampled.mean(axis=0), weights).mean(axis=0)

    normal = _reference(scores, steps, np.random.default_rng([seed, 2]).standard_normal(resampled.shape))
    noise, found = best(normal), scale(normal, _pair_weights(normal, first, second))  # (R, N) each
    ratios = found.mean(axis=0) / found
    variances = np.maximum(ratios * measured - np.sqrt(ratios) * of_images, 0) / found.mean(axis=0)
    sample = on_images - 2 * bias + bias[0] + (noise.mean(axis=0) - noise) * np.sqrt(variances)  # bias[0]: of a mean
    return Curve(estimate, *simultaneous_band(sample, level))


def _reference(scores: np.ndarray, steps: Callable[[np.ndarray], np.ndarray], normal: np.ndarray) -> np.ndarray:
    """Return scores of trials as in the hypothesis of the bands: normal noise, and what two rows have in common.

    The common response of two rows cancels in their lead, but it determines which trial is the best of both. Then the
    noise of a single trial counts, which is larger than that of the best of several equal trials.
    scores: (k, N). steps: between neighbours. normal: (R, k, N), standard normal. Returns (R, k, N)."""
    of_rows, variances = steps(scores), np.mean(steps(scores) ** 2, axis=1)  # (k, pair), (k,)
    shared, common = 0.0, 0.0
    if len(scores) == 2:
        shared = max(float(np.mean(of_rows[0] * of_rows[1])), 0.0)
    if shared > 0:
        common = scores.mean(axis=0) - scores.mean()
        common = common * math.sqrt(shared / np.mean(steps(common) ** 2))
        own = np.maximum(variances - shared, 0)
        variances = own * np.mean((of_rows[1] - of_rows[0]) ** 2) / max(own.sum(), 1e-300)
    spreads = np.sqrt(variances) if variances.any() else np.full(len(scores), 1e-9)  # equal scores
    return common + normal * spreads[:, None]


def _pair_weights(scores: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the weight of each pair of neighbours in the scale of the best of n, (..., k, N, N - 1); the sum is 1.

    A pair counts as much as its trials do in the expected best of n, and a little more evenly. With large n, this is
    the variation between the best trials, and failed ones matter little. scores: (..., k, N)."""
    ranks = np.argsort(np.argsort(scores, axis=-1), axis=-1)
    weights = np.moveaxis(best_weights(scores.shape[-1]).T[ranks], -1, -2)  # (..., k, n, trial)
    weights = weights[..., first] + weights[..., second] + EVEN_WEIGHT
    return weights / weights.sum(axis=-1, keepdims=True)


def simultaneous_band(sample: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a band that contains the whole curve in a share 1 - level of the replicates (R, N): two arrays (N,).

    The band consists of equally extreme quantiles at each n (Davison and Hinkley 1997, section 4.2.4)."""
    ordered, replicates = np.sort(sample, axis=0), len(sample)
    ranks = np.argsort(np.argsort(sample, axis=0), axis=0)
    extremeness = np.minimum(ranks, replicates - 1 - ranks).min(axis=1)
    cut = int(np.quantile(extremeness, level))
    return ordered[cut], ordered[replicates - 1 - cut]


# ---- the luck of tuning ------------------------------------------------------------------------------------


def tuning_luck(values: np.ndarray, num_replicates: int, seed: int, lower_is_better: bool = False) -> np.ndarray:
    """Return noise (K, R) for the luck of tuning, to add to the replicates of tuned rows (stats/replicates.py).

    With few trials, the chosen point misses the best one by a different amount in each row, which adds to their
    difference although tuning was equally expensive. Resample the trials, the same for all rows: the loss is by how
    much the trial that is chosen from a resample is worse than the best trial. Its mean is subtracted: what n trials
    cost on average is part of the result. The losses are those of the trials, so they must not be smaller than in the
    final runs. Tests become conservative: they lose power if trials are few or noisy (benchmarks/tuning.md).
    values: (K, N), see budget_curves. If scores are better when lower, the noise is that of these scores."""
    scores = comparable(values, lower_is_better)
    trials = scores.shape[1]
    drawn = np.random.default_rng([seed, 3]).integers(trials, size=(num_replicates, trials))
    losses = scores.max(axis=1, keepdims=True) - scores[:, drawn].max(axis=-1)  # (K, R)
    noise = losses.mean(axis=1, keepdims=True) - losses
    return -noise if lower_is_better else noise


# ---- how early one could have known ------------------------------------------------------------------------


def rank_agreement(scores_by_epoch: np.ndarray, final: np.ndarray, lower_is_better: bool = False) -> np.ndarray:
    """Return Kendall's tau-b between the ranking of the trials after each epoch and their final ranking.

    scores_by_epoch: (E, T). final: (T,). nan: see comparable. Returns (E,), from -1 (reversed) to 1 (the same ranking);
    nan if all scores of an epoch, or all final scores, are equal, so that there is no ranking."""
    final = comparable(final, lower_is_better)
    return np.array([kendalltau(each, final).statistic for each in comparable(scores_by_epoch, lower_is_better)])
