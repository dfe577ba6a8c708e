"""Contrasts: differences, main effects and interactions, as weighted sums of the scores of a table's cells."""

import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import NormalDist

import numpy as np

from stats.bootstrap import Interval, holm, interval

Contrast = dict[Hashable, float]  # cell -> factor


def mean_difference(ones: Sequence[Hashable], zeros: Sequence[Hashable]) -> Contrast:
    """Return the contrast: mean score of the cells `ones` minus mean score of the cells `zeros`."""
    return {cell: 1 / len(ones) for cell in ones} | {cell: -1 / len(zeros) for cell in zeros}


def contrast_intervals(
    contrasts: Sequence[Contrast], estimates: Mapping[Hashable, float], replicates: np.ndarray
) -> list[tuple[Interval, float]]:
    """Estimate a family of contrasts, with p values corrected for multiple tests.

    estimates: dict from each of K cells to its score. replicates: (K, R), replicates of these scores in this order.
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
    """Return the size of a true difference that is significant at 5%, after correction, in 80% of experiments.

    All other differences among the num_tests tests are assumed to be 0, so that Holm's correction equals Bonferroni's.
    Returns nan if the standard error is 0, for example because both models score 0 on every resample."""
    if standard_error == 0:
        return math.nan
    normal = NormalDist()
    return (normal.inv_cdf(1 - 0.025 / num_tests) + normal.inv_cdf(0.8)) * standard_error
