"""Decisions: the set of the best, the chance that a single run is better, and the optimism of the best mean."""

import numpy as np
import pytest

from stats.decisions import may_be_best, optimism_of_best, probability_better


def noise(cells, seed=0):
    return np.random.default_rng(seed).normal(size=(cells, 4000))


def test_clearly_worse_cells_are_excluded_from_the_best():
    means = np.array([10.0, 9.5, 0.0])
    assert may_be_best(means, means[:, None] + noise(3)).tolist() == [True, True, False]


def test_of_two_cells_the_worse_one_is_excluded_at_the_one_sided_quantile():
    for gap, is_kept in ((1.60, True), (1.70, False)):  # one-sided normal quantile 1.645, in standard errors
        means = np.array([gap * np.sqrt(2), 0.0])
        assert may_be_best(means, means[:, None] + np.random.default_rng(0).normal(size=(2, 400_000)))[1] == is_kept


def test_equal_cells_without_variance_may_all_be_the_best():
    assert may_be_best(np.zeros(3), np.zeros((3, 100))).all()


def test_the_truly_best_of_equal_cells_is_kept_in_95_percent_of_trials():
    generator, spread = np.random.default_rng(0), noise(6, seed=1)
    kept = [may_be_best(means, means[:, None] + spread)[0] for means in generator.normal(size=(400, 6))]
    assert 0.93 < np.mean(kept) <= 0.99


@pytest.mark.parametrize(
    ("difference", "variance", "chance"), [(0.0, 1.0, 0.5), (1.0, 1.0, 0.8413), (-1.96, 1.0, 0.025)]
)
def test_probability_that_a_single_run_is_better(difference, variance, chance):
    assert probability_better(difference, variance) == pytest.approx(chance, abs=1e-4)


def test_probability_is_undefined_without_a_spread():
    assert np.isnan([probability_better(1.0, 0.0), probability_better(1.0, np.nan)]).all()


def test_optimism_of_equal_cells_is_the_expected_maximum_of_the_noise():
    generator, spread = np.random.default_rng(0), noise(8)
    found = [optimism_of_best(means, means[:, None] + spread) for means in generator.normal(size=(300, 8))]
    expected_maximum = 1.4236  # of 8 standard normal numbers
    assert np.mean(found) == pytest.approx(expected_maximum, abs=0.12)


def test_a_clear_winner_needs_no_correction():
    means = np.array([100.0, 0.0, 0.0, 0.0])
    assert abs(optimism_of_best(means, means[:, None] + noise(4))) < 0.05


def test_noise_that_all_cells_share_is_not_optimism():
    common = np.random.default_rng(0).normal(size=(1, 4000))
    means = np.array([0.0, 0.1, 0.2])
    assert abs(optimism_of_best(means, means[:, None] + np.repeat(common, 3, axis=0))) < 0.05
