"""stats/latency.py against SciPy, brute force, and simulated load with a known truth."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from stats.latency import (
    TOLERANCE,
    Ratio,
    correlation_time,
    critical_rank,
    pairwise_ratios,
    quantile_interval,
    ratio_interval,
    signed_rank_probabilities,
)


def busy_times(generator: np.random.Generator, rounds: int, factors: tuple[float, ...]) -> list[np.ndarray]:
    """Return times of programs that take turns in random order on a machine whose load comes and goes.

    Each run takes the program's factor, times the load at its moment, times noise with a heavy tail."""
    load = np.empty(rounds * len(factors))
    state = 0.0
    for moment in range(len(load)):  # autoregressive: a burst lasts for about ten rounds
        state = 0.97 * state + generator.normal(0, 0.15)
        load[moment] = math.exp(state)
    load = load.reshape(rounds, len(factors)) * (1 + generator.pareto(2, (rounds, len(factors))) * 0.1)
    order = np.argsort(generator.random((rounds, len(factors))), axis=1)
    return [np.take_along_axis(load, order[:, [index]], 1)[:, 0] * factor for index, factor in enumerate(factors)]


def excludes_one(ratio: Ratio) -> bool:
    return not ratio.low <= 1 <= ratio.high


@pytest.mark.parametrize("rounds", [1, 2, 5, 9])
def test_the_distribution_of_the_signed_rank_statistic_is_that_of_all_sign_patterns(rounds):
    sums = [
        sum(rank for rank, is_positive in enumerate(signs, 1) if is_positive)
        for signs in itertools.product([0, 1], repeat=rounds)
    ]
    expected = np.bincount(sums, minlength=rounds * (rounds + 1) // 2 + 1) / 2**rounds
    np.testing.assert_allclose(signed_rank_probabilities(rounds), expected, atol=1e-15)


@pytest.mark.parametrize("rounds", [12, 40, 61, 300])
def test_the_ratio_interval_excludes_one_exactly_if_the_signed_rank_test_is_significant(rounds):
    generator = np.random.default_rng(rounds)
    for shift in np.linspace(0, 0.5, 25):
        logs = generator.normal(shift, 1, rounds)
        found = ratio_interval(np.exp(logs), np.ones(rounds), confidence=0.95)
        method = "exact" if rounds <= 60 else "approx"
        p = stats.wilcoxon(logs, method=method, correction=rounds > 60).pvalue
        if abs(p - 0.05) > 1e-3:
            assert excludes_one(found) == (p < 0.05)


def test_the_estimate_is_the_median_of_the_mean_log_ratios_of_all_pairs():
    times, reference = np.array([1.0, 2.0, 8.0]), np.array([1.0, 1.0, 2.0])
    logs = np.log(times / reference)
    means = [(logs[i] + logs[j]) / 2 for i in range(3) for j in range(i, 3)]
    assert ratio_interval(times, reference).estimate == pytest.approx(math.exp(np.median(means)))


def test_too_few_rounds_give_an_interval_without_ends():
    found = ratio_interval([2.0] * 5, [1.0] * 5)
    assert (found.low, found.high, found.verdict) == (0.0, math.inf, "no difference shown")
    assert critical_rank(5, 0.999) == 0


def test_series_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="2 times and 1 reference"):
        ratio_interval([1.0, 2.0], [1.0])


def test_equal_programs_are_told_apart_as_rarely_as_promised_under_slowly_changing_load():
    generator = np.random.default_rng(0)
    found = [ratio_interval(*busy_times(generator, 100, (1, 1)), confidence=0.95) for _ in range(400)]
    wrong = sum(map(excludes_one, found))
    assert wrong <= stats.binom.ppf(0.999, 400, 0.05)


def test_a_difference_of_5_percent_is_found_and_covered_under_slowly_changing_load():
    generator = np.random.default_rng(1)
    found = [ratio_interval(*busy_times(generator, 1500, (1.05, 1))) for _ in range(20)]
    assert [each.verdict for each in found] == ["slower"] * 20
    assert all(each.low < 1.05 < each.high for each in found)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.001, 1.04, "no difference shown"),  # shown to be slower, but perhaps by less than the tolerance
        (1.011, 1.04, "slower"),
        (0.96, 0.999, "no difference shown"),
        (0.96, 1 / 1.011, "faster"),
    ],
)
def test_a_verdict_needs_a_difference_beyond_the_tolerance(low, high, verdict):
    assert TOLERANCE == 0.01
    assert Ratio(1.0, low, high).verdict == verdict


def test_the_intervals_of_all_pairs_are_those_of_each_pair_at_bonferronis_level():
    generator = np.random.default_rng(5)
    rounds = np.exp(generator.normal(0, 0.1, (3, 80))) * [[1.0], [2.0], [3.0]]
    low, high = pairwise_ratios(len(rounds), lambda one, other: (rounds[one], rounds[other]), 0.03)
    for one, other in itertools.combinations(range(3), 2):
        expected = ratio_interval(rounds[one], rounds[other], confidence=0.99)
        assert (low[one, other], high[one, other]) == (expected.low, expected.high)
        assert (low[other, one], high[other, one]) == pytest.approx((1 / expected.high, 1 / expected.low))


def test_the_intervals_of_pairs_have_no_ends_if_there_are_too_few_rounds():
    low, high = pairwise_ratios(2, lambda *_: (np.ones(5), np.ones(5)), 0.05)
    assert (low[0, 1], high[0, 1], low[1, 0], high[1, 0]) == (0, np.inf, 0, np.inf)


def test_pairs_without_common_rounds_are_unknown_and_the_other_pairs_are_not():
    rounds = np.random.default_rng(0).lognormal(0, 0.1, (2, 80))
    low, high = pairwise_ratios(3, lambda one, other: (rounds[one], rounds[other]) if other < 2 else None, 0.05)
    assert 0 < low[0, 1] < high[0, 1] < np.inf
    assert (low[0, 2], high[0, 2], low[2, 1], high[2, 1]) == (0, np.inf, 0, np.inf)


@pytest.mark.parametrize("quantile", [0.5, 0.95])
def test_the_quantile_interval_of_independent_times_agrees_with_scipy(quantile):
    times = np.random.default_rng(2).lognormal(size=2000)
    expected = stats.quantile_test(times, q=np.quantile(times, quantile), p=quantile).confidence_interval(0.95)
    found, spread = quantile_interval(times, quantile), expected.high - expected.low
    assert found == pytest.approx((expected.low, expected.high), abs=spread / 4)  # a few neighbouring times


def test_the_quantile_interval_covers_the_median_if_neighbouring_times_are_alike():
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        noise, times = generator.normal(0, 1, 600), np.empty(600)
        times[0] = noise[0]
        for k in range(1, 600):
            times[k] = 0.8 * times[k - 1] + math.sqrt(1 - 0.8**2) * noise[k]
        low, high = quantile_interval(np.exp(times))
        covered += low <= 1 <= high
    assert covered >= 0.9 * 300


def test_the_correlation_time_is_1_for_independent_values_and_known_for_an_autoregressive_series():
    generator = np.random.default_rng(4)
    assert correlation_time(generator.normal(size=20_000)) == pytest.approx(1, abs=0.2)
    series = [0.0]
    for noise in generator.normal(size=50_000):
        series.append(0.5 * series[-1] + noise)
    assert correlation_time(series) == pytest.approx((1 + 0.5) / (1 - 0.5), rel=0.15)
    assert correlation_time([1.0] * 10) == 1
