"""Compute the uncertainty of a comparison: intervals of scores, differences, effects and classes, and what they show.

A paired bootstrap resamples the validation images, identically for all runs, and recomputes every score on each
resample (stats/bootstrap.py). With several seeds, the variation between seeds is added (stats/replicates.py).
Differences, main effects and interactions are contrasts (weighted sums) of the cells' scores (stats/contrasts.py),
computed on the same resamples.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

from ablation.comparison import Cell, Comparison, Difference, cell_name
from engine.logbook import progress_bar
from engine.text import listed
from records.results import Place
from stats.bootstrap import image_weights, resampled_scores
from stats.contrasts import Contrast, assess_family, exact_mcnemar, interval, mean_difference
from stats.decisions import may_be_best, optimism_of_best, probability_better
from stats.factorial import Design
from stats.image_statistics import Hits, Matches, Statistics
from stats.planning import Spread, Variances, detectable, measure_variances
from stats.replicates import cell_replicates, run_variances

MIN_IMAGES = 10  # with fewer images, resamples repeat the same few images
MIN_OPTIMISM_DEGREES = 3  # of freedom of the variance between seeds; with 1, the replicates have no mean
RARE = 10  # classes on fewer images have intervals that are too narrow (benchmarks/bootstrap.md)
Families = dict[str | tuple[str, str], dict[str, Contrast]]  # attribute of Comparison (and row) -> label -> contrast


def add_uncertainty(comparison: Comparison, pairs: bool) -> None:
    """Add intervals, differences, effects, class scores and decisions to a comparison, from resamples of the images.

    Raises ValueError if runs were scored on different images, or if a run's statistics and results disagree."""
    cells = {cell.place: cell for cell in comparison.scored_cells}
    weights, scores, classes, hits = None, {}, {}, {}
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
            drawn = image_weights(len(image_ids), comparison.replicates, comparison.resample_seed)
            weights = np.concatenate([np.ones_like(drawn[:1]), drawn])  # row 0: the original images, each once
            del drawn  # up to a gigabyte
        if not np.array_equal(statistics.image_ids, image_ids):
            raise ValueError(f"{run.path}: image_statistics.npz covers different images from {runs[0].path}")
        scores[run.path], classes[run.path] = resampled_scores(statistics, weights)
        if isinstance(statistics, Hits):
            hits[run.path] = statistics.hits
        score = scores[run.path][comparison.metric][0]
        if abs(score - run.score) > 1e-6:
            raise ValueError(
                f"{run.path}: image_statistics.npz gives {comparison.metric} {score:.6f}, results.json says "
                f"{run.score:.6f}; these files are not from the same run"
            )
    add_intervals(comparison, cells, scores)
    if len(cells) > 1:
        scores_of_runs = list(comparison.run_scores.values())
        sample = replicates_of(comparison, cells, scores_of_runs, for_contrasts=True, is_compared=True)
        add_differences(comparison, cells, sample, pairs, hits)
        add_decisions(comparison, cells, sample)
        if comparison.has_several_seeds:
            comparison.variances = variances_of(comparison, list(comparison.contrasts.values()))
    add_classes(comparison, cells, classes, statistics.class_names)
    add_warnings(comparison, statistics)


def replicates_of(
    comparison: Comparison,
    cells: dict[Place, Cell],
    values: Sequence[np.ndarray],
    for_contrasts: bool,
    is_compared: bool = False,
) -> np.ndarray:
    """Return replicates of a score of K cells, (K, R), with the variation between seeds.

    values: for each cell (n_k, 1 + R), the score of each run on the original images and on R resamples.
    for_contrasts: leave out what all cells have in common, if they have the same seeds.
    is_compared: whether this is the compared score, for which a spread between seeds may be known."""
    estimates, replicates = [each[:, 0] for each in values], [each[:, 1:] for each in values]
    options = seed_options(comparison, list(cells.values()), for_contrasts)
    known = comparison.known_spread if is_compared else None
    return cell_replicates(estimates, replicates, comparison.resample_seed, known=known, **options)


