"""Looks: test the same differences several times while seeds are added, with at most 5% false alarms in total.

Whoever adds a seed until a difference is significant gets far more than 5% false alarms. A plan of looks, such as 3, 5
and 8 seeds, avoids this: it spends the 5% over the looks (Lan and DeMets, Biometrika 70, 1983), here with the
spending function of O'Brien-Fleming type, which spends little at early looks. Seeds are added, but the images stay, so
the estimate at a later look contains the one at an earlier look: Cov(D_i, D_j) = Var(D_j) for i < j. Estimates with
this property behave like Brownian motion at the information fractions t_i = Var(D_last) / Var(D_i).
benchmarks/looks.md measures the false alarms.

    fractions = information_fractions(factors, run_scores, planned=[3, 5, 8])
    levels = look_levels(fractions, num_tests=3)                 # for Holm-corrected p values
    power = conditional_power(p, fractions[0], levels[-1] / 3)   # whether it is worth adding seeds
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from stats.contrasts import LEVEL

FARTHEST = 8.0  # largest boundary of |z|; a normal variable exceeds it with probability 1e-15
POINTS = 401  # of the numerical integration; 1601 points change no level by more than 1e-6
CLOSEST = 0.99  # highest ratio of two information fractions; closer looks would need a finer integration


def spent_alpha(fraction: float, alpha: float = LEVEL) -> float:
    """Return the part of `alpha` that is spent up to an information fraction in (0, 1], O'Brien-Fleming type.

    alpha(t) = 2 - 2 Phi(z / sqrt(t)), with the two-sided critical value z of `alpha` (Lan and DeMets 1983)."""
    return float(2 * ndtr(ndtri(alpha / 2) / np.sqrt(fraction)))


def look_levels(fractions: Sequence[float], num_tests: int = 1, alpha: float = LEVEL) -> list[float]:
    """Return the two-sided significance level of each look, for Holm-corrected p values of `num_tests` tests.

    fractions: information fraction of each look; 1 at the last look of the plan. A look whose fraction is not larger
    than that of the look before (fractions are estimates) has the level 0, because nothing is left to spend.
    Every test spends (alpha(t_i) - alpha(t_(i - 1))) / num_tests at look i. With fewer tests, the levels are higher, so
    these levels are valid for every step of Holm's method (Maurer and Bretz, Stat. Biopharm. Res. 5, 2013)."""
    spent = np.maximum.accumulate([spent_alpha(fraction, alpha) for fraction in fractions])
    return [num_tests * level for level in nominal_levels(fractions, spent / num_tests)]


def nominal_levels(fractions: Sequence[float], spent: Sequence[float]) -> list[float]:
    """Return the two-sided level of each look so that `spent[i]` is the chance of a false alarm up to look i.

    fractions: information fraction of each look. spent: cumulative and not decreasing.
    A level exceeds what is spent at its look, because some results that exceed its boundary exceeded an earlier one
    too. The boundaries of |z| are found one after the other, by integrating the density of z over the results that
    exceeded no earlier boundary (Armitage, McPherson and Rowe, J. R. Stat. Soc. A 132, 1969)."""
    levels, before = [], 0.0
    earlier, z, mass = 0.0, np.zeros(1), np.ones(1)  # Brownian motion starts at 0
    for fraction, total in zip(fractions, spent, strict=True):
        increment, before = total - before, total
        correlation = np.sqrt(min(earlier / fraction, CLOSEST))
        known, boundary = (correlation, z, mass, increment), FARTHEST
        if _excess(FARTHEST, *known) < 0:
            boundary = brentq(_excess, 0, FARTHEST, args=known)
        levels.append(float(2 * ndtr(-boundary)) if boundary < FARTHEST else 0.0)
        grid, spread = np.linspace(-boundary, boundary, POINTS), np.sqrt(1 - correlation**2)
        density = np.exp(-(((grid[:, None] - correlation * z) / spread) ** 2) / 2) @ mass
        density[[0, -1]] /= 2  # trapezoidal rule
        earlier, z, mass = fraction, grid, density * (grid[1] - grid[0]) / (spread * np.sqrt(2 * np.pi))
    return levels


def _excess(boundary: float, correlation: float, z: np.ndarray, mass: np.ndarray, increment: float) -> float:
    """Return the chance that |z| exceeds `boundary` at a look and exceeded no boundary before, minus `increment`.

    z, mass: (P,), the values at the look before that exceeded no boundary, and their probabilities."""
    spread = np.sqrt(1 - correlation**2)
    outside = ndtr((correlation * z - boundary) / spread) + ndtr((-correlation * z - boundary) / spread)
    return float(outside @ mass) - increment


def information_fractions(
    contrasts: Sequence[Sequence[float]],
    run_scores: Sequence[np.ndarray],
    planned: Sequence[int],
    luck: np.ndarray | None = None,
) -> list[float]:
    """Return the information fraction of each planned look: Var(D at the last look) / Var(D at this look).

    contrasts: for each difference D, one factor per cell, (K,). run_scores: for each of K cells, the scores of its n_k
    runs on the validation set (first column) and on R resamples, (n_k, 1 + R). planned: seeds per cell at each look.
    luck: (K, R), of tuning (stats/tuning.py), which is the same at all looks. Its variance is added to A.
    With n seeds per cell, Var(D) = A + B / n. A is the variance of the images that all runs of a cell share. B is the
    variance between runs, of which a part comes from how each run errs on these images. If A is 0, the fraction is
    n / n_last; otherwise it is larger, because more seeds help less. Of several differences, the smallest fraction
    counts, so that their looks are at least as alike as assumed, which can only lower the rate of false alarms.
    Raises ValueError if every cell has one run."""
    degrees = sum(len(scores) - 1 for scores in run_scores)
    if degrees == 0:
        raise ValueError("information fractions: got one run per cell, expected at least two runs in a cell")
    deviations = [scores - scores.mean(axis=0) for scores in run_scores]
    of_images = sum(np.nanvar(each[:, 1:], axis=1).sum() for each in deviations) / degrees  # how each run errs
    of_runs = max(sum(np.sum(each[:, 0] ** 2) for each in deviations) / degrees, of_images)
    means = np.stack([scores[:, 1:].mean(axis=0) for scores in run_scores])  # (K, R)
    counts = np.array([len(scores) for scores in run_scores])
    fractions = np.ones(len(planned))
    for contrast in np.asarray(contrasts, dtype=float):
        shared = max(np.nanvar(contrast @ means) - of_images * np.sum(contrast**2 / counts), 0)
        shared += 0.0 if luck is None else np.var(contrast @ luck)
        variance = shared + of_runs * np.sum(contrast**2) / np.asarray(planned)
        if variance[-1] > 0:  # otherwise, all these scores are equal
            fractions = np.minimum(fractions, variance[-1] / variance)
    return fractions.tolist()


def conditional_power(p: float, fraction: float, last_level: float) -> float:
    """Return the probability that a difference becomes significant at the last look if the current trend continues.

    p: two-sided p value at a look. fraction: information fraction of this look. last_level: two-sided level of this one
    test at the last look. With |z| of p, the final z has the mean |z| / sqrt(t) and the variance 1 - t (Lan and Wittes,
    Biometrics 44, 1988). A reversal of the sign counts too."""
    trend, boundary = -ndtri(p / 2) / np.sqrt(fraction), -ndtri(last_level / 2)
    spread = np.sqrt(max(1 - fraction, 1e-12))
    return float(ndtr((trend - boundary) / spread) + ndtr((-trend - boundary) / spread))
