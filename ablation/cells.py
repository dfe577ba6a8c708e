"""From experiments to a comparison: which runs share a cell of the table, and whether cells can be compared."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ablation.comparison import Cell, Comparison, Note
from ablation.plan import Grid, read_cells, read_grid, state_of
from ablation.sentences import noted_runs
from ablation.uncertainty import add_uncertainty
from engine.config import changed_values
from engine.text import did_you_mean, listed, nearest, shown
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
        raise ValueError(
            f"{what[0]}: nothing to compare, its runs are {counts}; `ablation.grid status` says why; `ablation.grid "
            "run` continues, with --rerun-stale also what is stale"
        )
    unlike = list(unlike_runs(runs))
    if len({run.results.metric for run in runs}) > 1:
        raise ValueError(f"{unlike[0]}; they cannot be compared, not with --force either: scores of different kinds")
    if unlike and not force:
        raise ValueError(f"{unlike[0]}; they cannot be compared (--force shows them all the same)")
    comparison = Comparison(
        title, runs[0].results.metric, *runs[0].results.variant, rows, columns, cells, find_baseline(baseline, cells),
        replicates,
    )  # fmt: skip
    for difference in unlike:
        comparison.warn("not_comparable", difference=difference)
    warn_of_recipes(comparison, grid)
    for who, reason in noted_runs(comparison, counted=True):
        comparison.warn("noted", runs=who, reason=reason)
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
            detail = detail.partition("; ")[2]  # without the score, which is in the table
        elif run:  # its recipe or data differ: its score is shown, but does not count
            detail += "; left out"
        if state.kind != "done":
            cell.notes.append(Note(job.seed, state.kind, detail))
    return cells


def cells_of_experiments(paths: Sequence[Path]) -> dict[Place, Cell]:
    """Return experiments by place: those that differ only in their seed share a cell.

    If two recipes have the same row and column, the name of the row says what differs, which may be the data alone.
    Raises ValueError if two experiments are the same run, or differ only in the content of their data."""
    recipes: dict[str, list[Run]] = {}
    runs = [read_run(path) for path in paths]
    for run in runs:
        known = recipes.setdefault(json.dumps([recipe_and_inputs(run), images_as_known(run, runs)], sort_keys=True), [])
        same = next((other for other in known if other.seed == run.seed), None)
        if same:
            raise ValueError(f"{same.path} and {run.path}: the same recipe and seed {run.seed}; name one of them")
        known.append(run)
    firsts = [runs[0] for runs in recipes.values()]
    cells: dict[Place, Cell] = {}
    for runs in recipes.values():
        first, (row, column) = runs[0], runs[0].results.place
        labels = differences_from([other for other in firsts if other.results.place == (row, column)], first)
        if labels:
            row += f" ({', '.join(labels)})"
        if (row, column) in cells:
            other = cells[row, column].runs[0]
            kinds = (run.results.model_dump(include={"inputs", "image_sets"}) for run in (other, first))
            data = LONG_HASH.sub(r"\1...", next(iter(changed_values(*kinds).values())))
            raise ValueError(
                f"{other.path} and {first.path}: the same recipe on different data, {data}; train both on one"
            )
        cells[row, column] = Cell(row, column, runs)
    return cells


def differences_from(namesakes: Sequence[Run], run: Run) -> list[str]:
    """Return what tells a run from others of the same row and column: ['train.epochs 3', 'val images 1a2b3c4d'].

    Images are named, by the start of their SHA-256, where the recipes are the same and so is the folder."""
    recipe = recipe_but_seed(run)
    changes = {name for other in namesakes for name in changed_values(recipe_but_seed(other), recipe)}
    same = [other for other in namesakes if recipe_but_seed(other) == recipe]
    if len(same) > 1:
        changes.add("data.root")
    same = [other for other in same if value_of(other.config, "data.root") == value_of(run.config, "data.root")]
    return [f"{name} {value_of(run.config, name)}" for name in sorted(changes)] + [
        f"{half} images {digest[:8]}" for half, digest in run.results.image_sets.items()
        if any(other.results.image_sets.get(half, digest) != digest for other in same)
    ]  # fmt: skip


def recipe_and_inputs(run: Run) -> list:
    """Return what runs that differ only in their seed have in common, and that runs of every version record."""
    return [run.results.place, recipe_but_seed(run), sorted(run.results.inputs.values())]


def images_as_known(run: Run, runs: Sequence[Run]) -> dict[str, str]:
    """Return the SHA-256 of the images that the run has read, by half.

    Runs of an earlier version did not record it. They count as having read the images of the other runs with the same
    recipe and annotations, if those have all read the same."""
    if run.results.image_sets:
        return run.results.image_sets
    others = [other.results.image_sets for other in runs if recipe_and_inputs(other) == recipe_and_inputs(run)]
    known = [images for images in others if images]
    return known[0] if known and all(images == known[0] for images in known) else {}


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
    """Yield what keeps runs from being compared with the first: 'protocol.nms_iou is 0.45 in ..., 0.5 in ...'."""
    first, *others = runs
    compared = {"task", "metric", "protocol"}
    for run in others:
        one, other = (each.results.model_dump(include=compared, exclude_unset=True) for each in (first, run))
        for name in changed_values(one, other):
            if name == "protocol.annotations":
                continue  # the file's name; protocol.annotations_sha256 is of its content
            values = [value_of(each, name) for each in (one, other)]
            if name == "protocol.annotations_sha256" and "null" not in values:
                yield f"different annotation files: {annotations_of(first)} and {annotations_of(run)}"
            elif name == "protocol.images_sha256" and "null" not in values:
                yield f"different validation images: {images_of(first)} and {images_of(run)}"
            else:
                was, now = (LONG_HASH.sub(r"\1...", value) for value in values)
                yield f"{name} is {was} in {first.path}, {now} in {run.path}"


def annotations_of(run: Run) -> str:
    """Return 'coco/annotations/instances_val2017.json (sha256 a899906f) in experiments/experiment_2'."""
    protocol = run.results.protocol
    digest = protocol.annotations_sha256
    path = next((path for path, its in run.results.inputs.items() if its == digest), protocol.annotations)
    return f"{path} (sha256 {digest[:8]}) in {run.path}"


def images_of(run: Run) -> str:
    """Return '500 of datasets/tiny_images (sha256 6b936668) in experiments/experiment_14'."""
    protocol = run.results.protocol
    root = value_of(run.config, "data.root")
    return f"{protocol.images} of {root} (sha256 {protocol.images_sha256[:8]}) in {run.path}"


def warn_of_recipes(comparison: Comparison, grid: Grid | None) -> None:
    """Warn of recipes that differ more than rows and columns say: steps, precision, other fields."""
    for cell in comparison.cells.values():
        steps = {run.results.steps: run for run in cell.runs}
        if len(steps) > 1:
            runs = [f"{count:,} in {run.path}" for count, run in sorted(steps.items())]
            comparison.warn("steps_differ", cell=cell.name, runs=runs)
    if grid is None:
        differences = unnamed_differences(comparison.cells)
        if differences:
            comparison.warn("unnamed_differences", differences=listed(differences, MOST_DIFFERENCES))
    elif not grid.sets("train.precision"):
        runs = mixed_precisions(run for cell in comparison.cells.values() for run in cell.runs)
        if runs:
            comparison.warn("precisions_differ", runs=runs)


def mixed_precisions(runs: Iterable[Run]) -> list[str]:
    """Return ['bf16 in ...', 'fp32 in ...'] if `train.precision: auto` became different precisions, else nothing."""
    found = {run.config["train"].get("precision"): run.path for run in runs}
    found.pop(None, None)
    return [f"{precision} in {path}" for precision, path in sorted(found.items())] if len(found) > 1 else []


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
        paths = [path for run in cell.runs for path in (str(run.path), run.path.name, str(run.path.resolve()))]
        if name == cell.name or name in paths or str(Path(name).resolve()) in paths:
            if cell.mean is None:
                raise ValueError(f"--baseline {name}: has no score")
            return place
    names = [cell.name for cell in cells.values()]
    cure = did_you_mean(nearest(name, names)) or f"; expected one of these experiments, or of {', '.join(names)}"
    raise ValueError(f"--baseline {name!r}: not among them{cure}")
