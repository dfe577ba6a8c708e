"""Trials: short runs of a grid that choose values of config fields, such as the learning rate, for each row or cell.

A grid file with `tune:` gives every row (or cell) the same number of trials, at the same values, which are drawn before
the first trial starts. A trial is a job like any other. It trains for a part of the epochs, without the images of the
holdout, and is scored on the holdout, so the validation images are not read. The best trial gives its values to all
runs of its row; these train on all training images, with all seeds.

Everything is derived from the grid file and the records of the trials, so a killed or repeated command, or two commands
at once, make the same choice.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ablation.config_classes import config_class, default_values
from ablation.scheduling.grid_file import SCALED, TuneConfig, last_of
from ablation.scheduling.jobs import Grid, Job, State, holdout_field, read_cells, state_of
from engine.config import load_config
from engine.strict_yaml import ConfigError
from records.experiment import format_score
from records.results import Place, Results, read_results
from stats.trial_points import draw_points


@dataclass(frozen=True)
class Trial:
    """A trial and its outcome. values: of the fields to choose. results: None if it diverged or has not ended."""

    job: Job
    values: Mapping[str, Any]
    state: State
    results: Results | None

    @property
    def has_ended(self) -> bool:
        """Whether the trial has an outcome. One whose code has changed since it ran counts; other stale ones do not."""
        return self.state.kind in ("done", "diverged") or (self.state.kind == "stale" and self.state.same_recipe)

    @property
    def has_diverged(self) -> bool:
        return self.has_ended and self.results is None

    @property
    def score(self) -> float:
        """The score on the holdout; nan without one."""
        score = self.results.score if self.results else None
        return math.nan if score is None else score


def trial_jobs(grid: Grid) -> dict[Place, list[Job]]:
    """Return the trials of each row or cell, by the cell in which they run. Trial k has the same values everywhere."""
    tune = grid.config.tune
    if tune is None:
        return {}
    try:
        points = draw_points(tune.ranges, tune.trials, tune.seed)
    except ValueError as error:  # fewer values than trials
        raise ConfigError(f"{grid.path}: tune: {error}") from None
    owners = {}
    for job in grid.jobs:
        if grid.tuned_place(job.place) == job.place:
            owners.setdefault(job.place, job)  # with the first seed
    return {
        place: [trial_job(job, number, point, grid) for number, point in enumerate(points, start=1)]
        for place, job in owners.items()
    }


def trial_job(job: Job, number: int, point: Mapping[str, Any], grid: Grid) -> Job:
    """Return a trial: the job of a cell with the drawn values, fewer epochs, and a holdout."""
    tune, recipe = grid.config.tune, job.untuned_recipe()
    epochs = recipe.get("train", {}).get("epochs")
    if not isinstance(epochs, int):
        raise ConfigError(f"{grid.path}: tune: {job.config} has no train.epochs, which train.epochs is a share of")
    holdout = holdout_field(grid.config.task)
    values = {**point, "train.epochs": max(1, round(tune.epochs * epochs)), holdout: tune.on}
    schedule = {name: field_value(recipe, name, job.task) for name in SCALED if name not in point}
    values |= {name: scaled(value, values["train.epochs"] / epochs) for name, value in schedule.items() if value}
    return replace(job, trial=number, chosen=(), overrides=last_of([*job.overrides, *as_overrides(values)]))


def field_value(recipe: Mapping[str, Any], name: str, task: str) -> Any:
    """Return the value of `section.field` in a recipe, or its default. None if the task has no config class."""
    section, field = name.split(".")
    if field in (recipe.get(section) or {}):
        return recipe[section][field]
    cls = config_class(task)  # imported only here, because this takes seconds
    return default_values(cls).get(name) if cls else None


def scaled(value: float | Sequence[int], share: float) -> float | list[int]:
    """Return a number of epochs, or a list of epochs, of a shorter training."""
    if isinstance(value, Sequence):
        return sorted({max(1, round(epoch * share)) for epoch in value})
    return float(f"{value * share:.3g}")


def check_configs(jobs: Sequence[Job]) -> None:
    """Check the config of every cell and trial before anything is trained. Raises ConfigError naming the first job."""
    cls = config_class(jobs[0].task)
    firsts = {(job.place, job.trial, job.chosen): job for job in reversed(jobs)}.values()  # other seeds are alike
    for job in reversed(firsts) if cls else ():
        try:
            load_config(job.config, [*job.overrides, *(job.chosen or ())], cls)
        except ConfigError as error:
            raise ConfigError(f"{job.name}: {error}") from None


# ---- outcomes ----------------------------------------------------------------------------------------------


def read_trials(grid: Grid, cells: Sequence[tuple[Path, dict]]) -> dict[Place, list[Trial]]:
    """Return the trials of each row or cell with their outcomes. cells: see read_cells.

    A trial whose code changed since it ran counts; one whose recipe or data changed has not ended."""
    return {
        place: [read_trial(job, grid, cells) for job in jobs] for place, jobs in trial_jobs(grid).items()
    }  # fmt: skip


def read_trial(job: Job, grid: Grid, cells: Sequence[tuple[Path, dict]]) -> Trial:
    """Return the outcome of a trial."""
    recipe, trial = job.recipe(), Trial(job, {}, state_of(job, cells), None)
    path = (trial.state.experiment or Path()) / "results.json"
    results = read_results(path) if trial.has_ended and path.is_file() else None
    values = {name: field_value(recipe, name, job.task) for name in grid.config.tune.ranges}
    return replace(trial, values=values, results=results)


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the best score, the first of equal ones; None if not all have ended or none has a score."""
    scored = [trial for trial in trials if not math.isnan(trial.score)]
    if not scored or not all(trial.has_ended for trial in trials):
        return None
    sign = -1 if scored[0].results.lower_is_better else 1
    return max(scored, key=lambda trial: sign * trial.score)


