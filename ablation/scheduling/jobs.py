"""The runs of a grid file, and the state of each run.

A grid file lists rows (each with a config file), columns and seeds. If it lists factors in place of columns, each point
of a two-level factorial design (stats/factorial.py) is a column. A job is one run: a row, a column and a seed, or a
trial (trials.py). It becomes a numbered experiment, with a cell.json that records the job, its recipe (the full config)
and its code.
"""

import fnmatch
import importlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from ablation.scheduling.grid_file import GridConfig, field_of, last_of
from ablation.scheduling.staleness import (
    changed_code,
    changed_data,
    changed_recipe,
    code_hashes,
    code_of,
    data_folder,
    is_same_data,
)  # fmt: skip
from engine.command import DIVERGED
from engine.config import load_config, read_overridden
from engine.files import write_text
from engine.strict_yaml import ConfigError
from engine.text import UnknownNameError
from records.experiment import format_score, list_experiments
from records.metrics import read_metrics
from records.results import Place, read_object, read_results
from records.status import Status, read_status

SCHEDULE_LOCK = "grid.lock"  # in a folder of experiments that a grid trained in
UNFINISHED = ("stopped", "killed", "failed")  # states of runs that can be resumed
CELL = ("grid", "task", "row", "column", "seed", "recipe")  # required keys of cell.json; trials also have "trial"


@dataclass(frozen=True)
class Job:
    """A training run: one row, column and seed of a grid, or a trial of its row or cell."""

    grid: str  # name of the grid file without its suffix
    task: str
    row: str
    column: str
    seed: int
    config: str
    overrides: tuple[str, ...]
    trial: int | None = None  # number of the trial, from 1; None for a run of the table
    chosen: tuple[str, ...] | None = ()  # overrides that trials chose; None until they are known

    @property
    def cell(self) -> str:
        return f"{self.row} x {self.column}"

    @property
    def name(self) -> str:
        return f"{self.cell}, {f'trial {self.trial}' if self.trial else f'seed {self.seed}'}"

    @property
    def place(self) -> Place:
        return self.row, self.column

    def command(self, experiment: Path, launcher: Sequence[str] = (sys.executable,)) -> list[str]:
        """Return the command that trains the job in `experiment`, or resumes it there."""
        overrides = [*self.overrides, *(self.chosen or ())]
        return [*launcher, "-m", self.task, self.config, *overrides, "--experiment", str(experiment)]

    def recipe(self) -> dict[str, Any]:
        """Return the config with the overrides applied, as a plain dict. Raises ConfigError."""
        return read_overridden(self.config, [*self.overrides, *(self.chosen or ())])

    def untuned_recipe(self) -> dict[str, Any]:
        """Return the recipe without the values that trials chose, which are not known from the start."""
        return read_overridden(self.config, self.overrides)


@dataclass(frozen=True)
class Grid:
    """A grid file and its parsed content."""

    path: Path
    config: GridConfig
    choices: Mapping[Place, tuple[str, ...]] = field(default_factory=dict)  # see trials.tuned

    @property
    def jobs(self) -> list[Job]:
        """All runs of the table: every cell with the first seed, then every cell with the second seed, and so on."""
        config, jobs = self.config, []
        for seed, row, column in product(config.seeds, config.rows, config.all_columns):
            if row.columns is None or column.name in row.columns:
                overrides = last_of([*config.overrides, *column.overrides, *row.overrides, f"train.seed={seed}"])
                job = Job(self.path.stem, config.task, row.name, column.name, seed, row.config, overrides)
                jobs.append(replace(job, chosen=self.choices.get(self.tuned_place(job.place))) if config.tune else job)
        return jobs

    def tuned_place(self, place: Place) -> Place:
        """Return the cell whose trials choose values for a cell: the cell itself, or the first cell of its row."""
        if self.config.tune.per == "cell":
            return place
        [row] = [row for row in self.config.rows if row.name == place[0]]
        first = next(c.name for c in self.config.all_columns if row.columns is None or c.name in row.columns)
        return place[0], first

    def overrides_field(self, field: str) -> bool:
        """Return whether an override of the grid file sets `field`, for a row, a column or all cells."""
        sections = (self.config, *self.config.rows, *self.config.all_columns)
        return any(field_of(override) == field for each in sections for override in each.overrides)

    def select(self, only: str | None, seeds: Sequence[int] | None) -> list[Job]:
        """Return the jobs whose cell matches `only` and whose seed is in `seeds`; None selects all.

        only: 'row x column', with the wildcards * and ?. Raises ValueError if no cell matches or a seed is unknown."""
        jobs = [job for job in self.jobs if only is None or fnmatch.fnmatchcase(job.cell, only)]
        if not jobs:
            raise UnknownNameError(f"{self.path}: cell", only, dict.fromkeys(job.cell for job in self.jobs))
        unknown = set(seeds or ()) - set(self.config.seeds)
        if unknown:
            raise ValueError(f"{self.path}: unknown seed {min(unknown)}, expected one of {list(self.config.seeds)}")
        return [job for job in jobs if seeds is None or job.seed in seeds]


