"""Contrasts of the cells of a table: differences, main effects and interactions are sums of scores with factors."""

import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import NormalDist

import numpy as np

from stats.bootstrap import Interval, holm, interval

Contrast = dict[Hashable, float]  # cell to its factor


def mean_difference(ones: Sequence[Hashable], zeros: Sequence[Hashable]) -> Contrast:
    """The mean over some cells minus the mean over others."""
    return {cell: 1 / len(ones) for cell in ones} | {cell: -1 / len(zeros) for cell in zeros}


def contrast_intervals(
    contrasts: Sequence[Contrast], estimates: Mapping[Hashable, float], replicates: np.ndarray
) -> list[tuple[Interval, float]]:
    """Estimate contrasts that are tested together.

    estimates: cell to its score; replicates: (K, R), of these K cells in their order.
    Returns for each contrast its interval, and its p value after Holm's correction."""
    index = {cell: number for number, cell in enumerate(estimates)}
    means, intervals = np.array(list(estimates.values())), []
    for contrast in contrasts:
        factors = np.zeros(len(index))
        for cell, factor in contrast.items():
            factors[index[cell]] += factor
        intervals.append(interval(factors @ means, factors @ replicates))
    return list(zip(intervals, holm([each.p for each in intervals]).tolist(), strict=True))


def detectable_difference(standard_error: float, together: int) -> float:
    """The true difference that would be found significant (5%, after correction) in 80% of such experiments.

    Computed as if it were the only one of `together` differences, which Holm's correction tests as strictly as
    Bonferroni's. nan where the standard error is 0, as between two models that get nothing right."""
    if standard_error == 0:
        return math.nan
    normal = NormalDist()
    return (normal.inv_cdf(1 - 0.025 / together) + normal.inv_cdf(0.8)) * standard_error