def seed_options(comparison: Comparison, cells: Sequence[Cell], for_contrasts: bool) -> dict[str, Any]:
    """Return the arguments of cell_replicates that say which cells share a row, and whether they share seeds."""
    rows = [row for row in comparison.rows if any(cell.row == row for cell in cells)]
    return {
        "rows": [rows.index(cell.row) for cell in cells],
        "shared_seeds": for_contrasts and have_same_seeds(cells),
    }


def have_same_seeds(cells: Iterable[Cell]) -> bool:
    """Return whether all cells were trained with the same seeds."""
    return len({tuple(run.seed for run in cell.scored_runs) for cell in cells}) == 1


def add_intervals(comparison: Comparison, cells: dict[Place, Cell], scores: dict[Path, dict[str, np.ndarray]]) -> None:
    """Add an interval for every score of every cell, and the compared score of every run.

    scores: {run: {score name: (1 + R,)}}; the first value is the score on the original images. Scores that are null in
    results.json, such as top-5 accuracy with five classes, get no interval."""
    runs = [run for cell in cells.values() for run in cell.scored_runs]
    for name in scores[runs[0].path]:
        if any(run.results.scores.get(name) is None for run in runs):
            continue
        values = [np.stack([scores[run.path][name] for run in cell.scored_runs]) for cell in cells.values()]
        if name == comparison.metric:
            comparison.run_scores = dict(zip(cells, values, strict=True))
        sample = replicates_of(comparison, cells, values, False, is_compared=name == comparison.metric)
        for place, each, replicates in zip(cells, values, sample, strict=True):
            comparison.intervals.setdefault(place, {})[name] = interval(each[:, 0].mean(), replicates)


def add_differences(
    comparison: Comparison,
    cells: dict[Place, Cell],
    replicates: np.ndarray,
    pairs: bool,
    hits: dict[Path, np.ndarray],
) -> None:
    """Add differences between cells, main effects and interactions.

    replicates: (K, R), scores of the K cells on R resamples. hits: which predictions of a classifier are right, by
    run."""
    means = {place: cell.mean for place, cell in cells.items()}
    differences = cell_contrasts(list(cells), comparison.baseline, pairs)
    compared = [tuple(contrast) for contrast in differences.values()]
    exact = [exact_p(comparison, cells[one], cells[zero], hits) for one, zero in compared]
    families: Families = {"differences": differences} | effect_families(comparison, cells)
    comparison.contrasts = families.get("factor_effects", differences)

    def power(contrast: Contrast, tests: int) -> float:
        variances = variances_of(comparison, [contrast])
        if variances.standard_error() == 0:  # for example because all scores are 0
            return math.nan
        degrees = variances.degrees or math.inf
        return detectable(*variances.parts(), degrees, tests, comparison.level, variances.groups)

    def tested(contrasts: dict[str, Contrast], exact: Sequence[float | None]) -> list[Difference]:
        found = assess_family(list(contrasts.values()), means, replicates, comparison.level, exact, power)
        return [
            Difference(**vars(each), label=label, contrast=contrast)
            for (label, contrast), each in zip(contrasts.items(), found, strict=True)
        ]

    if comparison.one_family:
        together = tested({(key, label): each for key in families for label, each in families[key].items()}, exact)
    for key, contrasts in families.items():
        if comparison.one_family:
            found, together = together[: len(contrasts)], together[len(contrasts) :]
            found = [replace(each, label=label) for label, each in zip(contrasts, found, strict=True)]
        else:
            found = tested(contrasts, exact if key == "differences" else [])
        if isinstance(key, tuple):
            getattr(comparison, key[0])[key[1]] = found
        else:
            setattr(comparison, key, found)
    rows = seed_options(comparison, list(cells.values()), for_contrasts=False)["rows"]
    variances = run_variances([cell.scores for cell in cells.values()], rows)
    if comparison.known_spread:
        variances[:] = comparison.known_spread.standard_deviation**2
    variances = dict(zip(cells, variances, strict=True))
    sign = -1 if comparison.lower_is_better else 1
    comparison.differences = [
        replace(
            each, probability_better=probability_better(sign * each.interval.estimate, variances[one] + variances[zero])
        )
        for each, (one, zero) in zip(comparison.differences, compared, strict=True)
    ]


