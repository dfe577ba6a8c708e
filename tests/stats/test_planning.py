"""Tests of stats/planning.py: against noncentral t, formulas by hand, and simulated scores with known variances."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import nct, norm, t

from benchmarks.simulated_scores import Population, simulate
from stats.bootstrap import image_weights
from stats.contrasts import interval, mean_difference
from stats.planning import Spread, Variances, detectable, measure_variances
from stats.replicates import cell_replicates

# SE**2 = (4 + 6) / 3 + 2 / 3 for two cells with three seeds: shared 3 at 72 images
VARIANCES = Variances(
    shared=1.0, run_image=6.0, seed=3.0, squares=2.0, per_seed=2 / 3, images=72, tests=3, cells=4, degrees=8
)


# ---- what limits a comparison ------------------------------------------------------------------------------


def test_more_images_and_more_seeds_reduce_their_own_parts_of_the_variance():
    assert VARIANCES.standard_error() ** 2 == pytest.approx(1 + 4 + 2)
    assert VARIANCES.shares == pytest.approx((1 / 7, 4 / 7, 2 / 7, 0))
    assert VARIANCES.standard_error(images_factor=4) ** 2 == pytest.approx(1 / 4 + 1 + 2)
    assert VARIANCES.standard_error(seeds=6) ** 2 == pytest.approx(1 + 2 + 1)
    assert VARIANCES.standard_error(seeds=math.inf, images_factor=2) ** 2 == pytest.approx(1 / 2)


def test_neither_images_nor_seeds_reduce_the_luck_of_tuning():
    tuned = replace(VARIANCES, tuning=3.0)
    assert tuned.parts() == pytest.approx((1, 4, 2, 3))
    assert tuned.shares == pytest.approx((0.1, 0.4, 0.2, 0.3))
    assert tuned.standard_error(seeds=6, images_factor=4) ** 2 == pytest.approx(1 / 4 + 2 / 4 + 1 + 3)
    assert tuned.standard_error(seeds=math.inf, images_factor=math.inf) ** 2 == pytest.approx(3)
    assert tuned.detectable(5) == pytest.approx(replace(VARIANCES, shared=4.0).detectable(5))
    assert tuned.detectable(5, 4) == pytest.approx(replace(VARIANCES, shared=1.0 + 3 * 4).detectable(5, 4))


def test_planned_seeds_give_as_many_degrees_of_freedom_as_the_runs_leave():
    assert VARIANCES.degrees_of_freedom(5) == 4 * 4
    assert replace(VARIANCES, shared_seeds=True).degrees_of_freedom(5) == 3 * 4
    assert VARIANCES.degrees_of_freedom() == 8


def test_components_equal_the_formulas_by_hand():
    draw = np.random.default_rng(0)
    runs = {"a": draw.normal(0, 1, (2, 301)), "b": draw.normal(0, 1, (4, 301))}
    runs["b"][:, 0] *= 3
    found = measure_variances(runs, [{"b": 1, "a": -1}], 50, shared_seeds=False)
    e = sum(np.var(each[:, 1:] - each[:, 1:].mean(axis=0), axis=1).sum() for each in runs.values()) / 4
    s2 = (np.var(runs["a"][:, 0], ddof=1) + 3 * np.var(runs["b"][:, 0], ddof=1)) / 4
    over_images = np.var(runs["b"][:, 1:].mean(axis=0) - runs["a"][:, 1:].mean(axis=0))
    assert found.run_image == pytest.approx(e)
    assert found.seed == pytest.approx(s2 - e)
    assert found.shared == pytest.approx(max(over_images - e * (1 / 2 + 1 / 4), 0))
    assert (found.squares, found.per_seed, found.degrees) == (2, 0.75, 4)


def test_the_luck_of_tuning_is_the_mean_variance_of_the_differences_of_the_cells_luck():
    draw = np.random.default_rng(0)
    runs = {name: draw.normal(0, 1, (3, 301)) for name in "abc"}
    a, b = draw.normal(0, 1, 300), draw.normal(0, 2, 300)
    contrasts = [{"b": 1, "a": -1}, {"c": 1, "b": -1}, {"c": 1, "a": -0.5, "b": -0.5}]  # c is of the same row as b
    plain = measure_variances(runs, contrasts, 50, shared_seeds=False)
    tuned = measure_variances(runs, contrasts, 50, shared_seeds=False, luck=np.stack([a, b, b]))
    assert tuned.tuning == pytest.approx((np.var(b - a) + 0 + np.var(b - a) / 4) / 3)
    assert plain.tuning == 0
    assert replace(tuned, tuning=0.0) == plain


def test_a_difference_of_two_rows_has_the_shares_of_both_if_each_row_has_its_own_spread():
    scores = np.array([-1.0, 0.0, 0.0, 1.0])  # variance 2 / 3
    runs = {number: np.repeat(scores[:, None], 11, axis=1) * (1 + (number > 1)) for number in range(4)}
    contrasts = mean_difference([1], [0]), mean_difference([2], [0])
    options = {"images": 50, "shared_seeds": False, "rows": [0, 0, 1, 1]}
    one_row, two_rows, both = (
        measure_variances(runs, chosen, **options) for chosen in (contrasts[:1], contrasts[1:], contrasts)
    )
    assert (one_row.groups, one_row.degrees) == ((1.0,), 6)
    assert two_rows.groups == pytest.approx((0.8, 0.2))
    assert two_rows.degrees == pytest.approx(6 / (0.8**2 + 0.2**2))  # Satterthwaite
    assert both.groups == pytest.approx((0.9, 0.1))
    assert two_rows.detectable() == detectable(*two_rows.parts(), two_rows.degrees, 1, groups=two_rows.groups)


def test_one_seed_per_cell_takes_the_given_spread():
    draw = np.random.default_rng(0)
    runs = {name: draw.normal(0, 1, (1, 301)) for name in "ab"}
    found = measure_variances(runs, [{"b": 1, "a": -1}], 50, False, spread=Spread(seed_variance=0.5, run_image=0.2))
    over_images = np.var(runs["b"][0, 1:] - runs["a"][0, 1:])
    assert (found.shared, found.run_image, found.seed) == pytest.approx((over_images - 0.4, 0.2, 0.3))
    assert math.isnan(found.detectable())  # no seed part can be tested with one seed
    assert found.detectable(3) > found.detectable(5) > 0


def test_equal_scores_have_no_variance_and_no_detectable_difference():
    found = measure_variances({name: np.full((3, 101), 0.5) for name in "ab"}, [{"b": 1, "a": -1}], 50, False)
    assert found.standard_error() == 0
    assert math.isnan(found.detectable())
    assert np.isnan(found.shares).all()


def pilot_of(population: Population, seeds: int, images: int, number: int) -> tuple[list, list]:
    weights = image_weights(images, 200, seed=0)  # the images are new in each pilot
    return simulate(np.random.default_rng([7, number]), population, seeds, weights)


def variances_of(estimates: list, replicates: list, contrasts: list, shared_seeds: bool) -> Variances:
    runs = [np.column_stack(each) for each in zip(estimates, replicates, strict=True)]
    return measure_variances(dict(enumerate(runs)), contrasts, 200, shared_seeds)


@pytest.mark.parametrize("shared_seeds", [False, True])
def test_a_pilot_of_8_cells_3_seeds_and_200_images_predicts_the_spread_at_800_images_and_5_seeds(shared_seeds):
    population = Population((0.0,) * 8, run_sd=0.05, seed_sd=0.05 * shared_seeds, cell_image_sd=1.0, run_image_sd=1.0)
    contrast = mean_difference([1], [0])
    true = population.standard_error([-1, 1, *[0] * 6], 5, 800)
    pilots = [pilot_of(population, 3, 200, number) for number in range(30)]
    predictions = [variances_of(*pilot, [contrast], shared_seeds).standard_error(5, 4) for pilot in pilots]
    assert np.mean(predictions) == pytest.approx(true, rel=0.05)
    assert 0.7 * true < min(predictions) < max(predictions) < 1.4 * true


def test_a_seed_effect_that_all_cells_share_inflates_the_plan_unless_it_is_removed():
    population = Population((0.0,) * 8, run_sd=0.02, seed_sd=0.2, cell_image_sd=0.1, run_image_sd=0.1)
    true = population.standard_error([-1, 1, *[0] * 6], 3, 200)
    pilots = [pilot_of(population, 3, 200, number) for number in range(20)]
    found = [
        np.mean([variances_of(*pilot, [mean_difference([1], [0])], shared).standard_error() for pilot in pilots])
        for shared in (True, False)
    ]
    assert found[0] == pytest.approx(true, rel=0.1)
    assert found[1] > 3 * true


# ---- detectable differences --------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [2, 4, 8, 30])
@pytest.mark.parametrize("tests", [1, 6])
def test_with_noise_between_seeds_only_the_power_is_that_of_the_t_test(degrees, tests):
    difference = detectable(0.0, 0.0, 4.0, 0.0, degrees, tests)
    assert nct.sf(t.ppf(1 - 0.025 / tests, degrees), degrees, difference / 2) == pytest.approx(0.8, abs=0.001)


@pytest.mark.parametrize("parts", [(4.0, 0.0, 0.0, 0.0), (1.0, 1.0, 2.0, 0.0), (1.0, 1.0, 1.0, 1.0)])
def test_with_many_seeds_or_image_noise_only_the_quantiles_are_normal(parts):
    degrees = math.inf if parts[1] else 4
    assert detectable(*parts, degrees, 3) == pytest.approx(2 * (norm.ppf(1 - 0.025 / 3) + norm.ppf(0.8)))


@pytest.mark.parametrize(
    ("seeds", "population"),
    [
        (2, Population((0.0,) * 4, run_sd=0.03, cell_image_sd=0.2, run_image_sd=0.2)),
        (3, Population((0.0,) * 4, run_sd=0.0, cell_image_sd=0.1, run_image_sd=0.4)),
    ],
)
def test_a_difference_of_the_detectable_size_is_found_in_80_percent_of_comparisons(seeds, population):
    q, images = 2 / seeds, 100
    parts = (2 * population.cell_image_sd**2 / images, q * population.run_image_sd**2 / images)
    size = detectable(*parts, q * population.run_sd**2, 0.0, 4 * (seeds - 1), 1)
    shifted, weights = replace(population, means=(0.0, size, 0.0, 0.0)), image_weights(images, 300, seed=0)
    found = 0
    for number in range(250):
        estimates, replicates = simulate(np.random.default_rng([9, number]), shifted, seeds, weights)
        grid = cell_replicates(estimates, replicates, number)
        found += interval(estimates[1].mean() - estimates[0].mean(), grid[1] - grid[0]).p < 0.05
    assert 0.73 < found / 250 < 0.87  # known to 0.025


@pytest.mark.parametrize("spreads", [(1.0, 1.0), (1.0, 2.0)])
def test_a_difference_of_two_rows_with_their_own_spread_is_found_in_80_percent_of_comparisons(spreads):
    generator, tests, level = np.random.default_rng(1), 7, 1 - 0.025 / 7
    variances = np.square(spreads) / 4  # of the means of 4 seeds
    shares = tuple(sorted((variances / variances.sum()).tolist(), reverse=True))
    degrees = 6 / np.square(shares).sum()  # each row has 2 cells, so 6 degrees of freedom
    size = detectable(0.0, 0.0, variances.sum(), 0.0, degrees, tests, groups=shares)
    chances = []
    for number in range(300):
        scores = generator.normal(size=(4, 4)) * np.repeat(spreads, 2)[:, None]
        sample = cell_replicates(scores, np.repeat(scores[:, :, None], 2000, axis=2), number, rows=[0, 0, 1, 1])
        critical = np.quantile(sample[2] - sample[0], level) - (scores[2] - scores[0]).mean()
        chances.append(norm.cdf((size - critical) / np.sqrt(variances.sum())))
    assert np.mean(chances) == pytest.approx(0.8, abs=0.03)  # known to 0.013


def test_the_fewest_seeds_and_images_are_found():
    find = VARIANCES.detectable(7)
    assert VARIANCES.seeds_needed(find) == 7
    assert VARIANCES.seeds_needed(find * 1.0001) == 7
    assert VARIANCES.seeds_needed(find * 0.9999) == 8
    find = VARIANCES.detectable(3, 100 / 72)
    assert VARIANCES.images_needed(find, 3) == 100
    assert VARIANCES.images_needed(find * 0.9999, 3) == 101


def test_no_number_of_seeds_replaces_images_and_no_number_of_images_replaces_seeds():
    limits = VARIANCES.detectable(math.inf), VARIANCES.detectable(3, math.inf)
    assert limits[0] == pytest.approx(norm.ppf(1 - 0.025 / 3) + norm.ppf(0.8))
    assert VARIANCES.seeds_needed(limits[0]) is None
    assert VARIANCES.seeds_needed(limits[0] * 1.01) > 100
    assert VARIANCES.images_needed(limits[1], 3) is None
    assert VARIANCES.images_needed(limits[1] * 1.01, 3) > 1000
    only_images = replace(VARIANCES, seed=0.0)
    assert only_images.images_needed(limits[1] / 10, 3) is not None
    assert replace(VARIANCES, shared=0.0).seeds_needed(limits[0] / 10) is not None


def test_nothing_but_trials_finds_what_the_luck_of_tuning_hides():
    tuned = replace(VARIANCES, shared=0.0, seed=0.0, tuning=1.0)
    limit = norm.ppf(1 - 0.025 / 3) + norm.ppf(0.8)
    assert tuned.seeds_needed(limit) is tuned.images_needed(limit, 3) is tuned.images_needed(limit, math.inf) is None
    assert tuned.seeds_needed(1.01 * limit) > 100
    assert tuned.images_needed(1.01 * limit, 3) > 1000
