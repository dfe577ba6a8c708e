"""What `python -m ablation.compare` does: read experiments, check that they can be compared, show the comparison."""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ablation.comparison import Cell, Comparison, Note
from ablation.plan import Grid, read_cells, read_grid, state_of
from ablation.tables import (
    class_table,
    column_table,
    difference_table,
    error_table,
    score_table,
    to_csv,
    to_latex,
    to_markdown,
)
from ablation.uncertainty import add_uncertainty
from engine.config import changed_values
from engine.files import write_text
from engine.terminal import printable_lines
from engine.text import did_you_mean, listed, nearest, shown
from records.experiment import FREE_FIELDS
from records.results import Place, Run, read_run

LONG_HASH = re.compile("([0-9a-f]{8})[0-9a-f]{56}")
MOST_DIFFERENCES = 4  # of recipes, in a warning


def show(comparison: Comparison, arguments: argparse.Namespace) -> None:
    """Print or write the comparison in the format asked for."""
    if arguments.format == "html":
        from ablation.report import write_report  # imports matplotlib

        path = arguments.output or Path("comparison.html")
        write_report(path, comparison)
        print(f"written to {path}")
        return
    text = to_csv(comparison) if arguments.format == "csv" else as_text(comparison, arguments)
    if arguments.output:
        write_text(arguments.output, text)
        print(f"written to {arguments.output}")
    else:
        sys.stdout.write(printable_lines(text))
        if arguments.format == "md" and (picture := best_picture(comparison)):
            print(f"what the best cell finds: {picture}")


def best_picture(comparison: Comparison) -> Path | None:
    """Return the picture of detections of the cell with the best score, None if there is none."""
    picture = comparison.best and comparison.best.runs[0].path / "detections.png"
    return picture if picture and picture.is_file() else None


def as_text(comparison: Comparison, arguments: argparse.Namespace) -> str:
    """The tables as Markdown or LaTeX."""
    tables = [score_table(comparison)]
    if arguments.columns:
        tables.append(column_table(comparison, arguments.columns))
    families = (
        ("Differences", comparison.differences),
        (f"What each {comparison.column_name} adds, mean over {comparison.row_name}s", comparison.column_effects),
        (f"What each {comparison.row_name} adds, mean over {comparison.column_name}s", comparison.row_effects),
        ("Interactions", comparison.interactions),
    )
    differences = [difference_table(title, family, comparison.difference_in) for title, family in families if family]
    if differences:
        differences[0].notes.append(
            f"Paired bootstrap over {comparison.images} images, {comparison.replicates:,} resamples; "
            f"{comparison.seeds} per cell. p (Holm) is corrected for the differences in one table. Detectable: a true "
            "difference that would be found significant four times out of five."
        )
    tables += differences
    if arguments.per_class and comparison.per_class:
        tables.append(class_table(comparison))
    if arguments.errors and any(run.results.errors for cell in comparison.filled for run in cell.runs):
        tables.append(error_table(comparison))
    latex = arguments.format == "latex"
    warnings = [f"WARNING: {warning}" for warning in comparison.warnings]
    prose = [*warnings, comparison.conclusion]
    if latex:
        tables[0].notes = [*warnings, *tables[0].notes]  # into the caption: a comment would not be printed
        head = [*prose, r"In the preamble: \usepackage{booktabs}"]
        return "\n".join([*(f"% {line}" for line in head), *map(to_latex, tables)])
    tables = [to_markdown(table) for table in tables]
    return "\n".join([f"## {comparison.title}", "", *(f"{line}\n" for line in prose), *tables])


# ---- from experiments to cells -----------------------------------------------------------------------------


