"""Grid files: which cells they ask for, and how far each of them is.

A grid file names rows (a task's config each), columns and seeds; `Grid.jobs` lists what there is to train. Each job
becomes an ordinary numbered experiment. The experiment remembers which job it is in its own `cell.json`, beside the
recipe and the hashes of the code it was started with, so there is no second book to keep, and none to lose.
"""

import fnmatch
import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from itertools import combinations
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from engine.config import Config, changed_values, load_config, read_overridden
from engine.files import user_path, write_text
from engine.inputs import Inputs, content_sha256, holds_sample_of, read_inputs
from engine.strict_yaml import ConfigError, read_yaml
from engine.text import UnknownNameError, did_you_mean, nearest
from records.experiment import FREE_FIELDS, list_experiments, shown_score
from records.metrics import read_metrics
from records.results import Place, Results, read_object, read_results
from records.status import read_status

PROJECT = Path(__file__).parent.parent
CELL = ("grid", "task", "row", "column", "seed", "recipe", "code")  # what cell.json has
LOG_RECORD = re.compile(r"\d{4}-\d\d-\d\d \S+ (DEBUG|INFO|WARNING|ERROR) (.*)")


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
    """Where an override is given more than once, the row's counts before the column's, and both before the grid's."""

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
    def name(self) -> str:
        return f"{self.row} x {self.column}, seed {self.seed}"

    @property
    def place(self) -> Place:
        return self.row, self.column

    def command(self, experiment: Path, launcher: Sequence[str] = (sys.executable,)) -> list[str]:
        """What trains it into `experiment`, or goes on there; `launcher` starts a Python module."""
        return [*launcher, "-m", self.task, self.config, *self.overrides, "--experiment", str(experiment)]

    def recipe(self) -> dict[str, Any]:
        """The config that the task is given, as plain data. Raises ConfigError."""
        return read_overridden(self.config, self.overrides)


@dataclass(frozen=True)
class Grid:
    """A grid file."""

    path: Path
    config: GridConfig

    @property
    def jobs(self) -> list[Job]:
        """Everything there is to train, the first seed of every cell before the second of any."""
        config = self.config
        return [
            Job(
                self.path.stem,
                config.task,
                row.name,
                column.name,
                seed,
                row.config,
                last_of_each([*config.overrides, *column.overrides, *row.overrides, f"train.seed={seed}"]),
            )
            for seed in config.seeds
            for row in config.rows
            for column in config.columns
            if row.columns is None or column.name in row.columns
        ]

    def sets(self, field: str) -> bool:
        """Whether the grid file itself sets `field`, in a row, a column or for all cells."""
        config = self.config
        overrides = [o for each in (config, *config.rows, *config.columns) for o in each.overrides]
        return any(override.partition("=")[0] == field for override in overrides)

    def select(self, only: str | None, seeds: Sequence[int] | None) -> list[Job]:
        """The jobs of the cells that match 'row x column' (with * and ?), and of these seeds.

        Raises ValueError where nothing matches."""
        jobs = self.jobs
        if only is not None:
            names = list(dict.fromkeys(f"{job.row} x {job.column}" for job in jobs))
            jobs = [job for job in jobs if fnmatch.fnmatchcase(f"{job.row} x {job.column}", only)]
            if not jobs:
                cure = did_you_mean(nearest(only, names)) or f"; it has {', '.join(names)}"
                raise ValueError(f"{self.path}: no cell {only!r}{cure}")
        if seeds is not None:
            unknown = set(seeds) - set(self.config.seeds)
            if unknown:
                raise ValueError(f"{self.path}: no seed {min(unknown)}; it has {list(self.config.seeds)}")
            jobs = [job for job in jobs if job.seed in seeds]
        return jobs


def read_grid(path: Path) -> Grid:
    """Read a grid file and every config it names. Raises ConfigError for what is wrong in any of them."""
    grid = Grid(path, load_config(path, [], GridConfig))
    try:
        code_hashes(grid.config.task)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    config = grid.config
    for each in (config, *config.rows, *config.columns):
        if any(override.startswith("train.seed=") for override in each.overrides):
            raise ConfigError(f"{path}: overrides hold train.seed; the seeds of a grid are listed under `seeds`")
    for (one, recipe), (other, its_recipe) in combinations([(job, job.recipe()) for job in grid.jobs], 2):
        root, its_root = _real_root(recipe), _real_root(its_recipe)
        is_other_data = root != its_root and not (root.exists() and is_same_data(recipe, its_recipe))
        if not changed_recipe({"recipe": recipe}, its_recipe) and not is_other_data:
            raise ConfigError(
                f"{path}: {one.name} and {other.name} have the same recipe and the same data; their overrides must "
                "differ, or their data.root must name folders with different annotations or images"
            )
    return grid


