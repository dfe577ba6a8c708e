"""Tests of ablation/scheduling/trials.py: trials that choose values for the runs of a grid.

Nothing is trained: a stand-in for the runner writes the records."""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ablation import grid as grid_command
from ablation.scheduling import runner, slurm
from ablation.scheduling.jobs import Grid, Job, State, job_from, read_cells, read_grid, state_of, write_cell
from ablation.scheduling.trials import (
    best_trial,
    check_configs,
    describe_choices,
    read_trials,
    trial_jobs,
    trials_of,
    tuned,
)
from engine.command import DIVERGED, RunError
from engine.files import locked
from engine.strict_yaml import ConfigError
from records.experiment import new_experiment
from records.status import RUN_LOCK, Status, write_status

GRID = """
task: tuned_task
seeds: [0, 1]
overrides: [train.epochs=40]
tune:
  per: row
  trials: 4
  optim.learning_rate: {log_uniform: [1e-4, 1e-2]}
  train.epochs: 0.25
  on: 0.1
rows:
  - {name: one, config: base.yaml}
  - {name: two, config: base.yaml, overrides: [model.size=2]}
columns:
  - {name: a}
  - {name: b, overrides: [model.neck=b]}
"""
BASE = """
data: {root: here}
model: {size: 1, neck: a}
optim: {learning_rate: 0.5, warmup_epochs: 2.0, drop_epochs: [20, 30]}
train: {epochs: 3}
"""
DETECTOR = """
data:
  root: here
  train: {images: images/train, annotations: a.json}
  val: {images: images/val, annotations: b.json}
train: {epochs: 4, batch_size: 1}
"""
BEST = {1: 1e-3, 2: 3e-3}  # learning rate with the best score, by model.size


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "tuned_task.py").write_text('COMPUTES, HOLDOUT = {"stub": ("tuned_task.py",)}, "data.holdout"\n')
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "grid_tuned.yaml").write_text(GRID)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ablation.scheduling.staleness.PROJECT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(runner, "run", FakeRunner())
    return tmp_path


@pytest.fixture
def grid(folder) -> Grid:
    return read_grid(folder / "grid_tuned.yaml")


class FakeRunner:
    """Stands in for the runner: a score is high near the best learning rate; rates above `diverges` diverge."""

    def __init__(self) -> None:
        self.left, self.diverges, self.trained = math.inf, math.inf, []

    def __call__(self, jobs: Sequence[Job], experiments: Path, rerun_stale: bool, *_) -> dict[Job, State]:
        for job in jobs:
            if runner.needs_training(state_of(job, read_cells(experiments)), rerun_stale):
                if not self.left:
                    raise KeyboardInterrupt
                self.left -= 1
                self.trained.append(job)
                train(job, experiments, self.diverges)
        return {job: state_of(job, read_cells(experiments)) for job in jobs}


def train(job: Job, experiments: Path, diverges: float = math.inf) -> Path:
    recipe, experiment = job.recipe(), new_experiment(experiments)
    write_cell(job, experiment)
    rate = recipe["optim"]["learning_rate"]
    if rate > diverges:
        write_status(experiment, Status("failed", exit_code=DIVERGED, reason="loss is not finite"))
        return experiment
    score = 0.5 - 0.1 * math.log(rate / BEST[recipe["model"]["size"]]) ** 2
    results = {
        "task": "fake", "variant": {"row": job.row, "column": job.column}, "seed": job.seed, "metric": "mAP",
        "scores": {"mAP": score}, "protocol": {"images": 9, "classes": ["a"]}, "inputs": {}, "cost": {},
    }  # fmt: skip
    (experiment / "config.yaml").write_text(json.dumps(recipe))
    (experiment / "results.json").write_text(json.dumps(results))
    return experiment


def run(only: str | None = None, rerun_stale: bool = False) -> None:
    arguments = argparse.Namespace(
        grid=Path("grid_tuned.yaml"), only=only, seeds=None, experiments=Path("experiments"), rerun_stale=rerun_stale,
        launcher=[sys.executable], parallel=1, all_seeds=False,
    )  # fmt: skip
    grid_command.run_grid(arguments)


