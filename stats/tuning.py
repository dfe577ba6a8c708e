"""Tuning budgets: trial points, the expected best of n trials, and the budget at which the winner changes.

Every row of a table is tuned with the same N trials, which are drawn before the first one starts. The trials of a row
are therefore exchangeable, and any n of them show what n trials would have found (Dodge et al., arXiv 1909.03004).

**Bands.** A percentile bootstrap of the trials covers the true curve in only 43% to 45% of experiments, because a
resample never contains a score above the best trial (see also Tang et al., arXiv 2004.13705). Lourie et al.,
arXiv 2311.09480, give exact bands, but with 6 trials these reach up to the highest possible score.

Here, a band is (curve + quantile * scale). The scale is the variation between neighbours, which are trials with similar
hyperparameters. It contains the noise of a trial and the effect of a small step. It does not contain the smooth
response to the hyperparameters: this is nearly the same in every experiment, because the quasi-random points are evenly
spread. The quantiles come from a simulation of trials that differ by normal noise only, with the same N and the same
neighbours. They include the error of the scale, as those of Student's t do. A band holds for all n at once.

**Coverage** of 95% bands with 4 to 12 trials, from benchmarks/tuning.md:

- Trials differ by noise only: curve 94.6% to 96.8%, lead 94.2% to 96.2%.
- Mild response: curve 95.0% to 97.0%, lead 92.6% to 95.8%, so the band of a lead can be slightly too narrow.
- Steep response: curve 100%, lead 93.2% to 100%. A few trials cannot tell a steep response from noise, so most
  bands are wide.
- The best value is outside the range, and almost half of the trials fail: curve 92.2% to 100%, lead only 87.6% to
  89.0%, because the scores of failed trials, which are all 0, do not show the noise.

    points = draw_points(ranges, trials=6, seed=0)    # stats/trial_points.py
    curves = budget_curves(values, replicates, points, seed=0)
    flip = flip_budget(values, replicates, points, seed=0)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import comb
from scipy.stats import kendalltau

from stats.trial_points import Pairs, Points, neighbours

EVEN_WEIGHT = 0.3  # added to the weight of every pair of neighbours; with 0, few pairs would count if n is large


# ---- curves ------------------------------------------------------------------------------------------------


def comparable(values: np.ndarray, lower_is_better: bool = False) -> np.ndarray:
    """Return scores where higher is better, with a number for failed trials (nan: diverged, or without a score).

    A failed trial used up its budget, so it counts as a trial with the worst score. For mAP and accuracy this is 0, the
    score of a model without any correct output. A loss has no worst value, so the worst loss of all trials of all rows
    counts. This may be too good for a failure, but it is never the best of a row with a trial that finished.
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

    It is the mean over all subsets of n trials, which is unbiased (Tang et al., arXiv 2004.13705).
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

    values: (K, N), scores of the trials; nan: see comparable. replicates: (K, N, R), scores on R resamples of the
    images, the same resamples for all trials. points: the N points, the same for all rows.
    The true curve is the mean over new points, new seeds and new images of the same kind. The draws depend only on the
    arguments."""
    arguments = (values, replicates, points, seed, lower_is_better, level)
    curves = [_curve({row: 1.0}, *arguments) for row in range(len(values))]
    return [Curve(-each.estimate, -each.high, -each.low) for each in curves] if lower_is_better else curves


def lead_curve(
    row: int, other: int, values: np.ndarray, replicates: np.ndarray, points: Points, seed: int, *,
    lower_is_better: bool = False, level: float = 0.05,
) -> Curve:  # fmt: skip
    """Return by how much `row` is better than `other` after n trials each. Effects of the points on both rows cancel.

    A positive lead is better, also if lower scores are better. The other arguments: see budget_curves."""
    return _curve({row: 1.0, other: -1.0}, values, replicates, points, seed, lower_is_better, level)


@dataclass(frozen=True)
class Flip:
    """How the winner changes with the number of trials. Rows are numbers; a change is (number of trials, new winner).

    leader: the row with the highest curve at one trial. estimated: the first change of the row with the highest curve,
    which may be chance. shown: the first change to a row whose lead over the leader is significant. None: no change.
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
    """Return a weighted sum of the curves of some rows, for scores where higher is better, with its band.

    signs: dict from row to 1 or -1. The other arguments: see budget_curves. The band is that of a sample: the curve on
    resamples of the images, plus noise of the trials."""
    rows, factors = list(signs), np.array(list(signs.values()))
    scores = comparable(values, lower_is_better)[rows]  # (k, N)
    resampled = comparable(np.moveaxis(replicates, 2, 0), lower_is_better)[:, rows]  # (R, k, N)
    pairs = neighbours(points)

    estimate = _sum_of_curves(scores, factors)
    on_images = _without_bias(_sum_of_curves(resampled, factors), estimate)  # (R, N)
    scale = _scale(scores, resampled, factors, pairs)
    normal = np.random.default_rng([seed, 2]).standard_normal(resampled.shape)
    noise = _noise(_reference(scores, normal, pairs), scale, factors, pairs)  # (R, N)
    return Curve(estimate, *simultaneous_band(on_images + noise, level))


