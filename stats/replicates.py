"""Replicates of the scores of table cells: the choice of images by the bootstrap, the variation between seeds added.

Training again with a different seed changes the score for two reasons: the network has a different quality, and it errs
on different images. Resampling the images reproduces only the second part. The first part, called the excess here, is
estimated from the runs of the cells and added as normal noise. Resampling two or three runs instead would keep only
(n - 1) / n of their variance. benchmarks/decisions.md measures the coverage of the resulting intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_DEGREES = 6  # of freedom, to estimate the spread of one row, or the spread that is left after the seeds' means


@dataclass(frozen=True)
class SeedSpread:
    """The standard deviation of a score between seeds, known from elsewhere, and its degrees of freedom (runs - 1)."""

    standard_deviation: float
    degrees: float


def cell_replicates(
    estimates: Sequence[Sequence[float]],
    replicates: Sequence[np.ndarray],
    seed: int,
    *,
    rows: Sequence[int] | None = None,
    shared_seeds: bool = False,
    known: SeedSpread | None = None,
) -> np.ndarray:
    """Return replicates of the mean score of each table cell (one or more runs that differ only in the seed).

    estimates: for each of K cells, the scores of its n_k runs on the full validation set.
    replicates: for each cell, the scores (n_k, R) of its runs on R resamples. All cells share the resamples.
    rows: the group of each cell, from 0, such as its row of the table. If every group has at least MIN_DEGREES degrees
    of freedom, each gets its own spread; otherwise all cells have the same spread.
    shared_seeds: whether run s has the same seed in all cells, so that all have n runs. If the cells have at least
    MIN_DEGREES degrees of freedom after removing the mean of each cell and each seed, only the remaining variation is
    added. Use this for contrasts (weights that sum to 0), where the effect of a seed on all cells cancels.
    known: a spread to use for cells with one run each, from which it cannot be estimated.

    The variance of a group is s2, with df degrees of freedom. The images account for a part e of it, because runs err
    on different images, and the replicates already contain this part. Each replicate draws r = df / chi2(df) for all
    cells of a group, and adds noise with the variance max(r * s2 - sqrt(r) * e, 0). Differences follow Student's t if
    the seeds dominate. With e instead of sqrt(r) * e (a generalized pivotal quantity), intervals are too wide if the
    seeds matter little and df is small; with r * e, corrected intervals are too narrow (benchmarks/decisions.md).
    Returns (K, R); nan if a run has no score on a resample. The draws depend only on the arguments."""
    assert [len(scores) for scores in estimates] == [len(part) for part in replicates]
    result = np.stack([np.mean(part, axis=0) for part in replicates])
    runs = np.array([len(scores) for scores in estimates])
    if (runs == 1).all():
        if known is None:
            return result
        groups, degrees = runs * 0, np.array([known.degrees])
        of_seeds, of_images = np.array([known.standard_deviation**2]), np.zeros(1)
    else:
        shared_seeds = removes_seeds(runs, shared_seeds)
        groups, degrees = pooling(runs, rows, shared_seeds)
        image_errors = [part - np.nanmean(part, axis=1, keepdims=True) for part in replicates]
        of_images = np.nanmean(seed_variance(image_errors, groups, shared_seeds), axis=1)
        of_seeds = seed_variance([np.asarray(scores)[:, None] for scores in estimates], groups, shared_seeds)[:, 0]
    generator = np.random.default_rng([seed, 1])  # independent of the draws of image_weights
    ratios = degrees[:, None] / generator.chisquare(degrees[:, None], (len(degrees), result.shape[1]))
    excess = np.maximum(ratios * of_seeds[:, None] - np.sqrt(ratios) * of_images[:, None], 0)  # (G, R)
    variances = excess[groups] / runs[:, None]  # (K, R)
    return result + generator.standard_normal(result.shape) * np.sqrt(variances)


def removes_seeds(runs: np.ndarray, shared_seeds: bool) -> bool:
    """Return whether the mean of each seed is removed: all cells have the same seeds, and enough runs.

    runs: (K,), number of runs of each cell. The design decides, not the scores, because that would bias the result."""
    return shared_seeds and (len(runs) - 1) * (runs[0] - 1) >= MIN_DEGREES


def pooling(runs: np.ndarray, rows: Sequence[int] | None, shared_seeds: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the group of each cell and the degrees of freedom of each group's variance between seeds.

    runs: (K,), number of runs of each cell. rows, shared_seeds: see cell_replicates. Returns (K,) and (G,)."""
    remaining = (len(runs) - 1) / len(runs) if shared_seeds else 1.0
    groups = np.asarray(rows if rows is not None else runs * 0, dtype=int)
    if np.bincount(groups, runs - 1).min() < MIN_DEGREES or (shared_seeds and len(runs) == 2):
        groups = runs * 0
    degrees = remaining * np.bincount(groups, runs - 1)
    return groups, degrees


def run_variances(estimates: Sequence[Sequence[float]], rows: Sequence[int] | None = None) -> np.ndarray:
    """Return the variance of a single run's score between seeds, for each of K cells, (K,); nan if it is unknown.

    estimates, rows: see cell_replicates."""
    runs = np.array([len(scores) for scores in estimates])
    if (runs == 1).all():
        return np.full(len(runs), np.nan)
    groups, _ = pooling(runs, rows, shared_seeds=False)
    return seed_variance([np.asarray(scores)[:, None] for scores in estimates], groups, shared_seeds=False)[groups, 0]


def seed_variance(scores: Sequence[np.ndarray], groups: np.ndarray, shared_seeds: bool) -> np.ndarray:
    """Return the variance of scores between the seeds of a cell, for each of G groups of cells.

    scores: for each of K cells (n_k, R). groups: (K,), the group of each cell. Returns (G, R), unbiased.
    shared_seeds: leave out the variation that all cells have in common. A cell's squared residuals then contain (K - 2)
    / K of its own variance and 1 / K of the mean variance of all cells, which is solved for its own."""
    residuals = [part - part.mean(axis=0) for part in scores]
    if shared_seeds:
        common = np.mean(residuals, axis=0)
        residuals = [part - common for part in residuals]
    squares = np.stack([np.sum(part**2, axis=0) for part in residuals])  # (K, R)
    degrees = np.array([len(part) - 1 for part in scores])
    members = [groups == group for group in range(groups.max() + 1)]
    of_group = np.stack([squares[each].sum(axis=0) / degrees[each].sum() for each in members])
    if not shared_seeds:
        return of_group
    cells = len(scores)
    mean = squares.sum(axis=0) / ((cells - 1) * degrees[0])
    return mean[None] if len(of_group) == 1 else (of_group - mean / cells) / (1 - 2 / cells)
