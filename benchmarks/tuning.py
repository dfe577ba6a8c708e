"""Simulations of tuning: bias, false alarms, coverage of budget curves, and flips (stats/tuning.py).

    OMP_NUM_THREADS=1 python -m benchmarks.tuning

The score of a trial is: peak - sharpness * (distance from the best rate, in doublings)**2, not below 0, plus noise. The
rate is drawn from 1e-4 to 1e-2 as in the product (stats/trial_points.py). Takes about 10 minutes on 2 cores.
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
from stats.contrasts import interval
from stats.replicates import cell_replicates
from stats.trial_points import draw_points
from stats.tuning import budget_curves, expected_best, flip_budget, lead_curve, simultaneous_band, tuning_luck

RANGES = {"rate": {"log_uniform": [1e-4, 1e-2]}}
IMAGES, REPLICATES, PROCESSES, TRIALS = 200, 1000, 2, 1000
CURVE_TRIALS, CURVE_REPLICATES, TRUTHS = 500, 400, 3000
BOOTSTRAP_TRIALS = (4, 6, 12)
FINAL = Population((0.0, 0.0), run_sd=0.02, image_sd=1.0, cell_image_sd=0.15, run_image_sd=0.15)
ERROR = FINAL.standard_error([-1, 1], 3, IMAGES)  # of the difference of two cells with three seeds
SHARPNESS, BUDGETS, TRIAL_NOISE = (0, 0.1, 0.25, 0.5, 1, 2, 4), (4, 6, 12, 24), (0.0, 1.0, 2.5)  # in units of ERROR
COVERAGE = (0.93, 0.97)


@cache
def resamples() -> np.ndarray:
    return image_weights(IMAGES, REPLICATES, seed=0)


def drawn_rates(trials: int, seed: int) -> np.ndarray:
    """Return log2 of the drawn rates, (N,)."""
    return np.log2([point["rate"] for point in draw_points(RANGES, trials, seed)])


# ---- bias ---------------------------------------------------------------------------------------------------


def bias(number: int, points: int = 6) -> tuple[float, float, float]:
    """Tune equal points; return reported minus true score, for the three ways of choosing on the page."""
    generator = np.random.default_rng(number)
    population = Population((0.0,) * points, run_sd=0.03, image_sd=0.3, cell_image_sd=0.5, run_image_sd=0.5)
    tune, _ = simulate(generator, population, 1, np.ones((1, IMAGES), dtype=int))
    scores, _ = simulate(generator, population, 4, np.ones((1, IMAGES), dtype=int))  # the trial and three fresh seeds
    trial, fresh = np.array([each[0] for each in scores]), np.array([each[1:].mean() for each in scores])
    on_tune, on_validation = int(np.argmax([each[0] for each in tune])), int(np.argmax(trial))
    return fresh[on_tune], trial[on_validation], fresh[on_validation]


def bias_part(run: Callable) -> tuple[list[str], list[str]]:
    found = np.array(run(bias))
    means, errors = found.mean(axis=0), found.std(axis=0) / np.sqrt(len(found))
    names = ("tune split; three fresh seeds on the validation images", "validation images; that score of the trial",
             "validation images; three fresh seeds on the same images")  # fmt: skip
    lines = [f"| {n} | {m:+.4f} ± {e:.4f} |" for n, m, e in zip(names, means, errors, strict=True)]
    failures = [] if abs(means[0]) < 2 * errors[0] else ["bias of scores after tuning on the tune split"]
    return lines, failures + ([] if means[1] > 5 * errors[1] else ["no bias found when choosing on validation images"])


# ---- false alarms -------------------------------------------------------------------------------------------


def alarms(number: int) -> np.ndarray:
    """Return whether equal cells whose best rates differ by a factor of 2 are significantly different.

    Returns (untuned or tuned with noise and budget, plain or with luck or power of both, sharpness) bool."""
    generator = np.random.default_rng([number, 1])
    runs, sampled = simulate(generator, FINAL, 3, resamples())
    cells = cell_replicates(runs, sampled, number, shared_seeds=True)
    difference, sample = np.mean(runs[1]) - np.mean(runs[0]), cells[1] - cells[0]
    first = np.log2(10) * generator.uniform(-3.5, -2.5)
    best = np.array([[first], [first + 1]])

    def is_found(shift: float, luck: np.ndarray | float = 0.0) -> bool:
        return interval(difference + shift, sample + shift + luck).p < 0.05

    outcomes = [[[is_found(-sharpness * ERROR) for sharpness in SHARPNESS]] * 4]
    for noise in TRIAL_NOISE:
        for budget in BUDGETS:
            losses = (drawn_rates(budget, number) - best) ** 2  # (2, N)
            errors = noise * generator.standard_normal(losses.shape)
            found = []
            for sharpness in SHARPNESS:
                values = ERROR * (errors - sharpness * losses)
                chosen = losses[[0, 1], np.argmax(values, axis=1)]
                shift = float(-sharpness * ERROR * (chosen[1] - chosen[0]))
                luck = np.subtract(*tuning_luck(values, REPLICATES, number)[::-1])
                better = shift + 3 * ERROR
                found.append([is_found(shift), is_found(shift, luck), is_found(better), is_found(better, luck)])
            outcomes.append(np.transpose(found))
    return np.array(outcomes)


def alarm_part(run: Callable) -> tuple[list[str], list[str], list[str]]:
    shares, failures, lines, power = np.mean(run(alarms), axis=0), [], [], []
    lines.append(f"| untuned, the best rate of the first cell | | | {percentages(shares[0, 0])} |")
    cases = [(noise, budget) for noise in TRIAL_NOISE for budget in BUDGETS]
    for (noise, budget), (plain, with_luck, found, found_with_luck) in zip(cases, shares[1:], strict=True):
        lines.append(f"| {noise:g} | {budget} | no | {percentages(plain)} |")
        lines.append(f"| {noise:g} | {budget} | yes | {percentages(with_luck)} |")
        power.append(f"| {noise:g} | {budget} | no | {percentages(found)} |")
        power.append(f"| {noise:g} | {budget} | yes | {percentages(found_with_luck)} |")
        limit = 0.05 + 2 * np.sqrt(0.05 * 0.95 / TRIALS)
        failures += [
            f"false alarms, {budget} trials, noise {noise:g}, sharpness {sharpness:g}, with luck: {share:.1%}"
            for sharpness, share in zip(SHARPNESS, with_luck, strict=True)
            if share > limit
        ]
    return lines, power, failures


def percentages(shares: Sequence[float]) -> str:
    return " | ".join(f"{share:.1%}" for share in shares)


# ---- curves and flips ---------------------------------------------------------------------------------------


class Row(NamedTuple):
    """How the score of a row depends on the rate: peak, loss per doubling squared, log10 of the best rate."""

    peak: float = 0.5
    sharpness: float = 0.0
    best: float = -3.0


class Case(NamedTuple):
    """Rows that are tuned with the same points. noise: of each trial. images: image noise of a row and of a trial."""

    rows: tuple[Row, ...]
    trials: int = 6
    noise: float = 0.01
    images: float = 0.0

    def draw(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the points and the scores on all images, (N,) and (K, N)."""
        rates, generator = drawn_rates(self.trials, number), np.random.default_rng([number, 2])
        distances = np.stack([rates - np.log2(10) * row.best for row in self.rows])
        peaks, sharpness = np.array([[row.peak, row.sharpness] for row in self.rows]).T[:, :, None]
        response = peaks - sharpness * distances**2
        return rates, np.maximum(response + self.noise * generator.standard_normal(response.shape), 0)

    def truth(self) -> np.ndarray:
        """Return the true curve of each row, (K, N): the mean over new points and new noise."""
        return np.mean([expected_best(self.draw(10**6 + number)[1]) for number in range(TRUTHS)], axis=0)

    def observe(self, number: int) -> dict:
        """Return the arguments of budget_curves: scores and replicates with image noise."""
        rates, scores = self.draw(number)
        generator, shape = np.random.default_rng([number, 3]), (*scores.shape, 1 + CURVE_REPLICATES)
        of_row = generator.normal(0, self.images, (shape[0], 1, shape[2]))
        errors = of_row + generator.normal(0, self.images, shape)
        values = scores + errors[:, :, 0]
        replicates = values[:, :, None] + errors[:, :, 1:]
        points = [{"rate": rate} for rate in rates.tolist()]
        return {"values": values, "replicates": replicates, "points": points, "seed": number}