def compare(
    what: Sequence[Path], experiments: Path, baseline: str | None, pairs: bool, replicates: int, force: bool
) -> Comparison:
    """Read, check and compare a grid or a list of experiments.

    Raises ValueError where they cannot be read, or not be compared and `force` is not set."""
    if len(what) > 1 and any(path.suffix == ".yaml" for path in what):
        raise ValueError(f"{what[0]}, ...: a grid file is compared alone; name one grid, or experiments only")
    if len(what) == 1 and what[0].suffix == ".yaml":
        grid = read_grid(what[0])
        cells, title = cells_of_grid(grid, experiments), grid.path.stem
        rows, columns = ([entry.name for entry in entries] for entries in (grid.config.rows, grid.config.columns))
    else:
        cells, title = cells_of_experiments(what), f"{len(what)} experiment{'s' * (len(what) > 1)}"
        rows, columns = (list(dict.fromkeys(place[axis] for place in cells)) for axis in (0, 1))
    runs = [run for cell in cells.values() for run in cell.runs]
    if not runs:
        kinds = [note.kind for cell in cells.values() for note in cell.notes]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        cure = "`ablation.grid status` says why; `ablation.grid run` goes on, with --rerun-stale also for what is stale"
        raise ValueError(f"{what[0]}: nothing to compare, of its runs are {counts}; {cure}")
    unlike = list(unlike_runs(runs))
    if len({run.results.metric for run in runs}) > 1:
        raise ValueError(f"{unlike[0]}; they cannot be compared, not with --force either: scores of different kinds")
    if unlike and not force:
        raise ValueError(f"{unlike[0]}; they cannot be compared (--force shows them all the same)")
    row_name, column_name = runs[0].results.variant
    comparison = Comparison(
        title, runs[0].results.metric, row_name, column_name, rows, columns, cells,
        find_baseline(baseline, cells), replicates, warnings=[f"not comparable: {text}" for text in unlike],
    )  # fmt: skip
    comparison.warnings += mixed_batches(cells.values())
    if len(what) > 1:
        comparison.warnings += unnamed_differences(cells)
    elif what[0].suffix == ".yaml" and not grid.sets("train.precision"):
        comparison.warnings += mixed_precisions(runs)
    comparison.warnings += comparison.reasons(of_scored=True)
    if comparison.filled and not unlike:
        add_uncertainty(comparison, pairs)
    return comparison


def cells_of_grid(grid: Grid, experiments: Path) -> dict[Place, Cell]:
    """Every cell of a grid with the runs that are done or stale, and a note on each that is not done."""
    known = read_cells(experiments)
    cells: dict[Place, Cell] = {}
    for job in sorted(grid.jobs, key=lambda job: [row.name for row in grid.config.rows].index(job.row)):
        cell = cells.setdefault(job.place, Cell(*job.place))
        state = state_of(job, known)
        run = read_run(state.experiment) if state.kind in ("done", "stale") else None
        detail = state.detail
        if run and (state.kind == "done" or state.same_recipe):
            cell.runs.append(run)
            detail = detail.partition("; ")[2]  # without the score, which is in the table
        elif run:  # another recipe or other data: its score is shown, but not counted
            detail += "; left out"
        if state.kind != "done":
            cell.notes.append(Note(job.seed, state.kind, detail))
    return cells


def cells_of_experiments(paths: Sequence[Path]) -> dict[Place, Cell]:
    """Experiments by what they are: those that differ in nothing but their seed share a cell.

    If two recipes have the same row and column, the name of the row says what differs, which may be the data alone.
    Raises ValueError if two experiments are the same run, or differ in nothing but the content of their data."""
    recipes: dict[str, list[Run]] = {}
    runs = [read_run(path) for path in paths]
    for run in runs:
        known = recipes.setdefault(json.dumps([recipe_and_inputs(run), images_as_known(run, runs)], sort_keys=True), [])
        same = next((other for other in known if other.seed == run.seed), None)
        if same:
            raise ValueError(f"{same.path} and {run.path}: the same recipe and seed {run.seed}; name one of them")
        known.append(run)
    cells: dict[Place, Cell] = {}
    for runs in recipes.values():
        row, column = runs[0].results.place
        namesakes = [others[0] for others in recipes.values() if others[0].results.place == (row, column)]
        changes = {
            name for other in namesakes for name in changed_values(recipe_but_seed(other), recipe_but_seed(runs[0]))
        }
        if sum(recipe_but_seed(other) == recipe_but_seed(runs[0]) for other in namesakes) > 1:
            changes.add("data.root")
        labels = [f"{name} {value_of(runs[0].config, name)}" for name in sorted(changes)]
        labels += other_images(runs[0], namesakes)
        if labels:
            row += f" ({', '.join(labels)})"
        if (row, column) in cells:
            one, other = cells[row, column].runs[0], runs[0]
            kinds = (run.results.model_dump(include={"inputs", "image_sets"}) for run in (one, other))
            data = LONG_HASH.sub(r"\1...", next(iter(changed_values(*kinds).values())))
            raise ValueError(f"{one.path} and {other.path}: the same recipe on other data, {data}; train both on one")
        cells[row, column] = Cell(row, column, runs)
    return cells


def recipe_and_inputs(run: Run) -> list:
    """Return what runs that differ only in their seed have in common, and that runs of every version record."""
    return [run.results.place, recipe_but_seed(run), sorted(run.results.inputs.values())]


def images_as_known(run: Run, runs: Sequence[Run]) -> dict[str, str]:
    """Return the SHA-256 of the images that the run has read, by half.

    Runs of an earlier version did not record it. They count as having read the images of the other runs with the same
    recipe and annotations, if those have all read the same."""
    if images := run.results.image_sets:
        return images
    others = [other for other in runs if recipe_and_inputs(other) == recipe_and_inputs(run)]
    known = [images for other in others if (images := other.results.image_sets)]
    return known[0] if known and all(images == known[0] for images in known) else {}


