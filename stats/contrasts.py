"""Contrasts: differences, main effects and interactions, as weighted sums of the scores of a table's cells.

A *family* is the set of contrasts that one table tests. Its p values are corrected so that the chance of any false
positive in the family is at most the level of the tests, usually 5%.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

LEVEL = 0.05  # of the tests of a family, unless another is given
Contrast = dict[Hashable, float]  # cell -> factor
FEW_DISCORDANT = 25  # images; with fewer, the bootstrap rejects equal classifiers too often


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% confidence interval. If too few resamples have a score, all but the estimate are nan.

    low, high: ends of the interval. p: two-sided p value for the hypothesis that the true value is 0.
    standard_error: half the width of the interval, divided by 1.96. The standard deviation of the replicates is not
    used because it may be infinite: with few seeds, the replicates follow Student's t."""

    estimate: float
    low: float
    high: float
    p: float
    standard_error: float


@dataclass(frozen=True)
class Tested:
    """A contrast as a member of a family of m contrasts that are tested at a level.

    p_holm: p value after Holm's correction.
    is_stable: whether the verdict stays the same if the p values change by 2 Monte Carlo standard errors. If not, other
    resamples may give a different verdict.
    simultaneous: the corrected interval, at level / m. With a chance of 1 - level, all intervals of the family
    contain the true value. Such an interval excludes 0 only if the contrast is significant.
    bound: the true value is at most this far from 0. With a chance of 1 - level, all bounds of the family hold.
    detectable: the true value that would be significant in 80% of such experiments if all others were 0, so that Holm's
    correction equals Bonferroni's; nan if the standard error is 0, for example because all scores are 0."""

    interval: Interval
    p_holm: float
    is_stable: bool
    simultaneous: tuple[float, float]
    bound: float
    detectable: float
    num_tests: int
    level: float

    @property
    def is_significant(self) -> bool:
        return self.p_holm < self.level


def mean_difference(ones: Sequence[Hashable], zeros: Sequence[Hashable]) -> Contrast:
    """Return the contrast: mean score of the cells `ones` minus mean score of the cells `zeros`."""
    return {cell: 1 / len(ones) for cell in ones} | {cell: -1 / len(zeros) for cell in zeros}


def assess_family(
    contrasts: Sequence[Contrast],
    estimates: Mapping[Hashable, float],
    replicates: np.ndarray,
    level: float = LEVEL,
    exact_p: Sequence[float | None] | None = None,
    detectable: Callable[[Contrast, int], float] = lambda contrast, tests: math.nan,
) -> list[Tested]:
    """Estimate a family of contrasts, and test each for being 0, with Holm's correction.

    estimates: dict from each of K cells to its score. replicates: (K, R), replicates of these scores in this order.
    exact_p: for each contrast, the p value of an exact test that replaces that of the replicates; None: there is none.
    detectable: returns the detectable value of a contrast in a family of m tests (stats/planning.py)."""
    index = {cell: number for number, cell in enumerate(estimates)}
    means, intervals, samples = np.array(list(estimates.values())), [], []
    for contrast in contrasts:
        rows = [index[cell] for cell, factor in contrast.items() if factor]  # others may be nan
        factors = np.array([factor for factor in contrast.values() if factor])
        samples.append(factors @ replicates[rows])
        intervals.append(interval(factors @ means[rows], samples[-1]))
    p_values = np.array([each.p for each in intervals])
    errors = monte_carlo_errors(p_values, replicates.shape[1])
    for number, p in enumerate(exact_p or ()):
        if p is not None:
            p_values[number], errors[number] = p, 0
    corrected, is_stable = holm(p_values), are_stable(p_values, errors, level)
    tests = max(1, int(np.sum(~np.isnan(p_values))))
    family = []
    for number, (contrast, each, sample) in enumerate(zip(contrasts, intervals, samples, strict=True)):
        simultaneous, bound = corrected_limits(each, sample, level / tests)
        smallest = math.nan if math.isnan(each.low) else detectable(contrast, tests)
        verdict = float(corrected[number]), bool(is_stable[number])
        family.append(Tested(each, *verdict, simultaneous, bound, smallest, tests, level))
    return family


def interval(estimate: float, replicates: np.ndarray) -> Interval:
    """Return the 95% percentile interval and two-sided p value of an estimate, from its replicates (R,).

    p = 2 * min(P(replicate <= 0), P(replicate >= 0)). P is (count + 1) / (number of replicates + 1), so p is never 0.
    Percentiles that were centred on the estimate, or reversed (2 * estimate - replicate), covered the true value less
    often when classes had few objects. nan replicates are ignored. If more than 5% are nan, interval and p are nan."""
    defined = defined_part(replicates)
    if np.isnan(estimate) or not defined.size:
        return Interval(float(estimate), np.nan, np.nan, np.nan, np.nan)
    low, high = np.quantile(defined, (0.025, 0.975))
    fewer_side = min(np.sum(defined <= 0), np.sum(defined >= 0))
    p = min(1.0, 2 * (fewer_side + 1) / (defined.size + 1))
    return Interval(float(estimate), float(low), float(high), float(p), float((high - low) / (2 * 1.96)))


def corrected_limits(interval: Interval, replicates: np.ndarray, level: float) -> tuple[tuple[float, float], float]:
    """Return the corrected interval and the bound of a contrast; see Tested. level: level of the family / m."""
    if math.isnan(interval.low):
        return (math.nan, math.nan), math.nan
    low, low_bound, high_bound, high = np.quantile(
        defined_part(replicates), (level / 2, level, 1 - level, 1 - level / 2)
    )
    return (float(low), float(high)), float(max(abs(low_bound), abs(high_bound)))


def defined_part(replicates: np.ndarray) -> np.ndarray:
    """Return the replicates that are not nan; an empty array if more than 5% are nan."""
    defined = replicates[~np.isnan(replicates)]
    return defined if defined.size >= 0.95 * replicates.size else defined[:0]


def monte_carlo_errors(p_values: np.ndarray, replicates: int) -> np.ndarray:
    """Return the standard error of two-sided p values that were estimated from a number of replicates."""
    one_sided = np.minimum(p_values / 2, 0.5)
    return 2 * np.sqrt(one_sided * (1 - one_sided) / replicates)


def are_stable(p_values: np.ndarray, errors: np.ndarray, level: float) -> np.ndarray:
    """Return for each p value of a family whether its verdict stays if all p values change by two of their errors.

    errors: Monte Carlo standard errors of the p values."""
    lowest, highest = np.maximum(p_values - 2 * errors, 0), p_values + 2 * errors
    return (holm(lowest) < level) == (holm(highest) < level)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjust p values for multiple tests (Holm, 1979), so that the chance of any false positive at 0.05 is at most 5%.

    The smallest of m values is multiplied by m, the next by m - 1, and so on. Each result is at least the previous
    result and at most 1. A nan is not counted as a test and stays nan."""
    p_values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_values)[: np.sum(~np.isnan(p_values))]  # argsort puts nan last
    adjusted = np.full(p_values.shape, np.nan)
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return adjusted


def exact_mcnemar(hits: np.ndarray, other_hits: np.ndarray) -> float | None:
    """Return the p value of the exact test that two classifiers are equally accurate (McNemar, 1947).

    hits, other_hits: (I,) bool, whether each prediction of one run is correct. Only discordant images, which exactly
    one classifier has right, say something about the difference. Returns None if there are FEW_DISCORDANT or more of
    them, for which the bootstrap is accurate."""
    wins, losses = int(np.sum(hits & ~other_hits)), int(np.sum(~hits & other_hits))
    if wins + losses >= FEW_DISCORDANT:
        return None
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
