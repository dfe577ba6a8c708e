"""Plan a comparison: what limits it, and how many seeds or images find a difference of a given size.

The standard error of a difference between cells has up to four parts, as in the variance components of Bouthillier et
al. (2021, arXiv 2103.03098, section 2). They respond differently to more work:

- `shared`: which images were drawn. All seeds of a cell gain or lose on the same images. More images reduce it.
- `run_image`: how each run errs on these images, differently from the other seeds. More images or more seeds reduce it.
- `seed`: differences between runs that would remain on infinitely many images. More seeds reduce it.
- `tuning`: the luck of tuning, if trials chose values for the cells (stats/tuning.py). Only more trials reduce it.

For a contrast v with sum q = sum(v**2 / n), n seeds per cell and N images,

    SE**2 = (shared + run_image * q) / N + seed * q + tuning.

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
from scipy.stats import chi2, qmc

from stats.bootstrap import MIN_IMAGES
from stats.contrasts import LEVEL, Contrast
from stats.replicates import pooling, seed_variance

POWER = 0.8
_ESTIMATES, _REPLICATES = 64, 1024  # points of the numerical integrals over estimates and over replicates


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
    tuning: variance of a difference that comes from the luck of tuning. Neither seeds nor images reduce it.
    squares: sum(v**2). per_seed: sum(v**2 / n) with the present numbers of seeds n.
    cells: number of cells whose runs estimate the variance between seeds, which may be a fraction. degrees: its present
    degrees of freedom.
    shared_seeds: whether the mean of each seed is removed from the runs, because all cells have the same seeds.
    groups: shares of the groups of cells with their own spread, such as rows, in this variance. From the largest; they
    sum to 1."""

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
    groups: tuple[float, ...] = (1.0,)
    tuning: float = 0.0

    def parts(self, seeds: float | None = None, images_factor: float = 1.0) -> tuple[float, float, float, float]:
        """Return the parts of SE**2 that come from `shared`, `run_image`, `seed` and `tuning`.

        seeds: per cell; None: as at present; inf: the limit of infinitely many. images_factor: number of images,
        divided by the present number."""
        per_seed = self.per_seed if seeds is None else self.squares / seeds
        return self.shared / images_factor, self.run_image * per_seed / images_factor, self.seed * per_seed, self.tuning

    def standard_error(self, seeds: float | None = None, images_factor: float = 1.0) -> float:
        """Return the standard error of a difference; see `parts` for the arguments."""
        return math.sqrt(sum(self.parts(seeds, images_factor)))

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """Present shares of the parts in SE**2; they sum to 1. nan if the variance is 0."""
        parts, total = self.parts(), sum(self.parts())
        return tuple(part / total if total > 0 else math.nan for part in parts)

    @property
    def spread_range(self) -> tuple[float, float]:
        """Ends of the 95% interval of the standard deviation between seeds, divided by its estimate."""
        low, high = np.sqrt(self.degrees / chi2.ppf((0.975, 0.025), self.degrees))
        return float(low), float(high)

    def degrees_of_freedom(self, seeds: float | None = None) -> float:
        """Return the degrees of freedom of the variance between seeds, over all cells of the difference."""
        return self.degrees if seeds is None else (self.cells - self.shared_seeds) * (seeds - 1)

    def detectable(self, seeds: float | None = None, images_factor: float = 1.0) -> float:
        """Return the true difference that would be significant, after correction, in 80% of such comparisons.

        nan if all scores are equal, or if one seed per cell leaves the variance between seeds unknown. 0 if infinitely
        many seeds or images leave no variance."""
        degrees = self.degrees_of_freedom(seeds)
        if degrees == 0 or self.standard_error() == 0:
            return math.nan
        return detectable(*self.parts(seeds, images_factor), degrees, self.tests, groups=self.groups)

    def seeds_needed(self, find: float, images_factor: float = 1.0) -> int | None:
        """Return the fewest seeds per cell, at least 2, with which `find` is detectable; None if no number suffices."""
        if self.shared + self.tuning > 0 and self.detectable(math.inf, images_factor) >= find:
            return None
        return fewest(lambda seeds: not self.detectable(seeds, images_factor) > find, 2)

    def images_needed(self, find: float, seeds: float | None = None) -> int | None:
        """Return the fewest images, at least MIN_IMAGES, with which `find` is detectable; None if none suffice."""
        if self.seed + self.tuning > 0 and self.detectable(seeds, math.inf) >= find:
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
    """Measure the spread between seeds that intervals include (stats/replicates.py).

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
    rows: Sequence[int] | None = None, spread: Spread | None = None, luck: np.ndarray | None = None,
) -> Variances:  # fmt: skip
    """Measure what limits a comparison.

    runs: for each of K cells, the scores (n_k, 1 + R) of its runs, on the images and on R resamples. contrasts: the
    differences that are tested together. shared_seeds, rows: see measure_spread. spread: replaces the measured one,
    which is unknown with one seed per cell. luck: (K, R), of tuning (stats/tuning.tuning_luck); `runs` are without it.

    The mean of a cell's runs on a resample contains the errors of these runs, so run_image * q is subtracted from the
    variance of the contrast to get `shared`. If rows have their own spread, the variance between seeds of a contrast of
    several rows has the degrees of freedom of Satterthwaite (1946)."""
    found, cells = measure_spread(list(runs.values()), shared_seeds, rows), list(runs)
    counts = np.array([len(each) for each in runs.values()])
    factors = np.array([[contrast.get(cell, 0.0) for cell in cells] for contrast in contrasts])  # (C, K)
    in_group = np.arange(len(found.degrees)) == found.groups[:, None]  # (K, G)
    weights = factors**2 / counts @ in_group  # (C, G)
    parts = weights * found.seed_variance  # (C, G)
    degrees, groups = found.degrees.sum(), np.ones(1)
    if len(found.degrees) > 1 and parts.any():
        shares = parts[parts.any(axis=1)]
        shares /= shares.sum(axis=1, keepdims=True)
        degrees = np.mean(1 / (shares**2 / found.degrees).sum(axis=1))
        groups = np.sort(shares)[:, ::-1].mean(axis=0)
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
        groups=tuple(groups[groups > 0].tolist()),
        tuning=0.0 if luck is None else float(np.var(factors @ luck, axis=1).mean()),
    )


# ---- power -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2**12)
def detectable(
    shared: float, run_image: float, seed: float, tuning: float, degrees: float, tests: int, level: float = LEVEL,
    groups: tuple[float, ...] = (1.0,),
) -> float:  # fmt: skip
    """Return the true difference that is significant, after Bonferroni correction, in 80% of comparisons.

    shared, run_image, seed, tuning: the parts of SE**2. The comparison is tested as in
    `stats.replicates.cell_replicates`: its estimate of run_image + seed has `degrees` degrees of freedom, and only the
    excess over run_image is added. The replicates contain the luck of tuning like that of the images, so both count as
    normal and known. If only `seed` is not 0, this is Student's t test with the power of the noncentral t distribution.
    groups: the shares of G groups of cells in run_image + seed. Each has its own estimate and its own draws in the
    replicates, as in the solution of Behrens and Fisher for two samples with unequal variances (Fisher, 1935). The test
    is then more cautious than Student's t with `degrees`: its tails are those of the degrees of one group."""
    level, shared = 1 - level / (2 * tests), shared + tuning
    standard_error = math.sqrt(shared + run_image + seed)
    if math.isinf(degrees) or run_image + seed == 0:
        return float(ndtri(level) + ndtri(POWER)) * standard_error
    shares = np.array(groups)
    of_group = degrees * float(shares @ shares)  # so that the sum of the groups has `degrees` (Satterthwaite)
    factors, weights = _chi2_factors(of_group, len(groups), _ESTIMATES)
    estimates = (run_image + seed) * shares * factors  # of the variance between seeds, in such comparisons
    critical = _critical_values(shared, run_image, estimates, shares, of_group, level)

    def power_above_target(difference: float) -> float:
        return weights @ ndtr((difference - critical) / standard_error) - POWER

    return brentq(power_above_target, 0, critical.max() + 10 * standard_error, xtol=1e-6 * standard_error)