def rates(jobs: Sequence[Job]) -> list[float]:
    return [job.recipe()["optim"]["learning_rate"] for job in jobs]


# ---- the trials of a grid ------------------------------------------------------------------------------------


def test_every_row_has_the_same_points_in_its_first_cell(grid):
    trials = trial_jobs(grid)
    assert list(trials) == [("one", "a"), ("two", "a")]
    one, two = trials.values()
    assert rates(one) == rates(two)
    assert len(set(rates(one))) == 4
    assert all(1e-4 <= rate <= 1e-2 for rate in rates(one))
    assert [job.trial for job in one] == [1, 2, 3, 4]
    assert {job.seed for job in one} == {0}
    assert rates(one) == rates(trial_jobs(read_grid(grid.path))[("one", "a")])  # the same in every process


def test_per_cell_every_cell_has_its_own_trials(grid, folder):
    grid.path.write_text(GRID.replace("per: row", "per: cell"))
    assert len(trial_jobs(read_grid(grid.path))) == 4


def test_a_trial_trains_for_fewer_epochs_with_a_shorter_schedule_and_a_holdout(grid):
    [recipe, *_] = [job.recipe() for job in trial_jobs(grid)["two", "a"]]
    assert recipe["train"] == {"epochs": 10, "seed": 0}
    assert recipe["data"] == {"root": "here", "holdout": 0.1}
    assert (recipe["optim"]["warmup_epochs"], recipe["optim"]["drop_epochs"]) == (0.5, [5, 8])
    assert recipe["model"]["size"] == 2


def test_only_the_trials_of_selected_cells_are_needed(grid):
    assert [job.name for job in trials_of(grid.select("two x b", None), grid)] == [
        f"two x a, trial {number}" for number in (1, 2, 3, 4)
    ]


def test_a_job_survives_its_record(grid, folder):
    for job in (trial_jobs(grid)["one", "a"][2], *grid.jobs[:1], replace(grid.jobs[0], chosen=("a.b=1",))):
        experiment = new_experiment(folder / "experiments")
        write_cell(job, experiment)
        assert job_from(json.loads((experiment / "cell.json").read_text())) == job


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("log_uniform: [1e-4, 1e-2]", "log_uniform: [1e-2, 1e-4]", "optim.learning_rate: got .*low < high"),
        ("log_uniform: [1e-4, 1e-2]", "log_uniform: [0, 1e-2]", "above 0"),
        ("log_uniform: [1e-4, 1e-2]", "normal: [0, 1]", "expected {log_uniform"),
        ("log_uniform: [1e-4, 1e-2]", "choice: [1]", "choice"),
        ("  optim.learning_rate: {log_uniform: [1e-4, 1e-2]}\n", "", "no field to choose"),
        ("trials: 4", "trials: 1", "tune.trials"),
        ("trials: 4", "trails: 4", "trails.*did you mean 'trials'"),
        ("train.epochs: 0.25", "epochs: 0.25", "epochs: no such field.*train.epochs"),
        ("train.epochs: 0.25", "train.epochs: 3", "epochs"),
        ("on: 0.1", "on: 0.9", "tune.on"),
        ("optim.learning_rate: {", "train.seed: {", "train.seed"),
        ("[model.neck=b]", "[model.neck=b, optim.learning_rate=1]", "b.* sets optim.learning_rate"),
    ],
)
def test_an_invalid_section_is_refused_with_the_field_and_what_is_expected(folder, old, new, named):
    assert old in GRID
    path = folder / "grid_tuned.yaml"
    path.write_text(GRID.replace(old, new))
    with pytest.raises(ConfigError, match=named):
        read_grid(path)


# ---- choosing ------------------------------------------------------------------------------------------------


