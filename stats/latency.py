"""Intervals of latencies: of a quantile, and of the ratio of two latencies that were measured in turns.

Times of a program on a busy machine have heavy tails, and neighbouring times are alike, because load comes and goes.
Both intervals therefore use ranks, and neither needs independent times: `quantile_interval` estimates how much
neighbouring times have in common, and `ratio_interval` relies on the random order of the two programs in each round.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.stats import binom, norm

RATIO_CONFIDENCE = 0.999  # of verdicts: a table has many, and each of them is read as a fact
TOLERANCE = 0.01  # two programs with the same network can differ by this much, because of where their memory is
EXACT_ROUNDS = 60  # with more rounds, the normal approximation of Wilcoxon's statistic is accurate to 0.1%


class Ratio(NamedTuple):
    """How many times as long as the reference a program takes, with a confidence interval.

    If there are too few rounds for an interval at this level, it is 0 to infinity."""

    estimate: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Return 'slower' or 'faster' if the ratio is shown to differ from 1 by more than TOLERANCE.

        Otherwise, return 'no difference shown'."""
        if self.low > 1 + TOLERANCE:
            return "slower"
        return "faster" if self.high < 1 / (1 + TOLERANCE) else "no difference shown"

    @property
    def resolution(self) -> float:
        """Half the width of the interval, as a difference of logarithms: 0.02 means about 2%."""
        return math.log(self.high / self.low) / 2 if self.low > 0 else math.inf


def quantile_interval(times: Sequence[float], quantile: float = 0.5, confidence: float = 0.95) -> tuple[float, float]:
    """Return a distribution-free interval of a quantile, from order statistics (David and Nagaraja 2003, section 7.1).

    The number of times below the quantile is binomial if the times are independent. If they are autocorrelated, the
    variance of that number is larger by a factor `correlation_time` (Heidelberger and Lewis 1984), which has the effect
    of fewer times. times: in the order of measurement. If there are too few times, an end is the smallest or largest.
    """
    ordered = np.sort(times)
    count = len(ordered)
    independent = max(1, math.floor(count / correlation_time(np.asarray(times) <= np.quantile(times, quantile))))
    tail = (1 - confidence) / 2
    low, high = binom.ppf([tail, 1 - tail], independent, quantile)
    # With `independent` times, these would be the order statistics `low` and `high + 1`, counted from 1.
    first = math.floor(low / independent * count) - 1
    last = math.ceil((high + 1) / independent * count) - 1
    return float(ordered[max(first, 0)]), float(ordered[min(last, count - 1)])


def correlation_time(series: Sequence[float]) -> float:
    """Return the integrated autocorrelation time: 1 if values are independent, larger if neighbours are alike.

    The variance of the mean is larger than that of independent values by this factor.
    The autocorrelations are summed in pairs as long as the sums are positive and falling (Geyer 1992, section 3.3)."""
    centred = np.asarray(series, np.float64) - np.mean(series)
    count = len(centred)
    transformed = np.fft.rfft(centred, 2 * count)
    covariances = np.fft.irfft(np.abs(transformed) ** 2)[:count]
    if covariances[0] <= 1e-12 * count:  # all values are equal
        return 1.0
    correlations = covariances / covariances[0]
    pairs = correlations[: count // 2 * 2].reshape(-1, 2).sum(axis=1)  # lags 0 + 1, 2 + 3, ...
    ending = np.flatnonzero(pairs <= 0)
    pairs = np.minimum.accumulate(pairs[: ending[0] if len(ending) else len(pairs)])
    return max(1.0, 2 * float(pairs.sum()) - 1)


def ratio_interval(times: Sequence[float], reference: Sequence[float], confidence: float = RATIO_CONFIDENCE) -> Ratio:
    """Return the ratio of two latencies with its interval, from the times of both programs in each round.

    The estimate is the exponential of the Hodges-Lehmann estimate of the log ratios: the median of the means of all
    pairs of rounds. The interval belongs to Wilcoxon's signed-rank test (Hollander, Wolfe and Chicken 2014, sections
    3.1 to 3.3). If the programs are equally fast and run in random order in each round, every log ratio is as likely
    positive as negative, independently of the other rounds, whatever the load: the order alone decides. So the test
    keeps its level with heavy tails and with load that changes slowly (randomisation test, Fisher 1935, section 21).

    times, reference: (n,) positive; entry k of both is from round k. Raises ValueError if the lengths differ."""
    if len(times) != len(reference):
        raise ValueError(f"{len(times)} times and {len(reference)} reference times; expected one of each per round")
    logs = np.log(np.asarray(times, np.float64) / np.asarray(reference, np.float64))
    rows, columns = np.triu_indices(len(logs))
    averages = (logs[rows] + logs[columns]) / 2  # Walsh averages
    rank = critical_rank(len(logs), confidence)
    estimate = math.exp(np.median(averages))
    if rank == 0:
        return Ratio(estimate, 0.0, math.inf)
    averages.partition([rank - 1, len(averages) - rank])
    return Ratio(estimate, math.exp(averages[rank - 1]), math.exp(averages[-rank]))


def pairwise_ratios(
    count: int, rounds_of: Callable[[int, int], tuple[np.ndarray, np.ndarray] | None], level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return both ends of the intervals of all ratios of K = `count` programs, row divided by column: (K, K) twice.

    With a chance of 1 - level, all intervals contain the true ratio (Bonferroni's correction for the number of pairs).
    rounds_of: returns the times of two programs in the rounds that they share, (n,) twice; None if they share none. The
    ends are 0 and infinity without rounds, or with too few."""
    low, high = np.ones((count, count)), np.ones((count, count))
    pairs = list(itertools.combinations(range(count), 2))
    for one, other in pairs:
        rounds = rounds_of(one, other)
        found = ratio_interval(*rounds, 1 - level / len(pairs)) if rounds else Ratio(math.nan, 0.0, math.inf)
        low[one, other], high[one, other] = found.low, found.high
        low[other, one], high[other, one] = 1 / found.high, 1 / found.low if found.low else math.inf
    return low, high


@cache
def critical_rank(rounds: int, confidence: float) -> int:
    """Return k such that the k-th smallest and the k-th largest Walsh average are the ends of the interval.

    P(W < k) is at most (1 - confidence) / 2, where W is Wilcoxon's signed-rank statistic of `rounds` differences.
    Returns 0 if even P(W = 0) is larger."""
    tail = (1 - confidence) / 2
    if rounds <= EXACT_ROUNDS:
        below = np.cumsum(signed_rank_probabilities(rounds))  # P(W <= w)
        return int(np.searchsorted(below, tail, side="right"))
    mean, variance = rounds * (rounds + 1) / 4, rounds * (rounds + 1) * (2 * rounds + 1) / 24
    return max(0, math.floor(mean + norm.ppf(tail) * math.sqrt(variance)))


def signed_rank_probabilities(rounds: int) -> np.ndarray:
    """Return the distribution of Wilcoxon's signed-rank statistic: P(W = w) for w = 0, 1, ..., n (n + 1) / 2."""
    probabilities = np.zeros(rounds * (rounds + 1) // 2 + 1)
    probabilities[0] = 1.0
    for rank in range(1, rounds + 1):  # each rank is added to W with a chance of 1/2
        with_rank = np.concatenate([np.zeros(rank), probabilities[:-rank]])
        probabilities = (probabilities + with_rank) / 2
    return probabilities