def exact_p(comparison: Comparison, one: Cell, zero: Cell, hits: dict[Path, np.ndarray]) -> float | None:
    """Return the p value of McNemar's exact test for two single runs of classifiers that differ on few images."""
    runs = [*one.scored_runs, *zero.scored_runs]
    if len(runs) > 2 or not hits or comparison.known_spread:  # the exact test knows nothing of the seeds
        return None
    return exact_mcnemar(*(hits[run.path] for run in runs))


def effect_families(comparison: Comparison, cells: dict[Place, Cell]) -> Families:
    """Return the contrasts of the main effects and interactions; none without two complete rows or columns."""
    columns, base = comparison.columns, comparison.baseline
    rows = [row for row in comparison.rows if all((row, column) in cells for column in columns)]
    families: Families = factor_families(comparison, cells, rows) if comparison.design else {}
    if len(rows) < 2 or len(columns) < 2:
        return families
    if not comparison.design and len(rows) < len(comparison.rows):
        comparison.warnings.append(f"main effects and interactions use the complete rows only: {', '.join(rows)}")
    in_row = {row: [(row, column) for column in columns] for row in rows}
    in_column = {column: [(row, column) for row in rows] for column in columns}
    row0, column0 = base[0] if base[0] in rows else rows[0], base[1]
    families["row_effects"] = {
        f"{row} - {row0}": mean_difference(in_row[row], in_row[row0]) for row in rows if row != row0
    }
    if comparison.design:
        return families
    families["column_effects"] = {
        f"{column} - {column0}": mean_difference(in_column[column], in_column[column0])
        for column in columns if column != column0
    }  # fmt: skip
    families["interactions"] = {
        f"({column} - {column0}) on {row} - ({column} - {column0}) on {row0}": {
            (row, column): 1, (row, column0): -1, (row0, column): -1, (row0, column0): 1,
        }
        for row, column in product(rows, columns) if row != row0 and column != column0
    }  # fmt: skip
    return families


def factor_families(comparison: Comparison, cells: dict[Place, Cell], rows: Sequence[str]) -> Families:
    """Return the main effects of the factors: averaged over rows, in each row, and how they differ between rows.

    rows: the complete rows; the other rows are left out."""
    places = product(comparison.rows, comparison.columns)
    missing = [f"{row} x {column}" for row, column in places if (row, column) not in cells]
    if missing:
        result = f"estimated from the complete rows only ({', '.join(rows)})" if rows else "not estimated"
        comparison.warnings.append(f"main effects: {result}, because they need all cells; missing: {listed(missing)}")
    if not rows:
        return {}
    families: Families = {"factor_effects": factor_contrasts(comparison.design, rows)}
    if len(rows) > 1:
        effects = {row: factor_contrasts(comparison.design, [row]) for row in rows}
        first, *others = rows
        families |= {("factor_effects_in", row): contrasts for row, contrasts in effects.items()}
        families["factor_interactions"] = {
            f"{factor} on {row} - {factor} on {first}": contrast
            | {place: -weight for place, weight in effects[first][factor].items()}
            for row in others
            for factor, contrast in effects[row].items()
        }
    return families


def cell_contrasts(places: Sequence[Place], baseline: Place, pairs: bool) -> dict[str, Contrast]:
    """Return {label: difference} of each cell from the baseline, or of all pairs of cells."""
    places = [baseline, *(place for place in places if place != baseline)]
    chosen = combinations(places, 2) if pairs else ((baseline, place) for place in places[1:])
    return {f"{cell_name(one)} - {cell_name(zero)}": mean_difference([one], [zero]) for zero, one in chosen}


def factor_contrasts(design: Design, rows: Sequence[str]) -> dict[str, Contrast]:
    """Return {label: main effect} of all factors: mean of the cells with the factor minus mean of those without it."""
    contrasts = {}
    for factor in design.factors:
        high = [name for name, factors in design.points.items() if factor in factors]
        low = [name for name in design.points if name not in high]
        contrasts[design.label(factor)] = mean_difference(list(product(rows, high)), list(product(rows, low)))
    return contrasts


