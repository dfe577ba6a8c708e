"""The latencies of the cells of a comparison: the cells within a budget, and the front of score and latency.

    python -m detection.latency experiments/experiment_2 experiments/experiment_3
    python -m ablation.compare experiments/experiment_2 experiments/experiment_3 --budget 20ms --plot latency.png

The first command measures (latency.json of an experiment, records/latency.py). Latency here is the time from the file
of one image to boxes.
"""

import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ablation.comparison import Budget, Cell, CellLatency, Comparison, Latencies, measure_command
from ablation.looks import first_scores, replicates_at_look
from ablation.scheduling.jobs import Grid
from ablation.uncertainty import replicates_of
from records.latency import LATENCY_FILE, Latency, Program, read_latency
from records.results import Place
from stats.contrasts import interval
from stats.decisions import may_be_best
from stats.latency import TOLERANCE, pairwise_ratios
from stats.pareto import Membership, front_membership


def add_latencies(comparison: Comparison, grid: Grid | None, program: Program, budget: float | None) -> None:
    """Add the latencies of a program, the front of score and latency and, with a budget in ms, the cells within it.

    Raises ValueError if there is a budget but no latencies that can be compared."""
    command = measure_command([path for cell in comparison.scored_cells for path in runs_to_measure(cell)], program)
    comparison.latencies = found = Latencies(program, command)
    try:
        records = {cell.place: list(measured_runs(cell, program, command)) for cell in comparison.scored_cells}
        check_conditions([each for runs in records.values() for each in runs], program, command)
    except ValueError as error:
        found.conflict = str(error)
    else:
        found.cells = {place: cell_latency(runs, program) for place, runs in records.items() if runs}
    if budget is not None:
        found.check(f"--budget {budget:g}ms")
    if not found.cells:
        return
    sample = decision_sample(comparison, grid)
    found.front = front_of(found.cells, sample)
    if budget is not None:
        found.budget = within_budget(comparison, budget, sample)


# ---- reading -----------------------------------------------------------------------------------------------


def runs_to_measure(cell: Cell) -> list[Path]:
    """Return the experiments of a cell that were measured; without any, its first one. All have the same network."""
    paths = [run.path for run in cell.scored_runs if run.is_experiment]
    return [path for path in paths if (path / LATENCY_FILE).is_file()] or paths[:1]


def measured_runs(cell: Cell, program: Program, command: str) -> Iterator[tuple[Path, Latency]]:
    """Yield the records of a cell's runs in which one image was measured with the program, with the runs' paths.

    command: measures all cells again, for messages. Raises ValueError if a record is invalid, or of a different
    checkpoint than the run's scores."""
    for run in cell.scored_runs:
        try:
            record = read_latency(run.path) if run.is_experiment else None
        except ValueError as error:
            raise ValueError(f"{error}: {command}") from None
        if not record or not record.timing(program, 1):
            continue
        if run.results.steps and record.step != run.results.steps:  # 0: recorded by an older version
            raise ValueError(
                f"{run.path}: {LATENCY_FILE} has times of {record.checkpoint} (step {record.step}), results.json has "
                f"scores of step {run.results.steps}; measure all again in one session: {command}"
            )
        yield run.path, record


def conditions(record: Latency, program: Program) -> dict[str, object]:
    """Return what has to be the same in the records of experiments that are compared, by name."""
    packages = ("torch", "onnxruntime") if program == "onnxruntime" else ("torch",)
    images = {"set of images": f"{record.images} (annotations {record.annotations_sha256[:8]})"}
    fixed = {"device": record.device, "threads": record.threads, "precision": record.precision}
    return fixed | images | {name: record.versions.get(name) for name in packages}


def check_conditions(records: Sequence[tuple[Path, Latency]], program: Program, command: str) -> None:
    """Raise ValueError with the cure, `command`, if a record was measured under different conditions than the first."""
    for path, record in records[1:]:
        first, own = conditions(records[0][1], program), conditions(record, program)
        for name in own:
            if own[name] != first[name]:
                raise ValueError(
                    f"latencies cannot be compared: {name} is {first[name]} in {records[0][0]} and {own[name]} in "
                    f"{path}; measure all again in one session: {command}"
                )