def test_each_row_gets_the_values_of_its_best_trial(grid, folder):
    experiments = folder / "experiments"
    for jobs in trial_jobs(grid).values():
        for job in jobs:
            train(job, experiments)
    known = read_trials(grid, read_cells(experiments))
    found = tuned(grid, experiments)
    for (row, _), trials in known.items():
        assert len(trials) == 4
        best = max(trials, key=lambda trial: trial.results.score)
        assert best_trial(trials) == best
        for job in found.jobs:
            if job.row == row:
                assert rates([job]) == rates([best.job])
                assert job.recipe()["train"]["epochs"] == 40
                assert "holdout" not in job.recipe()["data"]
    assert rates([found.jobs[0]]) != rates([found.jobs[2]])


def test_a_loss_is_minimised(grid, folder):
    trials = [train(job, folder / "experiments") for job in trial_jobs(grid)["one", "a"]]
    for experiment in trials:
        content = json.loads((experiment / "results.json").read_text())
        (experiment / "results.json").write_text(json.dumps(content | {"lower_is_better": True}))
    read = read_trials(grid, read_cells(folder / "experiments"))["one", "a"]
    assert best_trial(read).score == min(trial.score for trial in read)


def test_nothing_is_chosen_before_the_last_trial_has_ended(grid, folder):
    jobs = trial_jobs(grid)["one", "a"]
    for job in jobs[:3]:
        train(job, folder / "experiments")
    assert not tuned(grid, folder / "experiments").choices
    assert "3 of 4" in describe_choices(grid, read_trials(grid, read_cells(folder / "experiments")))[0]
    train(jobs[3], folder / "experiments")
    assert list(tuned(grid, folder / "experiments").choices) == [("one", "a")]


def test_a_trial_that_diverged_has_ended_and_is_never_chosen(grid, folder):
    runner.run.diverges = 0.002
    run()
    [one, _] = read_trials(grid, read_cells(Path("experiments"))).values()
    kinds = Counter(trial.state.kind for trial in one)
    assert 0 < kinds["diverged"] < 4
    assert best_trial(one).state.kind == "done"
    trained = len(runner.run.trained)
    run()
    assert len(runner.run.trained) == trained  # a diverged trial is not trained again


def test_if_all_trials_diverge_the_runs_of_the_row_are_not_trained_and_the_command_says_so(grid, capsys):
    runner.run.diverges = 0.0
    with pytest.raises(RunError, match="8 of 16 runs"):
        run()
    assert all(job.trial for job in runner.run.trained)
    assert "all 4 trials diverged" in capsys.readouterr().out


def test_a_trial_that_failed_for_a_different_reason_has_not_ended(grid, folder):
    [job, *_] = trial_jobs(grid)["one", "a"]
    experiment = new_experiment(folder / "experiments")
    write_cell(job, experiment)
    write_status(experiment, Status("failed", exit_code=2, reason="disk full"))
    assert state_of(job, read_cells(folder / "experiments")).kind == "failed"


# ---- running a grid ------------------------------------------------------------------------------------------


def test_a_grid_trains_all_trials_and_then_all_runs_once(grid, capsys):
    run()
    trained = runner.run.trained
    assert [bool(job.trial) for job in trained] == [True] * 8 + [False] * 8
    assert [job.row for job in trained[:4]] == ["one", "two", "one", "two"]
    assert "one: optim.learning_rate=" in capsys.readouterr().out
    run()
    assert len(trained) == 16


@pytest.mark.parametrize("ended", range(17))
def test_a_grid_that_was_interrupted_anywhere_trains_nothing_twice(grid, ended):
    runner.run.left = ended
    if ended < 16:
        with pytest.raises(KeyboardInterrupt):
            run()
    runner.run.left = math.inf
    run()
    assert len(runner.run.trained) == len(set(runner.run.trained)) == 16
    assert len(read_cells(Path("experiments"))) == 16


def test_more_seeds_need_no_new_trials(grid):
    run()
    grid.path.write_text(GRID.replace("seeds: [0, 1]", "seeds: [0, 1, 2]"))
    run()
    assert [job.seed for job in runner.run.trained[16:]] == [2] * 4


