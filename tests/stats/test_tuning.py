"""Tests of stats/tuning.py, against brute force and simulated trials whose true curves are known."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import kendalltau, norm

from stats.trial_points import draw_points
from stats.tuning import (
    budget_curves,
    expected_best,
    flip_budget,
    lead_curve,
    rank_agreement,
    simultaneous_band,
    tuning_luck,
)

RATES = {"rate": {"log_uniform": [1e-4, 1e-2]}}
SIX = draw_points(RATES, 6, seed=0)


def without_images(values: np.ndarray, replicates: int = 1000) -> np.ndarray:
    """Return replicates of scores that do not depend on the images, (K, N, R)."""
    return np.repeat(values[:, :, None], replicates, axis=2)


# ---- expected best ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trials", [1, 2, 6, 9])
def test_expected_best_is_the_mean_over_all_subsets(trials):
    values = np.random.default_rng(trials).normal(size=trials)
    for n in range(1, trials + 1):
        subsets = list(combinations(values, n))
        assert expected_best(values)[n - 1] == pytest.approx(np.mean([max(each) for each in subsets]))
        assert expected_best(values, lower_is_better=True)[n - 1] == pytest.approx(np.mean([min(s) for s in subsets]))


def test_expected_best_is_unbiased():
    """Of exponential scores, the best of n has the mean 1 + 1/2 + ... + 1/n (Renyi 1953)."""
    values = np.random.default_rng(0).exponential(size=(100_000, 6))
    np.testing.assert_allclose(expected_best(values).mean(axis=0), np.cumsum(1 / np.arange(1, 7)), atol=0.015)


def test_a_failed_trial_counts_as_one_with_the_worst_score():
    np.testing.assert_allclose(expected_best([0.4, np.nan, 0.2]), expected_best([0.4, 0.0, 0.2]))
    losses = np.array([[2.0, np.nan, 1.0], [3.0, 5.0, 4.0]])
    found = expected_best(losses, lower_is_better=True)
    np.testing.assert_allclose(found[0], expected_best([2.0, 5.0, 1.0], lower_is_better=True))
    with pytest.raises(ValueError, match="no score at all"):
        expected_best([np.nan, np.nan], lower_is_better=True)


# ---- bands -----------------------------------------------------------------------------------------------------


def simulated(generator, rows: int, images: float, replicates: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of six trials that differ by noise with deviation 1, plus image noise, and their replicates."""
    errors = generator.normal(0, images, (rows, 6, 1 + replicates))
    values = generator.standard_normal((rows, 6)) + errors[:, :, 0]
    return values, values[:, :, None] + errors[:, :, 1:]


@pytest.mark.parametrize("images", [0.0, 2.0])
def test_the_bands_cover_the_whole_true_curve_as_often_as_they_should(images):
    """The true curve is the mean of the best of n standard normal variables. 150 trials: 95% has an error of 1.8%."""
    generator, covered = np.random.default_rng(5), []
    truth = expected_best(generator.standard_normal((200_000, 6))).mean(axis=0)
    for trial in range(150):
        (curve,) = budget_curves(*simulated(generator, 1, images), SIX, trial)
        covered.append(np.all((curve.low <= truth) & (truth <= curve.high)))
    assert 0.90 <= np.mean(covered) <= 0.987


def test_the_band_of_a_lead_covers_the_truth_if_the_response_decides_which_trial_is_the_best():
    """Both rows have the same steep response: the true lead is 0, and its noise at n = N is that of single trials."""
    generator, covered = np.random.default_rng(8), []
    response = 100 * np.log([point["rate"] for point in SIX])
    for trial in range(150):
        values = response + generator.standard_normal((2, 6))
        lead = lead_curve(1, 0, values, without_images(values, 200), SIX, trial)
        covered.append(lead.low[-1] <= 0 <= lead.high[-1])
    assert 0.93 <= np.mean(covered) <= 0.998


