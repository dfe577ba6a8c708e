"""The Pareto front of score and cost, if both are uncertain: which cells are on it for sure, and which may be.

A cell is on the front if every other cell has a lower score or costs more. Costs that differ by less than a tolerance
count as equal: `a` costs more than `b` if a / b > 1 + tolerance. This defines the true front, of the true scores and
costs. The front of the estimates differs from it by chance.
"""

import itertools
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from stats.contrasts import LEVEL, interval


class Membership(StrEnum):
    """Whether a cell is on the true Pareto front."""

    YES = "yes"
    MAYBE = "maybe"
    NO = "no"


def front_membership(
    estimates: Sequence[float],
    replicates: np.ndarray,
    ratios_low: np.ndarray,
    ratios_high: np.ndarray,
    tolerance: float = 0.0,
    level: float = LEVEL,
) -> list[Membership]:
    """Return for each of K cells whether it is on the Pareto front of score and cost.

    YES: every other cell is shown to have a lower score or to cost more.
    NO: one other cell is shown to have a higher score and shown not to cost more.
    MAYBE: neither.
    With a chance of at least 1 - level, all YES and NO of the K cells are true together: half of the level is for the
    differences in score of all pairs (`shown_higher`), half for their ratios of cost (Bonferroni). Both halves hold for
    all pairs at once, so it does not matter which pairs a statement needs.

    estimates: (K,) scores, higher is better. replicates: (K, R). ratios_low, ratios_high: (K, K), intervals of the
    ratios of cost, row divided by column, that contain all true ratios with a chance of 1 - level / 2; see
    `stats.latency.pairwise_ratios`; 0 and infinity if a ratio is unknown."""
    higher = shown_higher(estimates, replicates, level / 2)
    costs_more, costs_no_more = ratios_low > 1 + tolerance, ratios_high <= 1 + tolerance
    found = []
    for cell in range(len(estimates)):
        others = [other for other in range(len(estimates)) if other != cell]
        if any(higher[other, cell] and costs_no_more[other, cell] for other in others):
            found.append(Membership.NO)
        elif all(higher[cell, other] or costs_more[other, cell] for other in others):
            found.append(Membership.YES)
        else:
            found.append(Membership.MAYBE)
    return found


def shown_higher(estimates: Sequence[float], replicates: np.ndarray, level: float) -> np.ndarray:
    """Return for each pair of cells whether the first is shown to have the higher score, (K, K) bool.

    With a chance of 1 - level, all these statements are true: a difference, in units of its standard error, has to
    exceed the quantile of the largest such difference of the centred replicates (max-t, Westfall and Young, 1993).
    estimates: (K,). replicates: (K, R). Pairs without a standard error (0 or undefined) show nothing."""
    found, largest = [], np.zeros(replicates.shape[1])
    for first, second in itertools.combinations(range(len(estimates)), 2):
        difference, sample = estimates[first] - estimates[second], replicates[first] - replicates[second]
        error = interval(difference, sample).standard_error
        if error > 0:
            found.append((first, second, difference / error))
            largest = np.fmax(largest, abs(sample - np.nanmedian(sample)) / error)
    limit, result = np.quantile(largest, 1 - level), np.zeros((len(estimates), len(estimates)), dtype=bool)
    for first, second, statistic in found:
        result[first, second], result[second, first] = statistic > limit, -statistic > limit
    return result