def test_after_a_change_of_the_range_trials_are_stale_and_nothing_is_trained_unless_asked(grid, capsys):
    run()
    grid.path.write_text(GRID.replace("1e-2]", "2e-2]"))
    with pytest.raises(RunError, match="--rerun-stale"):
        run()
    assert len(runner.run.trained) == 16
    assert "0 of 4 trials have ended; 4 stale" in capsys.readouterr().out
    run(rerun_stale=True)
    assert [bool(job.trial) for job in runner.run.trained[16:]] == [True] * 8 + [False] * 8


def test_more_trials_keep_the_first_ones(grid):
    run()
    grid.path.write_text(GRID.replace("trials: 4", "trials: 6"))
    run()
    assert [job.name for job in runner.run.trained[16:] if job.trial] == [
        f"{row} x a, trial {number}" for number in (5, 6) for row in ("one", "two")
    ]


def test_trials_of_a_different_process_are_waited_for_and_are_no_error(grid, capsys):
    run()
    [job, *_] = trial_jobs(grid)["two", "a"]
    busy = state_of(job, read_cells(Path("experiments"))).experiment
    (busy / "results.json").unlink()
    write_status(busy, Status("running"))
    with locked(busy / RUN_LOCK):
        run()
    assert "4 runs wait for trials of a different process" in capsys.readouterr().out


def test_a_trial_that_diverged_is_stale_if_the_code_has_changed(grid, folder):
    runner.run.diverges = 0.002
    run()
    runner.run.diverges = math.inf
    change_code(folder)
    [trials, _] = read_trials(grid, read_cells(Path("experiments"))).values()
    diverged = [trial for trial in trials if trial.has_diverged]
    assert diverged
    assert all(trial.state.kind == "stale" and trial.has_ended for trial in diverged)
    run(rerun_stale=True)
    [trials, _] = read_trials(grid, read_cells(Path("experiments"))).values()
    assert not [trial for trial in trials if trial.has_diverged]


def change_code(folder: Path) -> None:
    path = folder / "tuned_task.py"
    path.write_text(path.read_text() + "CHANGED = True\n")


def test_rows_that_differ_only_in_a_field_that_trials_choose_are_refused(grid, folder):
    (folder / "fast.yaml").write_text(BASE.replace("learning_rate: 0.5", "learning_rate: 0.1"))
    grid.path.write_text(GRID.replace("two, config: base.yaml, overrides: [model.size=2]", "two, config: fast.yaml"))
    with pytest.raises(ConfigError, match="have the same recipe"):
        read_grid(grid.path)


def test_a_task_without_a_holdout_cannot_be_tuned(grid, folder):
    (folder / "other_task.py").write_text('COMPUTES = {"stub": ("other_task.py",)}\n')
    grid.path.write_text(GRID.replace("tuned_task", "other_task"))
    with pytest.raises(ConfigError, match="other_task has no field"):
        read_grid(grid.path)


def detector_grid(folder: Path, columns: str, more: str = "") -> Grid:
    (folder / "base.yaml").write_text(DETECTOR)
    (folder / "grid.yaml").write_text(
        f"task: detection.training\nseeds: [0]\nrows: [{{name: one, config: {folder / 'base.yaml'}}}]\n"
        f"columns: [{columns}]\n{more}\n"
    )
    return read_grid(folder / "grid.yaml")


def test_the_default_warm_up_is_shortened_too(tmp_path):
    tune = "tune: {trials: 2, train.epochs: 0.5, optim.learning_rate: {log_uniform: [1e-4, 1e-2]}}"
    [trials] = trial_jobs(detector_grid(tmp_path, "{name: a}", tune)).values()
    assert trials[0].recipe()["optim"]["warmup_epochs"] == 0.5
    check_configs(trials)


def test_an_invalid_config_is_refused_before_anything_is_trained(tmp_path):
    jobs = detector_grid(tmp_path, "{name: good}, {name: bad, overrides: [model.neck=fnp]}").jobs
    check_configs(jobs[:1])
    with pytest.raises(ConfigError, match=r"one x bad, seed 0: .*model\.neck"):
        check_configs(jobs)


