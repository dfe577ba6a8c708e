"""Scores of simulated runs whose true means and variances are known, for simulations of a whole comparison.

A run is one cell of a table, trained with one seed. Its value on an image is a sum of independent normal parts:

    mean of the cell + image + cell x image        the same for all seeds of the cell
    + seed (the same in all cells) + run           the same on all images
    + run x image                                  how this run errs on these images

The score of a run is its mean over the images, so scores on resamples are weighted means, and the variance of every
contrast is known exactly. Simulated detectors with their mAP, which is not a mean, are in benchmarks/bootstrap.py.

    population = Population(means=(0.0, 0.0, 0.1), run_sd=0.02)
    estimates, replicates = simulate(generator, population, seeds=3, weights=image_weights(200, 1000, seed=0))
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Population:
    """True mean score of each of K cells, and the standard deviations of the parts of a value (see above).

    run_sd: one number for all cells, or one per cell. seed_sd: of the seed effect that all cells share."""

    means: Sequence[float]
    run_sd: float | Sequence[float] = 0.0
    seed_sd: float = 0.0
    image_sd: float = 1.0
    cell_image_sd: float = 0.0
    run_image_sd: float = 0.0

    def standard_error(self, contrast: Sequence[float], seeds: int | Sequence[int], images: int) -> float:
        """Return the true standard error of a contrast of the cells' mean scores, over images and seeds.

        contrast: K factors. seeds: runs per cell; cell k has seeds 0 to n_k - 1."""
        factors, counts = np.asarray(contrast, dtype=float), np.broadcast_to(seeds, len(self.means))
        per_run = factors**2 / counts  # what independent noise of each run contributes
        in_seed = np.arange(counts.max())[:, None] < counts  # (n, K), whether cell k was trained with seed j
        of_seeds = np.sum(in_seed * factors / counts, axis=1)  # weight of each seed effect
        of_images = self.image_sd**2 * factors.sum() ** 2 + self.cell_image_sd**2 * np.sum(factors**2)
        variance = (of_images + self.run_image_sd**2 * per_run.sum()) / images
        variance += np.sum(np.broadcast_to(self.run_sd, factors.shape) ** 2 * per_run)
        return float(np.sqrt(variance + self.seed_sd**2 * np.sum(of_seeds**2)))


def simulate(
    generator: np.random.Generator, population: Population, seeds: int | Sequence[int], weights: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Draw new images and new runs, and return the scores of the runs of each cell.

    seeds: runs per cell, one number for all cells or one per cell; cell k has seeds 0 to n_k - 1.
    weights: (R, I), how often each resample drew each of I images (stats.bootstrap.image_weights). May be the same in
    every trial, because the images themselves are new.
    Returns the arguments of `stats.bootstrap.cell_replicates`: for each cell its scores on the images, (n_k,), and on
    the resamples, (n_k, R)."""
    num_images, counts = weights.shape[1], np.broadcast_to(seeds, len(population.means))
    run_sds = np.broadcast_to(population.run_sd, len(population.means))
    image_part = generator.normal(0, population.image_sd, num_images)
    seed_part = generator.normal(0, population.seed_sd, counts.max())
    estimates, replicates = [], []
    for mean, count, run_sd in zip(population.means, counts, run_sds, strict=True):
        cell_part = mean + image_part + generator.normal(0, population.cell_image_sd, num_images)  # (I,)
        run_part = seed_part[:count] + generator.normal(0, run_sd, count)  # (n,)
        noise = generator.normal(0, population.run_image_sd, (count, num_images))
        values = cell_part + run_part[:, None] + noise  # (n, I)
        estimates.append(values.mean(axis=1))
        replicates.append(values @ weights.T / num_images)
    return estimates, replicates
