"""Plan a comparison: what limits it, and how many seeds or images find a difference of a given size.

The standard error of a difference between cells has three parts, as in the variance components of Bouthillier et al.
(2021, arXiv 2103.03098, section 2). They respond differently to more work:

- `shared`: which images were drawn. All seeds of a cell gain or lose on the same images. More images reduce it.
- `run_image`: how each run errs on these images, differently from the other seeds. More images or more seeds reduce it.
- `seed`: differences between runs that would remain on infinitely many images. More seeds reduce it.

For a contrast v with sum q = sum(v**2 / n), n seeds per cell and N images,

    SE**2 = (shared + run_image * q) / N + seed * q.

A planned comparison tests like the present one (stats/replicates.py): with few seeds, its variance between seeds is
itself an estimate, with few degrees of freedom, so a difference has to be larger than with many seeds.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import chi2, t

from stats.bootstrap import MIN_IMAGES
from stats.contrasts import LEVEL, Contrast
from stats.replicates import pooling, seed_variance

POWER = 0.8
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(64)  # quadrature over the probability of a chi-square variable
_PROBABILITIES, _PROBABILITY_WEIGHTS = (_NODES + 1) / 2, _NODE_WEIGHTS / 2


@dataclass(frozen=True)
class Spread:
    """Variance of a score between the seeds of a cell. seed_variance: measured, on the images of the comparison.

    run_image: the part of it that comes from the images, because runs err on different images."""

    seed_variance: float
    run_image: float


@dataclass(frozen=True)
class Variances:
    """Variance components of the differences of a comparison, on average over its `tests` differences.

    shared: variance of a difference. run_image, seed: variances of one run. All are at `images` images.
    squares: sum(v**2). per_seed: sum(v**2 / n) with the present numbers of seeds n.
    cells: number of cells whose runs estimate the variance between seeds, which may be a fraction. degrees: its present
    degrees of freedom.
    shared_seeds: whether the mean of each seed is removed from the runs, because all cells have the same seeds."""

    shared: float
    run_image: float
    seed: float
    squares: float
    per_seed: float
    images: int
    tests: int
    cells: float
    degrees: float
    shared_seeds: bool = False

    def parts(self, seeds: float | None = None, images_factor: float = 1.0) -> tuple[float, float, float]:
        """Return the parts of SE**2 that come from `shared`, `run_image` and `seed`.

        seeds: per cell; None: as at present; inf: the limit of infinitely many. images_factor: number of images,
        divided by the present number."""
        per_seed = self.per_seed if seeds is None else self.squares / seeds
        return self.shared / images_factor, self.run_image * per_seed / images_factor, self.seed * per_seed

    def standard_error(self, seeds: float | None = None, images_factor: float = 1.0) -> float:
        """Return the standard error of a difference; see `parts` for the arguments."""
        return math.sqrt(sum(self.parts(seeds, images_factor)))

    @property
    def shares(self) -> tuple[float, float, float]:
        """Present shares of `shared`, `run_image` and `seed` in SE**2; they sum to 1. nan if the variance is 0."""
        parts, total = self.parts(), sum(self.parts())
        return tuple(part / total if total > 0 else math.nan for part in parts)

    @property
    def spread_range(self) -> tuple[float, float]:
        """Ends of the 95% interval of the standard deviation between seeds, divided by its estimate."""
        low, high = np.sqrt(self.degrees / chi2.ppf((0.975, 0.025), self.degrees))
        return float(low), float(high)

    def degrees_of_freedom(self, seeds: float | None = None) -> float:
        """Return the degrees of freedom of the variance between seeds, pooled over the cells."""
        return self.degrees if seeds is None else (self.cells - self.shared_seeds) * (seeds - 1)

    def detectable(self, seeds: float | None = None, images_factor: float = 1.0) -> float:
        """Return the true difference that would be significant, after correction, in 80% of such comparisons.

        nan if all scores are equal, or if one seed per cell leaves the variance between seeds unknown. 0 if infinitely
        many seeds or images leave no variance."""
        degrees = self.degrees_of_freedom(seeds)
        if degrees == 0 or self.standard_error() == 0:
            return math.nan
        return detectable(*self.parts(seeds, images_factor), degrees, self.tests)

    def seeds_needed(self, find: float, images_factor: float = 1.0) -> int | None:
        """Return the fewest seeds per cell, at least 2, with which `find` is detectable; None if no number suffices."""
        if self.shared > 0 and self.detectable(math.inf, images_factor) >= find:
            return None
        return fewest(lambda seeds: not self.detectable(seeds, images_factor) > find, 2)

    def images_needed(self, find: float, seeds: float | None = None) -> int | None:
        """Return the fewest images, at least MIN_IMAGES, with which `find` is detectable; None if none suffice."""
        if self.seed > 0 and self.detectable(seeds, math.inf) >= find:
            return None
        return fewest(lambda images: not self.detectable(seeds, images / self.images) > find, MIN_IMAGES)


def fewest(suffices, start: int) -> int:
    """Return the smallest integer from `start` with suffices(integer), which must be monotonic and true at last."""
    low, high = start - 1, start  # `low` does not suffice
    while not suffices(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


# ---- measuring the components ------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupSpread:
    """Spread between the seeds of a cell for each of G groups of cells, such as rows; see stats/replicates.py.

    groups: (K,), the group of each cell. seed_variance, run_image: (G,), see Spread. degrees: (G,), of freedom.
    shared_seeds: whether the mean of each seed was removed."""

    groups: np.ndarray
    seed_variance: np.ndarray
    run_image: np.ndarray
    degrees: np.ndarray
    shared_seeds: bool


def measure_spread(runs: Sequence[np.ndarray], shared_seeds: bool, rows: Sequence[int] | None = None) -> GroupSpread:
    """Measure the spread between seeds as it is added to intervals (stats/replicates.py).

    runs: for each of K cells, the scores (n_k, 1 + R) of its runs, on the images and on R resamples.
    shared_seeds: whether all cells have the same seeds. rows: the row of each cell, from 0.
    Both variances are 0 if there are no degrees of freedom."""
    counts = np.array([len(each) for each in runs])
    groups, degrees, removes_seeds = pooling(counts, rows, shared_seeds)
    if degrees[0] == 0:
        return GroupSpread(groups, np.zeros(1), np.zeros(1), degrees, removes_seeds)
    of_seeds = seed_variance([each[:, :1] for each in runs], groups, removes_seeds)[:, 0]
    errors = [each[:, 1:] - np.nanmean(each[:, 1:], axis=1, keepdims=True) for each in runs]
    of_images = np.nanmean(seed_variance(errors, groups, removes_seeds), axis=1)
    return GroupSpread(groups, of_seeds, of_images, degrees, removes_seeds)


def measure_variances(
    runs: Mapping[Hashable, np.ndarray], contrasts: Sequence[Contrast], images: int, shared_seeds: bool,
    rows: Sequence[int] | None = None, spread: Spread | None = None,
) -> Variances:  # fmt: skip
    """Measure what limits a comparison.

    runs: for each of K cells, the scores (n_k, 1 + R) of its runs, on the images and on R resamples. contrasts: the
    differences that are tested together. shared_seeds, rows: see measure_spread. spread: replaces the measured one,
    which is unknown with one seed per cell.

    The mean of a cell's runs on a resample contains the errors of these runs, so run_image * q is subtracted from the
    variance of the contrast to get `shared`. If rows have their own spread, a contrast of several rows has the degrees
    of freedom of Satterthwaite (1946)."""
    found, cells = measure_spread(list(runs.values()), shared_seeds, rows), list(runs)
    counts = np.array([len(each) for each in runs.values()])
    factors = np.array([[contrast.get(cell, 0.0) for cell in cells] for contrast in contrasts])  # (C, K)
    in_group = np.arange(len(found.degrees)) == found.groups[:, None]  # (K, G)
    weights = factors**2 / counts @ in_group  # (C, G)
    parts = weights * found.seed_variance  # (C, G)
    degrees = found.degrees.sum()
    if len(found.degrees) > 1 and parts.any():
        degrees = np.mean(parts.sum(axis=1) ** 2 / (parts**2 / found.degrees).sum(axis=1))
    if spread is None:
        spread = Spread(parts.sum() / weights.sum(), (weights * found.run_image).sum() / weights.sum())
    means = np.stack([each[:, 1:].mean(axis=0) for each in runs.values()])  # (K, R)
    over_images = [np.nanvar(each[each != 0] @ means[each != 0]) for each in factors]
    return Variances(
        shared=max(float(np.mean(over_images - spread.run_image * weights.sum(axis=1))), 0.0),
        run_image=float(spread.run_image),
        seed=max(float(spread.seed_variance - spread.run_image), 0.0),
        squares=float((factors**2).sum(axis=1).mean()),
        per_seed=float(weights.sum(axis=1).mean()),
        images=images,
        tests=len(contrasts),
        cells=float(degrees / np.mean(counts - 1) + found.shared_seeds) if degrees else float(len(cells)),
        degrees=float(degrees),
        shared_seeds=found.shared_seeds,
    )


# ---- power -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2**12)
def detectable(shared: float, run_image: float, seed: float, degrees: float, tests: int, level: float = LEVEL) -> float:
    """Return the true difference that is significant, after Bonferroni correction, in 80% of comparisons.

    shared, run_image, seed: the parts of SE**2. The comparison is tested as in `stats.replicates.cell_replicates`: its
    estimate of run_image + seed has `degrees` degrees of freedom, and only the excess over run_image is added. With
    shared = run_image = 0, this is Student's t test, whose power is that of the noncentral t distribution."""
    level = 1 - level / (2 * tests)
    standard_error = math.sqrt(shared + run_image + seed)
    if math.isinf(degrees) or run_image + seed == 0:
        return float(ndtri(level) + ndtri(POWER)) * standard_error
    factors = chi2.ppf(_PROBABILITIES, degrees) / degrees
    estimates = (run_image + seed) * factors  # of the variance between seeds, in such comparisons
    critical = _critical_values(shared, run_image, estimates, factors, degrees, level)

    def power_above_target(difference: float) -> float:
        return _PROBABILITY_WEIGHTS @ ndtr((difference - critical) / standard_error) - POWER

    return brentq(power_above_target, 0, critical.max() + 10 * standard_error, xtol=1e-6 * standard_error)


def _critical_values(
    shared: float, run_image: float, estimates: np.ndarray, factors: np.ndarray, degrees: float, level: float
) -> np.ndarray:
    """Return the quantiles at `level` of the replicates of a difference of 0, one for each of M estimates.

    A replicate is normal with the variance shared + run_image + max(estimate / factor - run_image / sqrt(factor), 0),
    where the factor is a draw of chi2(degrees) / degrees. estimates, factors: (M,), at equal quadrature nodes. Returns
    (M,), found by bisection."""
    excess = np.maximum(estimates[:, None] / factors - run_image / np.sqrt(factors), 0)
    deviations = np.sqrt(shared + run_image + excess)  # (M, M)
    tail = (1 + level) / 2  # a sum exceeds both quantiles at `tail` with a probability of at most 1 - level
    low = np.zeros(len(estimates))
    high = ndtri(tail) * math.sqrt(shared + run_image) + t.ppf(tail, degrees) * np.sqrt(estimates)
    for _ in range(30):
        middle = (low + high) / 2
        is_low = ndtr(middle[:, None] / deviations) @ _PROBABILITY_WEIGHTS < level
        low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
    return high