def _chi2_factors(degrees: float, groups: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return independent values of chi2(degrees) / degrees for each of G groups, (M, G), and weights of the rows, (M,).

    The weighted sum of a function of the rows is its mean over the distribution."""
    probabilities, weights = _quadrature(groups, points)
    return chi2.ppf(probabilities, degrees) / degrees, weights


@lru_cache
def _quadrature(dimensions: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points for the mean of a function over the unit cube, (M, dimensions), and their weights, (M,).

    One dimension: 64 Gauss-Legendre nodes. More: `points`, a power of 2, of a Sobol sequence."""
    if dimensions == 1:
        nodes, weights = np.polynomial.legendre.leggauss(64)
        return (nodes[:, None] + 1) / 2, weights / 2
    sequence = qmc.Sobol(dimensions, scramble=False).random(points)
    return sequence + 0.5 / points, np.full(points, 1 / points)  # the sequence contains 0, and not 1


def _critical_values(
    shared: float, run_image: float, estimates: np.ndarray, shares: np.ndarray, degrees: float, level: float
) -> np.ndarray:
    """Return the quantiles at `level` of the replicates of a difference of 0, one for each of M estimates.

    A replicate is normal with the variance shared + run_image + the sum over the groups of max(estimate / factor -
    share * run_image / sqrt(factor), 0), where the factors are draws of chi2(degrees) / degrees. estimates: (M, G).
    shares: (G,). degrees: of one group. Returns (M,), found by Newton's method. It starts below the quantile, above
    which it cannot get, because the distribution function of such replicates is concave above 0."""
    factors, weights = _chi2_factors(degrees, len(shares), _REPLICATES)
    variances = np.full((len(estimates), len(factors)), float(shared + run_image))
    for of_group, share, factor in zip(estimates.T, shares, factors.T, strict=True):
        variances += np.maximum(of_group[:, None] / factor - share * run_image / np.sqrt(factor), 0)
    deviations = np.sqrt(variances)
    found = ndtri(level) * deviations.min(axis=1)
    step = found
    while (step > 1e-6 * found).any():
        scaled = found[:, None] / deviations
        density = np.exp(-(scaled**2) / 2) / (math.sqrt(2 * math.pi) * deviations) @ weights
        step = (level - ndtr(scaled) @ weights) / density
        found = found + step
    return found