def last_of_each(overrides: Sequence[str]) -> tuple[str, ...]:
    """Overrides with each field once: the last word on it."""
    return tuple({override.partition("=")[0]: override for override in overrides}.values())


# ---- how far it is -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """How far a job is."""

    kind: Literal["waiting", "running", "interrupted", "failed", "done", "stale"]
    experiment: Path | None = None  # the one that holds it; None while waiting
    detail: str = ""
    same_recipe: bool = True  # False where recipe or data have changed; where only the code has, it is still comparable


def job_of(entry: dict) -> Job:
    """The job whose fields are in a cell.json or a submission.json."""
    return Job(**{field.name: entry[field.name] for field in fields(Job)} | {"overrides": tuple(entry["overrides"])})


def remember(job: Job, experiment: Path) -> None:
    """Write into the experiment which job it is, and with what recipe and code it is started."""
    cell = asdict(job) | {"recipe": job.recipe(), "code": code_hashes(job.task)}
    write_text(experiment / "cell.json", json.dumps(cell, indent=2) + "\n")


def read_cells(experiments: Path) -> list[tuple[Path, dict]]:
    """Every experiment that a grid started, oldest first, with its cell.json."""
    return [
        (path, read_object(path / "cell.json", CELL))
        for path in list_experiments(experiments)
        if (path / "cell.json").is_file()
    ]


def state_of(job: Job, cells: Sequence[tuple[Path, dict]]) -> State:
    """How far `job` is, by the newest experiment with its recipe, else by the newest in its place of this grid."""
    recipe = job.recipe()
    same_task = [(path, cell) for path, cell in cells if cell["task"] == job.task]
    same_recipe = [
        (path, cell) for path, cell in same_task
        if not changed_recipe(cell, recipe) and is_same_data(cell["recipe"], recipe, path)
    ]  # fmt: skip
    if not _real_root(recipe).exists():  # content cannot say which data these are, so the name of their folder does
        same_root = [each for each in same_recipe if _real_root(each[1]["recipe"]) == _real_root(recipe)]
        same_recipe = same_root or same_recipe
    place = (job.grid, job.row, job.column, job.seed)
    same_place = [
        (path, cell) for path, cell in same_task if (cell["grid"], cell["row"], cell["column"], cell["seed"]) == place
    ]
    for path, cell in reversed(same_recipe or same_place):
        if (status := read_status(path)) and status.state == "running":
            return State("running", path, progress(path))
        if (path / "results.json").is_file():
            results = read_results(path / "results.json")
            score = f"{results.metric} {shown_score(results.score)}"
            changes = [*changed_recipe(cell, recipe), *changed_inputs(path, results, recipe)]
            if changes or changed_code(cell):
                why = "; ".join([score, *changes, *changed_code(cell)])
                return State("stale", path, why, same_recipe=not changes)
            return State("done", path, score)
        if same_recipe:
            error = last_error(path)
            return State("failed", path, error) if error else State("interrupted", path, progress(path))
    return State("waiting")


def changed_recipe(cell: dict, recipe: dict) -> list[str]:
    """Fields of the recipe that are no longer what the experiment was started with.

    `train.precision: auto`, which is the default, accepts a run in any precision: the hardware decided."""
    changes = changed_values(cell["recipe"], recipe)
    if recipe.get("train", {}).get("precision", "auto") == "auto":
        changes.pop("train.precision", None)
    return [text for name, text in changes.items() if name not in FREE_FIELDS]


def is_same_data(then: dict, now: dict, experiment: Path | None = None) -> bool:
    """Return whether two recipes mean the same data: in one folder, moved to another, or copied.

    experiment: was started with the recipe `then`; its inputs.json says what it read. Without that, the annotation
    files and a sample of each image folder are compared if the old folder still exists; if it does not, the data count
    as moved."""
    old, new = _real_root(then), _real_root(now)
    if old == new:
        return True
    inputs = read_inputs(experiment) if experiment else None
    if inputs and (new.exists() or old.exists()):
        return not any(inputs.changes(new))
    if not old.exists():
        return True
    data = [value for name, value in then["data"].items() if name != "root"]
    halves = [text for half in data if isinstance(half, dict) for text in half.values()]
    texts = [text for text in (*data, *halves) if isinstance(text, str)]
    files = [(old / text, new / text) for text in texts if (old / text).is_file()]
    folders = [(old / text, new / text) for text in texts if (old / text).is_dir()]
    try:
        same_files = all(content_sha256(file) == content_sha256(copy) for file, copy in files)
        return bool(files or folders) and same_files and all(holds_sample_of(*pair) for pair in folders)
    except FileNotFoundError:
        return False


