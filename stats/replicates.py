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
    rows: the row of each cell in the table, from 0. With enough runs, each row has its own spread (see pooling).
    shared_seeds: whether run s has the same seed in all cells, so that all have n runs. With enough runs, what a seed
    does to all cells is left out. Use this for contrasts (weights that sum to 0), where it cancels.
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
    if np.isnan(np.concatenate(estimates)).any():  # for example the AP of a class without objects
        return np.full(result.shape, np.nan)
    if (runs == 1).all():
        if known is None:
            return result
        groups, degrees = runs * 0, np.array([known.degrees])
        of_seeds, of_images = np.array([known.standard_deviation**2]), np.zeros(1)
    else:
        groups, degrees, removes_seeds = pooling(runs, rows, shared_seeds)
        image_errors = [part - np.nanmean(part, axis=1, keepdims=True) for part in replicates]
        of_images = np.nanmean(seed_variance(image_errors, groups, removes_seeds), axis=1)
        of_seeds = seed_variance([np.asarray(scores)[:, None] for scores in estimates], groups, removes_seeds)[:, 0]
    generator = np.random.default_rng([seed, 1])  # independent of the draws of image_weights
    ratios = degrees[:, None] / generator.chisquare(degrees[:, None], (len(degrees), result.shape[1]))
    excess = np.maximum(ratios * of_seeds[:, None] - np.sqrt(ratios) * of_images[:, None], 0)  # (G, R)
    variances = excess[groups] / runs[:, None]  # (K, R)
    return result + generator.standard_normal(result.shape) * np.sqrt(variances)


def pooling(runs: np.ndarray, rows: Sequence[int] | None, shared_seeds: bool) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return which cells share a variance between seeds, its degrees of freedom, and whether seed means are removed.

    runs: (K,), number of runs of each cell. rows, shared_seeds: see cell_replicates. Returns (K,), (G,) and the answer.
    Each row has its own variance, without what its cells have in common at each seed, if MIN_DEGREES are left in every
    row; otherwise its own variance with it, if MIN_DEGREES are left; otherwise all cells have one variance, without or
    with it. The design decides, not the scores, because that would bias the result."""
    one = runs * 0
    own = one if rows is None else np.asarray(rows, dtype=int)
    for groups, removes_seeds in ((own, True), (own, False), (one, True)):
        cells = np.bincount(groups)
        degrees = (cells - 1) * (runs[0] - 1) if removes_seeds else np.bincount(groups, runs - 1)
        if degrees.min() >= MIN_DEGREES and (shared_seeds or not removes_seeds):
            return groups, degrees, removes_seeds
    return one, np.array([np.sum(runs - 1)]), False


def run_variances(estimates: Sequence[Sequence[float]], rows: Sequence[int] | None = None) -> np.ndarray:
    """Return the variance of a single run's score between seeds, for each of K cells, (K,); nan if it is unknown.

    estimates, rows: see cell_replicates."""
    runs = np.array([len(scores) for scores in estimates])
    if (runs == 1).all():
        return np.full(len(runs), np.nan)
    groups, _, _ = pooling(runs, rows, shared_seeds=False)
    return seed_variance([np.asarray(scores)[:, None] for scores in estimates], groups, removes_seeds=False)[groups, 0]


def seed_variance(scores: Sequence[np.ndarray], groups: np.ndarray, removes_seeds: bool) -> np.ndarray:
    """Return the variance of scores between the seeds of a cell, for each of G groups of cells.

    scores: for each of K cells (n_k, R). groups: (K,), the group of each cell. Returns (G, R), unbiased.
    removes_seeds: leave out what the cells of a group have in common at each seed."""
    residuals = [part - part.mean(axis=0) for part in scores]
    found = []
    for group in range(groups.max() + 1):
        members = [residuals[cell] for cell in np.flatnonzero(groups == group)]
        degrees = sum(len(part) - 1 for part in members)
        if removes_seeds:
            common = np.mean(members, axis=0)
            members = [part - common for part in members]
            degrees -= len(common) - 1
        found.append(sum(np.sum(part**2, axis=0) for part in members) / degrees)
    return np.stack(found)
