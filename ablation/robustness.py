"""Compare cells under corruptions of the images (noise, blur, weather): whether the better one stays better.

    python -m ablation.compare configs/grid_bccd.yaml --corruptions

Reads corruptions.json and the per-image statistics of every run (records/robustness.py). All corruptions are scored on
the same resamples of the images as the original images, so the noise that they share cancels. The mean performance
under corruption (mPC) and the relative one (rPC) are those of Michaelis et al. (arXiv 1907.07484, section 3).
"""

from collections.abc import Sequence

import numpy as np

from ablation.comparison import Comparison, CorruptedCell, Difference, RobustnessComparison
from ablation.uncertainty import luck_of, seed_options, weights_of
from engine.logbook import progress_bar
from records.results import Place, Run
from records.robustness import CLEAN, FOLDER, Robustness, read_robustness, statistics_name
from stats.bootstrap import resampled_scores
from stats.contrasts import Interval, assess_family, interval
from stats.decisions import may_be_best
from stats.image_statistics import load_statistics
from stats.replicates import cell_replicates
from stats.robustness import rank_agreement
from stats.slices import needed_replicates

MIN_REPLICATES = 2000


def add_robustness(comparison: Comparison) -> None:
    """Add the comparison under corruptions.

    Raises ValueError if a run has no complete record, or if two records were made in different ways."""
    cells, level = comparison.scored_cells, comparison.level
    runs = [run for cell in cells for run in cell.scored_runs]
    record = checked_records(runs)[0]
    tests = max(1, len(cells) - 1)
    replicates = min(comparison.replicates, max(MIN_REPLICATES, needed_replicates(tests)))
    scores = corrupted_scores(comparison, runs, record, replicates)  # (runs, 1 + corruptions, 1 + R)
    ends = np.cumsum([len(cell.scored_runs) for cell in cells])[:-1]
    by_cell = np.split(scores, ends)
    clean = [each[:, 0] for each in by_cell]
    corrupted = [each[:, 1:].mean(axis=1) for each in by_cell]
    relative = [part / whole for part, whole in zip(corrupted, clean, strict=True)]
    seed, luck = comparison.resample_seed, luck_of(comparison, [cell.place for cell in cells])

    def sample_of(values: Sequence[np.ndarray], for_contrasts: bool, seed: int, is_score: bool = True) -> np.ndarray:
        """Return replicates (K, R) of a score. Those of tuning's luck and of a known spread are added to scores."""
        options = seed_options(comparison, cells, for_contrasts)
        known = comparison.known_spread if is_score else None
        estimates, parts = [each[:, 0] for each in values], [each[:, 1:] for each in values]
        sample = cell_replicates(estimates, parts, seed, known=known, **options)
        return sample if luck is None or not is_score else sample + luck[:, :replicates]

    def intervals_of(values: Sequence[np.ndarray], is_score: bool = True) -> list[Interval]:
        sample = sample_of(values, False, seed, is_score)
        return [interval(each[:, 0].mean(), part) for each, part in zip(values, sample, strict=True)]

    by_corruption = [
        intervals_of([each[:, 1 + number] for each in by_cell]) for number in range(len(record.corruptions))
    ]
    found = {
        cell.place: CorruptedCell(*parts, dict(zip(record.corruptions, each, strict=True)))
        for cell, *parts, each in zip(
            cells, intervals_of(clean), intervals_of(corrupted), intervals_of(relative, False),
            zip(*by_corruption, strict=True), strict=True,
        )
    }  # fmt: skip
    means, clean_means = (np.array([each[:, 0].mean() for each in values]) for values in (corrupted, clean))
    sample = sample_of(corrupted, True, seed)

    def from_reference(reference: int) -> dict[Place, Difference]:
        """Return the tested differences of mPC of all other cells from one cell."""
        others = [number for number in range(len(cells)) if number != reference]
        contrasts = [{cells[number].place: 1.0, cells[reference].place: -1.0} for number in others]
        estimates = {cell.place: mean for cell, mean in zip(cells, means, strict=True)}
        tested = assess_family(contrasts, estimates, sample, level)
        return {
            cells[number].place: Difference(**vars(each), label=f"{cells[number].name} - {cells[reference].name}")
            for number, each in zip(others, tested, strict=True)
        }

    best, best_corrupted = int(clean_means.argmax()), int(means.argmax())
    from_best = from_reference(best)
    if len(cells) == 2:  # the test decides, so that the statements agree
        kept = (means == means.max()) | (not next(iter(from_best.values())).is_significant)
    else:
        kept = may_be_best(means, sample, level)
        if best != best_corrupted and not from_best[cells[best_corrupted].place].is_significant:
            kept[best] = True
    agreement = None
    if len(cells) > 1:
        # Independent draws of the noise between seeds: with the same draws, the two rankings would agree too often
        clean_sample = sample_of(clean, True, seed + 1)
        agreement = rank_agreement(clean_means, means, clean_sample, sample)
    package, version = next(iter(record.versions.items()))
    comparison.robustness = RobustnessComparison(
        record.corruptions, record.severities, f"{package} {version}", found,
        from_reference(cells.index(comparison.baseline_cell)), from_best, cells[best].place,
        cells[best_corrupted].place, [cell.place for cell, is_kept in zip(cells, kept, strict=True) if is_kept],
        agreement, replicates,
    )  # fmt: skip


