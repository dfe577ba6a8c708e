"""Rank agreement against SciPy and by hand."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from stats.robustness import kendall_tau, rank_agreement


def test_tau_equals_that_of_scipy():
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(2, 6, 50))
    found = kendall_tau(first, second)
    for column in range(50):  # without ties, tau-a equals SciPy's tau-b
        assert found[column] == pytest.approx(kendalltau(first[:, column], second[:, column]).statistic)


def test_a_tie_is_neither_concordant_nor_discordant():
    assert kendall_tau(np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 2.0])) == pytest.approx(2 / 3)


def test_shares_of_replicates_are_counted():
    first = np.array([[3.0, 3, 3, np.nan], [2, 2, 2, 1], [1, 1, 1, 2]])
    second = np.array([[3.0, 3, 1, 3], [2, 1, 2, 2], [1, 2, 3, 1]])  # same order; same best only; reversed; undefined
    found = rank_agreement(first[:, 0], second[:, 0], first, second)
    assert found.tau.estimate == 1
    assert found.same_order == pytest.approx(1 / 3)
    assert found.same_best == pytest.approx(2 / 3)


def test_agreement_is_certain_for_distant_scores_and_open_for_equal_ones():
    draw = np.random.default_rng(1)
    noise, other = draw.normal(0, 0.01, (2, 3, 2000))
    distant = np.array([0.9, 0.5, 0.1])
    found = rank_agreement(distant, distant - 0.1, distant[:, None] + noise, distant[:, None] + other)
    assert (found.same_order, found.tau.low, found.tau.high) == (1, 1, 1)
    equal = rank_agreement(distant * 0 + 0.5, distant * 0 + 0.4, 0.5 + noise, 0.4 + other)
    assert equal.same_order == pytest.approx(1 / 6, abs=0.03)  # 3! orders
    assert equal.tau.low == -1
    assert equal.tau.high == 1
