"""Compute the uncertainty of a comparison: intervals of scores, differences, effects and classes, and what they show.

A paired bootstrap resamples the validation images, identically for all runs, and recomputes every score on each
resample (stats/bootstrap.py). With several seeds, the variation between seeds is added (stats/replicates.py).
Differences, main effects and interactions are contrasts (weighted sums) of the cells' scores (stats/contrasts.py),
computed on the same resamples.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ablation.comparison import Cell, Comparison, Difference, Family
from ablation.families import families_of
from engine.logbook import progress_bar
from engine.text import listed
from records.results import Place
from stats.bootstrap import MIN_IMAGES, image_weights, resampled_scores
from stats.contrasts import Contrast, Tested, assess_family, exact_mcnemar, interval
from stats.decisions import may_be_best, optimism_of_best, probability_better
from stats.image_statistics import Hits, Matches, Statistics
from stats.planning import Spread, Variances, detectable, measure_variances
from stats.replicates import cell_replicates, run_variances

MIN_OPTIMISM_DEGREES = 3  # of freedom of the variance between seeds; with 1, the replicates have no mean
RARE = 10  # classes on fewer images have intervals that are too narrow (benchmarks/bootstrap.md)


@dataclass(frozen=True)
class Resampled:
    """The scores of all runs on the original images (first) and on R resamples, by path of the run.

    scores: {run: {score name: (1 + R,)}}. classes: {run: (1 + R, C)}, the scores of C classes. hits: {run: (I,) bool},
    which predictions of a classifier are right. last: the statistics of the last run, for what all have in common."""

    scores: dict[Path, dict[str, np.ndarray]]
    classes: dict[Path, np.ndarray]
    hits: dict[Path, np.ndarray]
    last: Statistics


def add_uncertainty(comparison: Comparison, pairs: bool) -> None:
    """Add intervals, differences, effects, class scores and decisions to a comparison, from resamples of the images.

    Raises ValueError if runs were scored on different images, or if a run's statistics and results disagree."""
    if comparison.num_images < MIN_IMAGES:
        comparison.warnings.append(
            f"{comparison.num_images} validation images: no differences computed, at least {MIN_IMAGES} are needed"
        )
        return
    resampled = resample(comparison)
    add_intervals(comparison, resampled)
    if len(comparison.scored_cells) > 1:
        compared_scores = list(comparison.run_scores.values())
        sample = replicates_of(comparison, compared_scores, for_contrasts=True, is_compared=True)
        add_differences(comparison, sample, pairs, resampled.hits)
        add_decisions(comparison, sample)
        if comparison.has_several_seeds:
            comparison.variances = main_variances(comparison)
    add_classes(comparison, resampled)
    comparison.warnings += data_warnings(comparison, resampled.last)


def resample(comparison: Comparison) -> Resampled:
    """Score all runs on the same resamples of the validation images. Raises ValueError, see add_uncertainty."""
    runs = [run for cell in comparison.scored_cells for run in cell.scored_runs]
    weights, scores, classes, hits = None, {}, {}, {}
    for run in progress_bar(runs, desc="resampling", unit="run", leave=False):
        statistics = run.load_statistics()
        if weights is None:
            image_ids, weights = statistics.image_ids, weights_of(comparison, len(statistics.image_ids))
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
    return Resampled(scores, classes, hits, statistics)


def weights_of(comparison: Comparison, num_images: int) -> np.ndarray:
    """Return how often each image counts: once in the first row, then in each resample, (1 + R, num_images)."""
    drawn = image_weights(num_images, comparison.replicates, comparison.resample_seed)
    return np.concatenate([np.ones_like(drawn[:1]), drawn])


def replicates_of(
    comparison: Comparison, values: Sequence[np.ndarray], for_contrasts: bool, is_compared: bool = False
) -> np.ndarray:
    """Return replicates of a score of K cells, (K, R), with the variation between seeds.

    values: for each cell (n_k, 1 + R), the score of each run on the original images and on R resamples.
    for_contrasts: leave out what all cells have in common, if they have the same seeds.
    is_compared: whether this is the compared score, for which a spread between seeds may be known, and which contains
    the luck of tuning."""
    estimates, replicates = [each[:, 0] for each in values], [each[:, 1:] for each in values]
    cells = comparison.scored_cells
    options = seed_options(comparison, cells, for_contrasts)
    known = comparison.known_spread if is_compared else None
    sample = cell_replicates(estimates, replicates, comparison.resample_seed, known=known, **options)
    return with_tuning_luck(comparison, [cell.place for cell in cells], sample) if is_compared else sample


def seed_options(comparison: Comparison, cells: Sequence[Cell], for_contrasts: bool) -> dict[str, Any]:
    """Return the arguments of cell_replicates that say which cells share a row, and whether they share seeds."""
    rows = [row for row in comparison.rows if any(cell.row == row for cell in cells)]
    return {
        "rows": [rows.index(cell.row) for cell in cells],
        "shared_seeds": for_contrasts and have_same_seeds(cells),
    }