FLAT, WIDE, STEEP, OUTSIDE = Row(), Row(sharpness=0.002), Row(sharpness=0.02), Row(sharpness=0.01, best=-1.0)
COVERED = {
    "noise only": Case((FLAT, FLAT)),
    "noise only, as much image noise": Case((FLAT, FLAT), images=0.01),
    "noise only, twice as much image noise": Case((FLAT, FLAT), images=0.02),
    "loss .002 per doubling²": Case((WIDE, WIDE._replace(best=-2.7))),
    "loss .002, with image noise": Case((WIDE, WIDE._replace(best=-2.7)), images=0.01),
    "loss .02 per doubling²": Case((STEEP, STEEP._replace(best=-2.7))),
    "loss .2 (half of the trials fail)": Case((Row(sharpness=0.2), Row(sharpness=0.2, best=-2.7))),
    "best rate outside the range (almost half of the trials fail)": Case((OUTSIDE, OUTSIDE)),
    **{f"{kind}, {n} trials": Case(rows, n) for n in (4, 12) for kind, rows in {
        "noise only": (FLAT, FLAT), "loss .002": (WIDE, WIDE._replace(best=-2.7)),
        "loss .02": (STEEP, STEEP._replace(best=-2.7)), "best rate outside": (OUTSIDE, OUTSIDE),
    }.items()},
}  # fmt: skip
SHARP = Row(sharpness=0.01, best=-2.7)
FLIPS = {
    "none: two rows, noise only": Case((FLAT, FLAT)),
    "none: two rows, image noise too": Case((FLAT, FLAT), images=0.01),
    "none: four rows, noise only": Case((FLAT,) * 4),
    "none: best rates differ by a factor of 2": Case((WIDE, WIDE._replace(best=-2.7))),
    "none: equal peaks, one is five times as sharp": Case((WIDE, SHARP)),
    "none: the same, 12 trials": Case((WIDE, SHARP), trials=12),
    "true: the sharper is better by .03": Case((WIDE, SHARP._replace(peak=0.53))),
    "true: better by .03, a fifth of the noise": Case((WIDE, SHARP._replace(peak=0.53)), noise=0.002),
    "true: better by .03, 12 trials": Case((WIDE, SHARP._replace(peak=0.53)), trials=12),
    "true: better by .02, 12 trials": Case((WIDE, SHARP._replace(peak=0.52)), trials=12),
    "true: better by .02, 24 trials": Case((WIDE, SHARP._replace(peak=0.52)), trials=24),
}


