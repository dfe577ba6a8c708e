"""Do the intervals of stats/bootstrap.py cover what they should, and how fast are they?

    OMP_NUM_THREADS=1 python benchmarks/bootstrap.py

Detectors are simulated, so that their true difference is known. Images are harder or easier for every detector, and so
are single objects; the better an object suits a detector, the better its box and, on the whole, its score. False
positives sit on distractors that all detectors see. A detector answers to objects in its own way (shared by its runs),
and each run in its own. True scores are those of very large sets, 100,000 images.

Each trial draws a validation set, simulates runs on it and asks for the 95% interval of differences of mAP. Writes
benchmarks/bootstrap.md. Takes 15 to 20 minutes on 2 cores.
"""

import math
import platform
import resource
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from engine.command import RunError, run_command
from engine.logbook import start_logging
from records.experiment import describe_environment
from stats import bootstrap
from stats.bootstrap import Interval, average_precision, cell_replicates, image_weights, interval
from stats.image_statistics import Matches

ONE_RUN_TRIALS, SEVERAL_RUNS_TRIALS, REPLICATES = 1000, 400, 1000
PROCESSES = 2
COVERAGE, FALSE_ALARMS = (0.92, 0.98), (0.03, 0.07)  # asked
MOST_SECONDS, MOST_MIB = 90, 4096  # asked of one pair at the scale of COCO val2017
SETS = {"72 images, 3 classes": (72, 3), "300 images, 8 classes": (300, 8), "100 images, 20 classes": (100, 20)}
SKILLS = (0.5, 0.5, 0.7, 1.5)  # of detectors with one run: one, its equal, a better and a much better one
SEED_SET = (150, 5)  # images, classes
SEED_SPREADS = (0.0, 0.03, 0.08)  # of skill, between the runs of a cell
CELL_SKILLS, RUNS = (0.5, 0.5, 0.7, 0.6), 3
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


# ---- simulated detectors -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """Simulated images: their objects, easy ones above 0, and distractors, convincing ones above 0."""

    num_images: int
    num_classes: int
    object_images: np.ndarray
    object_classes: np.ndarray
    ease: np.ndarray
    distractor_images: np.ndarray
    distractor_classes: np.ndarray
    likeness: np.ndarray


def simulate_scene(
    num_images: int, num_classes: int, generator: np.random.Generator, objects: float = 3, distractors: float = 6
) -> Scene:
    """Images with so many objects and distractors on average; class k has a share proportional to 1 / k."""
    shares = 1 / np.arange(1, num_classes + 1)
    shares /= shares.sum()
    image_ease = generator.normal(0, 0.6, num_images)
    object_images = np.repeat(np.arange(num_images), generator.poisson(objects, num_images))
    crowding = np.exp(-0.5 * image_ease - 0.045)  # 1 on average: hard images have more of what misleads
    distractor_images = np.repeat(np.arange(num_images), generator.poisson(distractors * crowding))
    return Scene(
        num_images,
        num_classes,
        object_images,
        generator.choice(num_classes, len(object_images), p=shares),
        image_ease[object_images] + generator.normal(0, 0.8, len(object_images)),
        distractor_images,
        generator.choice(num_classes, len(distractor_images), p=shares),
        generator.normal(-1.5, 0.8, len(distractor_images)),
    )


def simulate_runs(scene: Scene, skills: Iterable[float], generator: np.random.Generator) -> list[Matches]:
    """Runs of one detector, one per skill; objects and distractors suit them alike but for a part of their own."""
    num_objects, num_distractors = len(scene.ease), len(scene.likeness)
    suits = scene.ease + generator.normal(0, 0.4, num_objects)
    misleads = scene.likeness + generator.normal(0, 0.5, num_distractors)
    runs = []
    for skill in skills:
        quality = skill + suits + generator.normal(0, 0.45, num_objects)
        logits = np.concatenate([
            0.9 * quality + generator.normal(0, 0.7, num_objects),
            misleads - 0.2 * skill + generator.normal(0, 0.5, num_distractors),
        ])  # fmt: skip
        overlap = np.concatenate([0.3 + 0.7 / (1 + np.exp(-quality)), np.zeros(num_distractors)])
        scores = np.round(1 / (1 + np.exp(-logits)), 4)
        images = np.concatenate([scene.object_images, scene.distractor_images])
        classes = np.concatenate([scene.object_classes, scene.distractor_classes])
        order = np.lexsort((-scores, images, classes))
        true_positives = overlap[order, None] >= IOU_THRESHOLDS
        runs.append(
            Matches(
                np.arange(scene.num_images),
                np.arange(scene.num_classes).astype(str),
                IOU_THRESHOLDS,
                images[order].astype(np.int32),
                classes[order].astype(np.int16),
                scores[order],
                true_positives,
                np.zeros_like(true_positives),
                scene.object_images.astype(np.int32),
                scene.object_classes.astype(np.int16),
            )
        )
    return runs


