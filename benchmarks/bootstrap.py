"""Coverage and speed of the confidence intervals of stats/bootstrap.py.

    OMP_NUM_THREADS=1 python -m benchmarks.bootstrap

Detectors are simulated, so their true difference is known. Objects and distractors (background that looks like an
object) have random difficulties, which partly depend on the detector and the run. Each trial draws a validation set,
simulates runs on this set and computes 95% intervals of differences of mAP. Takes 15 to 20 minutes on 2 cores.
"""

import resource
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.comparison import Page, Row, run_benchmark
from stats import bootstrap
from stats.bootstrap import image_weights, resampled_scores
from stats.contrasts import Interval, interval
from stats.image_statistics import Matches
from stats.replicates import cell_replicates

REPLICATES, PROCESSES = 1000, 2
COVERAGE, FALSE_POSITIVES = (0.92, 0.98), (0.03, 0.07)  # target ranges
PAIR_REPLICATES = 10_000  # for comparing two detectors on a set as large as COCO val2017
MAX_SECONDS, MAX_MIB = 45, 4096  # targets for this comparison
SKILLS = {"": 0.5, "equal": 0.5, "better": 0.7, "much better": 1.5}  # skill of each detector; the first is the baseline
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
COLUMNS = ("case", "detector", "interval", "true difference", "covered", "p < 0.05", "mean error of the estimate",
           "standard deviation of the error", "mean standard error")  # fmt: skip


class Case(NamedTuple):
    """Simulated validation sets, with the number of runs per detector and the number of trials."""

    images: int
    classes: int
    runs: int
    spread: float  # standard deviation of skill between the runs of a detector
    trials: int


CASES = {
    **{f"1 run, {images} images, {classes} classes": Case(images, classes, 1, 0.0, 1000)
       for images, classes in ((72, 3), (300, 8), (100, 20))},
    **{f"3 runs, spread {spread:g}, 150 images, 5 classes": Case(150, 5, 3, spread, 400)
       for spread in (0.0, 0.03, 0.08)},
}  # fmt: skip


# ---- simulated detectors -----------------------------------------------------------------------------------


class Scene(NamedTuple):
    """Simulated images. ease: how easy an object is to detect. likeness: how similar a distractor is to an object."""

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
    """Simulate images. objects, distractors: mean number per image. The frequency of class k is proportional to 1/k."""
    shares = 1 / np.arange(1, num_classes + 1)
    shares /= shares.sum()
    image_ease = generator.normal(0, 0.6, num_images)
    object_images = np.repeat(np.arange(num_images), generator.poisson(objects, num_images))
    clutter = np.exp(-0.5 * image_ease - 0.045)  # 1 on average; hard images have more distractors
    distractor_images = np.repeat(np.arange(num_images), generator.poisson(distractors * clutter))
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
    """Simulate runs of one detector, one run per skill. Some noise is shared by these runs, some belongs to one run."""
    num_objects, num_distractors = len(scene.ease), len(scene.likeness)
    ease = scene.ease + generator.normal(0, 0.4, num_objects)
    likeness = scene.likeness + generator.normal(0, 0.5, num_distractors)
    images = np.concatenate([scene.object_images, scene.distractor_images])
    classes = np.concatenate([scene.object_classes, scene.distractor_classes])
    runs = []
    for skill in skills:
        quality = skill + ease + generator.normal(0, 0.45, num_objects)
        logits = np.concatenate([
            0.9 * quality + generator.normal(0, 0.7, num_objects),
            likeness - 0.2 * skill + generator.normal(0, 0.5, num_distractors),
        ])  # fmt: skip
        overlap = np.concatenate([0.3 + 0.7 / (1 + np.exp(-quality)), np.zeros(num_distractors)])
        scores = np.round(1 / (1 + np.exp(-logits)), 4)
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