def read_grid(path: Path) -> Grid:
    """Read a grid file and the configs of its rows. Raises ConfigError if any of these files is invalid."""
    grid = Grid(path, load_config(path, [], GridConfig))
    try:
        code_of(grid.config.task)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if grid.overrides_field("train.seed"):
        raise ConfigError(f"{path}: train.seed is set by an override; list the seeds under `seeds` instead")
    for row, factor in product(grid.config.rows, grid.config.factors):
        low = last_of([*grid.config.overrides, *row.overrides])
        recipes = [read_overridden(row.config, each) for each in (low, last_of([*low, *factor.overrides]))]
        if is_same_recipe(*recipes):
            raise ConfigError(
                f"{path}: factor {factor.name} changes nothing in row {row.name}; drop it, or change the row"
            )
    if grid.config.tune and holdout_field(grid.config.task) is None:
        raise ConfigError(
            f"{path}: tune: works only for detection.training; task {grid.config.task} has no field that holds out "
            "training images (HOLDOUT)"
        )
    chosen = grid.config.tune.ranges if grid.config.tune else ()  # is replaced in all recipes
    recipes = [(job, without_fields(job.untuned_recipe(), chosen)) for job in grid.jobs]
    for (one, recipe), (other, its_recipe) in combinations(recipes, 2):
        if is_same_recipe(recipe, its_recipe):
            raise ConfigError(f"{path}: {one.name} and {other.name} have the same recipe; their overrides must differ")
    return grid


def holdout_field(task: str) -> str | None:
    """Return the config field of a task that holds out training images; None if the task has none."""
    return getattr(importlib.import_module(task), "HOLDOUT", None)