def with_tuning_luck(comparison: Comparison, places: Sequence[Place], sample: np.ndarray) -> np.ndarray:
    """Return replicates of the compared score of some cells, (K, R), with the luck of tuning.

    With different trials, different values would have been chosen. Without this, two rows that are equally good when
    tuned perfectly differ too often (benchmarks/tuning.md)."""
    luck = luck_of(comparison, places)
    return sample if luck is None else sample + luck


def luck_of(comparison: Comparison, places: Sequence[Place]) -> np.ndarray | None:
    """Return the luck of tuning of some cells, (K, R), the same for all seeds of a cell; None without tuning."""
    tuning = comparison.tuning
    return None if tuning is None else np.stack([tuning.luck[tuning.owner_of(place)] for place in places])


def have_same_seeds(cells: Iterable[Cell]) -> bool:
    """Return whether all cells were trained with the same seeds."""
    return len({tuple(run.seed for run in cell.scored_runs) for cell in cells}) == 1


def add_intervals(comparison: Comparison, resampled: Resampled) -> None:
    """Add an interval for every score of every cell, and the compared score of every run.

    Scores that are null in results.json, such as top-5 accuracy with five classes, get no interval."""
    cells = comparison.scored_cells
    runs = [run for cell in cells for run in cell.scored_runs]
    for name in resampled.scores[runs[0].path]:
        if any(run.results.scores.get(name) is None for run in runs):
            continue
        values = [np.stack([resampled.scores[run.path][name] for run in cell.scored_runs]) for cell in cells]
        if name == comparison.metric:
            comparison.run_scores = {cell.place: each for cell, each in zip(cells, values, strict=True)}
        sample = replicates_of(comparison, values, for_contrasts=False, is_compared=name == comparison.metric)
        for cell, each, replicates in zip(cells, values, sample, strict=True):
            comparison.intervals.setdefault(cell.place, {})[name] = interval(each[:, 0].mean(), replicates)


# ---- differences -------------------------------------------------------------------------------------------


def add_differences(comparison: Comparison, sample: np.ndarray, pairs: bool, hits: dict[Path, np.ndarray]) -> None:
    """Add all families of differences, each with its own correction or, with `one_family`, all with one.

    sample: (K, R), scores of the K cells on R resamples. hits: see Resampled."""
    contrasts = families_of(comparison, pairs)
    for together in [list(contrasts)] if comparison.one_family else [[family] for family in contrasts]:
        members = [(family, *each) for family in together for each in contrasts[family].items()]
        found = tested_together(comparison, [(family, contrast) for family, _, contrast in members], sample, hits)
        for (family, label, contrast), tested in zip(members, found, strict=True):
            better = single_run_better(comparison, contrast, tested) if family.kind == "difference" else math.nan
            difference = Difference(**vars(tested), label=label, probability_better=better, contrast=contrast)
            comparison.families.setdefault(family, []).append(difference)


def tested_together(
    comparison: Comparison,
    members: Sequence[tuple[Family, Contrast]],
    sample: np.ndarray,
    hits: dict[Path, np.ndarray],
) -> list[Tested]:
    """Test contrasts, corrected for their number. members: each contrast with its family."""
    means = {cell.place: cell.mean for cell in comparison.scored_cells}
    contrasts = [contrast for _, contrast in members]
    exact = [
        exact_p(comparison, contrast, hits) if family.kind == "difference" else None for family, contrast in members
    ]

    def power(contrast: Contrast, tests: int) -> float:
        variances = variances_of(comparison, [contrast])
        if variances.standard_error() == 0:  # for example because all scores are 0
            return math.nan
        degrees = variances.degrees or math.inf
        return detectable(*variances.parts(), degrees, tests, comparison.level, variances.groups)

    return assess_family(contrasts, means, sample, comparison.level, exact, power)


def single_run_better(comparison: Comparison, contrast: Contrast, tested: Tested) -> float:
    """Return the chance that a run of the first cell of a difference is better than a run of the second."""
    if comparison.known_spread:
        variance = 2 * comparison.known_spread.standard_deviation**2
    else:
        cells = comparison.scored_cells
        rows = seed_options(comparison, cells, for_contrasts=False)["rows"]
        variances = run_variances([cell.scores for cell in cells], rows)
        variance = sum(each for cell, each in zip(cells, variances, strict=True) if cell.place in contrast)
    sign = -1 if comparison.lower_is_better else 1
    return probability_better(sign * tested.interval.estimate, variance)


def exact_p(comparison: Comparison, contrast: Contrast, hits: dict[Path, np.ndarray]) -> float | None:
    """Return the p value of McNemar's exact test for two single runs of classifiers that differ on few images.

    None if other noise than that of the images counts: of the seeds, or of tuning with different trials."""
    runs = [run for place in contrast for run in comparison.cells[place].scored_runs]
    if len(runs) > 2 or not hits or comparison.known_spread:
        return None
    if comparison.tuning and len({comparison.tuning.owner_of(place) for place in contrast}) > 1:
        return None
    return exact_mcnemar(*(hits[run.path] for run in runs))


