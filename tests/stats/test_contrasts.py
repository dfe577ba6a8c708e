"""Contrasts of cells: estimates are weighted sums, and p values are corrected for multiple tests."""

import math
from dataclasses import astuple

import numpy as np
import pytest

from stats.bootstrap import holm, interval
from stats.contrasts import contrast_intervals, detectable_difference, mean_difference

ESTIMATES = {"a": 0.1, "b": 0.3, "c": 0.6}
REPLICATES = np.array(list(ESTIMATES.values()))[:, None] + np.random.default_rng(0).normal(0, 0.05, (3, 500))


def test_contrasts_are_estimated_on_each_replicate_and_corrected_for_multiple_tests():
    contrasts = [mean_difference(["b"], ["a"]), mean_difference(["c"], ["a", "b"])]
    (first, p_first), (second, p_second) = contrast_intervals(contrasts, ESTIMATES, REPLICATES)
    assert first.estimate == pytest.approx(0.2)
    expected = interval(0.6 - 0.2, REPLICATES[2] - REPLICATES[:2].mean(axis=0))
    assert astuple(second) == pytest.approx(astuple(expected))
    assert [p_first, p_second] == holm([first.p, second.p]).tolist()


def test_detectable_difference_grows_with_the_number_of_tests():
    assert detectable_difference(1.0, 1) == pytest.approx(1.96 + 0.842, abs=0.001)
    assert detectable_difference(1.0, 5) == pytest.approx(2.576 + 0.842, abs=0.001)
    assert math.isnan(detectable_difference(0.0, 1))
