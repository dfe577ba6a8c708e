"""Example images on which two cells disagree most, for the HTML page.

The score of an image is its own AP (stats.precision_recall.image_average_precision), averaged over the seeds of a cell.
Only detectors have such scores. The pictures need the image files, and detections.json of a run of both cells.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ablation.comparison import Cell, Comparison, best_of
from ablation.display.sentences import with_minus
from ablation.slices import annotations_file
from engine.inputs import contents_sha256, read_inputs
from engine.terminal import counted
from records.results import Run
from stats.image_statistics import Matches
from stats.precision_recall import image_average_precision

NUM_IMAGES = 6
MAX_BYTES = 500_000  # of all pictures together; images that exceed it are left out


class Panel(NamedTuple):
    """A JPEG with its caption."""

    caption: str
    jpeg: bytes


@dataclass(frozen=True)
class Disagreements:
    """How the scores of single images differ between two cells, and pictures of the largest differences.

    first, second: the best cell and the baseline; if the baseline is the best, the second best and the baseline.
    images: {file name: panels}, the largest difference first."""

    first: Cell
    second: Cell
    num_higher: int  # images on which the first cell has the higher score
    num_lower: int
    num_equal: int
    problem: str  # why there are no pictures, or empty
    images: dict[str, list[Panel]]


def find_disagreements(comparison: Comparison) -> Disagreements | None:
    """Return the images on which the best cell and the baseline differ most; None if images have no scores."""
    cells = comparison.scored_cells
    second = comparison.baseline_cell
    first = best_of([cell for cell in cells if cell is not second], comparison.lower_is_better)
    if first is None or second.mean is None or not comparison.intervals:
        return None  # without intervals, the runs are not comparable
    if not isinstance(second.scored_runs[0].load_statistics(), Matches):
        return None
    scores = [image_scores(cell) for cell in (first, second)]
    differences = np.subtract(*(each.mean(axis=0) for each in scores))
    counts = [int(found.sum()) for found in (differences > 0, differences < 0, differences == 0)]
    places, images, problem = largest(differences, NUM_IMAGES), {}, ""
    try:
        images = draw(comparison, (first, second), scores, places)
    except ValueError as error:  # a file is missing, has changed or cannot be read; the page is useful without it
        problem = str(error)
    return Disagreements(first, second, *counts, problem, images)


def image_scores(cell: Cell) -> np.ndarray:
    """Return the AP of each image for each scored run of a cell, (n, I); nan for images without objects."""
    return np.array([image_average_precision(run.load_statistics()) for run in cell.scored_runs])


def largest(differences: np.ndarray, number: int) -> list[int]:
    """Return the indices of the largest differences in size, largest first; nan and 0 are left out."""
    sizes = np.nan_to_num(np.abs(differences))
    order = np.argsort(-sizes, kind="stable")[:number]
    return order[sizes[order] > 0].tolist()


def draw(
    comparison: Comparison, cells: Sequence[Cell], scores: Sequence[np.ndarray], places: Sequence[int]
) -> dict[str, list[Panel]]:
    """Return {file name: panels} for the images with these indices, as many as fit into MAX_BYTES.

    scores: of each cell, (n, I). Raises ValueError if a file is missing or has changed."""
    drawn = [first_with_detections(cell) for cell in cells]
    runs = [cell.scored_runs[index] for cell, index in zip(cells, drawn, strict=True)]
    images_dir, annotations = images_folder(runs), annotations_file(comparison)
    drawing = importlib.import_module(f"{runs[0].results.task}.drawing.disagreements")
    ids = runs[0].load_statistics().image_ids[places].tolist()
    pictures = drawing.draw_side_by_side(annotations, images_dir, ids, list(map(detections_of, runs)))
    found, size = {}, 0
    for place, picture in zip(places, pictures, strict=True):
        panels = [Panel(f"ground truth: {counted(picture.num_objects, 'object', 'objects')}", picture.truth)]
        for cell, index, values, jpeg in zip(cells, drawn, scores, picture.detected, strict=True):
            panels.append(Panel(caption_of(cell, index, values[:, place]), jpeg))
        size += sum(len(panel.jpeg) for panel in panels)
        if size > MAX_BYTES:
            break
        change = scores[0][:, place].mean() - scores[1][:, place].mean()
        found[f"{picture.file_name}: {with_minus(f'{change:+.3f}')}"] = panels
    return found


def detections_of(run: Run) -> Path:
    """Return the results file with the detections of a run."""
    return run.path / "detections.json" if run.is_experiment else run.path


def first_with_detections(cell: Cell) -> int:
    """Return the index of the first scored run whose detections are known. Raises ValueError if none."""
    for index, run in enumerate(cell.scored_runs):
        if detections_of(run).is_file():
            return index
    raise ValueError(f"{detections_of(cell.scored_runs[0])} not found")


def caption_of(cell: Cell, index: int, scores: np.ndarray) -> str:
    """Return the name of a cell with its score on an image. scores: (n,), of its runs. index: of the run shown."""
    if len(scores) == 1:
        return f"{cell.name}: AP {scores[0]:.3f}"
    run = cell.scored_runs[index]
    which = f"seed {run.seed}" if run.is_experiment else run.path.name
    return f"{cell.name}: AP {scores.mean():.3f} (mean of {len(scores)} runs); shown: {which}, AP {scores[index]:.3f}"


def images_folder(runs: Sequence[Run]) -> Path:
    """Return the folder of the validation images that a run recorded, if its images have not changed since.

    Raises ValueError if there is none."""
    reasons = []
    for run in runs:
        inputs = read_inputs(run.path) if run.is_experiment else None
        images = inputs and (inputs.images.get("val") or inputs.images.get("train"))  # a holdout is a part of train
        if not images:
            reasons.append(f"{run.path} does not record where its images are")
            continue
        folder = Path(images.folder).expanduser()
        try:
            if contents_sha256(folder, images.names) == images.contents:
                return folder
            reasons.append(f"the images in {folder} have changed since the run")
        except OSError as error:
            reasons.append(f"{error.filename} not found")
    raise ValueError(reasons[0])