def other_images(run: Run, namesakes: Sequence[Run]) -> list[str]:
    """Return ['val images 1a2b3c4d'], the start of their SHA-256, if a run on the same folder has read other images."""
    same = [other for other in namesakes if value_of(other.config, "data.root") == value_of(run.config, "data.root")]
    same = [other for other in same if recipe_but_seed(other) == recipe_but_seed(run)]
    halves = run.results.image_sets
    return [
        f"{half} images {digest[:8]}" for half, digest in halves.items()
        if any(other.results.image_sets.get(half, digest) != digest for other in same)
    ]  # fmt: skip


def mixed_batches(cells: Iterable[Cell]) -> Iterable[str]:
    """A line for each cell whose runs took different numbers of steps, as other numbers of processes make them."""
    for cell in cells:
        steps = {run.results.steps: run for run in cell.runs}
        if len(steps) > 1:
            runs = ", ".join(f"{count:,} in {run.path}" for count, run in sorted(steps.items()))
            yield f"{cell.name}: its runs took other numbers of steps ({runs}), so of other batches: no one recipe"


def mixed_precisions(runs: Sequence[Run]) -> Iterable[str]:
    """Yield a line if `train.precision: auto` became different precisions, as it does on different hardware."""
    found = {run.config["train"].get("precision"): run.path for run in runs}
    found.pop(None, None)
    if len(found) > 1:
        values = ", ".join(f"{precision} in {path}" for precision, path in sorted(found.items()))
        yield f"runs were trained in different precisions ({values}); set train.precision to train all in one"


def unnamed_differences(cells: dict[Place, Cell]) -> Iterable[str]:
    """A line if the recipes differ in more than rows and columns tell."""
    first, *others = [cell.runs[0] for cell in cells.values()]
    labels = " ".join(name for place in cells for name in place)
    found: dict[str, str] = {}
    for run in others:
        for name in changed_values(recipe_but_seed(first), recipe_but_seed(run)):
            values = [value_of(each.config, name) for each in (first, run)]
            if not (set(values) <= set(map(shown, first.results.place + run.results.place)) or name in labels):
                found.setdefault(name, f"{name} is {values[0]} in {first.path}, {values[1]} in {run.path}")
    if found:
        yield f"rows and columns do not tell all that differs: {listed(list(found.values()), MOST_DIFFERENCES)}"


def recipe_but_seed(run: Run) -> dict:
    """The config without what makes no difference, and without the seed."""
    config = json.loads(json.dumps(run.config))
    for name in [*FREE_FIELDS, "train.seed"]:
        section, _, key = name.partition(".")
        config.get(section, {}).pop(key, None)
    return config


def value_of(config: dict, name: str) -> str:
    """The value at 'section.field', as it would be typed."""
    for key in name.split("."):
        config = (config or {}).get(key)
    return shown(config)


def unlike_runs(runs: Sequence[Run]) -> Iterable[str]:
    """What keeps runs from being compared with the first: 'protocol.nms_iou is 0.45 in ..., 0.5 in ...'."""
    first = runs[0]
    for run in runs[1:]:
        one, other = (
            each.results.model_dump(include={"task", "metric", "protocol"}, exclude_unset=True) for each in (first, run)
        )
        for name in changed_values(one, other):
            if name == "protocol.annotations":
                continue  # what the file is called; protocol.annotations_sha256 is what it says
            values = [value_of(each, name) for each in (one, other)]
            if name == "protocol.annotations_sha256" and "null" not in values:
                yield f"another annotation file: {annotations_of(first)} against {annotations_of(run)}"
            elif name == "protocol.images_sha256" and "null" not in values:
                yield f"other validation images: {images_of(first)} against {images_of(run)}"
            else:
                was, now = (LONG_HASH.sub(r"\1...", value) for value in values)
                yield f"{name} is {was} in {first.path}, {now} in {run.path}"


def annotations_of(run: Run) -> str:
    """'coco/annotations/instances_val2017.json (sha256 a899906f) in experiments/experiment_2'."""
    digest = run.results.protocol.annotations_sha256
    path = next((path for path, its in run.results.inputs.items() if its == digest), run.results.protocol.annotations)
    return f"{path} (sha256 {digest[:8]}) in {run.path}"


def images_of(run: Run) -> str:
    """'500 of datasets/tiny_images (sha256 6b936668) in experiments/experiment_14'."""
    number, digest = run.results.protocol.images, run.results.protocol.images_sha256
    return f"{number} of {value_of(run.config, 'data.root')} (sha256 {digest[:8]}) in {run.path}"


def find_baseline(name: str | None, cells: dict[Place, Cell]) -> Place:
    """The cell that an experiment's path or 'row x column' names; without a name the first that has a score."""
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