def scores_of(matches: Matches, weights: np.ndarray) -> np.ndarray:
    return bootstrap.mean_average_precision(average_precision(matches, weights))


def scores_and_replicates(matches: Matches, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """mAP on the images as they are, and on each resample."""
    scores = scores_of(matches, np.concatenate([np.ones_like(weights[:1]), weights]))
    return scores[0], scores[1:]


def true_scores(batch: int, num_classes: int, skills: tuple[float, ...], spread: float) -> list[float]:
    """mAP on 25,000 images of detectors of these skills, on average over seeds (Gauss-Hermite quadrature).

    All detectors meet the same images and the same chance, so that differences are all but free of noise."""
    scene = simulate_scene(25_000, num_classes, np.random.default_rng([batch, 1]))
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(5) if spread else (np.zeros(1), np.ones(1))
    ones = np.ones((1, scene.num_images), dtype=int)
    scores = []
    for skill in skills:
        of_nodes = []
        for node in nodes:
            (run,) = simulate_runs(scene, [skill + spread * node], np.random.default_rng([batch, 2]))
            of_nodes.append(scores_of(run, ones)[0])
        scores.append(float(np.average(of_nodes, weights=node_weights)))
    return scores


# ---- trials ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What one way to make an interval said in one trial."""

    way: str
    contrast: str  # "equal" or "better", ...
    truth: float
    error: float  # estimate - truth
    interval: Interval

    @property
    def covers(self) -> bool:
        return self.interval.low <= self.truth <= self.interval.high


def one_run_trial(trial: int, size: tuple[int, int], truths: list[float]) -> list[Outcome]:
    """Detectors with one run each, compared with the first of them."""
    generator = np.random.default_rng([trial, *size])
    scene = simulate_scene(*size, generator)
    weights = image_weights(scene.num_images, REPLICATES, trial)
    runs = [simulate_runs(scene, [skill], generator)[0] for skill in SKILLS]
    kept = [scores_and_replicates(run, weights) for run in runs]
    dropped = [scores_of(run, np.minimum(weights, 1)) for run in runs]
    outcomes = []
    for k, contrast in enumerate(("equal", "better", "much better"), start=1):
        estimate, replicates = kept[k][0] - kept[0][0], kept[k][1] - kept[0][1]
        truth = truths[k] - truths[0]
        for way, drawn in (
            ("percentile", replicates),
            ("centred", replicates - replicates.mean() + estimate),
            ("reversed", 2 * estimate - replicates),
            ("dropped", dropped[k] - dropped[0]),
        ):
            outcomes.append(Outcome(way, contrast, truth, estimate - truth, interval(estimate, drawn)))
    return outcomes


def several_runs_trial(trial: int, spread: float, truths: list[float]) -> list[Outcome]:
    """Four detectors with three runs each; the second and third are compared with the first."""
    generator = np.random.default_rng([trial, *SEED_SET, round(1000 * spread)])
    scene = simulate_scene(*SEED_SET, generator)
    weights = image_weights(scene.num_images, REPLICATES, trial)
    estimates, replicates = [], []
    for skill in CELL_SKILLS:
        runs = simulate_runs(scene, skill + spread * generator.standard_normal(RUNS), generator)
        scores = [scores_and_replicates(run, weights) for run in runs]
        estimates.append([score for score, _ in scores])
        replicates.append(np.stack([drawn for _, drawn in scores]))

    means = [np.broadcast_to(part.mean(axis=0), part.shape) for part in replicates]  # as if runs erred alike
    literal = [
        np.take_along_axis(part, generator.integers(RUNS, size=part.shape), axis=0).mean(axis=0) for part in replicates
    ]
    grid = cell_replicates(estimates, replicates, trial)
    outcomes = []
    for k, contrast in ((1, "equal"), (2, "better")):
        pair = cell_replicates([estimates[0], estimates[k]], [replicates[0], replicates[k]], trial)
        twice = cell_replicates([estimates[0], estimates[k]], [means[0], means[k]], trial)
        estimate, truth = np.mean(estimates[k]) - np.mean(estimates[0]), truths[k] - truths[0]
        for way, drawn in (
            ("pair", pair[1] - pair[0]),
            ("grid", grid[k] - grid[0]),
            ("images only", means[k][0] - means[0][0]),
            ("literal", literal[k] - literal[0]),
            ("twice", twice[1] - twice[0]),
        ):
            outcomes.append(Outcome(way, contrast, truth, estimate - truth, interval(estimate, drawn)))
    return outcomes


# ---- time --------------------------------------------------------------------------------------------------


def time_a_pair() -> dict[str, float]:
    """One pair at the scale of COCO val2017: 5,000 images, 80 classes, 100 detections per image, 1,000 resamples."""
    generator = np.random.default_rng(0)
    scene = simulate_scene(5000, 80, generator, objects=7.2, distractors=92.8)
    runs = [simulate_runs(scene, [skill], generator)[0] for skill in (0.5, 0.7)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    weights = image_weights(5000, 1000, seed=0)
    (score_a, drawn_a), (score_b, drawn_b) = (scores_and_replicates(run, weights) for run in runs)
    interval(score_b - score_a, drawn_b - drawn_a)
    return {
        "seconds": time.perf_counter() - started,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "before_mib": before,
        "detections": len(runs[0].scores),
        "objects": len(runs[0].object_images),
    }


def one_thread() -> None:
    """For a process that shares the machine with others like it."""
    bootstrap.THREADS = 1


# ---- tables ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """All trials of one way to make intervals, for one contrast."""

    truth: float
    coverage: float
    significant: float  # share of trials with p < 0.05
    mean_error: float  # of the estimates
    deviation: float  # standard deviation of the estimates, what the standard error estimates
    standard_error: float  # mean over trials

    @classmethod
    def of(cls, outcomes: list[Outcome], way: str, contrast: str) -> "Summary":
        chosen = [outcome for outcome in outcomes if (outcome.way, outcome.contrast) == (way, contrast)]
        return cls(
            chosen[0].truth,
            float(np.mean([outcome.covers for outcome in chosen])),
            float(np.mean([outcome.interval.p < 0.05 for outcome in chosen])),
            float(np.mean([outcome.error for outcome in chosen])),
            float(np.std([outcome.error for outcome in chosen])),
            float(np.mean([outcome.interval.standard_error for outcome in chosen])),
        )


def percent(*shares: float) -> str:
    return " | ".join(f"{100 * share:.1f}%" for share in shares)


def standard_error(trials: int) -> float:
    """Of a share of 95%, in percentage points."""
    return 100 * math.sqrt(0.95 * 0.05 / trials)


def one_run_table(outcomes_of: dict[str, list[Outcome]]) -> list[str]:
    lines = [
        "| set | against | true difference | covered | p < 0.05 | estimates: mean error | deviation | standard error "
        "| covered: centred | reversed | dropped | standard error: dropped |",
        "|---" * 12 + "|",
    ]
    for name, outcomes in outcomes_of.items():
        for contrast in ("equal", "better", "much better"):
            found, centred, reverse, dropped = (
                Summary.of(outcomes, way, contrast) for way in ("percentile", "centred", "reversed", "dropped")
            )
            lines.append(
                f"| {name} | {contrast} | {found.truth:.4f} | {percent(found.coverage, found.significant)} "
                f"| {found.mean_error:.4f} | {found.deviation:.4f} | {found.standard_error:.4f} "
                f"| {percent(centred.coverage, reverse.coverage, dropped.coverage)} | {dropped.standard_error:.4f} |"
            )
    return lines


def several_runs_table(outcomes_of: dict[float, list[Outcome]]) -> list[str]:
    lines = [
        "| spread of skill | against | true difference | covered: pair | p < 0.05 | covered: grid | p < 0.05 "
        "| estimates: mean error | deviation | standard error: pair | grid | covered: images only | literal | twice |",
        "|---" * 14 + "|",
    ]
    for spread, outcomes in outcomes_of.items():
        for contrast in ("equal", "better"):
            pair, grid, images, literal, twice = (
                Summary.of(outcomes, way, contrast) for way in ("pair", "grid", "images only", "literal", "twice")
            )
            lines.append(
                f"| {spread:g} | {contrast} | {pair.truth:.4f} "
                f"| {percent(pair.coverage, pair.significant, grid.coverage, grid.significant)} "
                f"| {pair.mean_error:.4f} | {pair.deviation:.4f} "
                f"| {pair.standard_error:.4f} | {grid.standard_error:.4f} "
                f"| {percent(images.coverage, literal.coverage, twice.coverage)} |"
            )
    return lines


def outside(outcomes_of: dict, ways: tuple[str, ...]) -> list[str]:
    """What of the ways that stats/bootstrap.py offers is not as asked."""
    found = []
    for name, outcomes in outcomes_of.items():
        for way in ways:
            for contrast in dict.fromkeys(outcome.contrast for outcome in outcomes):
                summary = Summary.of(outcomes, way, contrast)
                if not COVERAGE[0] <= summary.coverage <= COVERAGE[1]:
                    found.append(f"{name}, {way}, {contrast}: covered {percent(summary.coverage)}")
                if contrast == "equal" and not FALSE_ALARMS[0] <= summary.significant <= FALSE_ALARMS[1]:
                    found.append(f"{name}, {way}, {contrast}: p < 0.05 in {percent(summary.significant)}")
    return found


def main(device: torch.device) -> None:
    """Run every trial and write the tables."""
    start_logging(None, verbose=True)
    started = time.perf_counter()
    spawn = get_context("spawn")  # a process that has done nothing else yet, for its peak memory
    with ProcessPoolExecutor(1, spawn) as pool:
        timing = pool.submit(time_a_pair).result()

    one_run, several_runs, truth_error = {}, {}, 0.0
    with ProcessPoolExecutor(PROCESSES, spawn, initializer=one_thread) as pool:

        def truths_of(num_classes: int, skills: tuple[float, ...], spread: float) -> list[float]:
            nonlocal truth_error
            call = partial(true_scores, num_classes=num_classes, skills=skills, spread=spread)
            batches = np.array(list(pool.map(call, range(4))))
            gaps = batches - batches[:, :1]
            truth_error = max(truth_error, (gaps.std(axis=0, ddof=1) / np.sqrt(len(gaps))).max())
            return batches.mean(axis=0).tolist()

        for name, size in SETS.items():
            call = partial(one_run_trial, size=size, truths=truths_of(size[1], SKILLS, 0.0))
            one_run[name] = list(chain.from_iterable(pool.map(call, range(ONE_RUN_TRIALS))))
        for spread in SEED_SPREADS:
            truths = truths_of(SEED_SET[1], CELL_SKILLS, spread)
            call = partial(several_runs_trial, spread=spread, truths=truths)
            several_runs[spread] = list(chain.from_iterable(pool.map(call, range(SEVERAL_RUNS_TRIALS))))

    environment = describe_environment([platform.node()], device)
    unmet = outside(one_run, ("percentile",)) + outside(several_runs, ("pair", "grid"))
    text = f"""# Are the intervals right, and how fast are they?

`python benchmarks/bootstrap.py`, {date.today()}, commit {environment["commit"]}, {environment["cpu"]}, {PROCESSES} \
processes, numpy {np.__version__}; {(time.perf_counter() - started) / 60:.0f} minutes.

Detectors are simulated (see the script), so that their true difference of mAP is known, to \
{truth_error:.4f} or better; {REPLICATES:,} resamples. Asked: 95% intervals cover it in {percent(COVERAGE[0])} to \
{percent(COVERAGE[1])} of trials, and p < 0.05 in {percent(FALSE_ALARMS[0])} to {percent(FALSE_ALARMS[1])} of them \
for equal detectors.

Not as asked: {"; ".join(unmet) or "none"}.

## One run per detector, {ONE_RUN_TRIALS} trials

{chr(10).join(one_run_table(one_run))}

Covered: by the percentile interval, which is what `interval` gives. Centred: the same, shifted so that the mean \
of the replicates is the estimate. Reversed: 2 estimate - replicates. Dropped: every drawn image counts once, \
however often it was drawn. A share of 95% is known to {standard_error(ONE_RUN_TRIALS):.1f} percentage points (one \
standard error). On few objects of a class AP differs less between detectors than on many, which shortens the largest \
differences and costs their intervals coverage (mean error); the much better detector shows where that begins.

## {RUNS} runs per detector, {SEED_SET[0]} images, {SEED_SET[1]} classes, {SEVERAL_RUNS_TRIALS} trials

{chr(10).join(several_runs_table(several_runs))}

Spread of skill: standard deviation between the runs of a cell; 0.2 of skill is what the better detector has \
more. Pair: `cell_replicates` of the two cells, 4 degrees of freedom. Grid: of all four cells, 8 degrees of \
freedom. Images only: no seed part. Literal: the runs of a cell resampled as the images are. Twice: the seed \
part without taking out what the images already explain. A share of 95% is known to \
{standard_error(SEVERAL_RUNS_TRIALS):.1f} percentage points.

## Time

A pair at the scale of COCO val2017 (5,000 images, 80 classes, {timing["detections"]:,} detections, \
{timing["objects"]:,} objects), 1,000 resamples, {bootstrap.THREADS} threads: {timing["seconds"]:.1f} s; peak \
memory {timing["peak_mib"]:.0f} MiB, of which {timing["before_mib"]:.0f} MiB before (Python, PyTorch, making the \
detections). Asked: {MOST_SECONDS} s, {MOST_MIB} MiB.
"""
    Path(__file__).with_suffix(".md").write_text(text)
    print(text)
    if unmet or timing["seconds"] > MOST_SECONDS or timing["peak_mib"] > MOST_MIB:
        raise RunError(f"not as asked, see {Path(__file__).with_suffix('.md')}")


if __name__ == "__main__":
    run_command(main)
