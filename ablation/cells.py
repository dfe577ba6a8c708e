"""Build a comparison: group runs by recipe into the cells of a table, and check that the runs can be compared."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ablation.comparison import Cell, Comparison, Note, cell_name
from ablation.display.sentences import run_notes
from ablation.latency import add_latencies
from ablation.looks import add_looks
from ablation.recipes import Recipes, data_hashes, read_recipes, recipe_changes, value_of
from ablation.results_files import COLUMN, ROW_NAME, ScoredFiles, beside_experiments
from ablation.robustness import add_robustness
from ablation.scheduling.jobs import Grid, read_cells, read_grid, state_of
from ablation.scheduling.trials import tuned
from ablation.slices import add_slices
from ablation.tuning import read_tuning, tuning_warnings
from ablation.uncertainty import add_uncertainty, stability_warnings
from engine.config import changed_values
from engine.terminal import counted
from engine.text import UnknownNameError, listed, shown
from records.latency import Program
from records.results import Place, Run, read_run
from stats.replicates import SeedSpread

LONG_HASH = re.compile("([0-9a-f]{8})[0-9a-f]{56}")
LOW_THRESHOLD = 0.01  # of scores; so low that it hardly affects mAP for either kind of score
MAX_NAME = 60  # characters of a row name (one or two fields), so that tables and plots stay readable
MAX_DIFFERENCES = 4  # maximum number listed in a warning about recipes


def compare(
    paths: Sequence[Path],
    experiments: Path,
    *,
    names: Mapping[Path, str] | None = None,
    baseline: str | None = None,
    pairs: bool = False,
    replicates: int = 10_000,
    resample_seed: int = 0,
    one_family: bool = False,
    margin: float | None = None,
    known_spread: SeedSpread | None = None,
    slices: Sequence[str] = (),
    corruptions: bool = False,
    annotations: Path | None = None,
    files: ScoredFiles | None = None,
    program: Program = "eager",
    budget: float | None = None,
    force: bool = False,
) -> Comparison:
    """Read and check the runs of a grid or of a list of experiments, and compare them.

    names: of experiments, for the table. files: scored results files, to compare with each other and with experiments.
    budget: in milliseconds. The other options are those of the command (ablation/compare.py).
    Raises ValueError if a run cannot be read, if runs cannot be compared (if `force`: only if metrics differ), or if
    there is a budget but no latencies that can be compared."""
    if len(paths) > 1 and any(path.suffix == ".yaml" for path in paths):
        raise ValueError(f"{paths[0]}, ...: got a grid file and more paths; give one grid file or only experiments")
    grid = tuned(read_grid(paths[0]), experiments) if paths and paths[0].suffix == ".yaml" else None
    if grid:
        cells, title = cells_of_grid(grid, experiments), grid.path.stem
        rows, columns = ([entry.name for entry in entries] for entries in (grid.config.rows, grid.config.all_columns))
    else:
        cells, title = cells_of_experiments(paths, names), counted(len(paths), "experiment", "experiments")
        if files:
            cells, title = beside_experiments(cells, files)
        rows, columns = (list(dict.fromkeys(place[axis] for place in cells)) for axis in (0, 1))
    runs = [run for cell in cells.values() for run in cell.runs]
    recipes = read_recipes(runs)
    if not runs:
        kinds = [note.kind for cell in cells.values() for note in cell.notes]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        cure = "train the runs with `ablation.grid run` (for stale runs, add --rerun-stale)"
        if grid and grid.config.tune and not grid.choices:
            cure = "their trials chose no values yet, or are stale after a change; see `ablation.grid status`"
        raise ValueError(f"{paths[0]}: no runs to compare ({counts}); {cure}")
    differing = list(incompatibilities(runs))
    same_metric = len({run.results.metric for run in runs}) == 1
    if differing and not (force and same_metric):
        cure = " (--force shows their scores without testing differences)" if same_metric else ""
        raise ValueError(f"{differing[0]}; these runs cannot be compared{cure}")
    row_name, column_name = (ROW_NAME, "") if files or names else runs[0].results.variant
    design = grid.config.design if grid else None
    comparison = Comparison(
        title, runs[0].results.metric, row_name, "factors" if design else column_name, rows, columns, cells,
        find_baseline(baseline, cells), replicates, resample_seed, margin=margin, known_spread=known_spread,
        one_family=one_family, annotations=annotations, design=design, recipes=recipe_changes(cells, recipes, grid),
    )  # fmt: skip
    comparison.warnings += files.warnings if files else []
    comparison.warnings += [f"not comparable: {difference}" for difference in differing]
    comparison.warnings += recipe_warnings(comparison, grid, recipes, bool(names))
    comparison.warnings += run_notes(comparison, counted=True)
    if known_spread and comparison.has_several_seeds:
        raise ValueError("--seed-sd is for one seed per cell; these cells have several, whose own spread is used")
    if grid and grid.config.tune:
        comparison.tuning = read_tuning(grid, experiments, replicates, resample_seed)
        comparison.warnings += tuning_warnings(comparison.tuning)
    if comparison.scored_cells and not differing:
        add_uncertainty(comparison, pairs)
        if grid and grid.config.looks and comparison.differences:
            if one_family:
                raise ValueError("--one-family: the levels of planned looks are for each table; remove one of the two")
            add_looks(comparison, grid)
        comparison.warnings += stability_warnings(comparison)
        if slices and comparison.intervals:
            add_slices(comparison, slices)
        if corruptions and comparison.intervals:
            add_robustness(comparison, grid)
    add_latencies(comparison, grid, program, budget)
    return comparison


# ---- which runs share a cell -------------------------------------------------------------------------------


def cells_of_grid(grid: Grid, experiments: Path) -> dict[Place, Cell]:
    """Return the cells of a grid with runs (done, or stale if only the code changed) and notes on runs not done."""
    known, rows = read_cells(experiments), [row.name for row in grid.config.rows]
    cells: dict[Place, Cell] = {}
    for job in sorted(grid.jobs, key=lambda job: rows.index(job.row)):
        cell = cells.setdefault(job.place, Cell(*job.place))
        state = state_of(job, known)
        run = read_run(state.experiment) if state.kind in ("done", "stale") else None
        detail = state.detail
        if run and (state.kind == "done" or state.same_recipe):
            cell.runs.append(run)
            detail = state.changes  # without the score, which is in the table
        elif run:  # the recipe or data changed: the note shows the score, but the cell does not include it
            detail += "; not counted"
        if state.kind != "done":
            cell.notes.append(Note(job.seed, state.kind, detail))
    return cells


def cells_of_experiments(paths: Sequence[Path], names: Mapping[Path, str] | None = None) -> dict[Place, Cell]:
    """Group experiments into cells: experiments that differ only in their seed share a cell.

    names: of experiments. With names, the table has a single column, and a cell without a name has that of its recipe.
    Raises ValueError if two experiments have the same recipe, data and seed, or if names do not fit the recipes."""
    runs = list(map(read_run, paths))
    recipes = read_recipes(runs)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        recipe = [run.results.place, recipes[run.path], sorted(data_hashes(run).items())]
        known = groups.setdefault(json.dumps(recipe, sort_keys=True), [])
        duplicate = next((other for other in known if other.seed == run.seed), None)
        if duplicate:
            raise ValueError(f"{duplicate.path} and {run.path} have the same recipe and seed {run.seed}; name only one")
        known.append(run)
    rows = row_names([group[0] for group in groups.values()], recipes)
    cells: dict[Place, Cell] = {}
    for group in groups.values():
        place = rows[group[0].path], group[0].results.place[1]
        if names:
            place = given_name(group, names) or cell_name(place), COLUMN
        if place in cells:
            first = cells[place].runs[0].path
            raise ValueError(
                f"{place[0]!r} has runs of different recipes, {first} and {group[0].path}; choose a name for each"
            )
        cells[place] = Cell(*place, group)
    return cells


def given_name(group: Sequence[Run], names: Mapping[Path, str]) -> str | None:
    """Return the name of a cell's runs; None if they have none. Raises ValueError if they have different names."""
    first = group[0]
    for run in group:
        if names.get(run.path) != names.get(first.path):
            raise ValueError(
                f"{first.path} and {run.path} have the same recipe and different seeds, so they are one row; use one "
                f"name: NAME={first.path},{run.path}"
            )
    return names.get(first.path)


