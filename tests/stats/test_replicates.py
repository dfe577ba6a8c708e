"""Replicates include the variation between seeds: pooled, by row, and without what all cells of a seed share."""

import numpy as np
import pytest

from stats.replicates import SeedSpread, cell_replicates, pooling, run_variances, seed_variance

FLAT = np.zeros((3, 50_000))  # replicates of three runs, without image noise


def test_one_run_per_cell_keeps_the_image_replicates():
    replicates = [np.array([[1.0, 2.0, 3.0]]), np.array([[4.0, np.nan, 6.0]])]
    result = cell_replicates([[1.0], [2.0]], replicates, seed=0)
    np.testing.assert_array_equal(result, np.concatenate(replicates))


def test_seed_noise_follows_students_t_with_the_pooled_spread():
    estimates = [[1.0, 2.0, 3.0], [1.0, 5.0, 9.0]]  # variances 1 and 16, pooled 8.5 with 4 degrees of freedom
    result = cell_replicates(estimates, [FLAT, FLAT], seed=0)
    difference = (result[1] - result[0]) / np.sqrt(8.5 * (1 / 3 + 1 / 3))
    np.testing.assert_allclose(np.quantile(difference, [0.025, 0.5, 0.975]), [-2.776, 0, 2.776], atol=0.06)


def test_a_cell_with_one_run_gets_the_pooled_variance_of_the_other_cells():
    estimates = [[1.0, 2.0, 3.0], [5.0], [2.0, 3.0, 4.0]]
    result = cell_replicates(estimates, [FLAT, FLAT[:1], FLAT], seed=0)
    low, high = np.quantile(result[1], [0.025, 0.975])
    assert (high - low) / 2 == pytest.approx(2.776, rel=0.03)  # variance 1, 4 degrees of freedom, one run


def test_variance_between_runs_that_images_explain_is_not_counted_twice():
    """Simulate twelve cells of three runs that differ only because they err on different images."""
    generator = np.random.default_rng(0)
    estimates = generator.normal(0, 1, (12, 3))
    replicates = estimates[:, :, None] + generator.normal(0, 1, (12, 3, 20_000))
    result = cell_replicates(estimates.tolist(), list(replicates), seed=0)
    assert np.mean(result.std(axis=1)) == pytest.approx(np.sqrt(1 / 3), rel=0.15)  # sqrt(2 / 3) if counted twice


def test_a_row_with_enough_runs_gets_its_own_spread():
    estimates = [[-1.0, 0.0, 1.0]] * 4 + [[-4.0, 0.0, 4.0]] * 4  # variances 1 and 16; each row has 8 degrees of freedom
    result = cell_replicates(estimates, [FLAT] * 8, seed=0, rows=[0] * 4 + [1] * 4)
    half_widths = np.diff(np.quantile(result, [0.025, 0.975], axis=1), axis=0)[0] / 2
    expected = 2.306 / np.sqrt(3)  # Student's t with 8 degrees of freedom
    np.testing.assert_allclose(half_widths, expected * np.repeat([1, 4], 4), rtol=0.03)


def test_rows_with_few_runs_share_one_spread():
    estimates = [[-1.0, 0.0, 1.0]] * 2 + [[-4.0, 0.0, 4.0]] * 2  # 4 degrees of freedom each
    result = cell_replicates(estimates, [FLAT] * 4, seed=0, rows=[0, 0, 1, 1])
    assert np.ptp(np.diff(np.quantile(result, [0.25, 0.75], axis=1), axis=0)) < 0.1
    np.testing.assert_array_equal(run_variances(estimates, rows=[0, 0, 1, 1]), np.full(4, 8.5))


def test_a_seed_effect_that_all_cells_share_cancels_in_differences():
    effect, generator = np.array([-10.0, 0.0, 10.0]), np.random.default_rng(0)
    estimates = [effect + generator.normal(0, 1, 3) for _ in range(6)]
    flat = [FLAT] * 6
    with_effect = cell_replicates(estimates, flat, seed=0)
    without = cell_replicates(estimates, flat, seed=0, shared_seeds=True)
    assert np.std(without[1] - without[0]) < 0.2 * np.std(with_effect[1] - with_effect[0])


def test_shared_seeds_are_ignored_with_few_runs():
    estimates = [[0.0, 1.0, 3.0], [0.5, 1.0, 2.0]]  # (2 - 1) * (3 - 1) = 2 degrees of freedom would be left
    results = [cell_replicates(estimates, [FLAT, FLAT], seed=0, shared_seeds=shared) for shared in (True, False)]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("shared", [False, True])
def test_variances_of_rows_are_unbiased(shared):
    """Simulate 2 rows of 3 cells with 4 runs, with or without an effect that all cells of a seed share."""
    generator, rows, found = np.random.default_rng(1), np.repeat([0, 1], 3), []
    for _ in range(4000):
        scores = np.repeat([1.0, 3.0], 3)[:, None] * generator.standard_normal((6, 4))
        scores += 5 * shared * generator.standard_normal(4)
        found.append(seed_variance(list(scores[:, :, None]), rows, shared)[:, 0])
    np.testing.assert_allclose(np.mean(found, axis=0), [1, 9], rtol=0.06)


def test_a_known_spread_is_added_to_cells_with_one_run():
    result = cell_replicates([[0.0], [1.0]], [FLAT[:1], FLAT[:1]], seed=0, known=SeedSpread(0.5, 4))
    low, high = np.quantile(result[0], [0.025, 0.975])
    assert (high - low) / 2 == pytest.approx(0.5 * 2.776, rel=0.03)
    assert np.isnan(run_variances([[0.0], [1.0]])).all()


@pytest.mark.parametrize(
    ("rows", "columns", "seeds", "shared", "groups", "degrees", "removes_seeds"),
    [
        (2, 4, 3, True, 2, 6, True),  # (4 - 1) * (3 - 1) in each row
        (2, 2, 4, True, 2, 6, False),  # 2 * (4 - 1) in each row, but (2 - 1) * (4 - 1) without the seeds' means
        (2, 2, 3, True, 1, 6, True),  # (4 - 1) * (3 - 1) in the table
        (2, 2, 3, False, 1, 8, False),
        (2, 1, 3, True, 1, 4, False),
    ],
)
def test_the_numbers_of_cells_and_seeds_decide_what_is_pooled(
    rows, columns, seeds, shared, groups, degrees, removes_seeds
):
    found = pooling(np.full(rows * columns, seeds), np.repeat(range(rows), columns), shared)
    assert (found[0].max() + 1, found[1].min(), found[2]) == (groups, degrees, removes_seeds)


def test_two_quiet_cells_get_their_own_small_spread_although_others_vary():
    """Four seeds of 2 x 2 cells: without own rows, or with seed means removed over all rows, coverage would suffer."""
    generator, covered = np.random.default_rng(0), []
    for trial in range(400):
        estimates = np.repeat([1.0, 3.0], 2)[:, None] * generator.standard_normal((4, 4))
        flat = [np.repeat(each[:, None], 400, axis=1) for each in estimates]
        sample = cell_replicates(estimates, flat, trial, rows=[0, 0, 1, 1], shared_seeds=True)
        ends = np.quantile(sample[[1, 3]] - sample[[0, 2]], (0.025, 0.975), axis=1)
        covered.append((ends[0] <= 0) & (ends[1] >= 0))
    assert (np.mean(covered, axis=0) > 0.92).all()
    assert (np.mean(covered, axis=0) < 0.98).all()