def coverage(number: int, case: Case, truth: np.ndarray) -> list[float]:
    """Return whether the bands of the first row's curve and of the lead cover the truth, and their half widths at N."""
    observed, result = case.observe(number), []
    curve, lead = budget_curves(**observed)[0], lead_curve(1, 0, **observed)
    for band, true in ((curve, truth[0]), (lead, truth[1] - truth[0])):
        inside = (band.low <= true + 1e-9) & (true - 1e-9 <= band.high)
        result += [inside.all(), inside.mean(), (band.high - band.low)[-1] / 2]
    return [*result, curve.estimate[-1]]


def coverage_part(run: Callable) -> tuple[list[str], list[str]]:
    lines, failures = [], []
    for name, case in COVERED.items():
        found = np.array(run(partial(coverage, case=case, truth=case.truth()), CURVE_TRIALS))
        whole, each, width, lead, lead_each, lead_width, _ = found.mean(axis=0)
        spread = found[:, -1].std()
        lines.append(
            f"| {name} | {whole:.1%} | {each:.1%} | {width:.3f} | {1.96 * spread:.3f} | {lead:.1%} | "
            f"{lead_each:.1%} | {lead_width:.3f} |"
        )
        lowest, highest = COVERAGE[0], COVERAGE[1] if "only" in name else 1.0
        if not lowest <= whole <= highest:
            failures.append(f"coverage of the curve, {name}: {whole:.1%}")
        if not lowest <= lead:
            failures.append(f"coverage of the lead, {name}: {lead:.1%}")
    return lines, failures


def bootstrapped(number: int, case: Case, truth: np.ndarray) -> tuple[bool, bool]:
    """Return whether the percentile bootstrap of the trials covers the true curve of the first row, whole and at N."""
    trials = case.draw(number)[1][0]
    drawn = np.random.default_rng([number, 4]).integers(case.trials, size=(REPLICATES, case.trials))
    sample = expected_best(trials[drawn])
    low, high = simultaneous_band(sample, 0.05)
    lowest, highest = np.quantile(sample[:, -1], [0.025, 0.975])
    return bool(np.all((low <= truth[0]) & (truth[0] <= high))), bool(lowest <= truth[0, -1] <= highest)


def bootstrap_part(run: Callable) -> list[str]:
    lines = []
    for response in ("noise only", "loss .002 per doubling²"):
        for trials in BOOTSTRAP_TRIALS:
            case = COVERED[response]._replace(trials=trials)
            whole, last = np.mean(run(partial(bootstrapped, case=case, truth=case.truth())), axis=0)
            lines.append(f"| {response}, {trials} trials | {whole:.1%} | {last:.1%} |")
    return lines