def without_fields(recipe: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return a recipe without some of its fields. names: such as "optim.learning_rate"."""
    recipe = {section: dict(value) if isinstance(value, dict) else value for section, value in recipe.items()}
    for name in names:
        section, _, field = name.partition(".")
        if isinstance(recipe.get(section), dict):
            recipe[section].pop(field, None)
    return recipe


def is_same_recipe(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two recipes train the same model on data in the same folder."""
    return not changed_recipe(one, other) and data_folder(one) == data_folder(other)


# ---- state of a run ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """The state of a job."""

    # diverged: a trial that failed because its loss was not finite, which is a result and not an error
    kind: Literal["waiting", "running", "stopped", "killed", "failed", "diverged", "done", "stale"]
    experiment: Path | None = None  # None while waiting
    detail: str = ""
    same_recipe: bool = True  # of a stale run: True if only the code changed, so that its score still counts
    changes: str = ""  # what changed since a stale run was trained


def job_from(entry: dict) -> Job:
    """Return the job stored in a cell.json or submission.json."""
    job = {each.name: entry[each.name] for each in fields(Job) if each.name in entry}  # older entries have no trial
    return Job(**job | {name: tuple(job[name]) for name in ("overrides", "chosen") if job.get(name) is not None})


def write_cell(job: Job, experiment: Path) -> None:
    """Write cell.json: the job, its recipe, and hashes of the current code."""
    cell = asdict(job) | {"recipe": job.recipe(), "computes": code_hashes(job.task)}
    write_text(experiment / "cell.json", json.dumps(cell, indent=2) + "\n")


def read_cells(experiments: Path) -> list[tuple[Path, dict]]:
    """Return (experiment, content of cell.json) for every experiment that a grid started, oldest first."""
    return [
        (path, read_object(path / "cell.json", CELL))
        for path in list_experiments(experiments)
        if (path / "cell.json").is_file()
    ]


def state_of(job: Job, cells: Sequence[tuple[Path, dict]]) -> State:
    """Return the state of `job`, from the newest experiment with the same recipe and data, started by any grid.

    If there is no such experiment, use the newest running or finished experiment of the same grid, cell and seed.
    Raises ValueError if a record is corrupt."""
    if job.chosen is None:
        return State("waiting", detail="for the trials that choose its values")
    recipe = job.recipe()
    same_task = [(path, cell) for path, cell in cells if cell["task"] == job.task]
    same_recipe = [
        (path, cell) for path, cell in same_task
        if not changed_recipe(cell["recipe"], recipe) and is_same_data(cell["recipe"], recipe, path)
    ]  # fmt: skip
    if not data_folder(recipe).exists():  # if the data are missing, only their path identifies them
        same_folder = [each for each in same_recipe if data_folder(each[1]["recipe"]) == data_folder(recipe)]
        same_recipe = same_folder or same_recipe
    place = (job.grid, job.row, job.column, job.seed, job.trial)
    same_place = [
        (path, cell)
        for path, cell in same_task
        if (cell["grid"], cell["row"], cell["column"], cell["seed"], cell.get("trial")) == place
    ]
    for path, cell in reversed(same_recipe or same_place):
        status = read_status(path)
        if status and status.state == "running":
            return State("running", path, progress(path, status))
        if (path / "results.json").is_file():
            return finished_state(path, cell, recipe)
        if same_recipe:
            state = unfinished_state(path, status)
            if job.trial is None or state.kind != "failed" or status.exit_code != DIVERGED:
                return state
            why = "; ".join(changed_code(cell))
            return replace(state, kind="stale", detail=why, changes=why) if why else replace(state, kind="diverged")
    return State("waiting")


def finished_state(experiment: Path, cell: dict, recipe: dict) -> State:
    """Return the state of an experiment with results: done, or stale if recipe, data or code changed."""
    results = read_results(experiment / "results.json")
    score = f"{results.metric} {format_score(results.score)}"
    changes, code = [*changed_recipe(cell["recipe"], recipe), *changed_data(experiment, recipe)], changed_code(cell)
    if changes or code:
        why = "; ".join([*changes, *code])
        return State("stale", experiment, f"{score}; {why}", same_recipe=not changes, changes=why)
    return State("done", experiment, score)


def unfinished_state(experiment: Path, status: Status | None) -> State:
    """Return the state of an experiment without results: the recorded state, or killed if no end was recorded."""
    kind = status.state if status and status.state in UNFINISHED else "killed"
    reason = "; ".join(line.strip() for line in status.reason.splitlines()) if status else ""
    details = [progress(experiment, status) if kind != "failed" else "", reason]
    return State(kind, experiment, "; ".join(filter(None, details)))


def progress(experiment: Path, status: Status | None) -> str:
    """Return the progress of a run as text, such as 'epoch 12/50, 38:00 left'."""
    if not status or not status.total_steps:
        return "training not started"
    text, lines = f"epoch {status.epoch}/{status.epochs}", read_metrics(experiment)
    if lines:
        seconds = sum(line["epoch_seconds"] + line.get("eval_seconds", 0) for line in lines)
        left = seconds / lines[-1]["step"] * (status.total_steps - status.step)
        text += f", {tqdm.format_interval(left)} left"
    return text
