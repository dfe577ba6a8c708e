"""Simulations of the decisions about a comparison: how often each statement is right, if the truth is known.

    OMP_NUM_THREADS=1 python -m benchmarks.decisions

Scores are simulated with known true means (benchmarks/simulated_scores.py). Each trial draws new images and new runs.
Takes about 10 minutes on 2 cores.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.comparison import Page, run_benchmark
from benchmarks.simulated_scores import Population, simulate
from stats.bootstrap import image_weights
from stats.contrasts import Contrast, Tested, assess_family, mean_difference
from stats.decisions import may_be_best, optimism_of_best
from stats.planning import detectable, measure_variances
from stats.replicates import cell_replicates

IMAGES, REPLICATES, TRIALS, PROCESSES = 200, 1000, 2000, 2
FAMILY_REPLICATES = 4000  # with fewer, p values of large families are coarse
NOISE = 1 / np.sqrt(IMAGES)  # standard deviation of the mean of IMAGES values with standard deviation 1
COVERAGE, DETECTED = (0.935, 0.965), (0.77, 0.83)  # target ranges
MIN_KEPT, MAX_FALSE = 0.945, 0.05  # targets


@cache
def resamples(replicates: int) -> np.ndarray:
    """Return resamples, which are the same in all trials, because the images themselves are new. (R, I) float64."""
    return image_weights(IMAGES, replicates, seed=0).astype(np.float64)


class Design(NamedTuple):
    """A simulated table: 2 rows of cells, trained with some seeds. Spreads are in units of NOISE."""

    columns: int
    seeds: int
    spreads: tuple[float, float] = (1.0, 1.0)  # between seeds, in the first and in the second row
    shared: float = 0.0  # spread of the effect of a seed on all cells
    replicates: int = REPLICATES

    @property
    def rows(self) -> np.ndarray:
        return np.repeat([0, 1], self.columns)

    def population(self, means: Sequence[float] | None = None) -> Population:
        """Return the cells, with means in units of NOISE (default: all equal)."""
        spreads = NOISE * np.repeat(self.spreads, self.columns)
        means = NOISE * np.asarray(means if means is not None else np.zeros(2 * self.columns))
        return Population(means, spreads, NOISE * self.shared, 1.0, cell_image_sd=1.0, run_image_sd=1.0)

    def draw(self, number: int, means: Sequence[float] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean scores (K,) of a trial and their replicates (K, R), in units of NOISE."""
        return self.combine(number, *self.draw_runs(number, means))

    def combine(self, number: int, estimates: np.ndarray, replicates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean scores (K,) of the runs of a trial and their replicates (K, R), with the seeds' part."""
        sample = cell_replicates(estimates, replicates, number, rows=self.rows, shared_seeds=True)
        return np.mean(estimates, axis=1), sample

    def draw_runs(self, number: int, means: Sequence[float] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores (K, n) of the runs of a trial and their replicates (K, n, R), in units of NOISE."""
        generator = np.random.default_rng([number, self.columns, self.seeds])
        scores = simulate(generator, self.population(means), self.seeds, resamples(self.replicates))
        estimates, replicates = (np.array(each) / NOISE for each in scores)
        return estimates, replicates


COVERED = {
    **{f"2 x 8 cells, {kind}": (8, options) for kind, options in {
        "equal spread": {},
        "second row with 4 times the spread": {"spreads": (0.5, 2.0)},
        "seeds shared, correlation 0.5": {"shared": 1.4},
        "shared, and 4 times the spread": {"spreads": (0.5, 2.0), "shared": 1.4},
    }.items()},
    "2 x 2 cells, equal spread": (2, {}),
    "2 x 2 cells, second row with 4 times the spread": (2, {"spreads": (0.5, 2.0)}),
    "2 x 1 cells, equal spread": (1, {}),
}  # fmt: skip


def coverage(number: int, design: Design) -> list[bool]:
    """Return whether the intervals of six differences and effects contain 0, the true value."""
    means, sample = design.draw(number)
    k = design.columns
    contrasts = [
        mean_difference([0], [1]), mean_difference([k], [k + 1]), mean_difference([0], [k]),
        mean_difference([1], [k + 1]), mean_difference(range(k), range(k, 2 * k)),
        mean_difference([0, k], [1, k + 1]),
    ] if k > 1 else [mean_difference([0], [1])]  # fmt: skip
    family = assess_family(contrasts, dict(enumerate(means)), sample)
    return [each.interval.low <= 0 <= each.interval.high for each in family]


def kept(number: int, design: Design, means: Sequence[float]) -> tuple[bool, int]:
    """Return whether a cell with the highest true mean (the first) may be the best, and how many cells may be."""
    found = may_be_best(*design.draw(number, means))
    return bool(found[0]), int(found.sum())


def from_first(number: int, design: Design, means: Sequence[float], has_power: bool = False) -> list[Tested]:
    """Return the tested differences of all cells from the first. has_power: with their detectable sizes."""
    scores, replicates = design.draw_runs(number, means)
    runs = dict(enumerate(np.concatenate([scores[:, :, None], replicates], axis=2)))

    def power(contrast: Contrast, tests: int) -> float:
        variances = measure_variances(runs, [contrast], IMAGES, shared_seeds=True, rows=design.rows)
        return detectable(*variances.parts(), variances.degrees, tests, groups=variances.groups)

    estimates, sample = design.combine(number, scores, replicates)
    contrasts = [mean_difference([cell], [0]) for cell in range(1, len(estimates))]
    options = {"detectable": power} if has_power else {}
    return assess_family(contrasts, dict(enumerate(estimates)), sample, **options)


def optimism(number: int, design: Design, means: Sequence[float]) -> tuple[float, float]:
    """Return the highest mean score minus the true score of its cell, and its estimated optimism."""
    estimates, sample = design.draw(number, means)
    winner = int(np.argmax(estimates))
    return estimates[winner] - means[winner], optimism_of_best(estimates, sample)


# ---- the page ----------------------------------------------------------------------------------------------


def coverage_part(run: Callable) -> tuple[list[str], list[str]]:
    """Return table rows, and texts of figures outside the target range."""
    lines, failures = [], []
    for name, (columns, options) in COVERED.items():
        shares = []
        for seeds in (2, 3, 5):
            inside = np.mean(run(partial(coverage, design=Design(columns, seeds, **options))), axis=0)
            shares.append(f"{inside.mean():.1%} ({inside.min():.1%} to {inside.max():.1%})")
            if columns > 2 and not COVERAGE[0] <= inside.mean() <= COVERAGE[1]:
                failures.append(f"coverage, {name}, {seeds} seeds: {inside.mean():.1%}")
        lines.append(f"| {name} | {' | '.join(shares)} |")
    return lines, failures


def best_part(run: Callable) -> tuple[list[str], list[str]]:
    """Return table rows about the set of the best, and texts of figures below the target."""
    lines, failures = [], []
    for columns in (2, 4, 8):
        cells = 2 * columns
        for name, means in {
            "all equal": np.zeros(cells),
            "the first is better by 1": np.r_[0, np.full(cells - 1, -1.0)],
            "evenly spaced over 10": np.linspace(0, -10, cells),
        }.items():
            found = run(partial(kept, design=Design(columns, 3), means=means))
            share, size = np.mean([is_kept for is_kept, _ in found]), np.mean([size for _, size in found])
            lines.append(f"| {cells} cells, {name} | {share:.1%} | {size:.1f} |")
            if share < MIN_KEPT:
                failures.append(f"set of the best, {cells} cells, {name}: {share:.1%}")
    return lines, failures


def family_part(run: Callable) -> tuple[list[str], list[str]]:
    """Return table rows about tests, equivalence and detectable differences, and texts of figures off target."""
    lines, failures = [], []
    for columns, seeds in ((2, 3), (2, 5), (4, 3)):
        design, cells = Design(columns, seeds, replicates=FAMILY_REPLICATES), 2 * columns
        null = run(partial(from_first, design=design, means=np.zeros(cells), has_power=True))
        false = np.mean([any(each.is_significant for each in family) for family in null])
        outside = np.mean(
            [any(low > 0 or high < 0 for low, high in (t.simultaneous for t in family)) for family in null]
        )
        margin = float(np.mean([each.bound for family in null for each in family]))  # claims are frequent if equal
        at_margin = run(partial(from_first, design=design, means=np.r_[0, np.full(cells - 1, margin)]))
        claims = np.mean([any(each.bound < margin for each in family) for family in at_margin])
        found = []
        for cell in (1, columns):  # the second cell of the first row, and the first cell of the second row
            size = float(np.mean([family[cell - 1].detectable for family in null]))
            one = run(partial(from_first, design=design, means=np.where(np.arange(cells) == cell, size, 0.0)))
            found.append(np.mean([family[cell - 1].is_significant for family in one]))
        shares = " | ".join(f"{share:.1%}" for share in (false, outside, claims, *found))
        lines.append(f"| {cells} cells, {seeds} seeds | {shares} |")
        checks = {
            "false alarms": false <= MAX_FALSE + 0.01,
            "equivalence claims": claims <= MAX_FALSE,
            **{
                f"detectable in {place}": DETECTED[0] <= share <= DETECTED[1]
                for place, share in zip(("one row", "two rows"), found, strict=True)
            },
        }
        failures += [f"{name}, {cells} cells, {seeds} seeds" for name, is_met in checks.items() if not is_met]
    return lines, failures


def optimism_part(run: Callable) -> tuple[list[str], list[str]]:
    """Return table rows about the optimism of the best mean, and texts of biased corrections."""
    lines, failures = [], []
    for name, means in {
        "8 equal cells": np.zeros(8),
        "8 cells, evenly spaced over 2": np.linspace(0, 2, 8),
        "8 cells, evenly spaced over 20": np.linspace(0, 20, 8),
    }.items():
        found = np.array(run(partial(optimism, design=Design(4, 3), means=means)))
        luck, estimated = found.mean(axis=0)
        left, error = luck - estimated, np.std(found[:, 0] - found[:, 1]) / np.sqrt(len(found))
        lines.append(f"| {name} | {luck:+.3f} | {estimated:+.3f} | {left:+.3f} ± {error:.3f} |")
        if "equal" in name and abs(left) > 2 * error + 0.02:
            failures.append(f"optimism, {name}: {left:+.3f} is left")
    return lines, failures


def measure(device: torch.device) -> Page:
    """Run all simulations."""
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:

        def run(trial: Callable) -> list:
            return list(pool.map(trial, range(TRIALS), chunksize=50))

        parts = [part(run) for part in (coverage_part, best_part, family_part, optimism_part)]
    (covered, best, families, lucky), failures = zip(*parts, strict=True)
    lines = "\n".join
    text = f"""# How often the decisions of a comparison are right

Scores are simulated with known true means (see the script): {IMAGES} images, {REPLICATES:,} resamples, {TRIALS:,} \
trials per figure, so a share of 95% has a standard error of 0.5 percentage points. Unit: the standard deviation that \
the choice of images gives to a cell's score. One run differs from the next by the same amount (spread 1), and errs on \
different images by the same amount.

## Coverage of 95% intervals

Mean over six kinds of differences and effects (lowest to highest). Target: {COVERAGE[0]:.1%} to {COVERAGE[1]:.1%} on \
average, for 2 x 8 cells. With 2 x 1 cells and 2 seeds, the spread between seeds has 2 degrees of freedom.

| table | 2 seeds | 3 seeds | 5 seeds |
|---|---|---|---|
{lines(covered)}

## The set of cells that may be the best

3 seeds. Target: contains the truly best cell in at least {MIN_KEPT:.1%} of trials. Of equal cells, the first counts \
as the best.

| table | contains the best | mean size |
|---|---|---|
{lines(best)}

## Families of differences from the first cell

False alarms: any difference is significant although all cells are equal; also the share of trials in which a \
simultaneous interval excludes 0. Equivalence: any difference is claimed to be smaller than the margin although all \
are as large as the margin ({FAMILY_REPLICATES:,} resamples). Targets: at most 5% (false alarms: 5% within the error \
of the simulation). Found: how often a true difference of its detectable size is significant, the other cells being \
equal, of two cells in one row or in two rows, which may have their own spread; target {DETECTED[0]:.0%} to \
{DETECTED[1]:.0%}.

| table | false alarms | simultaneous intervals | false equivalence | found, one row | found, two rows |
|---|---|---|---|---|---|
{lines(families)}

## Optimism of the best mean score

| cells | best mean minus its true score | estimated | left |
|---|---|---|---|
{lines(lucky)}
{{rows}}
"""
    return Page(text, [], [each for some in failures for each in some])


if __name__ == "__main__":
    run_benchmark(measure)
