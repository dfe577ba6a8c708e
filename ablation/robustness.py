"""Compare cells under corruptions of the images (noise, blur, weather): whether the better one stays better.

    python -m ablation.compare configs/grid_bccd.yaml --corruptions

Reads corruptions.json and the per-image statistics of every run (records/robustness.py). All corruptions are scored on
the same resamples of the images as the original images, so the noise that they share cancels. The mean performance
under corruption (mPC) and the relative one (rPC) are those of Michaelis et al. (arXiv 1907.07484, section 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ablation.comparison import Cell, Comparison, CorruptedCell, Difference, RobustnessComparison
from ablation.scheduling.jobs import Grid
from ablation.uncertainty import luck_of, seed_options, weights_of
from engine.logbook import progress_bar
from records.results import Place, Run
from records.robustness import (
    CLEAN,
    CORRUPTIONS_FILE,
    FOLDER,
    Robustness,
    command_for,
    read_robustness,
    statistics_name,
)
from stats.bootstrap import resampled_scores
from stats.contrasts import LEVEL, Interval, assess_family, interval
from stats.decisions import may_be_best
from stats.image_statistics import Statistics, load_statistics
from stats.replicates import cell_replicates
from stats.robustness import RankAgreement, rank_agreement
from stats.slices import needed_replicates

MIN_REPLICATES = 2000
Values = Sequence[np.ndarray]  # for each of K cells (n_k, 1 + R): a value of each run on the images and on R resamples


def add_robustness(comparison: Comparison, grid: Grid | None) -> None:
    """Add the comparison under corruptions. With planned looks, only the runs of the latest complete look count.

    Raises ValueError if a run has no complete record, if two records were made in different ways, or if no planned look
    is complete."""
    cells, level = counted_cells(comparison, grid)
    runs = [run for cell in cells for run in cell.scored_runs]
    record = checked_records(runs)[0]
    scores = corrupted_scores(comparison, runs, record, number_of_replicates(comparison, len(cells) - 1, level))
    by_cell = np.split(scores, np.cumsum([len(cell.scored_runs) for cell in cells])[:-1])
    clean, corrupted = [each[:, 0] for each in by_cell], [each[:, 1:].mean(axis=1) for each in by_cell]
    best, best_corrupted = cells[means_of(clean).argmax()], cells[means_of(corrupted).argmax()]
    sample = sample_of(comparison, cells, corrupted, for_contrasts=True)
    differences = {
        reference.place: differences_from(reference, cells, means_of(corrupted), sample, level)
        for reference in (comparison.baseline_cell, best)
    }
    from_best = differences[best.place]
    package, version = next(iter(record.versions.items()))
    comparison.robustness = RobustnessComparison(
        corruptions=record.corruptions,
        severities=record.severities,
        package=f"{package} {version}",
        cells=corrupted_cells(comparison, cells, by_cell, record.corruptions),
        differences=differences[comparison.baseline],
        from_best=from_best,
        best=best.place,
        best_corrupted=best_corrupted.place,
        may_be_best=may_be_best_corrupted(cells, means_of(corrupted), sample, from_best, level),
        agreement=agreement_of(comparison, cells, clean, corrupted, sample),
        replicates=sample.shape[1],
        level=level,
    )


def counted_cells(comparison: Comparison, grid: Grid | None) -> tuple[list[Cell], float]:
    """Return the cells with the runs that count, and the level of the tests: with planned looks, those of a look.

    Raises ValueError if no planned look is complete."""
    looks = comparison.looks
    if looks is None:
        return comparison.scored_cells, comparison.level
    if not looks.complete:
        raise ValueError(
            f"--corruptions: the first planned look, at {looks.planned[0]} seeds per cell, is not complete, so nothing "
            f"can be tested; train the missing runs with python -m ablation.grid run {grid.path}"
        )
    seeds = grid.config.seeds[: looks.planned[looks.complete - 1]]
    cells = [
        replace(cell, runs=[run for run in cell.scored_runs if run.seed in seeds]) for cell in comparison.scored_cells
    ]
    return [cell for cell in cells if cell.runs], looks.levels[-1]


def number_of_replicates(comparison: Comparison, num_tests: int, level: float) -> int:
    """Return the number of resamples: less than those of the comparison, because each corruption is resampled."""
    needed = round(needed_replicates(max(1, num_tests)) * LEVEL / level) if level else MIN_REPLICATES
    return min(comparison.replicates, max(MIN_REPLICATES, needed))


# ---- statistics --------------------------------------------------------------------------------------------


def means_of(values: Values) -> np.ndarray:
    """Return the mean over the runs of each cell, on the images themselves, (K,)."""
    return np.array([each[:, 0].mean() for each in values])


def sample_of(
    comparison: Comparison,
    cells: Sequence[Cell],
    values: Values,
    *,
    for_contrasts: bool = False,
    is_score: bool = True,
    extra_seed: int = 0,
) -> np.ndarray:
    """Return replicates (K, R) of the mean over the runs of each cell, with the variation between seeds.

    for_contrasts: see replicates_of in ablation/uncertainty.py. is_score: whether the luck of tuning is added, which is
    that of the score on the original images. extra_seed: for independent draws of the variation between seeds."""
    options = seed_options(comparison, cells, for_contrasts)
    estimates, parts = [each[:, 0] for each in values], [each[:, 1:] for each in values]
    sample = cell_replicates(estimates, parts, comparison.resample_seed + extra_seed, **options)
    luck = luck_of(comparison, [cell.place for cell in cells]) if is_score else None
    return sample if luck is None else sample + luck[:, : sample.shape[1]]


def corrupted_cells(
    comparison: Comparison, cells: Sequence[Cell], by_cell: Sequence[np.ndarray], corruptions: Sequence[str]
) -> dict[Place, CorruptedCell]:
    """Return clean score, mPC, rPC and the score under each corruption of each cell, with intervals.

    by_cell: for each cell (n_k, 1 + C, 1 + R), see corrupted_scores."""

    def intervals_of(values: Values, is_score: bool = True) -> list[Interval]:
        sample = sample_of(comparison, cells, values, is_score=is_score)
        return [interval(each[:, 0].mean(), part) for each, part in zip(values, sample, strict=True)]

    clean, mean = [each[:, 0] for each in by_cell], [each[:, 1:].mean(axis=1) for each in by_cell]
    relative = [part / whole for part, whole in zip(mean, clean, strict=True)]
    columns = [intervals_of(clean), intervals_of(mean), intervals_of(relative, is_score=False)]
    columns += [intervals_of([each[:, position] for each in by_cell]) for position in range(1, 1 + len(corruptions))]
    return {
        cell.place: CorruptedCell(*parts[:3], dict(zip(corruptions, parts[3:], strict=True)))
        for cell, *parts in zip(cells, *columns, strict=True)
    }


def differences_from(
    reference: Cell, cells: Sequence[Cell], means: np.ndarray, sample: np.ndarray, level: float
) -> dict[Place, Difference]:
    """Return the differences of mPC of all other cells from one cell, corrected as one family.

    means: (K,), mPC of the cells. sample: (K, R), replicates of it."""
    others = [cell for cell in cells if cell.place != reference.place]
    contrasts = [{cell.place: 1.0, reference.place: -1.0} for cell in others]
    estimates = {cell.place: mean for cell, mean in zip(cells, means, strict=True)}
    tested = assess_family(contrasts, estimates, sample, level)
    return {
        cell.place: Difference(**vars(each), label=f"{cell.name} - {reference.name}")
        for cell, each in zip(others, tested, strict=True)
    }


def may_be_best_corrupted(
    cells: Sequence[Cell], means: np.ndarray, sample: np.ndarray, from_best: Mapping[Place, Difference], level: float
) -> list[Place]:
    """Return the cells that may have the highest mPC. The tests decide for two cells, so that statements agree.

    from_best: the differences of mPC from the cell that is the best on the original images. Without a significant one,
    this cell stays in the set. means, sample, level: see differences_from."""
    if len(cells) == 2:
        (difference,) = from_best.values()
        kept = (means == means.max()) | (not difference.is_significant)
    else:
        kept = may_be_best(means, sample, level)
        rival = from_best.get(cells[means.argmax()].place)  # None if the same cell has the highest mPC
        if rival is not None and not rival.is_significant:
            kept[[cell.place not in from_best for cell in cells]] = True
    return [cell.place for cell, is_kept in zip(cells, kept, strict=True) if is_kept]


def agreement_of(
    comparison: Comparison, cells: Sequence[Cell], clean: Values, corrupted: Values, sample: np.ndarray
) -> RankAgreement | None:
    """Return how well the rankings by clean score and by mPC agree; None with one cell. sample: of mPC, (K, R)."""
    if len(cells) < 2:
        return None
    # Independent draws of the variation between seeds: with the same draws, the rankings would agree too often
    clean_sample = sample_of(comparison, cells, clean, for_contrasts=True, extra_seed=1)
    return rank_agreement(means_of(clean), means_of(corrupted), clean_sample, sample)


# ---- reading -----------------------------------------------------------------------------------------------


def checked_records(runs: Sequence[Run]) -> list[Robustness]:
    """Return the records of the runs' scores under corruption, which must all be made in the same way.

    Raises ValueError naming the run, the problem and the command that repairs it."""
    found = {run.path: read_robustness(run.path) if run.is_experiment else None for run in runs}
    example = next((record for record in found.values() if record), None)
    for run in runs:
        record = found[run.path]
        if problem := problem_of(run, record, example):
            raise ValueError(f"{run.path}: {problem}")
        if differences := example.differences(record, also=("corruptions", "severities")):
            raise ValueError(
                f"{run.path}: {CORRUPTIONS_FILE} was made in a different way from that of {runs[0].path}: "
                f"{differences[0]}; score both with the same options and packages, such as "
                f"{command_for(run.path, example)}"
            )
    return list(found.values())


def problem_of(run: Run, record: Robustness | None, example: Robustness | None) -> str:
    """Return why a run has no usable scores under corruption, with the cure; empty if it has.

    example: the record of one of the compared runs, whose corruptions and severities are suggested."""
    if not run.is_experiment:
        return "results files have no scores under corruption; leave this file out"
    if run.results.task != "detection":
        return f"--corruptions compares detectors, and this is a run of {run.results.task}; leave out --corruptions"
    if record is None:
        return f"no scores under corruption; run {command_for(run.path, example)}"
    command, total = command_for(run.path, record), len(record.evaluations)
    if not record.is_complete:
        finished = total - len(record.missing)
        return f"{finished} of {total} corruptions and severities are scored; to continue, run {command}"
    if run.results.steps and record.step != run.results.steps:  # 0: recorded by an older version
        return (
            f"{CORRUPTIONS_FILE} has scores of step {record.step}, results.json of step {run.results.steps}; move "
            f"{CORRUPTIONS_FILE} away and run {command}"
        )
    return ""


def corrupted_scores(comparison: Comparison, runs: Sequence[Run], record: Robustness, replicates: int) -> np.ndarray:
    """Return the compared score of N runs on original images (first) and under C corruptions, (N, 1 + C, 1 + R).

    The score under a corruption is the mean over the severities. The resamples are the first R of the comparison.
    Raises ValueError if the statistics of a run are missing, corrupt or of different images."""
    image_ids = runs[0].load_statistics().image_ids
    weights = weights_of(comparison, len(image_ids))[: 1 + replicates]
    result = np.empty((len(runs), 1 + len(record.corruptions), 1 + replicates))

    def score(run: Run, name: str) -> np.ndarray:
        statistics = load_corrupted(run, name, record)
        if not np.array_equal(statistics.image_ids, image_ids):
            raise ValueError(f"{run.path / FOLDER / name}: covers different images from {runs[0].path}")
        return resampled_scores(statistics, weights)[0][comparison.metric]

    for number, run in enumerate(progress_bar(runs, desc="corruptions", unit="run", leave=False)):
        result[number, 0] = score(run, CLEAN)
        for position, corruption in enumerate(record.corruptions, start=1):
            values = [score(run, statistics_name(corruption, severity)) for severity in record.severities]
            result[number, position] = np.mean(values, axis=0)
    return result


def load_corrupted(run: Run, name: str, record: Robustness) -> Statistics:
    """Return the per-image statistics of one evaluation. Raises ValueError with the cure if the file is not usable."""
    path, command = run.path / FOLDER / name, command_for(run.path, record)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; to score this corruption again, run {command}")
    try:
        return load_statistics(path.parent, name)
    except ValueError as error:
        raise ValueError(f"{error}; delete this file and run {command}") from None