def flipped(number: int, case: Case) -> tuple[bool, bool, float]:
    """Return whether a flip is estimated and shown, and from how many trials on it is shown (or nan)."""
    flip = flip_budget(**case.observe(number))
    return flip.estimated is not None, flip.shown is not None, flip.shown[0] if flip.shown else np.nan


def flip_part(run: Callable) -> tuple[list[str], list[str]]:
    lines, failures = [], []
    for name, case in FLIPS.items():
        truth, found = case.truth(), np.array(run(partial(flipped, case=case), CURVE_TRIALS))
        changes = np.flatnonzero(np.argmax(truth, axis=0) != np.argmax(truth[:, 0]))
        at = f"{changes[0] + 1}" if changes.size and name.startswith("true") else "none"
        shown_at = f"{np.nanmedian(found[:, 2]):.0f}" if found[:, 1].any() else ""
        lines.append(f"| {name} | {at} | {found[:, 0].mean():.1%} | {found[:, 1].mean():.1%} | {shown_at} |")
        if at == "none" and found[:, 1].mean() > 0.05:
            failures.append(f"flip shown, {name}: {found[:, 1].mean():.1%}")
    return lines, failures


# ---- the page -----------------------------------------------------------------------------------------------


def measure(device: torch.device) -> Page:
    """Run all simulations."""
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:

        def run(trial: Callable, trials: int = TRIALS) -> list:
            return list(pool.map(trial, range(trials), chunksize=50))

        biases, bias_failures = bias_part(run)
        false, power, alarm_failures = alarm_part(run)
        covered, coverage_failures = coverage_part(run)
        of_bootstrap = bootstrap_part(run)
        flips, flip_failures = flip_part(run)
    lines, header = "\n".join, " | ".join(f"c = {each:g}" for each in SHARPNESS)
    rule = "|---" * (3 + len(SHARPNESS)) + "|"
    text = f"""# Tuning with the same budget: bias, false alarms, budget curves and flips

Scores are simulated with known true values (see the script). {TRIALS:,} experiments per figure of bias \
and false alarms, and {CURVE_TRIALS} per figure of curves and flips: a share of 5% or 95% has a standard error of 0.7 \
or 1.0 percentage points. The learning rate is drawn from 1e-4 to 1e-2 (6.6 doublings).

## Bias of the reported score, if all points are equally good

6 points; one trial each. Target: no bias (within two standard errors) with a tune split.

| chosen on; reported | reported minus true score |
|---|---|
{lines(biases)}

## False alarms: equal peaks, best rates a factor of 2 apart

Two rows are tuned, and trained with the chosen rates and three seeds on {IMAGES} images. Unit of the trial noise and \
of the sharpness c, the loss for a rate one doubling off: the standard error of the final difference. Luck: the noise \
of `tuning_luck` is added to the replicates. Target: at most 5% with luck (within two standard errors).

| trial noise | trials | luck | {header} |
{rule}
{lines(false)}

Power, if the second row is better by three standard errors:

| trial noise | trials | luck | {header} |
{rule}
{lines(power)}

## Coverage of budget curves

95% bands of the expected best of n trials and of the lead of the second row, {CURVE_REPLICATES} resamples; 6 trials \
and trial noise .01 if not stated. Whole: the true value is inside the band at all n; each: mean over n. Half width: \
at n = N; ideal: 1.96 times the true standard deviation of the estimate. The true curve is that of new points, new \
noise and all images. Target: whole curve 93% to 97% if trials differ by noise only, at least 93% otherwise.

| case | whole curve | each n | half width | ideal | whole lead | each n | half width |
|---|---|---|---|---|---|---|---|
{lines(covered)}

## Coverage of the percentile bootstrap of the trials

For comparison, without a target: intervals of the same curves from {REPLICATES:,} resamples of the N trials. Whole: a \
band for all n, as above; n = N: the quantiles 2.5% and 97.5%. {TRIALS:,} experiments: a share of 50% has a standard \
error of 1.6 percentage points.

| case | whole curve | n = N |
|---|---|---|
{lines(of_bootstrap)}

## Flips

True: the smallest n at which the true winner changes. Target: shown in at most 5% if there is no flip.

| case | true | estimated | shown | median n, if shown |
|---|---|---|---|---|
{lines(flips)}
"""
    failures = [*bias_failures, *alarm_failures, *coverage_failures, *flip_failures]
    return Page(text, failures=failures)


if __name__ == "__main__":
    run_benchmark(measure)