def main_variances(comparison: Comparison, spread: Spread | None = None) -> Variances:
    """Return what limits the main family, at the number of tests it is corrected for. spread: see variances_of."""
    family = comparison.main_family
    variances = variances_of(comparison, [each.contrast for each in family], spread)
    return replace(variances, tests=family[0].num_tests)


def variances_of(comparison: Comparison, contrasts: Sequence[Contrast], spread: Spread | None = None) -> Variances:
    """Return what limits some differences. spread: replaces the measured one between seeds."""
    known = comparison.known_spread
    if spread is None and known:
        spread = Spread(known.standard_deviation**2, 0.0)
    cells = [comparison.cells[place] for place in comparison.run_scores]
    options = seed_options(comparison, cells, for_contrasts=True)
    variances = measure_variances(
        comparison.run_scores, contrasts, comparison.num_images, options["shared_seeds"], options["rows"], spread,
        luck_of(comparison, list(comparison.run_scores)),
    )  # fmt: skip
    return replace(variances, degrees=known.degrees) if known else variances


# ---- decisions and classes ---------------------------------------------------------------------------------


def add_decisions(comparison: Comparison, sample: np.ndarray) -> None:
    """Add which cells may be the best, and the optimism of the best mean score. sample: (K, R), see add_differences.

    Of two cells, the test of their difference decides, so that the statements agree."""
    cells, sign = comparison.scored_cells, -1 if comparison.lower_is_better else 1
    means = sign * np.array([cell.mean for cell in cells])
    if len(cells) == 2:
        kept = (means == means.max()) | (not comparison.differences[0].is_significant)
    else:
        kept = may_be_best(means, sign * sample, comparison.level)
    comparison.may_be_best = [cell.place for cell, is_kept in zip(cells, kept, strict=True) if is_kept]
    if sum(len(cell.scores) - 1 for cell in cells) >= MIN_OPTIMISM_DEGREES or not comparison.has_several_seeds:
        comparison.optimism = sign * optimism_of_best(means, sign * sample)


def add_classes(comparison: Comparison, resampled: Resampled) -> None:
    """Add each class's score and its change from the baseline, with intervals."""
    cells = comparison.scored_cells
    base = cells.index(comparison.baseline_cell)
    for k, name in enumerate(map(str, resampled.last.class_names)):
        values = [np.stack([resampled.classes[run.path][:, k] for run in cell.scored_runs]) for cell in cells]
        means = [each[:, 0].mean() for each in values]
        of_scores, of_changes = (replicates_of(comparison, values, contrasts) for contrasts in (False, True))
        for number, cell in enumerate(cells):
            change = means[number] - means[base]
            comparison.per_class.setdefault(cell.place, {})[name] = interval(means[number], of_scores[number])
            comparison.per_class_change.setdefault(cell.place, {})[name] = interval(
                change, of_changes[number] - of_changes[base]
            )


# ---- warnings ----------------------------------------------------------------------------------------------


def stability_warnings(comparison: Comparison) -> Iterator[str]:
    """Yield warnings about tests that cannot be significant, or whose verdict depends on the draw of the resamples."""
    differences = [each for family in comparison.families.values() for each in family]
    lowest_p = 2 / (comparison.replicates + 1)
    tests = max((each.num_tests for each in differences), default=0)
    if lowest_p * tests >= comparison.level:
        yield (
            f"{comparison.replicates} resamples are too few: p cannot fall below {lowest_p:.4f}, so none of {tests} "
            "differences can be significant after Holm correction; raise --replicates"
        )
    unstable = [
        f"{each.label} ({f'at look {each.at_looks.unstable_at}' if each.at_looks else f'p {each.p_holm:.3f}'})"
        for each in differences
        if not each.is_stable
    ]
    if unstable:
        level = "the level of the look" if comparison.looks else f"{comparison.level:g}"
        yield (
            f"other resamples may change the verdict on {listed(unstable, 4)}: the corrected p value is within 2 "
            f"standard errors of {level}; raise --replicates"
        )


def data_warnings(comparison: Comparison, statistics: Statistics) -> Iterator[str]:
    """Yield warnings about rare classes and single seeds."""
    if isinstance(statistics, Matches):
        pairs = np.unique(np.stack([statistics.object_classes, statistics.object_images]), axis=1)
        images = np.bincount(pairs[0], minlength=len(statistics.class_names))
        rare = [
            f"{name} ({count})" for name, count in zip(statistics.class_names, images, strict=True) if 0 < count < RARE
        ]
        if rare:
            yield f"classes on fewer than {RARE} validation images: {listed(rare)}; their intervals are too narrow"
    if not comparison.covers_seeds:
        yield (
            "one seed per cell: intervals and tests hold for these trained weights only; they do not include the "
            "variation between seeds, which is unknown (--seed-sd adds a known one)"
        )
