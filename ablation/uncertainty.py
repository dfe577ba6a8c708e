"""Compute the uncertainty of a comparison: intervals of scores, differences, effects and classes.

A paired bootstrap resamples the validation images, identically for all runs, and recomputes every score on each
resample (stats/bootstrap.py). With several seeds, the variation between seeds is added. Differences, main effects and
interactions are contrasts (weighted sums) of the cells' scores (stats/contrasts.py), computed on the same resamples.
"""

from collections.abc import Callable, Sequence
from itertools import combinations, product
from pathlib import Path

import numpy as np

from ablation.comparison import Cell, Comparison, Difference
from engine.logbook import progress_bar
from engine.text import listed
from records.results import Place
from stats.bootstrap import Interval, cell_replicates, image_weights, interval, resampled_scores
from stats.contrasts import Contrast, contrast_intervals, mean_difference
from stats.factorial import Design

SEED = 0  # random seed of the resamples; fixed, so that the same experiments give the same intervals
MIN_IMAGES = 10  # with fewer images, resamples repeat the same few images


def add_uncertainty(comparison: Comparison, pairs: bool) -> None:
    """Add intervals, differences, effects and class scores to a comparison, from resamples of the images.

    Raises ValueError if runs were scored on different images, or if a run's statistics and results disagree."""
    cells = {cell.place: cell for cell in comparison.scored_cells}
    weights, scores, classes = None, {}, {}
    runs = [run for cell in cells.values() for run in cell.scored_runs]
    for run in progress_bar(runs, desc="resampling", unit="run", leave=False):
        statistics = run.load_statistics()
        if weights is None:
            image_ids = statistics.image_ids
            if len(image_ids) < MIN_IMAGES:
                comparison.warnings.append(
                    f"{len(image_ids)} validation images: no differences computed, at least {MIN_IMAGES} are needed"
                )
                return
            drawn = image_weights(len(image_ids), comparison.replicates, SEED)
            weights = np.concatenate([np.ones_like(drawn[:1]), drawn])  # row 0: the original images, each once
        if not np.array_equal(statistics.image_ids, image_ids):
            raise ValueError(f"{run.path}: image_statistics.npz covers different images from {runs[0].path}")
        scores[run.path], classes[run.path] = resampled_scores(statistics, weights)
        score = scores[run.path][comparison.metric][0]
        if abs(score - run.score) > 1e-6:
            raise ValueError(
                f"{run.path}: image_statistics.npz gives {comparison.metric} {score:.6f}, results.json says "
                f"{run.score:.6f}; these files are not from the same run"
            )
    replicates = add_intervals(comparison, cells, scores)
    if len(cells) > 1:
        add_differences(comparison, cells, replicates, pairs)
    add_classes(comparison, cells, classes, statistics.class_names)
    lowest_p = 2 / (comparison.replicates + 1)
    if lowest_p * len(comparison.differences) >= 0.05:
        comparison.warnings.append(
            f"{comparison.replicates} resamples are too few: p cannot fall below {lowest_p:.4f}, so none of "
            f"{len(comparison.differences)} differences can be significant after Holm correction; raise --replicates"
        )
    if not comparison.has_several_seeds:
        comparison.warnings.append(
            "one seed per cell: the intervals cover only the choice of validation images; they do not include the "
            "variation between seeds, which is unknown"
        )


def add_intervals(
    comparison: Comparison, cells: dict[Place, Cell], scores: dict[Path, dict[str, np.ndarray]]
) -> np.ndarray:
    """Add an interval for every score of every cell. Return the compared score of K cells on R resamples, (K, R).

    scores: {run: {score name: (1 + R,)}}; the first value is the score on the original images. Scores that are null in
    results.json, such as top-5 accuracy with five classes, get no interval."""
    runs = [run for cell in cells.values() for run in cell.scored_runs]
    result = {}
    for name in scores[runs[0].path]:
        if any(run.results.scores.get(name) is None for run in runs):
            continue
        values = [np.stack([scores[run.path][name] for run in cell.scored_runs]) for cell in cells.values()]
        if name == comparison.metric:
            comparison.run_scores = dict(zip(cells, values, strict=True))
        result[name] = cell_replicates([each[:, 0] for each in values], [each[:, 1:] for each in values], SEED)
        for place, each, replicates in zip(cells, values, result[name], strict=True):
            comparison.intervals.setdefault(place, {})[name] = interval(each[:, 0].mean(), replicates)
    return result[comparison.metric]