def tuned(grid: Grid, experiments: Path) -> Grid:
    """Return the grid with the values that the trials chose, for all rows or cells whose trials have ended."""
    return grid if grid.config.tune is None else with_choices(grid, read_trials(grid, read_cells(experiments)))


def with_choices(grid: Grid, trials: Mapping[Place, Sequence[Trial]]) -> Grid:
    """Return the grid with the values that its trials chose. trials: see read_trials."""
    best = {place: best_trial(each) for place, each in trials.items()}
    return replace(grid, choices={place: as_overrides(trial.values) for place, trial in best.items() if trial})


def as_overrides(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return chosen values as overrides, such as ('optim.learning_rate=0.002',)."""
    return tuple(f"{name}={json.dumps(value)}" for name, value in values.items())


def trials_of(jobs: Sequence[Job], grid: Grid) -> list[Job]:
    """Return the trials that runs of the table need: trial 1 of all their rows or cells, then trial 2, and so on."""
    if grid.config.tune is None:
        return []
    owners = {grid.tuned_place(job.place) for job in jobs}
    lists = [trials for place, trials in trial_jobs(grid).items() if place in owners]
    return [job for same_number in zip(*lists, strict=True) for job in same_number]


def owner_name(place: Place, tune: TuneConfig) -> str:
    """Return the name of the row or cell that has trials."""
    return place[0] if tune.per == "row" else " x ".join(place)


def describe_choices(grid: Grid, known: Mapping[Place, Sequence[Trial]]) -> list[str]:
    """Return a line for each row or cell: what its trials chose, or how many of them have ended. known: its trials."""
    lines = []
    for place, trials in known.items():
        owner, best = owner_name(place, grid.config.tune), best_trial(trials)
        ended = sum(trial.has_ended for trial in trials)
        if best:
            score = f"{best.results.metric} {format_score(best.score)} on {best.results.protocol.images} images"
            lines.append(f"{owner}: {', '.join(as_overrides(best.values))} (trial {best.job.trial}, {score})")
        elif ended == len(trials):
            lines.append(f"{owner}: all {ended} trials diverged or have no score; change the ranges of `tune`")
        else:
            kinds = [trial.state.kind for trial in trials if not trial.has_ended]
            others = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
            lines.append(f"{owner}: {ended} of {len(trials)} trials have ended; {others}")
    return lines