# ---- submitting ----------------------------------------------------------------------------------------------


@pytest.fixture
def submitted(grid, monkeypatch) -> tuple:
    """Replace Slurm; return the submissions, which it lists as pending, and the set of those that have ended."""
    made: list[slurm.Submission] = []
    ended: set[str] = set()

    def submit(submissions, after, max_running):
        for submission in submissions:
            table = None if submission.are_trials else "t"
            made.append(replace(submission, array=str(len(made) + 1), table=table))
            made[-1].folder.mkdir(parents=True)
            made[-1].write()
        return made[-len(submissions) :]

    def pending(arrays):
        listed = [each for each in made if each.array in arrays and each.array not in ended]
        names = [f"{each.array}_{index}" for each in listed for index in range(len(each.jobs))]
        return {name: slurm.ArrayTask(name, "PENDING") for name in names}

    monkeypatch.setattr(slurm, "submit", submit)
    monkeypatch.setattr(slurm, "_tasks", pending)
    Path("sbatch").mkdir()
    Path("sbatch/grid.sbatch").touch()
    return made, ended


def submit(*options: str) -> None:
    grid_command.main(grid_command.parse_arguments(["submit", "grid_tuned.yaml", *options]), None)


def train_trials(grid: Grid, diverging_row: str = "") -> None:
    for jobs in trial_jobs(grid).values():
        for job in jobs:
            train(job, Path("experiments"), 0.0 if job.row == diverging_row else math.inf)


def test_runs_are_submitted_with_their_trials_and_not_again_while_they_are_queued(grid, submitted):
    made, ended = submitted
    submit()
    assert [(each.are_trials, len(each.jobs)) for each in made] == [(True, 8), (False, 8)]
    assert all(entry["chosen"] is None for entry in made[1].jobs)
    submit()
    assert len(made) == 2
    train_trials(grid)
    ended.add("1")  # the trials; the runs are still in the queue
    submit()
    assert len(made) == 2


def test_a_run_is_not_submitted_if_its_trials_chose_nothing(grid, submitted, capsys):
    made, _ = submitted
    train_trials(grid, diverging_row="one")
    submit()
    [runs] = made
    assert {entry["row"] for entry in runs.jobs} == {"two"}
    assert all(entry["chosen"] for entry in runs.jobs)
    assert "4 runs wait for values" in capsys.readouterr().out


def test_runs_wait_for_trials_that_are_submitted_again(grid, folder, submitted):
    made, _ = submitted
    run()
    change_code(folder)
    submit("--rerun-stale")
    trials, runs = made
    assert (len(trials.jobs), len(runs.jobs)) == (8, 8)
    assert all(entry["chosen"] is None for entry in runs.jobs)


def test_a_run_gets_the_values_when_it_starts_unless_the_tuning_was_edited(grid, submitted):
    made, _ = submitted
    submit()
    job = job_from(made[1].jobs[0])
    with pytest.raises(RunError, match="chose no value"):
        slurm.with_choice(job, made[1])
    train_trials(grid)
    assert slurm.with_choice(job, made[1]).chosen == tuned(grid, Path("experiments")).jobs[0].chosen
    grid.path.write_text(GRID.replace("trials: 4", "trials: 5"))
    with pytest.raises(ValueError, match="edited since the submission"):
        slurm.with_choice(job, made[1])


# ---- status --------------------------------------------------------------------------------------------------


def test_status_lists_the_trials_and_what_they_chose(grid, capsys):
    runner.run.left = 9
    with pytest.raises(KeyboardInterrupt):
        run()
    capsys.readouterr()
    arguments = argparse.Namespace(grid=grid.path, only=None, seeds=None, experiments=Path("experiments"))
    grid_command.print_status(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert sum("trial" in line and "done" in line for line in lines) == 8
    assert sum("waiting" in line for line in lines) == 7
    assert any(line.startswith("two: optim.learning_rate=") for line in lines)