def add_differences(comparison: Comparison, cells: dict[Place, Cell], replicates: np.ndarray, pairs: bool) -> None:
    """Add differences between cells, and main effects and interactions of rows and columns.

    replicates: (K, R), scores of the K cells on R resamples."""
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
    if comparison.design:
        add_factor_effects(comparison, cells, rows, family)
    if len(rows) < 2 or len(columns) < 2:
        return
    if not comparison.design and len(rows) < len(comparison.rows):
        comparison.warnings.append(f"main effects and interactions use the complete rows only: {', '.join(rows)}")
    in_row = {row: [(row, column) for column in columns] for row in rows}
    in_column = {column: [(row, column) for row in rows] for column in columns}
    row0, column0 = base[0] if base[0] in rows else rows[0], base[1]
    comparison.row_effects = family(
        {f"{row} - {row0}": mean_difference(in_row[row], in_row[row0]) for row in rows if row != row0}
    )
    if comparison.design:
        return
    comparison.column_effects = family(
        {
            f"{column} - {column0}": mean_difference(in_column[column], in_column[column0])
            for column in columns if column != column0
        }
    )  # fmt: skip
    comparison.interactions = family(
        {
            f"({column} - {column0}) on {row} - ({column} - {column0}) on {row0}": {
                (row, column): 1, (row, column0): -1, (row0, column): -1, (row0, column0): 1,
            }
            for row, column in product(rows, columns) if row != row0 and column != column0
        }
    )  # fmt: skip


def add_factor_effects(
    comparison: Comparison,
    cells: dict[Place, Cell],
    rows: Sequence[str],
    family: Callable[[dict[str, Contrast]], list[Difference]],
) -> None:
    """Add the main effects of the factors: averaged over rows, in each row, and how they differ between rows.

    rows: the complete rows; the other rows are left out. family: estimates contrasts, with Holm correction."""
    places = product(comparison.rows, comparison.columns)
    missing = [f"{row} x {column}" for row, column in places if (row, column) not in cells]
    if missing:
        result = f"estimated from the complete rows only ({', '.join(rows)})" if rows else "not estimated"
        comparison.warnings.append(f"main effects: {result}, because they need all cells; missing: {listed(missing)}")
    if not rows:
        return
    comparison.factor_effects = family(factor_contrasts(comparison.design, rows))
    if len(rows) > 1:
        effects = {row: factor_contrasts(comparison.design, [row]) for row in rows}
        first, *others = rows
        comparison.factor_effects_in = {row: family(contrasts) for row, contrasts in effects.items()}
        comparison.factor_interactions = family(
            {
                f"{factor} on {row} - {factor} on {first}": contrast
                | {place: -weight for place, weight in effects[first][factor].items()}
                for row in others
                for factor, contrast in effects[row].items()
            }
        )


def factor_contrasts(design: Design, rows: Sequence[str]) -> dict[str, Contrast]:
    """Return {label: main effect} of all factors: mean of the cells with the factor minus mean of those without it."""
    contrasts = {}
    for factor in design.factors:
        high = [name for name, factors in design.points.items() if factor in factors]
        low = [name for name in design.points if name not in high]
        contrasts[design.label(factor)] = mean_difference(list(product(rows, high)), list(product(rows, low)))
    return contrasts


def add_classes(
    comparison: Comparison, cells: dict[Place, Cell], classes: dict[Path, np.ndarray], names: Sequence[str]
) -> None:
    """Add each class's score and its change from the baseline, with intervals over the choice of images only."""
    means = {place: np.mean([classes[run.path] for run in cell.scored_runs], axis=0) for place, cell in cells.items()}

    def intervals(values: np.ndarray) -> dict[str, Interval]:
        return {str(name): interval(values[0, k], values[1:, k]) for k, name in enumerate(names)}

    for place, values in means.items():
        comparison.per_class[place] = intervals(values)
        comparison.per_class_change[place] = intervals(values - means[comparison.baseline])
