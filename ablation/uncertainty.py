"""Compute the uncertainty of a comparison: intervals of scores, differences, effects and classes, and what they show.

A paired bootstrap resamples the validation images, identically for all runs, and recomputes every score on each
resample (stats/bootstrap.py). With several seeds, the variation between seeds is added (stats/replicates.py).
Differences, main effects and interactions are contrasts (weighted sums) of the cells' scores (stats/contrasts.py),
computed on the same resamples.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ablation.comparison import Cell, Comparison, Difference, Family
from ablation.families import families_of
from engine.logbook import progress_bar
from engine.text import listed
from records.results import Place
from stats.bootstrap import MIN_IMAGES, image_weights, resampled_scores
from stats.contrasts import Contrast, assess_family, exact_mcnemar, interval
from stats.decisions import may_be_best, optimism_of_best, probability_better
from stats.image_statistics import Hits, Matches, Statistics
from stats.planning import Spread, Variances, detectable, measure_variances
from stats.replicates import cell_replicates, run_variances

MIN_OPTIMISM_DEGREES = 3  # of freedom of the variance between seeds; with 1, the replicates have no mean
RARE = 10  # classes on fewer images have intervals that are too narrow (benchmarks/bootstrap.md)


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
            comparison.variances = main_variances(comparison)
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
    """Add all families of differences, each with its own correction or, with `one_family`, all with one.

    replicates: (K, R), scores of the K cells on R resamples. hits: which predictions of a classifier are right, by
    run."""
    means, families = {place: cell.mean for place, cell in cells.items()}, families_of(comparison, pairs)
    variances = single_run_variances(comparison, cells)
    sign = -1 if comparison.lower_is_better else 1

    def power(contrast: Contrast, tests: int) -> float:
        variances = variances_of(comparison, [contrast])
        if variances.standard_error() == 0:  # for example because all scores are 0
            return math.nan
        return detectable(*variances.parts(), variances.degrees or math.inf, tests, comparison.level)

    for together in [list(families)] if comparison.one_family else [[family] for family in families]:
        members = [(family, *each) for family in together for each in families[family].items()]
        exact = [exact_p(comparison, family, contrast, hits) for family, _, contrast in members]
        contrasts = [contrast for *_, contrast in members]
        found = assess_family(contrasts, means, replicates, comparison.level, exact, power)
        for (family, label, contrast), each in zip(members, found, strict=True):
            better = math.nan
            if family.kind == "difference":
                better = probability_better(sign * each.interval.estimate, sum(variances[place] for place in contrast))
            difference = Difference(**vars(each), label=label, probability_better=better, contrast=contrast)
            comparison.families.setdefault(family, []).append(difference)


def single_run_variances(comparison: Comparison, cells: dict[Place, Cell]) -> dict[Place, float]:
    """Return the variance of a single run's score between seeds, for each cell; nan if it is unknown."""
    if comparison.known_spread:
        return dict.fromkeys(cells, comparison.known_spread.standard_deviation**2)
    rows = seed_options(comparison, list(cells.values()), for_contrasts=False)["rows"]
    return dict(zip(cells, run_variances([cell.scores for cell in cells.values()], rows), strict=True))


def exact_p(comparison: Comparison, family: Family, contrast: Contrast, hits: dict[Path, np.ndarray]) -> float | None:
    """Return the p value of McNemar's exact test for two single runs of classifiers that differ on few images."""
    if family.kind != "difference" or not hits or comparison.known_spread:  # the test knows nothing of the seeds
        return None
    runs = [run for place in contrast for run in comparison.cells[place].scored_runs]
    if len(runs) > 2:
        return None
    return exact_mcnemar(*(hits[run.path] for run in runs))


def main_variances(comparison: Comparison, spread: Spread | None = None) -> Variances:
    """Return what limits the main family. spread: see variances_of."""
    return variances_of(comparison, [each.contrast for each in comparison.main_family], spread)


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
    differences = [each for family in comparison.families.values() for each in family]
    lowest_p = 2 / (comparison.replicates + 1)
    tests = max((each.num_tests for each in differences), default=0)
    if lowest_p * tests >= comparison.level:
        comparison.warnings.append(
            f"{comparison.replicates} resamples are too few: p cannot fall below {lowest_p:.4f}, so none of {tests} "
            "differences can be significant after Holm correction; raise --replicates"
        )
    unstable = [f"{each.label} (p {each.p_holm:.3f})" for each in differences if not each.is_stable]
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