def cell_latency(records: Sequence[tuple[Path, Latency]], program: Program) -> CellLatency:
    """Return the latency of a cell from the records of its runs."""
    single = [record.timing(program, 1) for _, record in records]
    largest = [
        max((each for each in record.timings if each.program == program), key=lambda each: each.batch_size)
        for _, record in records
    ]
    batch_size = max(timing.batch_size for timing in largest)
    sessions = frozenset(record.session for _, record in records)
    rounds = [timing.rounds_ms for timing in single]
    is_paired = len(sessions) == 1 and len(set(map(len, rounds))) == 1 and len(rounds[0]) > 0
    return CellLatency(
        **{
            name: statistics.fmean(getattr(timing.end_to_end, name) for timing in single)
            for name in ("p50", "p50_low", "p50_high", "p95")
        },
        images_per_second=statistics.fmean(each.images_per_second for each in largest if each.batch_size == batch_size),
        batch_size=batch_size,
        device=records[0][1].device,
        threads=records[0][1].threads,
        precision=records[0][1].precision,
        sessions=sessions,
        loads=frozenset(record.load for _, record in records if record.load is not None),
        rounds=np.mean(rounds, axis=0) if is_paired else None,
    )


# ---- decisions ---------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """What decisions are based on. Higher is better, also if the score is a loss: then its sign is changed."""

    places: list[Place]  # K cells; none if differences cannot be tested
    estimates: np.ndarray  # (K,) scores
    replicates: np.ndarray  # (K, R)
    level: float

    def of(self, places: Collection[Place]) -> "Sample":
        """Return the part of these cells."""
        rows = [row for row, place in enumerate(self.places) if place in places]
        return Sample([self.places[row] for row in rows], self.estimates[rows], self.replicates[rows], self.level)


def decision_sample(comparison: Comparison, grid: Grid | None) -> Sample:
    """Return what decisions are based on. With planned looks, only the runs of the latest complete look count."""
    scores, level, looks = comparison.run_scores, comparison.level, comparison.looks
    if not scores or (looks and not looks.complete):
        return Sample([], np.empty(0), np.empty((0, comparison.replicates)), level)
    if looks:
        seeds = grid.config.seeds[: looks.planned[looks.complete - 1]]
        scores, level = first_scores(comparison, seeds), looks.levels[-1]
        replicates = replicates_at_look(comparison, scores)
    else:
        replicates = replicates_of(comparison, list(scores.values()), for_contrasts=True, is_compared=True)
    sign = -1 if comparison.lower_is_better else 1
    estimates = np.array([each[:, 0].mean() for each in scores.values()])
    return Sample(list(scores), sign * estimates, sign * replicates, level)


def front_of(cells: Mapping[Place, CellLatency], sample: Sample) -> dict[Place, Membership]:
    """Return for each measured cell whether it is on the Pareto front of score and latency; empty for a single cell."""
    measured = sample.of(cells)
    if len(measured.places) < 2:
        return {}
    low, high = latency_ratios([cells[place] for place in measured.places], measured.level / 2)
    front = front_membership(measured.estimates, measured.replicates, low, high, TOLERANCE, measured.level)
    return dict(zip(measured.places, front, strict=True))


def latency_ratios(cells: Sequence[CellLatency], level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return intervals of the ratios of latency, (K, K) twice, paired by round.

    A ratio is unknown if two cells have no session in common: the load may have changed between the sessions."""

    def rounds_of(one: int, other: int) -> tuple[np.ndarray, np.ndarray] | None:
        first, second = cells[one], cells[other]
        are_paired = first.rounds is not None and second.rounds is not None and first.sessions == second.sessions
        return (first.rounds, second.rounds) if are_paired and len(first.rounds) == len(second.rounds) else None

    return pairwise_ratios(len(cells), rounds_of, level)


def within_budget(comparison: Comparison, limit: float, sample: Sample) -> Budget:
    """Return which cells have a p50 of at most `limit` milliseconds, and which of them may be the best."""
    found = comparison.latencies.cells
    within = [place for place, each in found.items() if each.p50 <= limit]
    is_whole = len(within) == len(comparison.scored_cells) > 1  # then both statements are the same
    return Budget(
        limit,
        within,
        too_slow=[place for place in found if place not in within],
        not_measured=[cell.place for cell in comparison.scored_cells if cell.place not in found],
        borderline=[place for place, each in found.items() if each.p50_low <= limit <= each.p50_high],
        may_be_best=comparison.may_be_best if is_whole else best_places(sample.of(within), comparison.looks is None),
    )


def best_places(sample: Sample, is_two_sided: bool) -> list[Place]:
    """Return the cells that may be the best. is_two_sided: of two cells, the test of their difference decides."""
    places, estimates, replicates, level = sample
    if len(places) == 2 and is_two_sided:
        p = interval(estimates[0] - estimates[1], replicates[0] - replicates[1]).p
        kept = (estimates == estimates.max()) | (not p < level)
    else:
        kept = may_be_best(estimates, replicates, level)
    return [place for place, is_kept in zip(places, kept, strict=True) if is_kept]
