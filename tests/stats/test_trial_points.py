"""Tests of stats/trial_points.py."""

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest

from engine.text import shown
from stats.trial_points import at_edge, check_range, check_ranges, draw_points, neighbours

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
    "spec",
    [
        {"uniform": [-1, 0.5]},
        {"log_uniform": (1e-4, 1)},
        {"choice": [None, 5]},
        {"choice": [[8, 11], [9]]},
        {"choice": [1, True, "1"]},
    ],
)
def test_valid_ranges_are_accepted(spec):
    check_range("optim.momentum", spec)
    assert len(draw_points({"optim.momentum": spec}, 2, seed=0)) == 2


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"log": [1, 2]},
        {"uniform": [1, 2], "log_uniform": [1, 2]},
        [1, 2],
        0.1,
        None,
        {"uniform": 1},
        {"uniform": [1]},
        {"uniform": [1, 2, 3]},
        {"uniform": [2, 1]},
        {"uniform": [1, 1]},
        {"uniform": [False, True]},
        {"uniform": ["1", "2"]},
        {"uniform": "12"},
        {"uniform": [0, math.inf]},
        {"uniform": [math.nan, 1]},
        {"log_uniform": [0, 1]},
        {"choice": []},
        {"choice": [1]},
        {"choice": "ab"},
        {"choice": ["a", "b", "a"]},
        {"choice": [[1, 2], [1, 2]]},
    ],
)
def test_an_invalid_range_is_reported_with_the_field_the_value_and_the_cure(spec):
    with pytest.raises(ValueError, match=r"optim\.momentum: got .*expected \{log_uniform: .*above 0") as error:
        check_ranges(RATE | {"optim.momentum": spec})
    assert shown(spec) in str(error.value)
    with pytest.raises(ValueError, match=r"optim\.momentum"):
        draw_points({"optim.momentum": spec}, 2, seed=0)


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


@pytest.mark.parametrize("options", [[None, 5], [[8, 11], [9]], [True, False], ["a", 3], [{"x": 1}, {"x": 2}]])
def test_options_that_are_not_all_numbers_are_categories(options):
    """Neighbouring rates differ by .2 or .4, and two options by 1, so the points of an option are connected first."""
    points = [{"field": options[k % 2], "rate": k} for k in range(6)]
    first, second = neighbours(points)
    pairs = {frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    assert len(pairs) == 5
    assert {frozenset(pair) for k in (0, 1) for pair in pairwise(range(k, 6, 2))} < pairs


def test_categories_have_no_order():
    """If a, b and c were ranked, a would be nearer to b than to c, and the first and third point no neighbours."""
    points = [{"loss": loss, "rate": rate} for loss, rate in (("a", 0), ("b", 9), ("c", 1), ("b", 8))]
    first, second = neighbours(points)
    pairs = {frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    assert {frozenset((0, 2)), frozenset((1, 3))} < pairs
