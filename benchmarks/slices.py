"""Coverage of the simultaneous intervals on slices (stats/slices.py), by the number of images of the slices.

    OMP_NUM_THREADS=1 python -m benchmarks.slices

Losses of two models on each image are simulated, so their true difference on each slice is known. The spread between
runs has a part that all slices share and a part that each slice has for itself. Takes about 2 minutes on one core.
"""

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.comparison import Page, run_benchmark
from stats.bootstrap import image_weights
from stats.slices import assess_slices, needed_replicates

NUM_SLICES, TRIALS, SEED_SD, RUN_SD = 6, 1000, 0.05, 0.5
IMAGES, RUNS = (10, 20, 30, 60, 120), (1, 3)
TARGET_IMAGES, TARGET = 30, 0.93  # from this number of images on, all intervals cover in at least this share of trials
DIFFERENCE = np.array([[-1, 1]])
COLUMNS = ("images per slice", "runs", "all intervals covered", "if not corrected", "any false alarm (Holm)",
           "interaction found if there is none (Holm)")  # fmt: skip


def simulate(generator: np.random.Generator, shares: Sequence[np.ndarray], runs: int) -> list[list[np.ndarray]]:
    """Return the mean losses of the runs of two equal models on each slice, [slice][model] (runs, 1 + R).

    shares: for each slice (images, 1 + R), the share of each image in the mean. The losses of all runs on an image have
    a common part, which cancels in differences."""
    scores: list[list[np.ndarray]] = [[] for _ in shares]
    ease = [generator.normal(0, 1, len(share)) for share in shares]
    for _ in range(2):
        common = generator.normal(0, SEED_SD, (runs, 1)) if runs > 1 else 0
        for number, share in enumerate(shares):
            own = generator.normal(0, SEED_SD, (runs, 1)) if runs > 1 else 0
            losses = ease[number] + common + own + generator.normal(0, RUN_SD, (runs, len(share)))
            scores[number].append(losses @ share)
    return scores


def coverage(images: int, runs: int) -> list[float]:
    """Return the shares of trials: all covered, covered without correction, false alarms, false interactions."""
    replicates = needed_replicates(NUM_SLICES)
    drawn = image_weights(NUM_SLICES * images, replicates, seed=0)
    parts = np.split(np.concatenate([np.ones_like(drawn[:1]), drawn]), NUM_SLICES, axis=1)
    shares = [(part / np.maximum(part.sum(axis=1, keepdims=True), 1)).T for part in parts]
    results, counts = [], [images] * NUM_SLICES
    for trial in range(TRIALS):
        scores = simulate(np.random.default_rng([trial, images, runs]), shares, runs)
        found = [row[0] for row in assess_slices(scores, counts, DIFFERENCE, trial)]
        total = [sum(scores[number][model] for number in range(NUM_SLICES)) for model in range(2)]
        changes = [[each[k] - (total[k] - each[k]) / (NUM_SLICES - 1) for k in range(2)] for each in scores]
        depending = [row[0] for row in assess_slices(changes, counts, DIFFERENCE, trial)]
        results.append(
            [
                all(low <= 0 <= high for low, high in (each.simultaneous for each in found)),
                all(each.interval.p >= 0.05 for each in found),
                any(each.is_significant for each in found),
                any(each.is_significant for each in depending),
            ]
        )
    return np.mean(results, axis=0).tolist()


def measure(_: torch.device) -> Page:
    """Return the page with the coverage of all cases."""
    lines, failures = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"], []
    for runs in RUNS:
        for images in IMAGES:
            shares = coverage(images, runs)
            lines.append(f"| {images} | {runs} | {' | '.join(f'{share:.1%}' for share in shares)} |")
            if images >= TARGET_IMAGES and shares[0] < TARGET:
                failures.append(f"{images} images, {runs} runs: covered {shares[0]:.1%}")
    text = f"""# Coverage of simultaneous intervals on slices

Two equal models with simulated losses, {NUM_SLICES} slices, {TRIALS:,} trials, {needed_replicates(NUM_SLICES):,} \
resamples. Target: from {TARGET_IMAGES} images per slice on, all {NUM_SLICES} intervals cover their true difference in \
at least {TARGET:.0%} of trials. A share of 95% has a standard error of 0.7 percentage points.

{chr(10).join(lines)}

With one run per model, the difference is between these trained weights.
"""
    return Page(text, failures=failures)


if __name__ == "__main__":
    run_benchmark(measure)
