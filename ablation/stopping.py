"""Stop adding seeds: which runs of a grid with planned looks are still needed, and what the others would cost.

All cells are trained up to the first look. After each complete look, only the cells of open differences get the seeds
of the next look. Everything is derived from the records of the runs, so a killed or repeated command, or two commands
at once, come to the same decisions. The record of looks (ablation/looks.py) only saves `status` the comparison.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ablation.cells import cells_of_grid, compare
from ablation.comparison import Cell, Comparison
from ablation.looks import complete_seeds, hash_of_cells, new_look, read_looks, record_look
from ablation.scheduling.jobs import Grid, Job, read_cells, state_of


def stopping_point(grid: Grid, experiments: Path, **options: Any) -> Comparison | None:
    """Compare a grid at its latest complete look and record the look; None if the first look is not complete.

    options: of ablation.cells.compare. Raises ValueError if the runs cannot be compared."""
    cells, planned = cells_of_grid(grid, experiments), grid.config.looks
    if any(complete_seeds(cell, grid.config.seeds) < planned[0] for cell in cells.values()):
        return None
    comparison = compare([grid.path], experiments, **options)
    if comparison.looks is None:
        raise ValueError(f"{grid.path}: no difference to test, so `looks:` cannot decide; remove `looks:`")
    entry = new_look(comparison, grid)
    decision = entry.keys() - {"date", "seeds"}
    if all(any(each[name] != entry[name] for name in decision) for each in read_looks(grid, experiments)):
        record_look(entry, grid, experiments)
    return comparison


def needed_jobs(jobs: Sequence[Job], comparison: Comparison | None, grid: Grid) -> list[Job]:
    """Return the jobs that are needed for the next look; None: for the first look."""
    needed = comparison.looks.needed if comparison else {}
    return [job for job in jobs if grid.config.seeds.index(job.seed) < needed.get(job.place, grid.config.looks[0])]


def settled_cells(grid: Grid, experiments: Path) -> dict[str, tuple[int, int]]:
    """Return {cell name: (look, seeds)} for the cells that need no more seeds, from the newest recorded decision."""
    planned = list(grid.config.looks)
    known = [each for each in read_looks(grid, experiments) if each["cells"] == hash_of_cells(grid)] if planned else []
    decisions = [each for each in known if each["planned"] == planned and each["needed"]]
    if not decisions:
        return {}
    newest = decisions[-1]
    numbers = {name: planned.index(count) + 1 for name, count in newest["needed"].items()}
    return {name: (number, planned[number - 1]) for name, number in numbers.items() if number <= newest["complete"]}


def outcome_of(comparison: Comparison | None, grid: Grid, experiments: Path) -> str:
    """Return what the latest complete look decided, which cells get more seeds, and what was saved, in a line."""
    planned = grid.config.looks
    if comparison is None:
        return f"look 1 of {len(planned)}: after {planned[0]} seeds per cell"
    looks, family = comparison.looks, comparison.main_family
    still_open = sum(each.at_looks.is_open(comparison.margin) for each in family)
    decided = sum(each.is_significant or each.at_looks.is_small for each in family)
    found = [f"{decided} of {len(family)} differences decided"]
    where = f"look {looks.complete} of {len(planned)}"
    if looks.complete == len(planned):
        found += [f"{len(family) - decided} not shown"] * (decided < len(family))
    elif decided + still_open < len(family):
        found.append(f"{len(family) - decided - still_open} can't be decided by more seeds")
    if still_open and looks.complete < len(planned):
        count = planned[looks.complete]
        cells = sum(needed == count for needed in looks.needed.values())
        return f"{where}: {', '.join(found)}; {cells} cells get more seeds, up to {count}"
    ending = "stopped after " if looks.complete < len(planned) else ""
    return f"{ending}{where}: {', '.join(found)}{saved_by(comparison, grid, experiments)}"


def saved_by(comparison: Comparison, grid: Grid, experiments: Path) -> str:
    """Return what the runs that are not needed would cost, such as '; saved 4.2 device-hours (14 runs)', or ''.

    A run costs what the other runs of its cell took on average."""
    known = read_cells(experiments)
    needed = set(needed_jobs(grid.jobs, comparison, grid))
    skipped = [job for job in grid.jobs if job not in needed and state_of(job, known).kind == "waiting"]
    if not skipped:
        return ""
    hours = [hours_of(comparison.cells[job.place]) for job in skipped]
    runs = f"{len(skipped)} run{'s' * (len(skipped) > 1)}"
    return f"; saved {runs}" if None in hours else f"; saved {sum(hours):.2g} device-hours ({runs})"


def hours_of(cell: Cell) -> float | None:
    """Return the mean device-hours of the runs of a cell; None if they were not measured."""
    hours = [run.results.cost.device_hours for run in cell.runs]
    return None if None in hours else fmean(hours)