def checked_records(runs: Sequence[Run]) -> list[Robustness]:
    """Return the records of the runs' scores under corruption, which must all be made in the same way.

    Raises ValueError naming the run and the problem otherwise."""
    records: list[Robustness] = []
    for run in runs:
        record = read_robustness(run.path) if run.is_experiment else None
        command = f"python -m detection.evaluate {run.path} --corruptions"
        if record is None:
            cure = f"run {command}" if run.is_experiment else "results files have none; leave them out"
            raise ValueError(f"{run.path}: no scores under corruption; {cure}")
        if not record.is_complete:
            finished = len(record.evaluations) - len(record.missing)
            raise ValueError(
                f"{run.path}: {finished} of {len(record.evaluations)} corruptions and severities are scored; repeat "
                f"its command, {command}, to continue"
            )
        if run.results.steps and record.step != run.results.steps:  # 0: recorded by an older version
            raise ValueError(
                f"{run.path}: corruptions.json has scores of step {record.step}, results.json of step "
                f"{run.results.steps}; move corruptions.json away and run {command}"
            )
        first = records[0] if records else record
        if differences := first.differences(record, also=("corruptions", "severities")):
            raise ValueError(
                f"{run.path}: corruptions.json was made in a different way from that of {runs[0].path}: "
                f"{differences[0]}; score both with the same options and packages"
            )
        records.append(record)
    return records


def corrupted_scores(comparison: Comparison, runs: Sequence[Run], record: Robustness, replicates: int) -> np.ndarray:
    """Return the compared score of N runs on original images (first) and under C corruptions, (N, 1 + C, 1 + R).

    The score under a corruption is the mean over the severities. The resamples are the first R of the comparison.
    Raises ValueError if the statistics of a run are missing or of other images."""
    image_ids = runs[0].load_statistics().image_ids
    weights = weights_of(comparison, len(image_ids))[: 1 + replicates]
    result = np.empty((len(runs), 1 + len(record.corruptions), 1 + replicates))

    def score(run: Run, name: str) -> np.ndarray:
        statistics = load_statistics(run.path / FOLDER, name)
        if not np.array_equal(statistics.image_ids, image_ids):
            raise ValueError(f"{run.path / FOLDER / name}: covers different images from {runs[0].path}")
        return resampled_scores(statistics, weights)[0][comparison.metric]

    for number, run in enumerate(progress_bar(runs, desc="corruptions", unit="run", leave=False)):
        result[number, 0] = score(run, CLEAN)
        for position, corruption in enumerate(record.corruptions, start=1):
            values = [score(run, statistics_name(corruption, severity)) for severity in record.severities]
            result[number, position] = np.mean(values, axis=0)
    return result
