"""Whether a ranking of models stays the same under a change, such as the corruption of the images."""

from dataclasses import dataclass

import numpy as np

from stats.contrasts import Interval, interval


@dataclass(frozen=True)
class RankAgreement:
    """How well two rankings of the same cells agree.

    tau: Kendall's tau-a: 1 for the same order, 0 for unrelated orders, -1 for the reverse order. The interval contains
    the noise of both rankings, which lowers tau in the replicates: near 1, most of the interval is below the estimate.
    same_order: share of the replicates in which the two orders are the same.
    same_best: share of the replicates in which the same cell is the best in both."""

    tau: Interval
    same_order: float
    same_best: float


def kendall_tau(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Kendall's tau-a between two scores of K cells: (concordant - discordant pairs) / all pairs.

    first, second: (K, ...), at least two cells. Returns (...); nan where a score is nan. A tie in a score is neither
    concordant nor discordant."""
    pairs = np.triu_indices(len(first), 1)
    agreements = np.sign(first[pairs[0]] - first[pairs[1]]) * np.sign(second[pairs[0]] - second[pairs[1]])
    return agreements.mean(axis=0)


def rank_agreement(
    estimates: np.ndarray, other_estimates: np.ndarray, replicates: np.ndarray, other_replicates: np.ndarray
) -> RankAgreement:
    """Return how well two scores agree on the order of K cells.

    estimates, other_estimates: (K,). replicates, other_replicates: (K, R), of the same resamples."""
    taus = kendall_tau(replicates, other_replicates)
    defined = ~np.isnan(taus)
    same_best = replicates.argmax(axis=0) == other_replicates.argmax(axis=0)
    return RankAgreement(
        interval(float(kendall_tau(estimates, other_estimates)), taus),
        float((taus[defined] == 1).mean()) if defined.any() else np.nan,
        float(same_best[defined].mean()) if defined.any() else np.nan,
    )
