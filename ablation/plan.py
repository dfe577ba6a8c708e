"""Grid files: which cells they ask for, and how far each of them is.

A grid file names rows (a task's config each), columns and seeds; `Grid.jobs` lists what there is to train. Each job
becomes an ordinary numbered experiment, whose cell.json says which job it is, with what recipe and code it was started.
"""

import fnmatch
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from tqdm import tqdm

from ablation.staleness import (
    changed_code,
    changed_data,
    changed_recipe,
    code_hashes,
    code_of,
    data_folder,
    is_same_data,
)  # fmt: skip
from engine.config import Config, load_config, read_overridden
from engine.files import write_text
from engine.strict_yaml import ConfigError
from engine.text import UnknownNameError
from records.experiment import list_experiments, shown_score
from records.metrics import read_metrics
from records.results import Place, read_object, read_results
from records.status import Status, read_status

UNFINISHED = ("stopped", "killed", "failed")  # states of runs that can be resumed
CELL = ("grid", "task", "row", "column", "seed", "recipe")  # what cell.json has at least


# ---- what a grid file says ---------------------------------------------------------------------------------


class ColumnConfig(Config):
    """A column of the table: what it changes in every row."""

    name: str = Field(description="in the table")
    overrides: tuple[str, ...] = Field((), description="section.field=value each")


class RowConfig(ColumnConfig):
    """A row of the table: a config, and what it changes in it."""

    config: str = Field(description="YAML file of the task")
    columns: tuple[str, ...] | None = Field(None, description="the columns that this row has; null: all")


class GridConfig(Config):
    """A grid file. A row's override wins over a column's, and both over the grid's."""

    task: str = Field(description="module that trains a cell, such as detection.training")
    seeds: tuple[int, ...] = Field(min_length=1, description="train.seed of the runs of each cell")
    overrides: tuple[str, ...] = Field((), description="section.field=value each, for every cell")
    rows: tuple[RowConfig, ...] = Field(min_length=1)
    columns: tuple[ColumnConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_known_and_unique(self) -> Self:
        columns = [column.name for column in self.columns]
        for what, names in (("rows", [row.name for row in self.rows]), ("columns", columns), ("seeds", self.seeds)):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"{what}: {repeated[0]} is there twice")
        for row in self.rows:
            for name in row.columns or ():
                if name not in columns:
                    raise UnknownNameError(f"row {row.name}: column", name, columns)
        return self


@dataclass(frozen=True)
class Job:
    """One cell and seed: a training run."""

    grid: str  # name of the grid file without its suffix
    task: str
    row: str
    column: str
    seed: int
    config: str
    overrides: tuple[str, ...]

    @property
    def cell(self) -> str:
        return f"{self.row} x {self.column}"

    @property
    def name(self) -> str:
        return f"{self.cell}, seed {self.seed}"

    @property
    def place(self) -> Place:
        return self.row, self.column

    def command(self, experiment: Path, launcher: Sequence[str] = (sys.executable,)) -> list[str]:
        """Return what trains it into `experiment`, or resumes it there; `launcher` starts a Python module."""
        return [*launcher, "-m", self.task, self.config, *self.overrides, "--experiment", str(experiment)]

    def recipe(self) -> dict[str, Any]:
        """Return the config that the task is given, as plain data. Raises ConfigError."""
        return read_overridden(self.config, self.overrides)


@dataclass(frozen=True)
class Grid:
    """A grid file."""

    path: Path
    config: GridConfig

    @property
    def jobs(self) -> list[Job]:
        """Everything there is to train, the first seed of every cell before the second of any."""
        config, jobs = self.config, []
        for seed, row, column in product(config.seeds, config.rows, config.columns):
            if row.columns is None or column.name in row.columns:
                overrides = [*config.overrides, *column.overrides, *row.overrides, f"train.seed={seed}"]
                last = {override.partition("=")[0]: override for override in overrides}
                name = self.path.stem
                jobs.append(Job(name, config.task, row.name, column.name, seed, row.config, tuple(last.values())))
        return jobs

    def sets(self, field: str) -> bool:
        """Whether the grid file itself sets `field`, in a row, a column or for all cells."""
        sections = (self.config, *self.config.rows, *self.config.columns)
        return any(override.partition("=")[0] == field for each in sections for override in each.overrides)

    def select(self, only: str | None, seeds: Sequence[int] | None) -> list[Job]:
        """Return the jobs of the cells that match 'row x column' (with * and ?), and of these seeds.

        Raises ValueError if nothing matches."""
        jobs = [job for job in self.jobs if only is None or fnmatch.fnmatchcase(job.cell, only)]
        if not jobs:
            raise UnknownNameError(f"{self.path}: cell", only, dict.fromkeys(job.cell for job in self.jobs))
        unknown = set(seeds or ()) - set(self.config.seeds)
        if unknown:
            raise ValueError(f"{self.path}: no seed {min(unknown)}; it has {list(self.config.seeds)}")
        return [job for job in jobs if seeds is None or job.seed in seeds]