def _sum_of_curves(trials: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return the sum of the curves of k rows, each times its factor. trials: (..., k, N). Returns (..., N)."""
    return factors @ expected_best(trials)


def _without_bias(on_images: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """Return the curve on resamples of the images without its bias, (R, N).

    The best of several scores with image noise is too high. Resampling the images adds this noise a second time, so
    the bias of the resamples is that of the scores on all images too, and is subtracted twice. With one trial (n = 1)
    there is no choice. Its bias, for example that of mAP on a resample, is only in the resamples: subtract it once."""
    bias = on_images.mean(axis=0) - estimate
    of_choice = bias - bias[0]
    return on_images - bias - of_choice


@dataclass(frozen=True)
class _Scale:
    """Variances between neighbouring trials for each n, (N,): on all images, and the part due to the images."""

    measured: np.ndarray
    of_images: np.ndarray


def _scale(scores: np.ndarray, resampled: np.ndarray, factors: np.ndarray, pairs: Pairs) -> _Scale:
    """Return the scale of the noise. scores: (k, N). resampled: (R, k, N)."""
    weights = _pair_weights(scores, pairs)
    deviations = resampled - resampled.mean(axis=0)
    of_images = _variance(deviations, weights, factors, pairs).mean(axis=0)
    return _Scale(_variance(scores, weights, factors, pairs), of_images)


def _noise(reference: np.ndarray, scale: _Scale, factors: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Return the noise of the trials in the sum of curves, (R, N), without the part that comes from the images.

    reference: (R, k, N), simulated trials. They show how the curve varies for a known scale, and how far the scale that
    is found in N trials is from the known one. Each replicate corrects the measured scale by one of these ratios, as
    stats.replicates.cell_replicates does."""
    curves = _sum_of_curves(reference, factors)  # (R, N)
    found = _variance(reference, _pair_weights(reference, pairs), factors, pairs)  # (R, N)
    known = found.mean(axis=0)
    ratios = known / found
    variances = np.maximum(ratios * scale.measured - np.sqrt(ratios) * scale.of_images, 0)
    return (curves.mean(axis=0) - curves) * np.sqrt(variances / known)


def _reference(scores: np.ndarray, normal: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Return trials that differ by normal noise and by the common response of two rows, (R, k, N).

    The common response cancels in the lead, but it determines which trial is the best of both rows. If it is steep,
    the same trial is the best of each, and the lead has the noise of a single trial, which is larger than that of the
    best of several equal trials. scores: (k, N). normal: (R, k, N), standard normal."""
    common, variances = np.zeros(scores.shape[1]), np.mean(_steps(scores, pairs) ** 2, axis=1)
    if len(scores) == 2:
        common, variances = _common_response(scores, pairs)
    if not variances.any():  # equal scores: any noise, because the measured scale is 0
        variances = np.full(len(scores), 1e-18)
    return common + normal * np.sqrt(variances)[:, None]


def _common_response(scores: np.ndarray, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Return what two rows have in common, (N,), and the variance of the rest of each, (2,).

    scores: (2, N). The covariance between neighbours is the variance of the common response; noise does not add to it.
    The mean of the rows has the shape of this response, but also half of the noise, so it is scaled down. The two
    variances add up to that of the difference of the rows."""
    first, second = _steps(scores, pairs)
    variances = np.array([np.mean(first**2), np.mean(second**2)])
    shared = np.mean(first * second)
    if shared <= 0:
        return np.zeros(scores.shape[1]), variances
    mean = scores.mean(axis=0) - scores.mean()
    common = mean * math.sqrt(shared / np.mean(_steps(mean, pairs) ** 2))
    own = np.maximum(variances - shared, 0)
    return common, own * np.mean((second - first) ** 2) / max(own.sum(), 1e-300)  # own is 0 if the rows are equal


def _steps(trials: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Return differences between neighbours that have the variance of a single trial. (..., N) to (..., N - 1)."""
    first, second = pairs
    return (trials[..., second] - trials[..., first]) / math.sqrt(2)


def _variance(trials: np.ndarray, weights: np.ndarray, factors: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Return the variance between neighbours of the sum of k rows, for each n. trials: (..., k, N). Returns (..., N).

    weights: of each pair, (..., k, N, N - 1), see _pair_weights. A pair may have a different weight in each row."""
    of_rows = np.sqrt(weights) * _steps(trials, pairs)[..., None, :]  # (..., k, n, pair)
    of_sum = np.tensordot(of_rows, factors, (-3, 0))  # (..., n, pair)
    return (of_sum**2).sum(axis=-1)


def _pair_weights(scores: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Return the weight of each pair of neighbours in the scale of the best of n, (..., k, N, N - 1); the sum is 1.

    A pair counts as much as its two trials do in the expected best of n, plus EVEN_WEIGHT. With large n, the scale is
    the variation between the best trials, and failed ones matter little. scores: (..., k, N)."""
    first, second = pairs
    ranks = np.argsort(np.argsort(scores, axis=-1), axis=-1)
    weights = np.moveaxis(best_weights(scores.shape[-1]).T[ranks], -1, -2)  # (..., k, n, trial)
    weights = weights[..., first] + weights[..., second] + EVEN_WEIGHT
    return weights / weights.sum(axis=-1, keepdims=True)


def simultaneous_band(sample: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a band that contains a share 1 - level of the replicated curves (R, N) at all n: two arrays (N,).

    It consists of the same two quantiles at each n (Davison and Hinkley 1997, section 4.2.4)."""
    ordered, replicates = np.sort(sample, axis=0), len(sample)
    ranks = np.argsort(np.argsort(sample, axis=0), axis=0)
    extremeness = np.minimum(ranks, replicates - 1 - ranks).min(axis=1)
    cut = int(np.quantile(extremeness, level))
    return ordered[cut], ordered[replicates - 1 - cut]


# ---- the luck of tuning ------------------------------------------------------------------------------------


def tuning_luck(values: np.ndarray, num_replicates: int, seed: int, lower_is_better: bool = False) -> np.ndarray:
    """Return noise (K, R) for the luck of tuning, to add to the replicates of tuned rows (stats/replicates.py).

    With few trials, the chosen point misses the best one by a different amount in each row. This adds to the difference
    of two rows, although both had the same budget. The noise comes from resampled trials, with the same resamples for
    all rows: the loss of a resample is the score of the best trial minus that of the best trial in the resample. The
    mean loss is subtracted, so that the noise widens intervals and does not move them.
    The losses are differences between scores of trials. Intervals are too narrow if such differences are larger in the
    final runs. Tests are conservative: they lose power if trials are few or noisy (benchmarks/tuning.md).
    values: (K, N), see budget_curves. If lower scores are better, the noise has their sign too."""
    scores = comparable(values, lower_is_better)
    trials = scores.shape[1]
    drawn = np.random.default_rng([seed, 3]).integers(trials, size=(num_replicates, trials))
    losses = scores.max(axis=1, keepdims=True) - scores[:, drawn].max(axis=-1)  # (K, R)
    noise = losses.mean(axis=1, keepdims=True) - losses
    return -noise if lower_is_better else noise


# ---- how early one could have known ------------------------------------------------------------------------


def rank_agreement(scores_by_epoch: np.ndarray, final: np.ndarray, lower_is_better: bool = False) -> np.ndarray:
    """Return Kendall's tau-b between the ranking of the trials after each epoch and their final ranking.

    scores_by_epoch: (E, T). final: (T,). nan: see comparable. Returns (E,), from -1 (reversed) to 1 (the same ranking).
    It is nan if all scores of an epoch, or all final scores, are equal: then there is no ranking."""
    final = comparable(final, lower_is_better)
    return np.array([kendalltau(each, final).statistic for each in comparable(scores_by_epoch, lower_is_better)])