def test_image_noise_counts_once_and_its_bias_is_removed():
    """Trials that differ by image noise only: all true values are 0, but the best of six looks better."""
    generator, errors = np.random.default_rng(9), []
    for trial in range(40):
        noise = generator.standard_normal((1, 6, 401))
        values, replicates = noise[:, :, 0], noise[:, :, :1] + noise[:, :, 1:]
        (curve,) = budget_curves(values, replicates, SIX, trial)
        errors.append([curve.estimate[-1], (curve.low + curve.high)[-1] / 2, (curve.high - curve.low)[0] / 2])
    best, middle, half_width = np.mean(errors, axis=0)
    assert best > 1.2
    assert middle < 1.75
    assert 1.96 / np.sqrt(6) < half_width < 1.5 * 1.96 / np.sqrt(6)


def test_the_scores_of_a_loss_give_the_mirrored_band():
    values, replicates = simulated(np.random.default_rng(1), 2, 0.5)
    up, down = (
        budget_curves(sign * values, sign * replicates, SIX, 0, lower_is_better=sign < 0)[1] for sign in (1, -1)
    )
    np.testing.assert_allclose([down.estimate, down.low, down.high], [-up.estimate, -up.high, -up.low])
    better = lead_curve(0, 1, values, replicates, SIX, 0)
    lower = lead_curve(0, 1, -values, -replicates, SIX, 0, lower_is_better=True)
    np.testing.assert_allclose(lower.low, better.low)


def test_a_band_needs_no_trial_noise_if_two_rows_respond_equally():
    rates = np.log10([point["rate"] for point in SIX])
    row = 0.5 - 0.1 * (rates + 3) ** 2
    values = np.stack([row, row + 0.01])
    lead = lead_curve(1, 0, values, without_images(values), SIX, 0)
    np.testing.assert_allclose([lead.low, lead.high], 0.01)
    alone = budget_curves(values, without_images(values), SIX, 0)[0]
    assert np.all(alone.high - alone.low > 0.02)


@pytest.mark.parametrize("options", [[None, 5], [[8, 11], [9]], [False, True]])
def test_bands_do_not_depend_on_what_categories_are(options):
    values, replicates = simulated(np.random.default_rng(3), 2, 0.5)
    names = [{"field": "ab"[k % 2], "rate": k} for k in range(6)]
    points = [{"field": options[k % 2], "rate": k} for k in range(6)]
    for mine, named in zip(
        budget_curves(values, replicates, points, 0), budget_curves(values, replicates, names, 0), strict=True
    ):
        np.testing.assert_array_equal([mine.low, mine.high], [named.low, named.high])
        assert np.all((mine.low < mine.estimate) & (mine.estimate < mine.high))


def test_equal_scores_have_a_band_without_width():
    values = np.full((1, 6), 0.3)
    (curve,) = budget_curves(values, without_images(values), SIX, 0)
    np.testing.assert_allclose([curve.low, curve.high], 0.3)


def test_a_failed_trial_that_no_good_trial_is_near_widens_the_band_of_the_best_least():
    """Between steady trials, one failure says much about the mean of the trials, and less about the best of them."""
    values = np.array([[np.nan, 0.40, 0.41, 0.39, 0.40, 0.42]])
    points = [{"rate": rate} for rate in (1e-4, 3e-4, 1e-3, 2e-3, 4e-3, 1e-2)]
    (curve,) = budget_curves(values, without_images(values), points, 0)
    assert (curve.estimate - curve.low)[-1] < 0.8 * (curve.estimate - curve.low)[0]


def test_a_simultaneous_band_contains_its_share_of_whole_curves():
    sample = np.random.default_rng(2).standard_normal((20_000, 4))  # independent: each n needs 1 - 0.95 ** (1 / 4)
    low, high = simultaneous_band(sample, 0.05)
    expected = norm.ppf(0.5 + 0.95**0.25 / 2)
    np.testing.assert_allclose([-low, high], np.full((2, 4), expected), atol=0.1)
    assert np.mean(np.all((low <= sample) & (sample <= high), axis=1)) == pytest.approx(0.95, abs=0.002)


