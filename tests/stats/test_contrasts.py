"""Contrasts: intervals, p values corrected for multiple tests, bounds, and exact tests of classifiers."""

import math
from dataclasses import astuple

import numpy as np
import pytest
from scipy import stats

from stats.contrasts import (
    assess_family,
    exact_mcnemar,
    holm,
    interval,
    mean_difference,
    monte_carlo_errors,
)

ESTIMATES = {"a": 0.1, "b": 0.3, "c": 0.6}
REPLICATES = np.array(list(ESTIMATES.values()))[:, None] + np.random.default_rng(0).normal(0, 0.05, (3, 500))
NORMAL = np.random.default_rng(1).normal(size=(2, 200_000))


# ---- families ----------------------------------------------------------------------------------------------


def test_contrasts_are_estimated_on_each_replicate_and_corrected_for_multiple_tests():
    contrasts = [mean_difference(["b"], ["a"]), mean_difference(["c"], ["a", "b"])]
    first, second = assess_family(contrasts, ESTIMATES, REPLICATES)
    assert first.interval.estimate == pytest.approx(0.2)
    expected = interval(0.6 - 0.2, REPLICATES[2] - REPLICATES[:2].mean(axis=0))
    assert astuple(second.interval) == pytest.approx(astuple(expected))
    assert [first.p_holm, second.p_holm] == holm([first.interval.p, second.interval.p]).tolist()


def normal_family(means, tests):
    """Return the first of several tested differences from 0, whose replicates are normal with standard error 1."""
    cells = {"zero": 0.0} | {f"cell {number}": mean for number, mean in enumerate([means] * tests)}
    replicates = np.stack([np.zeros(NORMAL.shape[1])] + [means + NORMAL[0]] * tests)
    return assess_family([mean_difference([cell], ["zero"]) for cell in list(cells)[1:]], cells, replicates)[0]


def test_limits_of_a_family_are_normal_quantiles_at_the_corrected_level():
    for tests in (1, 5):
        found, two_sided, one_sided = (
            normal_family(1.0, tests),
            stats.norm.isf(0.025 / tests),
            stats.norm.isf(0.05 / tests),
        )
        assert found.simultaneous == pytest.approx((1 - two_sided, 1 + two_sided), abs=0.03)
        assert found.bound == pytest.approx(1 + one_sided, abs=0.03)


def test_a_simultaneous_interval_excludes_zero_only_if_the_difference_is_significant():
    for mean in np.linspace(1.5, 4, 26):
        found = normal_family(mean, 4)
        assert found.is_significant or found.simultaneous[0] <= 0


def test_the_detectable_value_is_that_of_the_number_of_tests():
    contrasts = [mean_difference(["b"], ["a"]), mean_difference(["c"], ["a"])]
    found = assess_family(contrasts, ESTIMATES, REPLICATES, detectable=lambda contrast, tests: len(contrast) * tests)
    assert [each.detectable for each in found] == [4, 4]
    assert math.isnan(assess_family(contrasts, ESTIMATES, REPLICATES)[0].detectable)


def test_level_decides_what_is_significant():
    contrasts, cells = [mean_difference(["a"], ["b"])], {"a": 2.3, "b": 0.0}  # p = 0.021
    replicates = np.stack([2.3 + NORMAL[0], np.zeros(NORMAL.shape[1])])
    assert [assess_family(contrasts, cells, replicates, level)[0].is_significant for level in (0.05, 0.01)] == [
        True,
        False,
    ]


def test_verdicts_close_to_the_level_are_unstable():
    generator = np.random.default_rng(3)
    for mean, is_stable in ((0.5, True), (1.96, False), (4.0, True)):
        replicates = np.stack([mean + generator.normal(size=1000), np.zeros(1000)])
        (found,) = assess_family([mean_difference(["a"], ["b"])], {"a": mean, "b": 0.0}, replicates)
        assert found.is_stable == is_stable


def test_monte_carlo_errors_equal_the_spread_of_estimated_p_values():
    generator = np.random.default_rng(0)
    found = [interval(1.5, 1.5 + generator.normal(size=1000)).p for _ in range(400)]
    assert monte_carlo_errors(np.array([np.mean(found)]), 1000)[0] == pytest.approx(np.std(found), rel=0.12)


def test_an_exact_p_value_replaces_that_of_the_replicates():
    contrasts = [mean_difference(["b"], ["a"]), mean_difference(["c"], ["a"])]
    found = assess_family(contrasts, ESTIMATES, REPLICATES, exact_p=[0.04, None])
    assert found[0].p_holm == pytest.approx(0.04)
    assert found[1].p_holm == pytest.approx(2 * found[1].interval.p)


# ---- exact test of classifiers -----------------------------------------------------------------------------


def test_mcnemar_of_four_to_none_is_an_eighth():
    hits = np.ones(50, dtype=bool)
    others = hits.copy()
    others[:4] = False
    assert exact_mcnemar(hits, others) == pytest.approx(0.125)  # 2 * 0.5 ** 4
    assert exact_mcnemar(hits, hits) == 1


def test_mcnemar_is_exact_only_for_few_discordant_images():
    hits = np.zeros(100, dtype=bool)
    others = hits.copy()
    others[:25] = True
    assert exact_mcnemar(hits, others) is None


# ---- intervals and p values --------------------------------------------------------------------------------


def test_interval_of_normal_replicates():
    result = interval(1.0, np.random.default_rng(0).normal(1.0, 0.5, 200_000))
    assert (result.low, result.high) == pytest.approx((0.02, 1.98), abs=0.02)
    assert result.standard_error == pytest.approx(0.5, rel=0.01)
    assert result.p == pytest.approx(0.0455, abs=0.002)
    assert interval(5.0, np.full(999, 5.0)).p == pytest.approx(2 / 1000)  # never 0


def test_few_nan_replicates_are_ignored():
    replicates = np.random.default_rng(0).normal(size=1000)
    with_nan = np.append(replicates, [np.nan] * 40)
    assert interval(0.0, with_nan) == interval(0.0, replicates)


@pytest.mark.parametrize(
    ("estimate", "replicates"),
    [(0.5, [0.5] * 90 + [np.nan] * 10), (np.nan, [0.5] * 100), (0.5, [np.nan] * 100), (0.5, [])],
    ids=["too many nan replicates", "nan estimate", "only nan replicates", "no replicates"],
)
def test_interval_is_nan_without_enough_replicates_or_an_estimate(estimate, replicates):
    result = interval(estimate, np.array(replicates))
    assert np.isnan([result.low, result.high, result.p, result.standard_error]).all()


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        # sorted: 0.01 0.02 0.03 0.04; times 4 3 2 1: 0.04 0.06 0.06 0.04; running maximum: 0.04 0.06 0.06 0.06
        ([0.04, 0.01, 0.03, 0.02], [0.06, 0.04, 0.06, 0.06]),
        ([0.6, 0.9], [1.0, 1.0]),
        ([0.03], [0.03]),
        ([], []),
        ([0.02, np.nan, 0.04], [0.04, np.nan, 0.04]),  # nan is not a test
    ],
)
def test_holm_adjusts_p_values(p_values, adjusted):
    np.testing.assert_allclose(holm(p_values), adjusted)
