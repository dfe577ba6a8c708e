"""How sure the differences between cells are: what a Comparison holds beyond its scores.

Validation images are resampled with replacement, the same for every run, and every score is computed again on each
resample (stats/bootstrap.py); what another seed would change comes on top. Differences, main effects and
interactions are all contrasts of the cells' scores (stats/contrasts.py), so they get their intervals in the same way.
"""

from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path

import numpy as np

from ablation.comparison import Cell, Comparison, Difference
from engine.logbook import progress_bar
from records.results import Place
from stats.bootstrap import Interval, cell_replicates, image_weights, interval, resampled_scores
from stats.contrasts import Contrast, contrast_intervals, mean_difference
from stats.image_statistics import load_statistics

SEED = 0  # of the resamples: the same experiments give the same intervals
FEWEST_IMAGES = 10  # resamples of fewer hold the same few images over and over


def add_uncertainty(comparison: Comparison, pairs: bool) -> None:
    """Resample the images (and what the seeds add), and fill in intervals, differences, effects and classes."""
    cells = {cell.place: cell for cell in comparison.filled}
    weights, scores, classes = None, {}, {}
    runs = [run for cell in cells.values() for run in cell.scored]
    for run in progress_bar(runs, desc="resampling", unit="run", leave=False):
        statistics = load_statistics(run.path)
        if weights is None:
            image_ids = statistics.image_ids
            if len(image_ids) < FEWEST_IMAGES:
                comparison.warnings.append(
                    f"{len(image_ids)} validation images: too few to say anything about others, no differences computed"
                )
                return
            drawn = image_weights(len(image_ids), comparison.replicates, SEED)
            weights = np.concatenate([np.ones_like(drawn[:1]), drawn])  # first of all, the images as they are
        if not np.array_equal(statistics.image_ids, image_ids):
            raise ValueError(f"{run.path}: its image_statistics.npz is of other images than {runs[0].path}'s")
        scores[run.path], classes[run.path] = resampled_scores(statistics, weights)
        score = scores[run.path][comparison.metric][0]
        if abs(score - run.score) > 1e-6:
            raise ValueError(
                f"{run.path}: image_statistics.npz gives {comparison.metric} {score:.6f}, results.json says "
                f"{run.score:.6f}; they are not of the same run"
            )
    replicates = add_intervals(comparison, cells, scores)
    if len(cells) > 1:
        add_differences(comparison, cells, replicates, pairs)
    add_classes(comparison, cells, classes, statistics.class_names)
    lowest_p = 2 / (comparison.replicates + 1)
    if lowest_p * len(comparison.differences) >= 0.05:
        comparison.warnings.append(
            f"{comparison.replicates} resamples: p cannot fall below {lowest_p:.4f}, too coarse for "
            f"{len(comparison.differences)} differences after Holm; raise --replicates"
        )
    if not comparison.seeds_are_uncertain:
        comparison.warnings.append(
            "one seed per cell: the intervals hold for these very weights and other images; training again with "
            "another seed would change the scores too, by an unknown amount"
        )


def add_intervals(
    comparison: Comparison, cells: dict[Place, Cell], scores: dict[Path, dict[str, np.ndarray]]
) -> np.ndarray:
    """Add the interval of every score of every cell; return (K, R), the replicates of the score that is compared.

    scores: for each run, name to (1 + R,), the first on the images as they are. A score that results.json has no
    number for, such as top-5 accuracy among five classes, is left out."""
    runs = [run for cell in cells.values() for run in cell.scored]
    result = {}
    for name in scores[runs[0].path]:
        if any(run.results.scores.get(name) is None for run in runs):
            continue
        values = [np.stack([scores[run.path][name] for run in cell.scored]) for cell in cells.values()]
        result[name] = cell_replicates([each[:, 0] for each in values], [each[:, 1:] for each in values], SEED)
        for place, each, replicates in zip(cells, values, result[name], strict=True):
            comparison.intervals.setdefault(place, {})[name] = interval(each[:, 0].mean(), replicates)
    return result[comparison.metric]


def add_differences(comparison: Comparison, cells: dict[Place, Cell], replicates: np.ndarray, pairs: bool) -> None:
    """Add differences between cells, and the effects of rows and columns.

    replicates: (K, R) of the cells' scores."""
    means = {place: cell.mean for place, cell in cells.items()}

    def family(contrasts: dict[str, Contrast]) -> list[Difference]:
        found = contrast_intervals(list(contrasts.values()), means, replicates)
        return [Difference(label, *each, len(contrasts)) for label, each in zip(contrasts, found, strict=True)]

    base = comparison.baseline
    places = [base, *(place for place in cells if place != base)]
    chosen = combinations(places, 2) if pairs else ((base, place) for place in places[1:])
    comparison.differences = family(
        {f"{cells[one].name} - {cells[zero].name}": mean_difference([one], [zero]) for zero, one in chosen}
    )

    columns = comparison.columns
    rows = [row for row in comparison.rows if all((row, column) in cells for column in columns)]
    if len(rows) < 2 or len(columns) < 2:
        return
    if len(rows) < len(comparison.rows):
        comparison.warnings.append(f"main effects and interactions are of the complete rows only: {', '.join(rows)}")
    in_row = {row: [(row, column) for column in columns] for row in rows}
    in_column = {column: [(row, column) for row in rows] for column in columns}
    row0, column0 = base[0] if base[0] in rows else rows[0], base[1]
    comparison.row_effects = family(
        {f"{row} - {row0}": mean_difference(in_row[row], in_row[row0]) for row in rows if row != row0}
    )
    comparison.column_effects = family(
        {
            f"{column} - {column0}": mean_difference(in_column[column], in_column[column0])
            for column in columns if column != column0
        }
    )  # fmt: skip
    comparison.interactions = family(
        {
            f"({column} - {column0}) on {row} - on {row0}": {
                (row, column): 1, (row, column0): -1, (row0, column): -1, (row0, column0): 1,
            }
            for row, column in product(rows, columns) if row != row0 and column != column0
        }
    )  # fmt: skip


def add_classes(
    comparison: Comparison, cells: dict[Place, Cell], classes: dict[Path, np.ndarray], names: Sequence[str]
) -> None:
    """Add the score of each class with its interval, and its change against the baseline, over the choice of images."""
    means = {place: np.mean([classes[run.path] for run in cell.scored], axis=0) for place, cell in cells.items()}

    def intervals(values: np.ndarray) -> dict[str, Interval]:
        return {str(name): interval(values[0, k], values[1:, k]) for k, name in enumerate(names)}

    for place, values in means.items():
        comparison.per_class[place] = intervals(values)
        comparison.per_class_change[place] = intervals(values - means[comparison.baseline])
