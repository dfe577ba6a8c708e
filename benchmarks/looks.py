"""False alarms, power and seeds of planned looks (stats/looks.py, ablation/looks.py), and of looking without a plan.

    OMP_NUM_THREADS=1 python -m benchmarks.looks

Scores are simulated with known variances of seeds and images (benchmarks/simulated_scores.py). A trial trains up to 10
seeds per cell and compares the first cell with the others: after every seed without a plan, and at 3, 5 and 8 seeds
with the plan, in which cells of settled differences get no more seeds. Takes 4 minutes of CPU time.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch

from ablation.comparison import Cell, Comparison, Difference, Family
from ablation.looks import Judged, judge
from benchmarks.comparison import Page, run_benchmark
from benchmarks.simulated_scores import Population, simulate
from stats.bootstrap import image_weights
from stats.contrasts import assess_family, mean_difference
from stats.replicates import cell_replicates

IMAGES, REPLICATES, PROCESSES, BATCH = 200, 2000, 2, 50
NAIVE_REPLICATES = 1000  # enough for a level of 5%
PLANNED, MOST_SEEDS = (3, 5, 8), 10
TRIALS = {"equal": 2000, "better": 500}
RUNS = Population((0.0, 0.0), run_sd=0.02, image_sd=0.3, run_image_sd=0.1)
BOTH = Population((0.0, 0.0), run_sd=0.01, image_sd=0.3, cell_image_sd=0.1, run_image_sd=0.1)
# by name, which starts with the number of cells
CASES = {"2 cells, runs differ": RUNS, "2 cells, images matter too": BOTH, "4 cells, images matter too": BOTH}


class Outcome(NamedTuple):
    """What a trial found: whether any difference is significant, and the seeds per cell, averaged over the cells."""

    without_plan: bool  # tested after every seed from 2 to 10
    all_seeds: bool  # tested at the planned looks, with all seeds trained
    stopping: bool  # tested at the planned looks, with seeds only for open differences
    one_look: bool  # tested once, with the seeds of the last look
    seeds: float  # with stopping
    fractions: tuple[float, ...]  # information fraction of each look, with all seeds


def comparison_of(scores: Sequence[np.ndarray]) -> Comparison:
    """Return a comparison of simulated cells. scores: for each cell, the scores of its runs, (n_k, 1 + R)."""
    places = [("", f"cell {number}") for number in range(len(scores))]
    cells = {
        place: Cell(*place, [SimpleNamespace(seed=seed, score=score) for seed, score in enumerate(each[:, 0])])
        for place, each in zip(places, scores, strict=True)
    }
    run_scores, replicates = dict(zip(places, scores, strict=True)), scores[0].shape[1] - 1
    contrasts = [mean_difference([place], places[:1]) for place in places[1:]]
    found = assess_family(contrasts, dict.fromkeys(places, 0.0), np.zeros((len(places), 1)))  # `judge` assesses again
    differences = [
        Difference(**vars(each), label=place[1], contrast=contrast)
        for each, place, contrast in zip(found, places[1:], contrasts, strict=True)
    ]
    columns = [column for _, column in places]
    families = {Family("difference", "Differences"): differences}
    return Comparison(
        "", "", "", "", [""], columns, cells, places[0], replicates, run_scores=run_scores, families=families
    )


def judged(scores: Sequence[np.ndarray]) -> Judged:
    """Return the verdicts of the planned looks on simulated cells."""
    comparison = comparison_of(scores)
    return judge(comparison.differences, comparison, PLANNED, range(MOST_SEEDS))


def is_significant(result: Judged) -> bool:
    return any(each.is_significant for each in result.differences)


def judged_with_stopping(scores: Sequence[np.ndarray]) -> tuple[Judged, list[int]]:
    """Return the verdicts if only cells of open differences get more seeds, and the seeds of each cell."""
    counts, known = [0] * len(scores), [PLANNED[0]] * len(scores)
    while counts != known:
        counts = known
        result = judged([each[:count] for each, count in zip(scores, counts, strict=True)])
        known = list(result.needed.values())
    return result, counts


def smallest_p(scores: Sequence[np.ndarray], seeds: int, replicates: int) -> float:
    """Return the smallest p (Holm) of the differences from the first cell, with the first seeds of each cell."""
    estimates, resampled = ([each[:seeds, part] for each in scores] for part in (0, slice(1, 1 + replicates)))
    cells = cell_replicates(estimates, resampled, seed=0, shared_seeds=True)
    means = {number: np.mean(each) for number, each in enumerate(estimates)}
    contrasts = [mean_difference([number], [0]) for number in range(1, len(scores))]
    return min(each.p_holm for each in assess_family(contrasts, means, cells))


def trials(batch: int, case: str, population: Population, count: int) -> list[Outcome]:
    """Simulate `count` trials that share the resamples, but not the images or runs."""
    generator = np.random.default_rng([batch, *case.encode()])
    weights, outcomes = image_weights(IMAGES, REPLICATES, seed=batch), []
    for _ in range(count):
        simulated = zip(*simulate(generator, population, MOST_SEEDS, weights), strict=True)
        scores = [np.concatenate([on_set[:, None], resampled], axis=1) for on_set, resampled in simulated]
        stopped, seeds = judged_with_stopping(scores)
        full = judged(scores)
        outcomes.append(
            Outcome(
                not any(population.means)
                and any(smallest_p(scores, n, NAIVE_REPLICATES) < 0.05 for n in range(2, MOST_SEEDS + 1)),
                is_significant(full),
                is_significant(stopped),
                smallest_p(scores, PLANNED[-1], REPLICATES) < 0.05,
                float(np.mean(seeds)),
                tuple(full.fractions),
            )
        )
    return outcomes


def rates_of(pool: ProcessPoolExecutor, case: str, population: Population, count: int) -> dict[str, float]:
    """Run `count` trials, and return the mean of each field of Outcome, and of the information at the first looks."""
    task = partial(trials, case=case, population=population, count=BATCH)
    found = [each for part in pool.map(task, range(count // BATCH)) for each in part]
    rates = {name: float(np.mean([getattr(each, name) for each in found])) for name in Outcome._fields[:-1]}
    for look in (0, 1):
        known = [each.fractions[look] for each in found if len(each.fractions) > look]
        rates[f"information {look}"] = float(np.mean(known))
    return rates


def measure(device: torch.device) -> Page:
    """Run all trials, with equal cells and with one better cell."""
    false_alarms, power, failures = [], [], []
    limit = 0.05 + 2 * np.sqrt(0.05 * 0.95 / TRIALS["equal"])
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        for case, population in CASES.items():
            equal = replace(population, means=(0.0,) * int(case[0]))
            difference = 3 * population.standard_error([-1, 1], PLANNED[-1], IMAGES)
            better = replace(equal, means=(*equal.means[:-1], difference))
            rates = rates_of(pool, f"{case}, equal", equal, TRIALS["equal"])
            shown = [f"{rates[name]:.1%}" for name in Outcome._fields[:4]] + [f"{rates['seeds']:.1f}"]
            information = f"{rates['information 0']:.2f}, {rates['information 1']:.2f}"
            false_alarms.append(f"| {case} | {information} | {' | '.join(shown)} |")
            failures += [
                f"{case}, {name}: {rates[name]:.1%} false alarms"
                for name in ("all_seeds", "stopping")
                if rates[name] > limit
            ]
            rates = rates_of(pool, f"{case}, better", better, TRIALS["better"])
            shown = [f"{rates[name]:.1%}" for name in Outcome._fields[1:4]] + [f"{rates['seeds']:.1f}"]
            power.append(f"| {case} | {' | '.join(shown)} |")
    chance = np.sqrt(0.05 * 0.95 / TRIALS["equal"])
    text = f"""# Looks at a grid while seeds are added

