"""Tests of benchmarks/simulated_scores.py: the simulated scores have the variances that the population states."""

import numpy as np
import pytest

from benchmarks.simulated_scores import Population, simulate
from stats.bootstrap import image_weights

POPULATION = Population(
    means=(0.1, 0.2, 0.3), run_sd=(0.01, 0.03, 0.02), seed_sd=0.02, image_sd=0.4, cell_image_sd=0.1, run_image_sd=0.2
)


@pytest.mark.parametrize("contrast", [(1, 0, 0), (-1, 1, 0), (0.5, 0.5, -1)])
@pytest.mark.parametrize("seeds", [3, (1, 2, 4)])
def test_scores_have_the_true_means_and_the_stated_standard_error(contrast, seeds):
    generator, weights = np.random.default_rng(0), np.ones((1, 50), dtype=int)
    trials = [simulate(generator, POPULATION, seeds, weights)[0] for _ in range(1500)]
    found = [np.dot(contrast, [scores.mean() for scores in estimates]) for estimates in trials]
    expected = POPULATION.standard_error(contrast, seeds, images=50)
    assert np.std(found) == pytest.approx(expected, rel=0.07)  # 1,500 trials: known to 1.8%
    assert np.mean(found) == pytest.approx(np.dot(contrast, POPULATION.means), abs=4 * expected / 1500**0.5)


def test_resampled_scores_are_means_over_the_drawn_images_and_vary_like_the_images():
    weights = np.concatenate([np.ones((1, 400), dtype=int), image_weights(400, 2000, seed=1)])
    estimates, replicates = simulate(np.random.default_rng(3), POPULATION, (1, 2, 3), weights)
    assert [each.shape for each in replicates] == [(1, 2001), (2, 2001), (3, 2001)]
    for scores, resampled in zip(estimates, replicates, strict=True):
        np.testing.assert_allclose(resampled[:, 0], scores, rtol=1e-12)  # row 0 of the weights: each image once
        per_image = (0.4**2 + 0.1**2 + 0.2**2) ** 0.5
        np.testing.assert_allclose(resampled.std(axis=1), per_image / 400**0.5, rtol=0.2)