def variances_of(comparison: Comparison, contrasts: Sequence[Contrast], spread: Spread | None = None) -> Variances:
    """Return what limits some differences. spread: replaces the measured one between seeds."""
    known = comparison.known_spread
    if spread is None and known:
        spread = Spread(known.standard_deviation**2, 0.0)
    cells = [comparison.cells[place] for place in comparison.run_scores]
    options = seed_options(comparison, cells, for_contrasts=True)
    variances = measure_variances(
        comparison.run_scores, contrasts, comparison.num_images, options["shared_seeds"], options["rows"], spread
    )
    return replace(variances, degrees=known.degrees) if known else variances


def add_decisions(comparison: Comparison, cells: dict[Place, Cell], replicates: np.ndarray) -> None:
    """Add which cells may be the best, and the optimism of the best mean score. replicates: (K, R).

    Of two cells, the test of their difference decides, so that the statements agree."""
    sign = -1 if comparison.lower_is_better else 1
    means = sign * np.array([cell.mean for cell in cells.values()])
    if len(cells) == 2:
        kept = (means == means.max()) | (not comparison.differences[0].is_significant)
    else:
        kept = may_be_best(means, sign * replicates, comparison.level)
    comparison.may_be_best = [place for place, is_kept in zip(cells, kept, strict=True) if is_kept]
    if sum(len(cell.scores) - 1 for cell in cells.values()) >= MIN_OPTIMISM_DEGREES or not comparison.has_several_seeds:
        comparison.optimism = sign * optimism_of_best(means, sign * replicates)


def add_classes(
    comparison: Comparison, cells: dict[Place, Cell], classes: dict[Path, np.ndarray], names: Sequence[str]
) -> None:
    """Add each class's score and its change from the baseline, with intervals.

    classes: {run: (1 + R, C)}, the scores of C classes on the original images and on R resamples."""
    base = list(cells).index(comparison.baseline)
    for k, name in enumerate(map(str, names)):
        values = [np.stack([classes[run.path][:, k] for run in cell.scored_runs]) for cell in cells.values()]
        means = [each[:, 0].mean() for each in values]
        of_scores, of_changes = (replicates_of(comparison, cells, values, contrasts) for contrasts in (False, True))
        for number, place in enumerate(cells):
            change = means[number] - means[base]
            comparison.per_class.setdefault(place, {})[name] = interval(means[number], of_scores[number])
            comparison.per_class_change.setdefault(place, {})[name] = interval(
                change, of_changes[number] - of_changes[base]
            )


def add_warnings(comparison: Comparison, statistics: Statistics) -> None:
    """Add warnings about tests that cannot be significant or are unstable, rare classes, and single seeds."""
    families = [
        comparison.differences, comparison.row_effects, comparison.column_effects, comparison.interactions,
        comparison.factor_effects, *comparison.factor_effects_in.values(), comparison.factor_interactions,
    ]  # fmt: skip
    lowest_p = 2 / (comparison.replicates + 1)
    tests = max((each.num_tests for family in families for each in family), default=0)
    if lowest_p * tests >= comparison.level:
        comparison.warnings.append(
            f"{comparison.replicates} resamples are too few: p cannot fall below {lowest_p:.4f}, so none of {tests} "
            "differences can be significant after Holm correction; raise --replicates"
        )
    unstable = [f"{each.label} (p {each.p_holm:.3f})" for family in families for each in family if not each.is_stable]
    if unstable:
        comparison.warnings.append(
            f"other resamples may change the verdict on {listed(unstable, 4)}: the corrected p value is within 2 "
            f"standard errors of {comparison.level:g}; raise --replicates"
        )
    if isinstance(statistics, Matches):
        pairs = np.unique(np.stack([statistics.object_classes, statistics.object_images]), axis=1)
        images = np.bincount(pairs[0], minlength=len(statistics.class_names))
        rare = [
            f"{name} ({count})" for name, count in zip(statistics.class_names, images, strict=True) if 0 < count < RARE
        ]
        if rare:
            comparison.warnings.append(
                f"classes on fewer than {RARE} validation images: {listed(rare)}; their intervals are too narrow"
            )
    if not comparison.covers_seeds:
        comparison.warnings.append(
            "one seed per cell: intervals and tests hold for these trained weights only; they do not include the "
            "variation between seeds, which is unknown (--seed-sd adds a known one)"
        )
