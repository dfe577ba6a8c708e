"""Measure the spreads of published comparisons, for plans before any run (ablation/plan.py).

    OMP_NUM_THREADS=1 python -m benchmarks.reference_spreads      # a few minutes

Writes ablation/reference_spreads.json. Not measured: configs/grid_pretrained_person.yaml, because one of its two
cells learned almost nothing, which is not typical of cells that one compares.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from ablation.cells import compare
from ablation.plan import REFERENCES, Reference
from stats.planning import measure_spread

REPLICATES = 2000
GRIDS = {
    "bccd": "configs/grid_bccd.yaml",
    "bccd_pretrained": "configs/grid_bccd_pretrained.yaml",
    "raccoon_pretrained": "configs/grid_pretrained_raccoon.yaml",
    "cifar10_small": "configs/grid_swin_ablation.yaml",
}
PUBLISHED = [
    Reference(
        "coco_ssd300", "detection", "mAP", images=5000, seeds=15, cells=1, seed_sd=0.0014,
        source="NVIDIA DeepLearningExamples, SSD300 v1.1, README of October 2022 (docs/scores.md)",
    ),
]  # fmt: skip


def measure(name: str, grid: str) -> Reference:
    """Return the spreads of the finished runs of a grid, on average over its cells."""
    comparison = compare([Path(grid)], Path("experiments/published"), pairs=True, replicates=REPLICATES)
    variances, runs = comparison.variances, list(comparison.run_scores.values())
    spread = measure_spread(runs, variances.shared_seeds)
    image_variance = np.mean([each[:, 1:].var(axis=1).mean() for each in runs])
    same_cell = float(1 - variances.run_image / image_variance)
    return Reference(
        name, comparison.scored_cells[0].runs[0].results.task, comparison.metric, comparison.num_images,
        seeds=len(runs[0]), cells=len(runs), source=f"{grid}, experiments/published",
        seed_sd=float(np.sqrt(spread.seed_variance[0])), image_se=float(np.sqrt(image_variance)), same_cell=same_cell,
        other_cell=float(same_cell - variances.shared / variances.squares / image_variance),
    )  # fmt: skip


def rounded(reference: Reference) -> Reference:
    """Return an entry with three significant digits, which is more than it is known to."""
    numbers = ("seed_sd", "image_se", "same_cell", "other_cell")
    values = {name: getattr(reference, name) for name in numbers}
    return replace(reference, **{name: value and float(f"{value:.3g}") for name, value in values.items()})


if __name__ == "__main__":
    entries = [measure(name, grid) for name, grid in GRIDS.items()] + PUBLISHED
    REFERENCES.write_text(json.dumps([asdict(rounded(entry)) for entry in entries], indent=2) + "\n")
    print(REFERENCES.read_text())
