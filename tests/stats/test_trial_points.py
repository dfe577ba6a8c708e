"""Tests of stats/trial_points.py."""

import warnings

import numpy as np
import pytest

from stats.trial_points import at_edge, draw_points, neighbours

RATE = {"optim.learning_rate": {"log_uniform": [1e-4, 1e-2]}}


@pytest.mark.parametrize("trials", [1, 3, 4, 6, 7, 12, 50])
def test_points_fill_the_range_evenly_without_warnings(trials):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = draw_points(RATE, trials, seed=0)
    rates = np.sort([point["optim.learning_rate"] for point in points])
    assert len(set(rates)) == trials
    assert 1e-4 <= rates[0] <= rates[-1] <= 1e-2
    # every decade has its share: a Halton sequence in base 2 has at most one point more or less in each half
    assert abs(2 * np.sum(rates < 1e-3) - trials) <= 1


def test_values_have_three_significant_digits_and_depend_only_on_the_arguments():
    ranges = RATE | {"optim.weight_decay": {"uniform": [0.01, 0.1]}, "loss": {"choice": ["focal", "cross_entropy"]}}
    points = draw_points(ranges, 6, seed=3)
    assert points == draw_points(ranges, 6, seed=3) != draw_points(ranges, 6, seed=4)
    assert all(float(f"{point['optim.learning_rate']:.3g}") == point["optim.learning_rate"] for point in points)
    assert {point["loss"] for point in points} == {"focal", "cross_entropy"}
    assert all(0.01 <= point["optim.weight_decay"] <= 0.1 for point in points)


def test_points_are_distinct_even_if_values_repeat():
    ranges = {"depth": {"choice": [1, 2]}, "loss": {"choice": ["a", "b"]}}
    points = draw_points(ranges, 4, seed=0)
    assert len({(point["depth"], point["loss"]) for point in points}) == 4
    with pytest.raises(ValueError, match="got 5, expected at most 4"):
        draw_points(ranges, 5, seed=0)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"log": [1, 2]}, "log_uniform, uniform, choice"),
        ({"uniform": [2, 1]}, "low < high"),
        ({"log_uniform": [0, 1]}, "positive"),
        ({"choice": []}, "no options"),
        ({}, "log_uniform, uniform, choice"),
    ],
)
def test_invalid_ranges_are_reported_with_their_name(spec, problem):
    with pytest.raises(ValueError, match=rf"range of optim\.momentum: .*{problem}"):
        draw_points({"optim.momentum": spec}, 3, seed=0)


def test_the_lowest_and_highest_drawn_values_are_at_the_edge():
    points = [{"rate": rate, "loss": "a"} for rate in (0.003, 0.001, 0.01)]
    ranges = {"rate": {"uniform": [0, 1]}, "loss": {"choice": ["a", "b"]}}
    assert [at_edge(points, chosen, ranges) for chosen in range(3)] == [{}, {"rate": "lowest"}, {"rate": "highest"}]


def test_neighbours_are_consecutive_values_and_the_closest_points_of_a_plane():
    first, second = neighbours([{"rate": rate} for rate in (0.1, 1e-4, 3.0, 0.01)])
    assert {frozenset(pair) for pair in zip(first, second, strict=True)} == {
        frozenset(p) for p in ((1, 3), (3, 0), (0, 2))
    }
    corner = [{"x": x, "loss": loss} for x, loss in ((0, "a"), (1, "a"), (9, "b"), (8, "b"))]
    first, second = neighbours(corner)
    pairs = {frozenset(pair) for pair in zip(first, second, strict=True)}
    assert len(pairs) == 3
    assert {frozenset((0, 1)), frozenset((2, 3))} < pairs
