"""Tests of stats/looks.py, against published boundaries and simulated Brownian motion."""

import numpy as np
import pytest
from scipy.stats import norm

from stats.looks import conditional_power, information_fractions, look_levels, nominal_levels, spent_alpha


@pytest.mark.parametrize(
    ("looks", "boundaries"),
    [
        # two-sided 5% as two one-sided tests at 2.5%: Lan and DeMets 1983; R package ldbounds, O'Brien-Fleming type
        (2, [2.9626, 1.9686]),
        (3, [3.7103, 2.5114, 1.9930]),
        (5, [4.8769, 3.3569, 2.6803, 2.2898, 2.0310]),
    ],
)
def test_boundaries_equal_published_ones(looks, boundaries):
    fractions = [(number + 1) / looks for number in range(looks)]
    levels = nominal_levels(fractions, [2 * spent_alpha(fraction, 0.025) for fraction in fractions])
    np.testing.assert_allclose(norm.isf(np.array(levels) / 2), boundaries, atol=2e-4)


def test_a_constant_boundary_spends_what_pocock_published():
    """Pocock 1977: four equal looks with |z| > 2.361 give 5% in total, so the inverse must return 2.361 each time."""
    generator = np.random.default_rng(0)
    motion = np.cumsum(generator.standard_normal((200_000, 4)), axis=1) / np.sqrt([1, 2, 3, 4])
    spent = [np.mean((np.abs(motion[:, : k + 1]) > 2.361).any(axis=1)) for k in range(4)]
    assert spent[-1] == pytest.approx(0.05, abs=0.001)
    boundaries = norm.isf(np.array(nominal_levels([0.25, 0.5, 0.75, 1], spent)) / 2)
    np.testing.assert_allclose(boundaries, 2.361, atol=0.02)


@pytest.mark.parametrize("fractions", [[3 / 8, 5 / 8, 1], [0.8, 0.9, 1], [0.1, 1]])
def test_a_brownian_motion_crosses_the_boundaries_as_often_as_alpha_is_spent(fractions):
    generator = np.random.default_rng(1)
    steps = np.sqrt(np.diff([0, *fractions]))
    z = np.cumsum(generator.standard_normal((200_000, len(fractions))) * steps, axis=1) / np.sqrt(fractions)
    crossed = 2 * norm.sf(np.abs(z)) < look_levels(fractions)
    for number, fraction in enumerate(fractions):
        found = crossed[:, : number + 1].any(axis=1).mean()
        assert found == pytest.approx(spent_alpha(fraction), abs=4 * np.sqrt(0.05 / 200_000))


def test_one_look_at_the_end_has_the_full_level_and_repeated_fractions_have_none():
    assert look_levels([1.0]) == pytest.approx([0.05])
    first, second, last = look_levels([0.6, 0.5, 1.0])
    assert first == pytest.approx(spent_alpha(0.6))
    assert second == 0
    assert 0.04 < last < 0.05


def test_the_levels_of_more_tests_are_lower_but_spend_at_least_their_share():
    fractions = [3 / 8, 5 / 8, 1]
    one, ten = look_levels(fractions), look_levels(fractions, num_tests=10)
    increments = np.diff([0, *map(spent_alpha, fractions)])
    assert all(a >= b - 1e-9 >= c - 1e-6 for a, b, c in zip(one, ten, increments, strict=True))
    assert one[-1] > ten[-1] > increments[-1]


# ---- information -----------------------------------------------------------------------------------------------


def run_scores(generator, *, run_sd: float, shared_sd: float, own_sd: float, runs: int = 400) -> list[np.ndarray]:
    """Return the scores of two cells on a set and 300 resamples, with known variances of images and runs."""
    cells = []
    for _ in range(2):
        shared = generator.normal(0, shared_sd, 300)
        base = generator.normal(0, np.hypot(run_sd, own_sd), (runs, 1))  # on the set, runs differ for both reasons
        cells.append(np.concatenate([base, base + shared + generator.normal(0, own_sd, (runs, 300))], axis=1))
    return cells


@pytest.mark.parametrize(
    ("run_sd", "shared_sd", "own_sd", "expected"),
    [
        (0.1, 0.0, 0.0, 3 / 8),  # only runs differ
        (0.0, 0.0, 0.1, 3 / 8),  # every run errs on its own images: more seeds help as much
        (0.1, 0.1, 0.0, (1 + 1 / 8) / (1 + 1 / 3)),
        (0.1, 0.1, 0.1, (1 + 2 / 8) / (1 + 2 / 3)),
        (0.0, 0.1, 0.0, 1.0),  # only the images matter, so seeds do not help
    ],
)
def test_the_information_fraction_is_the_ratio_of_the_variances(run_sd, shared_sd, own_sd, expected):
    scores = run_scores(np.random.default_rng(2), run_sd=run_sd, shared_sd=shared_sd, own_sd=own_sd)
    first, last = information_fractions([[-1, 1]], scores, [3, 8])
    assert first == pytest.approx(expected, abs=0.06)
    assert last == 1


def test_the_difference_with_the_least_shared_noise_decides():
    generator = np.random.default_rng(3)
    noisy, quiet = (run_scores(generator, run_sd=0.1, shared_sd=sd, own_sd=0) for sd in (0.3, 0.0))
    alone = information_fractions([[-1, 1]], noisy, [3, 8])
    both = information_fractions([[-1, 1, 0, 0], [0, 0, -1, 1]], [*noisy, *quiet], [3, 8])
    assert alone[0] > 0.8
    assert both[0] == pytest.approx(3 / 8, abs=0.03)


def test_the_luck_of_tuning_is_information_that_more_seeds_do_not_add():
    generator = np.random.default_rng(2)
    scores, luck = run_scores(generator, run_sd=0.1, shared_sd=0, own_sd=0), generator.normal(0, 0.1, (2, 300))
    assert information_fractions([[-1, 1]], scores, [3, 8], luck)[0] == pytest.approx(
        (1 + 1 / 8) / (1 + 1 / 3), abs=0.06
    )


def test_one_run_per_cell_has_no_information_fraction():
    with pytest.raises(ValueError, match="at least two runs"):
        information_fractions([[-1, 1]], [np.zeros((1, 11))] * 2, [3, 8])


# ---- conditional power -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("z", [-1.0, 0.3, 1.5, 2.5])
def test_conditional_power_equals_that_of_simulated_continuations(z):
    fraction, level = 0.4, 0.045
    rest = np.random.default_rng(4).normal(z / np.sqrt(fraction) * 0.6, np.sqrt(0.6), 200_000)
    found = np.mean(2 * norm.sf(np.abs(z * np.sqrt(fraction) + rest)) < level)
    assert conditional_power(2 * norm.sf(abs(z)), fraction, level) == pytest.approx(found, abs=0.003)


def test_conditional_power_without_more_information_is_certain():
    assert conditional_power(0.01, 1.0, 0.05) == pytest.approx(1)
    assert conditional_power(0.2, 1.0, 0.05) == pytest.approx(0)
