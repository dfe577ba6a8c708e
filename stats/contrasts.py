"""Contrasts between table cells: differences, main effects and interactions as weighted sums of the cells' scores."""

import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import NormalDist

import numpy as np

from stats.bootstrap import Interval, holm, interval

Contrast = dict[Hashable, float]  # cell -> factor


def mean_difference(ones: Sequence[Hashable], zeros: Sequence[Hashable]) -> Contrast:
    """Return the contrast "mean over the cells `ones` minus mean over the cells `zeros`"."""
    return {cell: 1 / len(ones) for cell in ones} | {cell: -1 / len(zeros) for cell in zeros}


def contrast_intervals(
    contrasts: Sequence[Contrast], estimates: Mapping[Hashable, float], replicates: np.ndarray
) -> list[tuple[Interval, float]]:
    """Estimate a family of contrasts, with p values corrected for multiple tests.

    estimates: cell -> score, of K cells. replicates: (K, R), of the same cells in the same order.
    Returns the interval and the Holm-corrected p value of each contrast."""
    index = {cell: number for number, cell in enumerate(estimates)}
    means, intervals = np.array(list(estimates.values())), []
    for contrast in contrasts:
        factors = np.zeros(len(index))
        for cell, factor in contrast.items():
            factors[index[cell]] += factor
        intervals.append(interval(factors @ means, factors @ replicates))
    return list(zip(intervals, holm([each.p for each in intervals]).tolist(), strict=True))


def detectable_difference(standard_error: float, num_tests: int) -> float:
    """Return the true difference that is significant at 5%, after correction, in 80% of experiments.

    It is assumed to be the only one of num_tests tested differences, so that Holm's correction equals Bonferroni's.
    Returns nan if the standard error is 0, for example between two models that get nothing right."""
    if standard_error == 0:
        return math.nan
    normal = NormalDist()
    return (normal.inv_cdf(1 - 0.025 / num_tests) + normal.inv_cdf(0.8)) * standard_error