Scores are simulated: {IMAGES} images, {REPLICATES:,} resamples. The first cell is compared with the others, with \
Holm correction. Without a plan: tested after every seed from 2 to {MOST_SEEDS}, until a difference is significant. \
Planned: tested at {", ".join(map(str, PLANNED))} seeds, at the levels of stats/looks.py. Stopping: cells of settled \
differences get no more seeds; a difference is settled if it is significant, or if its conditional power is below 10%. \
One look: tested once, at {PLANNED[-1]} seeds. Seeds: mean per cell with stopping; one look needs {PLANNED[-1]}.

## False alarms: all cells are equal

{TRIALS["equal"]:,} trials, so that a rate of 5% has a standard error of {chance:.1%}. Information: mean estimated \
information fraction of the first two looks. Target: at most 5%, within two standard errors.

| case | information | without a plan | planned, all seeds | planned, stopping | one look | seeds |
|---|---|---|---|---|---|---|
{chr(10).join(false_alarms)}

## Power: one cell is better by three standard errors at {PLANNED[-1]} seeds

{TRIALS["better"]:,} trials.

| case | planned, all seeds | planned, stopping | one look | seeds |
|---|---|---|---|---|
{chr(10).join(power)}
"""
    return Page(text, failures=failures)


if __name__ == "__main__":
    run_benchmark(measure)