def row_names(firsts: Sequence[Run], recipes: Recipes) -> dict[Path, str]:
    """Return a row name for the first run of each cell, so that no two cells have the same row and column.

    If several cells have the same row and column, the fields or data that differ are appended. If the fields make a
    name too long, the experiment is appended instead; the table of recipes then says what differs."""
    names = {}
    for place in dict.fromkeys(run.results.place for run in firsts):
        namesakes, row = [run for run in firsts if run.results.place == place], place[0]
        if len(namesakes) == 1:
            names[namesakes[0].path] = row
            continue
        labels = [", ".join(distinguishing_labels(namesakes, run, recipes)) for run in namesakes]
        same_recipe = all(recipes[run.path] == recipes[namesakes[0].path] for run in namesakes)
        if max(len(row) + len(label) for label in labels) > MAX_NAME and not same_recipe:
            labels = [run.path.name for run in namesakes]
            labels = labels if len({*labels}) == len(labels) else [str(run.path) for run in namesakes]
        shown_labels = [f" ({label})" if label else "" for label in labels]
        names |= {run.path: row + label for run, label in zip(namesakes, shown_labels, strict=True)}
    return names


def distinguishing_labels(namesakes: Sequence[Run], run: Run, recipes: Recipes) -> list[str]:
    """Return the fields in which `run` differs from `namesakes`, such as ['train.epochs 3'].

    namesakes: runs with the same row and column. Different data are listed with the start of their SHA-256."""
    recipe = recipes[run.path]
    changes = {name for other in namesakes for name in changed_values(recipes[other.path], recipe)}
    labels = [f"{name} {shown(recipe.get(name))}" for name in sorted(changes)]
    same = [other for other in namesakes if recipes[other.path] == recipe]
    if len(same) > 1:
        labels.append(f"data.root {value_of(run.config, 'data.root')}")
    same = [other for other in same if value_of(other.config, "data.root") == value_of(run.config, "data.root")]
    return labels + [
        f"{name} {digest[:8]}"
        for name, digest in data_hashes(run).items()
        if any(data_hashes(other).get(name) != digest for other in same)
    ]


