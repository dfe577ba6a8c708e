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


def one_run_trial(trial: int, size: tuple[int, int], truths: list[float]) -> list[Outcome]:
    """Detectors with one run each, compared with the first of them."""
    generator = np.random.default_rng([trial, *size])
    scene = simulate_scene(*size, generator)
    weights = image_weights(scene.num_images, REPLICATES, trial)
    runs = [scores_and_replicates(simulate_runs(scene, [skill], generator)[0], weights) for skill in SKILLS]
    outcomes = []
    for k, contrast in enumerate(("equal", "better", "much better"), start=1):
        estimate, truth = runs[k][0] - runs[0][0], truths[k] - truths[0]
        drawn = interval(estimate, runs[k][1] - runs[0][1])
        outcomes.append(Outcome("percentile", contrast, truth, estimate - truth, drawn))
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
    grid = cell_replicates(estimates, replicates, trial)
    outcomes = []
    for k, contrast in ((1, "equal"), (2, "better")):
        pair = cell_replicates([estimates[0], estimates[k]], [replicates[0], replicates[k]], trial)
        estimate, truth = np.mean(estimates[k]) - np.mean(estimates[0]), truths[k] - truths[0]
        for way, drawn in (
            ("pair", pair[1] - pair[0]),
            ("grid", grid[k] - grid[0]),
            ("images only", replicates[k].mean(axis=0) - replicates[0].mean(axis=0)),
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

COLUMNS = ("simulated", "against", "interval", "true difference", "covered", "p < 0.05", "mean error of the estimate",
           "its deviation", "mean standard error")  # fmt: skip


def table(outcomes_of: dict[str, list[Outcome]]) -> tuple[str, list[str]]:
    """Return the table of all trials, and what of it is not as asked."""
    lines, unmet = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"], []
    for name, outcomes in outcomes_of.items():
        for way, contrast in dict.fromkeys((outcome.way, outcome.contrast) for outcome in outcomes):
            chosen = [outcome for outcome in outcomes if (outcome.way, outcome.contrast) == (way, contrast)]
            covered = np.mean([each.interval.low <= each.truth <= each.interval.high for each in chosen])
            significant = np.mean([each.interval.p < 0.05 for each in chosen])
            errors = [each.error for each in chosen]
            standard_error = np.mean([each.interval.standard_error for each in chosen])
            lines.append(
                f"| {name} | {contrast} | {way} | {chosen[0].truth:.4f} | {covered:.1%} | {significant:.1%} "
                f"| {np.mean(errors):.4f} | {np.std(errors):.4f} | {standard_error:.4f} |"
            )
            is_false = contrast == "equal" and not FALSE_ALARMS[0] <= significant <= FALSE_ALARMS[1]
            if way != "images only" and (is_false or not COVERAGE[0] <= covered <= COVERAGE[1]):
                unmet.append(f"{name}, {way}, {contrast}: covered {covered:.1%}, p < 0.05 in {significant:.1%}")
    return "\n".join(lines), unmet


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
            several_runs[f"{RUNS} runs, spread {spread:g}"] = list(
                chain.from_iterable(pool.map(call, range(SEVERAL_RUNS_TRIALS)))
            )

    environment = describe_environment([platform.node()], device)
    (one_table, unmet), (several_table, more) = table(one_run), table(several_runs)
    unmet += more
    text = f"""# Are the intervals right, and how fast are they?

`python benchmarks/bootstrap.py`, {date.today()}, commit {environment["commit"]}, {environment["cpu"]}, {PROCESSES} \
processes, numpy {np.__version__}; {(time.perf_counter() - started) / 60:.0f} minutes.

Detectors are simulated (see the script), so that their true difference of mAP is known, to \
{truth_error:.4f} or better; {REPLICATES:,} resamples. Asked: 95% intervals cover it in {COVERAGE[0]:.0%} to \
{COVERAGE[1]:.0%} of trials, and p < 0.05 in {FALSE_ALARMS[0]:.0%} to {FALSE_ALARMS[1]:.0%} of them \
for equal detectors.

Not as asked: {"; ".join(unmet) or "none"}.

## One run per detector, {ONE_RUN_TRIALS} trials

{one_table}

On few objects of a class AP differs less between detectors than on many, which shortens the largest differences and \
costs their intervals coverage (mean error); the much better detector shows where that begins.

## {RUNS} runs per detector, {SEED_SET[0]} images, {SEED_SET[1]} classes, {SEVERAL_RUNS_TRIALS} trials

{several_table}

Spread: standard deviation of skill between the runs of a cell; the better detector has 0.2 more skill. Pair: \
`cell_replicates` of the two cells, 4 degrees of freedom. Grid: of all four cells, 8 degrees of freedom. Images only: \
no seed part. A share of 95% has a standard error of {100 * math.sqrt(0.95 * 0.05 / ONE_RUN_TRIALS):.1f} (one run) and \
{100 * math.sqrt(0.95 * 0.05 / SEVERAL_RUNS_TRIALS):.1f} (several runs) percentage points.

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