def score_and_replicates(matches: Matches, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the mAP of a run on the full set and on each resample."""
    scores = resampled_scores(matches, np.vstack([np.ones(weights.shape[1], weights.dtype), weights]))[0]["mAP"]
    return scores[0], scores[1:]


def true_scores(batch: int, case: Case) -> list[float]:
    """Return each detector's mAP on 25,000 images, averaged over the skills of its runs by Gauss-Hermite quadrature.

    All detectors get the same images and the same random numbers, so differences have hardly any noise."""
    scene = simulate_scene(25_000, case.classes, np.random.default_rng([batch, 1]))
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(5) if case.spread else (np.zeros(1), np.ones(1))
    no_weights = np.ones((0, scene.num_images), dtype=int)
    scores = []
    for skill in SKILLS.values():
        at_nodes = skill + case.spread * nodes
        runs = [simulate_runs(scene, [node], np.random.default_rng([batch, 2]))[0] for node in at_nodes]
        scores.append(np.average([score_and_replicates(run, no_weights)[0] for run in runs], weights=node_weights))
    return scores


# ---- trials ------------------------------------------------------------------------------------------------


def trial(number: int, case: Case) -> dict[tuple[str, str], Interval]:
    """Simulate a validation set; return a dict from (kind, detector) to the interval of mAP minus baseline mAP."""
    generator = np.random.default_rng([number, case.images, case.classes, round(1000 * case.spread)])
    scene = simulate_scene(case.images, case.classes, generator)
    weights = image_weights(scene.num_images, REPLICATES, number)
    estimates, replicates = [], []
    for skill in SKILLS.values():
        runs = simulate_runs(scene, skill + case.spread * generator.standard_normal(case.runs), generator)
        scores, of_runs = zip(*(score_and_replicates(run, weights) for run in runs), strict=True)
        estimates.append(scores)
        replicates.append(np.stack(of_runs))
    grid = cell_replicates(estimates, replicates, number)
    intervals = {}
    for k, contrast in list(enumerate(SKILLS))[1:]:
        kinds = {"images only": replicates[k].mean(axis=0) - replicates[0].mean(axis=0)}
        if case.runs > 1:
            pair = cell_replicates([estimates[0], estimates[k]], [replicates[0], replicates[k]], number)
            kinds |= {"pair": pair[1] - pair[0], "grid": grid[k] - grid[0]}
        for kind, differences in kinds.items():
            intervals[kind, contrast] = interval(np.mean(estimates[k]) - np.mean(estimates[0]), differences)
    return intervals


def table(
    name: str, case: Case, truths: dict[str, float], trials: list[dict[tuple[str, str], Interval]]
) -> tuple[list[str], list[str]]:
    """Return the table rows of these trials, and one text for each row outside the target ranges."""
    lines, failures = [], []
    for kind, contrast in trials[0]:
        intervals, truth = [result[kind, contrast] for result in trials], truths[contrast]
        covered = np.mean([each.low <= truth <= each.high for each in intervals])
        significant = np.mean([each.p < 0.05 for each in intervals])
        errors = [each.estimate - truth for each in intervals]
        standard_error = np.mean([each.standard_error for each in intervals])
        lines.append(
            f"| {name} | {contrast} | {kind} | {truth:.4f} | {covered:.1%} | {significant:.1%} "
            f"| {np.mean(errors):.4f} | {np.std(errors):.4f} | {standard_error:.4f} |"
        )
        is_off = contrast == "equal" and not FALSE_POSITIVES[0] <= significant <= FALSE_POSITIVES[1]
        if (case.runs == 1 or kind != "images only") and (is_off or not COVERAGE[0] <= covered <= COVERAGE[1]):
            failures.append(f"{name}, {kind}, {contrast}: covered {covered:.1%}, p < 0.05 in {significant:.1%}")
    return lines, failures


# ---- the command -------------------------------------------------------------------------------------------


def time_a_pair() -> tuple[float, float]:
    """Return the seconds and peak MiB of comparing two detectors on 5,000 images, with 100 detections per image."""
    generator = np.random.default_rng(0)
    scene = simulate_scene(5000, 80, generator, objects=7.2, distractors=92.8)
    runs = [simulate_runs(scene, [skill], generator)[0] for skill in (0.5, 0.7)]
    started = time.perf_counter()
    weights = image_weights(5000, PAIR_REPLICATES, seed=0)
    (score_a, replicates_a), (score_b, replicates_b) = (score_and_replicates(run, weights) for run in runs)
    interval(score_b - score_a, replicates_b - replicates_a)
    return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one_thread() -> None:
    """Limit a worker process to one thread."""
    bootstrap.THREADS = 1


def measure(device: torch.device) -> Page:
    """Time one comparison of two detectors, and run all trials."""
    spawn = get_context("spawn")  # a new process, so that peak memory does not include earlier work
    with ProcessPoolExecutor(1, spawn) as pool:
        seconds, peak_mib = pool.submit(time_a_pair).result()
    lines, failures = [], []
    with ProcessPoolExecutor(PROCESSES, spawn, initializer=one_thread) as pool:
        for name, case in CASES.items():
            scores = np.mean(list(pool.map(partial(true_scores, case=case), range(4))), axis=0)  # 4 x 25,000 images
            truths = dict(zip(SKILLS, scores - scores[0], strict=True))
            trials = list(pool.map(partial(trial, case=case), range(case.trials)))
            new_lines, new_failures = table(name, case, truths, trials)
            lines += new_lines
            failures += new_failures
    text = f"""# Coverage and speed of the confidence intervals

Detectors are simulated (see the script), so their true difference of mAP is known. {REPLICATES:,} resamples; 1,000 \
trials with one run per detector, 400 with several. Target: 95% intervals cover the true difference in \
{COVERAGE[0]:.0%} to {COVERAGE[1]:.0%} of trials, and equal detectors have p < 0.05 in {FALSE_POSITIVES[0]:.0%} to \
{FALSE_POSITIVES[1]:.0%} of trials. Intervals of several runs without a seed part ("images only") have no target.

| {" | ".join(COLUMNS)} |
{"|---" * len(COLUMNS)}|
{chr(10).join(lines)}

With few objects per class, differences of AP are smaller than with many. Large differences are therefore \
underestimated (see the mean error) and their intervals cover less. The much better detector shows this effect.

Spread: standard deviation of skill between the runs of a cell. Pair: `cell_replicates` of the two cells. Grid: \
`cell_replicates` of all cells.

A pair at the scale of COCO val2017 has 5,000 images, 80 classes and 100 detections per image, with \
{PAIR_REPLICATES:,} resamples and {bootstrap.THREADS} threads. The memory is that of the entire process.

{{rows}}
"""
    rows = [
        Row("time of a pair", "target", MAX_SECONDS, seconds, "s", 1.0),
        Row("peak memory of a pair", "target", MAX_MIB, peak_mib, "MiB", 1.0),
    ]
    return Page(text, rows, failures)


if __name__ == "__main__":
    run_benchmark(measure)
