"""From experiments to a comparison: which runs share a cell of the table, and whether cells can be compared."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ablation.comparison import Cell, Comparison, Note
from ablation.plan import Grid, read_cells, read_grid, state_of
from ablation.sentences import noted_runs
from ablation.uncertainty import add_uncertainty
from engine.config import changed_values
from engine.text import UnknownNameError, listed, shown
from records.experiment import FREE_FIELDS
from records.results import Place, Run, read_run

LONG_HASH = re.compile("([0-9a-f]{8})[0-9a-f]{56}")
MOST_DIFFERENCES = 4  # of recipes, in a warning


def compare(
    what: Sequence[Path], experiments: Path, baseline: str | None, pairs: bool, replicates: int, force: bool
) -> Comparison:
    """Read, check and compare a grid or a list of experiments.

    Raises ValueError if they cannot be read, or cannot be compared and `force` is not set."""
    if len(what) > 1 and any(path.suffix == ".yaml" for path in what):
        raise ValueError(f"{what[0]}, ...: a grid file is compared alone; name one grid, or experiments only")
    grid = read_grid(what[0]) if what[0].suffix == ".yaml" else None
    if grid:
        cells, title = cells_of_grid(grid, experiments), grid.path.stem
        rows, columns = ([entry.name for entry in entries] for entries in (grid.config.rows, grid.config.columns))
    else:
        cells, title = cells_of_experiments(what), f"{len(what)} experiment{'s' * (len(what) > 1)}"
        rows, columns = (list(dict.fromkeys(place[axis] for place in cells)) for axis in (0, 1))
    runs = [run for cell in cells.values() for run in cell.runs]
    if not runs:
        kinds = [note.kind for cell in cells.values() for note in cell.notes]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        cure = "`ablation.grid run` continues, with --rerun-stale also what is stale"
        raise ValueError(f"{what[0]}: nothing to compare, its runs are {counts}; {cure}")
    unlike = list(unlike_runs(runs))
    same_metric = len({run.results.metric for run in runs}) == 1
    if unlike and not (force and same_metric):
        cure = " (--force shows them all the same)" if same_metric else ""
        raise ValueError(f"{unlike[0]}; they cannot be compared{cure}")
    comparison = Comparison(
        title, runs[0].results.metric, *runs[0].results.variant, rows, columns, cells, find_baseline(baseline, cells),
        replicates,
    )  # fmt: skip
    comparison.warnings += [f"not comparable: {difference}" for difference in unlike]
    comparison.warnings += recipe_warnings(comparison, grid)
    comparison.warnings += noted_runs(comparison, counted=True)
    if comparison.filled and not unlike:
        add_uncertainty(comparison, pairs)
    return comparison


# ---- which runs share a cell -------------------------------------------------------------------------------


def cells_of_grid(grid: Grid, experiments: Path) -> dict[Place, Cell]:
    """Return every cell of a grid with the runs that are done or stale, and a note on each that is not done."""
    known, rows = read_cells(experiments), [row.name for row in grid.config.rows]
    cells: dict[Place, Cell] = {}
    for job in sorted(grid.jobs, key=lambda job: rows.index(job.row)):
        cell = cells.setdefault(job.place, Cell(*job.place))
        state = state_of(job, known)
        run = read_run(state.experiment) if state.kind in ("done", "stale") else None
        detail = state.detail
        if run and (state.kind == "done" or state.same_recipe):
            cell.runs.append(run)
            detail = state.changes  # the score is in the table
        elif run:  # its recipe or data differ: its score is shown, but does not count
            detail += "; left out"
        if state.kind != "done":
            cell.notes.append(Note(job.seed, state.kind, detail))
    return cells


def cells_of_experiments(paths: Sequence[Path]) -> dict[Place, Cell]:
    """Return experiments by place: those that differ only in their seed share a cell.

    If two recipes have the same row and column, the name of the row says what differs, which may be the data alone.
    Raises ValueError if two experiments are the same run."""
    recipes: dict[str, list[Run]] = {}
    for run in map(read_run, paths):
        recipe = [run.results.place, recipe_but_seed(run), sorted(data_of(run).items())]
        known = recipes.setdefault(json.dumps(recipe, sort_keys=True), [])
        same = next((other for other in known if other.seed == run.seed), None)
        if same:
            raise ValueError(f"{same.path} and {run.path}: the same recipe and seed {run.seed}; name one of them")
        known.append(run)
    firsts = [runs[0] for runs in recipes.values()]
    cells: dict[Place, Cell] = {}
    for runs in recipes.values():
        row, column = runs[0].results.place
        labels = differences_from([other for other in firsts if other.results.place == (row, column)], runs[0])
        if labels:
            row += f" ({', '.join(labels)})"
        cells[row, column] = Cell(row, column, runs)
    return cells


def differences_from(namesakes: Sequence[Run], run: Run) -> list[str]:
    """Return what tells a run from others of the same row and column: ['train.epochs 3', 'val images 1a2b3c4d'].

    Data are named, by the start of their SHA-256, where the recipes are the same and so is the folder."""
    recipe = recipe_but_seed(run)
    changes = {name for other in namesakes for name in changed_values(recipe_but_seed(other), recipe)}
    same = [other for other in namesakes if recipe_but_seed(other) == recipe]
    if len(same) > 1:
        changes.add("data.root")
    same = [other for other in same if value_of(other.config, "data.root") == value_of(run.config, "data.root")]
    return [f"{name} {value_of(run.config, name)}" for name in sorted(changes)] + [
        f"{name} {digest[:8]}"
        for name, digest in data_of(run).items()
        if any(data_of(other).get(name) != digest for other in same)
    ]


def data_of(run: Run) -> dict[str, str]:
    """Return the SHA-256 of what a run has read: of annotation files by name, of images by half."""
    files = {Path(path).name: digest for path, digest in run.results.inputs.items()}
    return files | {f"{half} images": digest for half, digest in run.results.image_sets.items()}


def recipe_but_seed(run: Run) -> dict:
    """Return the config without the seed and the fields that make no difference."""
    config = json.loads(json.dumps(run.config))
    for name in [*FREE_FIELDS, "train.seed"]:
        section, _, key = name.partition(".")
        config.get(section, {}).pop(key, None)
    return config


def value_of(config: dict, name: str) -> str:
    """Return the value at 'section.field', as it would be typed."""
    for key in name.split("."):
        config = (config or {}).get(key)
    return shown(config)


# ---- whether they can be compared --------------------------------------------------------------------------


def unlike_runs(runs: Sequence[Run]) -> Iterator[str]:
    """Yield what keeps runs from being compared with the first: 'protocol.nms_iou is 0.45 in ..., 0.5 in ...'.

    An annotation file counts by its content, not by its name."""
    first, *others = runs
    compared = {"task", "metric", "protocol"}
    for run in others:
        one, other = (each.results.model_dump(include=compared, exclude_unset=True) for each in (first, run))
        for name in changed_values(one, other):
            if name != "protocol.annotations":
                was, now = (LONG_HASH.sub(r"\1...", value_of(each, name)) for each in (one, other))
                yield f"{name} is {was} in {first.path}, {now} in {run.path}"


def recipe_warnings(comparison: Comparison, grid: Grid | None) -> Iterator[str]:
    """Yield how recipes differ more than rows and columns say: steps, precision, other fields."""
    for cell in comparison.cells.values():
        steps = {run.results.steps: run for run in cell.runs}
        if len(steps) > 1:
            runs = ", ".join(f"{count:,} in {run.path}" for count, run in sorted(steps.items()))
            yield f"{cell.name}: runs took different numbers of steps ({runs}), so their global batch sizes differ"
    if grid is None:
        differences = unnamed_differences(comparison.cells)
        if differences:
            yield f"rows and columns do not name all that differs: {listed(differences, MOST_DIFFERENCES)}"
    elif not grid.sets("train.precision"):
        runs = [run for cell in comparison.cells.values() for run in cell.runs]
        found = {run.config["train"].get("precision"): run.path for run in runs}
        found.pop(None, None)
        if len(found) > 1:  # what train.precision: auto became
            runs = ", ".join(f"{precision} in {path}" for precision, path in sorted(found.items()))
            yield f"runs were trained in different precisions ({runs}); set train.precision to train all in one"


def unnamed_differences(cells: dict[Place, Cell]) -> list[str]:
    """Return how recipes differ, where the names of rows and columns do not say it."""
    first, *others = [cell.runs[0] for cell in cells.values()]
    labels = " ".join(name for place in cells for name in place)
    found: dict[str, str] = {}
    for run in others:
        for name in changed_values(recipe_but_seed(first), recipe_but_seed(run)):
            values = [value_of(each.config, name) for each in (first, run)]
            named = set(values) <= set(map(shown, first.results.place + run.results.place)) or name in labels
            if not named:
                found.setdefault(name, f"{name} is {values[0]} in {first.path}, {values[1]} in {run.path}")
    return list(found.values())


def find_baseline(name: str | None, cells: dict[Place, Cell]) -> Place:
    """Return the cell that an experiment's path or 'row x column' names; without a name the first that has a score.

    Raises ValueError if there is none, or it has no score."""
    if name is None:
        return next((place for place, cell in cells.items() if cell.mean is not None), next(iter(cells)))
    for place, cell in cells.items():
        if name == cell.name or Path(name).resolve() in (run.path.resolve() for run in cell.runs):
            if cell.mean is None:
                raise ValueError(f"--baseline {name}: has no score")
            return place
    raise UnknownNameError("--baseline", name, [cell.name for cell in cells.values()])
