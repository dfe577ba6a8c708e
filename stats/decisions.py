"""Decisions about the cells of a table: which may be the best, and how much luck there is in being the best."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

from stats.contrasts import LEVEL, interval


def may_be_best(estimates: Sequence[float], replicates: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Return which cells may have the highest true score, (K,) bool. The truly best cell is among them with 1 - level.

    A cell is excluded if another cell is better by more than chance explains: if the largest of its differences D_jk
    from the other cells, in units of their standard errors, exceeds the quantile of the same statistic of the centred
    replicates (Hsu, Annals of Statistics 12 (1984); Mogstad, Romano, Shaikh and Wilhelm, Review of Economic Studies 91
    (2024)).
    estimates: (K,) scores, higher is better. replicates: (K, R). A cell that has no intervals is never excluded."""
    estimates, result = np.asarray(estimates), np.ones(len(estimates), dtype=bool)
    for cell in range(len(estimates)):
        largest, reference = -math.inf, np.full(replicates.shape[1], -math.inf)
        for rival in range(len(estimates)):
            difference, sample = estimates[rival] - estimates[cell], replicates[rival] - replicates[cell]
            error = interval(difference, sample).standard_error
            if rival != cell and error > 0:
                largest = max(largest, difference / error)
                reference = np.fmax(reference, (sample - np.nanmedian(sample)) / error)
        if largest > -math.inf:
            result[cell] = largest <= np.quantile(reference, 1 - level)
    return result


def probability_better(difference: float, variance: float) -> float:
    """Return the chance that a single run of one cell scores higher than a single run of another cell.

    difference: of the cells' mean scores. variance: sum of the variances of a run's score between seeds in both cells.
    See Bouthillier et al., arXiv 2103.03098, section 4. Returns nan if the variance is 0 or unknown."""
    return float(norm.cdf(difference / math.sqrt(variance))) if variance > 0 else math.nan


def optimism_of_best(estimates: Sequence[float], replicates: np.ndarray) -> float:
    """Return by how much the highest of K estimates is expected to exceed the true score of its cell.

    Of several equal cells, the luckiest has the highest estimate. The luck is simulated: the noise of the replicates is
    added to plausible true scores, and the noise of each winner is averaged. Plausible true scores are the estimates,
    shrunk towards their mean by the part of their variance that is noise (James and Stein, 1961; Efron and Morris,
    1973): the estimates themselves differ too much, because they contain noise already.

    The result is 5% too high for 8 equal cells with 3 seeds (benchmarks/decisions.md). The tails of the replicates,
    which allow for an unknown variance between seeds, add 7%. The estimated differences of the plausible true scores
    take away 3%. With 2 or 4 cells, or with 2 or 5 seeds, the two cancel to about 2%. If 8 cells are evenly spaced and
    the best and the worst differ by 1.5 or 4 standard errors, the result is 18 or 31% too high: too much is corrected.
    estimates: (K,). replicates: (K, R). Returns nan if the replicates have no variance or are undefined."""
    estimates = np.asarray(estimates)
    noise = replicates - np.nanmedian(replicates, axis=1, keepdims=True)
    noise = noise[:, ~np.isnan(noise).any(axis=0)]
    if not noise.size:
        return math.nan
    # the noise that all cells share does not decide who wins; medians, because the replicates may have heavy tails
    own_noise = np.median(np.var(noise, axis=0, ddof=1)) if len(noise) > 1 else 0.0
    variance = np.var(estimates, ddof=1) if len(estimates) > 1 else 0.0
    kept = max(0.0, 1 - own_noise / variance) if variance > 0 else 0.0
    plausible = estimates.mean() + kept * (estimates - estimates.mean())
    winners = np.argmax(plausible[:, None] + noise, axis=0)
    return float(np.mean(noise[winners, np.arange(noise.shape[1])]))
