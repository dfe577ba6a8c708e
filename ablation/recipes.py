"""The recipes of finished runs, and what differs between the cells of a comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablation.comparison import Cell
from ablation.config_classes import config_class, default_values
from ablation.scheduling.jobs import Grid
from engine.config import leaves
from engine.text import shown
from records.experiment import FREE_FIELDS
from records.results import Place, Run

Recipes = Mapping[Path, dict[str, Any]]  # experiment -> {field: value}, such as {"model.neck": "fpn"}


def read_recipes(runs: Sequence[Run]) -> Recipes:
    """Return the recipe of each run: its config, without the seed and without fields that do not affect training.

    Results files have no recipe and are left out. A run that is older than a field gets the field's default, because
    the default of a new field keeps the behaviour. The config classes of the tasks are imported only if runs have
    different fields, because this takes seconds."""
    runs = [run for run in runs if run.is_experiment]
    configs = {run.path: dict(leaves(run.config)) for run in runs}
    if len({frozenset(config) for config in configs.values()}) > 1:
        classes = {task: config_class(task) for task in {run.results.task for run in runs}}
        defaults = {task: default_values(cls) if cls else {} for task, cls in classes.items()}
        configs = {run.path: defaults[run.results.task] | configs[run.path] for run in runs}
    left_out = {*FREE_FIELDS, "train.seed"}
    return {
        path: {name: value for name, value in config.items() if name not in left_out}
        for path, config in configs.items()
    }


def recipe_changes(cells: Mapping[Place, Cell], recipes: Recipes, grid: Grid | None) -> list[tuple[str, str]]:
    """Return (row, column, factor or cell; the fields that it changes), such as ("giou", "loss.box=giou").

    The rows of a grid are compared with the first cell in its column, and the columns in its row. Factors are listed
    with the overrides of the grid file. A cell is listed if its row and column do not explain its recipe. Without a
    grid, all cells are compared with the first one."""
    runs = {place: cell.runs[0] for place, cell in cells.items() if cell.runs and cell.runs[0].is_experiment}
    if not runs:
        return []
    (row0, column0), first = next(iter(runs.items()))
    full = {place: recipes[run.path] | changed_data_root(first, run) for place, run in runs.items()}
    base, rows, columns, factors = full[row0, column0], {}, {}, []
    if grid:
        rows = {row: changes_of(full[row, column0], base) for row, column in full if (row, column0) in full}
        columns = {column: changes_of(full[row0, column], base) for row, column in full if (row0, column) in full}
        factors = [(grid.config.design.label(each.name), ", ".join(each.overrides)) for each in grid.config.factors]
    explained = {(row, column): base | rows.get(row, {}) | columns.get(column, {}) for row, column in full}
    own = {cells[place].name: changes_of(full[place], explained[place]) for place in full}
    changes = [*rows.items(), *(() if factors else columns.items()), *own.items()]
    return factors + [
        (name, ", ".join(f"{field}={as_override(value)}" for field, value in fields.items()))
        for name, fields in changes
        if fields
    ]


def changes_of(recipe: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a recipe that differ from a base, with the recipe's values; a missing value is null."""
    return {name: recipe.get(name) for name in base | recipe if recipe.get(name) != base.get(name)}


def changed_data_root(first: Run, run: Run) -> dict[str, Any]:
    """Return the data.root of a run whose data differ from the first run's, because recipes do not contain it."""
    known = data_hashes(first)
    is_different = any(known.get(name, digest) != digest for name, digest in data_hashes(run).items())
    return {"data.root": dict(leaves(run.config)).get("data.root")} if is_different else {}


def data_hashes(run: Run) -> dict[str, str]:
    """Return a dict from name to SHA-256 of a run's annotation files, training images and validation images."""
    files = {Path(path).name: digest for path, digest in run.results.inputs.items()}
    return files | {f"{split} images": digest for split, digest in run.results.image_sets.items()}


def value_of(config: dict, name: str) -> str:
    """Return the value of a config field as text, in the syntax of a config file. name: 'section.field'."""
    for key in name.split("."):
        config = (config or {}).get(key)
    return shown(config)


def as_override(value: Any) -> str:
    """Return a value as in an override on the command line, where text has no quotes."""
    return value if isinstance(value, str) else shown(value)
