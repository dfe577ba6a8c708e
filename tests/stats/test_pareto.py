"""The Pareto front of uncertain scores and costs: memberships and their error rates."""

import numpy as np
import pytest

from stats.latency import pairwise_ratios
from stats.pareto import Membership, front_membership, shown_higher

YES, MAYBE, NO = Membership


def exact_ratios(costs):
    """Return ratios of costs that are known exactly, as both ends of their intervals."""
    ratios = np.divide.outer(costs, costs).astype(float)
    return ratios, ratios


def noise(cells, seed=0):
    return np.random.default_rng(seed).normal(size=(cells, 1000))


@pytest.mark.parametrize(
    ("scores", "costs", "expected"),
    [
        ([10, 20, 30], [1, 2, 3], [YES, YES, YES]),
        ([30, 20, 10], [1, 2, 3], [YES, NO, NO]),
        ([10, 20, 15], [1, 2, 3], [YES, YES, NO]),
        ([10, 10.5, 30], [1, 2, 3], [YES, MAYBE, YES]),  # the second costs more; whether it is better is open
        ([10, 20], [2, 2], [NO, YES]),  # equal costs: the score decides
        ([10, 10.5], [2, 2], [MAYBE, MAYBE]),
    ],
)
def test_memberships_follow_from_what_is_shown(scores, costs, expected):
    scores = np.array(scores, float)
    assert front_membership(scores, scores[:, None] + noise(len(scores)), *exact_ratios(costs)) == expected


def test_unknown_ratios_of_cost_leave_only_the_best_score_on_the_front_for_sure():
    scores = np.array([10.0, 20.0])
    unknown = np.zeros((2, 2)), np.full((2, 2), np.inf)
    assert front_membership(scores, scores[:, None] + noise(2), *unknown) == [MAYBE, YES]


def test_a_cost_above_another_by_less_than_the_tolerance_counts_as_equal():
    scores = np.array([20.0, 10.0])
    for costs, expected in (([1.005, 1], NO), ([1.02, 1], YES)):
        found = front_membership(scores, scores[:, None] + noise(2), *exact_ratios(costs), tolerance=0.01)
        assert found == [YES, expected]


def test_a_single_difference_is_shown_beyond_the_two_sided_quantile():
    spread = np.random.default_rng(0).normal(size=(2, 400_000))
    for gap, is_shown in ((1.90, False), (2.02, True)):  # two-sided normal quantile 1.96, in standard errors
        means = np.array([gap * np.sqrt(2), 0.0])
        assert shown_higher(means, means[:, None] + spread, 0.05).tolist() == [[False, is_shown], [False, False]]


def test_half_of_the_level_is_for_the_scores():
    spread = np.random.default_rng(0).normal(size=(2, 400_000))
    for gap, expected in ((2.20, MAYBE), (2.28, NO)):  # two-sided normal quantile for 2.5%: 2.241
        means = np.array([gap * np.sqrt(2), 0.0])
        assert front_membership(means, means[:, None] + spread, *exact_ratios([1, 2]))[1] is expected


def test_undefined_and_constant_scores_show_nothing():
    replicates = np.array([[0.5] * 500, [0.5] * 500, [np.nan] * 500])
    assert not shown_higher(np.array([0.5, 0.5, np.nan]), replicates, 0.05).any()


def test_of_equal_cells_one_is_shown_higher_in_5_percent_of_trials_whatever_their_number():
    generator, spread = np.random.default_rng(0), noise(6, seed=1)
    found = [shown_higher(each, each[:, None] + spread, 0.05).any() for each in generator.normal(size=(200, 6))]
    assert 0.02 < np.mean(found) < 0.09  # 15 pairs: about 35% without a correction


def paired_ratios(rounds):
    """Return the intervals of all ratios of programs that share all rounds, (K, n)."""
    return pairwise_ratios(len(rounds), lambda one, other: (rounds[one], rounds[other]), 0.025)


@pytest.mark.parametrize(
    ("scores", "truth"),
    [
        (np.linspace(0, 1e-6, 6), [YES] * 6),  # hardly any better, but all on the front: any NO is false
        (np.linspace(1e-6, 0, 6), [YES] + [NO] * 5),  # only the fastest is on the front: any other YES is false
    ],
)
def test_all_statements_are_true_together_in_95_percent_of_trials(scores, truth):
    generator, spread = np.random.default_rng(0), noise(6, seed=1)
    costs, wrong, trials = 1.02 ** np.arange(6), 0, 100
    for _ in range(trials):
        measured = costs[:, None] * np.exp(generator.normal(0, 0.05, (6, 60)) + generator.normal(0, 0.3, 60))
        estimates = scores + generator.normal(size=6)
        found = front_membership(estimates, estimates[:, None] + spread, *paired_ratios(measured))
        wrong += any(each not in (MAYBE, true) for each, true in zip(found, truth, strict=True))
    assert wrong / trials <= 0.05


def test_clear_fronts_are_found_in_noise():
    generator, spread = np.random.default_rng(0), noise(4, seed=1)
    scores, costs, right, trials = np.array([0, 10, 3, 20]), np.array([1, 1.2, 1.4, 1.6]), 0, 50
    for _ in range(trials):
        measured = costs[:, None] * np.exp(generator.normal(0, 0.1, (4, 200)) + generator.normal(0, 0.3, 200))
        estimates = scores + generator.normal(size=4)
        found = front_membership(estimates, estimates[:, None] + spread, *paired_ratios(measured))
        right += np.array(found == np.array([YES, YES, NO, YES])).sum()
    assert right / (4 * trials) > 0.95