def _data_root(recipe: dict) -> Path:
    """Return the folder of a recipe's data; as it is written if it can be a path only on another machine."""
    root = recipe.get("data", {}).get("root", "")
    try:
        return user_path(root, "data.root")
    except ValueError:
        return Path(root.replace("\0", ""))


def _real_root(recipe: dict) -> Path:
    """The folder of a recipe's data, absolute and without links."""
    return Path(os.path.realpath(_data_root(recipe)))


def changed_code(cell: dict) -> list[str]:
    """['the code has changed since (training.py, engine/optim.py)'], of many files their number; [] if it has not."""
    then, now = cell["code"], code_hashes(cell["task"])
    changed = sorted(name for name in then | now if then.get(name) != now.get(name))
    shown = ", ".join(changed) if len(changed) <= 3 else f"{len(changed)} files"
    return [f"the code has changed since ({shown})"] if changed else []


def changed_inputs(experiment: Path, results: Results, recipe: dict) -> list[str]:
    """Return ['data: .../instances_val.json'] for files and images that differ from what the run has read.

    They are looked for in the recipe's data.root. Missing ones are not a change: a clone may lack the data."""
    config, _ = read_yaml(experiment / "config.yaml")
    root, root_now = _data_root(config), _data_root(recipe)
    inputs = read_inputs(experiment) or Inputs(str(root), results.inputs, {})
    return [f"data: {change.path}" for change in inputs.changes(root_now) if not change.is_gone]


def code_hashes(task: str) -> dict[str, str]:
    """The start of the SHA-256 of every file of the project that the task's module imports, by its path.

    Raises ValueError if there is no such module."""
    folders = [PROJECT, *(path.parent for depth in ("*", "*/*") for path in PROJECT.glob(f"{depth}/__init__.py"))]
    return _code_hashes(task, max(path.stat().st_mtime_ns for folder in folders for path in folder.glob("*.py")))


@cache
def _code_hashes(task: str, newest_mtime_ns: int) -> dict[str, str]:
    """The same, anew whenever a file of the project has been written to: a grid runs for days."""
    source = PROJECT / f"{task.replace('.', '/')}.py"
    if not source.is_file():
        raise ValueError(f"task {task!r}: no module {source.relative_to(PROJECT)} in the project")
    finder = ModuleFinder(path=[str(PROJECT)])
    finder.run_script(str(source))
    files = {Path(module.__file__) for module in finder.modules.values() if module.__file__}
    return {
        str(path.relative_to(PROJECT)): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in sorted(files)
    }


def progress(experiment: Path) -> str:
    """'epoch 12/50, 3 min left'."""
    try:
        epochs = read_yaml(experiment / "config.yaml")[0]["train"]["epochs"]
    except (ValueError, KeyError, TypeError):
        return "not yet begun"
    lines = read_metrics(experiment)
    text = f"epoch {len(lines)}/{epochs}"
    if lines:
        seconds = sum(line["epoch_seconds"] + line.get("eval_seconds", 0) for line in lines) / len(lines)
        text += f", {duration((epochs - len(lines)) * seconds)} left"
    return text


def duration(seconds: float) -> str:
    """'40 s', '12 min', '3 h 05 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def last_error(experiment: Path) -> str | None:
    """The error that ended the run, if that is the last thing its log says."""
    level, text = _last_record(experiment)
    return text.removeprefix("error: ") if level == "ERROR" else None


def was_stopped(experiment: Path) -> bool:
    """Whether the last thing that the run's log says is that it was asked to end, and has saved."""
    return _last_record(experiment)[1].startswith("stopped: ")


def _last_record(experiment: Path) -> tuple[str, str]:
    """Level and text of the last record of train.log."""
    path = experiment / "train.log"
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    records = [match for line in lines if (match := LOG_RECORD.match(line))]
    return (records[-1][1], records[-1][2]) if records else ("", "")