def read_grid(path: Path) -> Grid:
    """Read a grid file and every config it names. Raises ConfigError for what is wrong in any of them."""
    grid = Grid(path, load_config(path, [], GridConfig))
    try:
        code_of(grid.config.task)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if grid.sets("train.seed"):
        raise ConfigError(f"{path}: overrides hold train.seed; the seeds of a grid are listed under `seeds`")
    for (one, recipe), (other, its_recipe) in combinations([(job, job.recipe()) for job in grid.jobs], 2):
        if not changed_recipe(recipe, its_recipe) and data_folder(recipe) == data_folder(its_recipe):
            raise ConfigError(f"{path}: {one.name} and {other.name} have the same recipe; their overrides must differ")
    return grid


# ---- how far it is -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """How far a job is."""

    kind: Literal["waiting", "running", "stopped", "killed", "failed", "done", "stale"]
    experiment: Path | None = None  # the one that holds it; None while waiting
    detail: str = ""
    same_recipe: bool = True  # False where recipe or data have changed; where only the code has, it is still comparable
    changes: str = ""  # what has changed since a stale result


def job_of(entry: dict) -> Job:
    """The job whose fields are in a cell.json or a submission.json."""
    return Job(**{field.name: entry[field.name] for field in fields(Job)} | {"overrides": tuple(entry["overrides"])})


def remember(job: Job, experiment: Path) -> None:
    """Write into the experiment which job it is, and with what recipe and code it is started."""
    cell = asdict(job) | {"recipe": job.recipe(), "computes": code_hashes(job.task)}
    write_text(experiment / "cell.json", json.dumps(cell, indent=2) + "\n")


def read_cells(experiments: Path) -> list[tuple[Path, dict]]:
    """Every experiment that a grid started, oldest first, with its cell.json."""
    return [
        (path, read_object(path / "cell.json", CELL))
        for path in list_experiments(experiments)
        if (path / "cell.json").is_file()
    ]


def state_of(job: Job, cells: Sequence[tuple[Path, dict]]) -> State:
    """Return how far `job` is, by the newest experiment with its recipe, else by the newest in its place of the grid.

    Raises ValueError for a damaged record."""
    recipe = job.recipe()
    same_task = [(path, cell) for path, cell in cells if cell["task"] == job.task]
    same_recipe = [
        (path, cell) for path, cell in same_task
        if not changed_recipe(cell["recipe"], recipe) and is_same_data(cell["recipe"], recipe, path)
    ]  # fmt: skip
    if not data_folder(recipe).exists():  # the name of the folder says which data these are, as content cannot
        same_folder = [each for each in same_recipe if data_folder(each[1]["recipe"]) == data_folder(recipe)]
        same_recipe = same_folder or same_recipe
    place = (job.grid, job.row, job.column, job.seed)
    same_place = [
        (path, cell) for path, cell in same_task if (cell["grid"], cell["row"], cell["column"], cell["seed"]) == place
    ]
    for path, cell in reversed(same_recipe or same_place):
        status = read_status(path)
        if status and status.state == "running":
            return State("running", path, progress(path, status))
        if (path / "results.json").is_file():
            return finished_state(path, cell, recipe)
        if same_recipe:
            return unfinished_state(path, status)
    return State("waiting")


def finished_state(experiment: Path, cell: dict, recipe: dict) -> State:
    """Return whether the results of an experiment are those of `recipe` and of the present code."""
    results = read_results(experiment / "results.json")
    score = f"{results.metric} {shown_score(results.score)}"
    changes, code = [*changed_recipe(cell["recipe"], recipe), *changed_data(experiment, recipe)], changed_code(cell)
    if changes or code:
        why = "; ".join([*changes, *code])
        return State("stale", experiment, f"{score}; {why}", same_recipe=not changes, changes=why)
    return State("done", experiment, score)


def unfinished_state(experiment: Path, status: Status | None) -> State:
    """Return how an experiment without results ended; killed if it did not say so."""
    kind = status.state if status and status.state in UNFINISHED else "killed"
    reason = "; ".join(line.strip() for line in status.reason.splitlines()) if status else ""
    details = [progress(experiment, status) if kind != "failed" else "", reason]
    return State(kind, experiment, "; ".join(filter(None, details)))


def progress(experiment: Path, status: Status | None) -> str:
    """Return 'epoch 12/50, 38:00 left'."""
    if not status or not status.total_steps:
        return "not yet begun"
    text, lines = f"epoch {status.epoch}/{status.epochs}", read_metrics(experiment)
    if lines:
        seconds = sum(line["epoch_seconds"] + line.get("eval_seconds", 0) for line in lines)
        left = seconds / lines[-1]["step"] * (status.total_steps - status.step)
        text += f", {tqdm.format_interval(left)} left"
    return text