# ---- whether runs can be compared --------------------------------------------------------------------------


def incompatibilities(runs: Sequence[Run]) -> Iterator[str]:
    """Yield each reason why runs cannot be compared, such as 'protocol.nms_iou is 0.45 in ... and 0.5 in ...'.

    Compares each run with the first run. Annotation files may have different names if their content is the same. How
    the detections in a results file were computed is unknown, so this is not compared with experiments."""
    first, *others = runs
    compared = {"task", "metric", "protocol"}
    for run in others:
        one, other = (each.results.model_dump(include=compared, exclude_unset=True) for each in (first, run))
        if first.is_experiment != run.is_experiment:
            shared = one["protocol"].keys() & other["protocol"].keys()
            for each in (one, other):
                each["protocol"] = {name: value for name, value in each["protocol"].items() if name in shared}
        for name in changed_values(one, other):
            if name != "protocol.annotations":
                was, now = (LONG_HASH.sub(r"\1...", value_of(each, name)) for each in (one, other))
                yield f"{name} is {was} in {first.path} and {now} in {run.path}"


def recipe_warnings(
    comparison: Comparison, grid: Grid | None, recipes: Recipes, has_given_names: bool
) -> Iterator[str]:
    """Yield warnings about differences between recipes that the row and column names do not show.

    has_given_names: whether the user chose the names, and knows what they stand for."""
    for cell in comparison.cells.values():
        steps = {run.results.steps: run for run in cell.runs}
        if len(steps) > 1:
            runs = ", ".join(f"{count:,} in {run.path}" for count, run in sorted(steps.items()))
            yield f"{cell.name}: runs took different numbers of steps ({runs}), so their global batch sizes differ"
    runs = [run for cell in comparison.cells.values() for run in cell.runs]
    kinds = {run.results.score_function for run in runs} - {None}
    threshold = max((getattr(run.results.protocol, "score_threshold", None) or 0 for run in runs), default=0)
    if len(kinds) > 1 and threshold > LOW_THRESHOLD:
        yield (
            f"a score threshold of {threshold:g} favours one kind of score ({' or '.join(sorted(kinds))}); set "
            f"eval.score_threshold={LOW_THRESHOLD:g} in all runs"
        )
    if grid is None and not has_given_names:
        differences = unnamed_differences(comparison.cells, recipes)
        if differences:
            yield f"recipes also differ in fields not in row or column names: {listed(differences, MAX_DIFFERENCES)}"
    elif grid and not grid.overrides_field("train.precision"):
        found = {run.config["train"].get("precision"): run.path for run in runs}
        found.pop(None, None)
        if len(found) > 1:  # the precision of `train.precision: auto` depends on the hardware
            runs = ", ".join(f"{precision} in {path}" for precision, path in sorted(found.items()))
            yield f"runs were trained in different precisions ({runs}); set train.precision in the grid file"


def unnamed_differences(cells: dict[Place, Cell], recipes: Recipes) -> list[str]:
    """Return the differences between recipes that the row and column names do not show."""
    firsts = [cell.runs[0] for cell in cells.values() if cell.runs[0].is_experiment]
    if not firsts:
        return []
    first, *others = firsts
    labels = ", ".join(
        label
        for run in firsts
        for label in distinguishing_labels(
            [each for each in firsts if each.results.place == run.results.place], run, recipes
        )
    )
    found: dict[str, str] = {}
    for run in others:
        for name in changed_values(recipes[first.path], recipes[run.path]):
            values = [shown(recipes[each.path].get(name)) for each in (first, run)]
            named = set(values) <= set(map(shown, first.results.place + run.results.place)) or name in labels
            if not named:
                found.setdefault(name, f"{name} is {values[0]} in {first.path} and {values[1]} in {run.path}")
    return list(found.values())


def find_baseline(name: str | None, cells: dict[Place, Cell]) -> Place:
    """Return the baseline cell. name: 'row x column' or an experiment's path; None: the first cell with a score.

    Raises ValueError if the cell does not exist or has no score."""
    if name is None:
        return next((place for place, cell in cells.items() if cell.mean is not None), next(iter(cells)))
    for place, cell in cells.items():
        if name == cell.name or Path(name).resolve() in (run.path.resolve() for run in cell.runs):
            if cell.mean is None:
                raise ValueError(f"--baseline {name}: this cell has no score; choose a cell with a score")
            return place
    raise UnknownNameError("--baseline", name, [cell.name for cell in cells.values()])