# ---- flips -----------------------------------------------------------------------------------------------------


def test_a_flip_is_found_where_the_curves_cross():
    points = [{"rate": rate} for rate in range(6)]
    noise = np.array([0.001, -0.001, 0.0, 0.001, -0.001, 0.0])
    values = np.stack([0.4 + noise, 0.1 + noise, np.array([0.3, 0.3, 0.3, 0.3, 0.5, 0.5]) - noise])
    best = expected_best(values)
    expected = int(np.argmax(best[2] > best[0])) + 1
    flip = flip_budget(values, without_images(values), points, 0)
    assert flip.leader == 0
    assert flip.estimated == (expected, 2)
    assert set(flip.leads) == {1, 2}
    np.testing.assert_allclose(flip.leads[2].estimate, best[2] - best[0])
    assert np.all(flip.leads[1].high < 0)


def test_a_flip_is_shown_only_beyond_the_noise():
    generator, shown, leaders = np.random.default_rng(7), [], []
    for trial in range(120):
        flip = flip_budget(*simulated(generator, 3, 0.5), SIX, trial)
        shown.append(flip.shown is not None)
        leaders.append(flip.leader)
    assert np.mean(shown) <= 0.05
    assert set(leaders) == {0, 1, 2}
    steady = np.array([[0.40, 0.401, 0.402, 0.40, 0.401, 0.40], [0.1, 0.1, 0.101, 0.101, 0.6, 0.6]])
    flip = flip_budget(steady, without_images(steady), [{"rate": rate} for rate in range(6)], 0)
    assert (flip.leader, flip.estimated) == (0, (3, 1))


def test_one_row_has_no_flip():
    values = np.random.default_rng(0).normal(size=(1, 6))
    flip = flip_budget(values, without_images(values), SIX, 0)
    assert (flip.leader, flip.estimated, flip.shown, flip.leads) == (0, None, None, {})


# ---- luck and early ranking ------------------------------------------------------------------------------------


def test_the_luck_of_tuning_has_the_variance_of_the_best_of_a_resample():
    """P(the i-th lowest of N is the best of a resample) = (i / N) ** N - ((i - 1) / N) ** N."""
    values = np.random.default_rng(3).normal(size=(2, 6))
    noise = tuning_luck(values, 200_000, seed=0)
    chance = np.diff((np.arange(7) / 6) ** 6)
    for row, drawn in zip(np.sort(values, axis=1), noise, strict=True):
        assert np.var(drawn) == pytest.approx(chance @ row**2 - (chance @ row) ** 2, rel=0.02)
    np.testing.assert_allclose(noise.mean(axis=1), 0, atol=1e-9)


def test_rows_with_the_same_response_share_the_luck_of_tuning():
    row = np.random.default_rng(4).normal(size=6)
    first, second = tuning_luck(np.stack([row, row + 1]), 100, seed=0)
    np.testing.assert_allclose(first, second)
    np.testing.assert_allclose(tuning_luck(-row[None], 100, seed=0, lower_is_better=True)[0], -first)


def test_rank_agreement_is_kendalls_tau_of_each_epoch():
    generator = np.random.default_rng(6)
    epochs, final = generator.integers(0, 4, (5, 7)) / 4, generator.normal(size=7)
    found = rank_agreement(epochs, final)
    np.testing.assert_allclose(found, [kendalltau(each, final).statistic for each in epochs])
    np.testing.assert_allclose(rank_agreement(np.stack([final, -final]), final), [1, -1])
    assert np.isnan(rank_agreement(np.zeros((1, 7)), final)).all()


def test_a_trial_that_failed_ranks_last():
    final = np.array([0.1, 0.2, np.nan])
    assert rank_agreement(np.array([[0.1, 0.2, np.nan]]), final) == pytest.approx(1)
    assert rank_agreement(np.array([[2.0, 1.0, np.nan]]), np.array([2.0, 1.0, np.nan]), True)[0] > 0
