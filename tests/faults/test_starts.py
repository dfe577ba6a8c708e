"""Runs that start simultaneously, and runs that are killed and restarted."""

import multiprocessing
from pathlib import Path

import pytest

from ablation.grid import status
from ablation.scheduling.jobs import read_grid
from engine.checkpoint import list_checkpoints
from records.experiment import new_experiment, read_environments
from records.status import read_status

STARTS, ROUNDS = 16, 20


def create_experiments(folder: Path, barrier, created) -> None:
    """In each round, create an experiment at the same time as all other processes."""
    for number in range(ROUNDS):
        barrier.wait(600)
        created.put((number, new_experiment(folder / str(number)).name))


def test_simultaneous_starts_get_different_experiments(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, created = context.Barrier(STARTS), context.Queue()
    processes = [context.Process(target=create_experiments, args=(tmp_path, barrier, created)) for _ in range(STARTS)]
    for process in processes:
        process.start()
    names = sorted(created.get(timeout=600) for _ in range(STARTS * ROUNDS))
    for process in processes:
        process.join(600)
    numbers = range(1, STARTS + 1)
    assert names == sorted((number, f"experiment_{n}") for number in range(ROUNDS) for n in numbers)


@pytest.mark.slow
def test_a_run_killed_at_any_time_is_reported_as_killed_and_can_be_resumed(start, config_path, tmp_path):
    options = "train.epochs=1, train.eval_every_epochs=1, train.checkpoint_every_steps=20"
    text = f"task: detection.training\nseeds: [0]\noverrides: [{options}]\ncolumns: [{{name: column}}]\n"
    (tmp_path / "grid.yaml").write_text(f"{text}rows: [{{name: row, config: {config_path}}}]\n")
    grid, experiments = read_grid(tmp_path / "grid.yaml"), tmp_path / "experiments"
    experiment = experiments / "experiment_1"

    def state() -> str:
        return status(grid, grid.jobs, experiments).splitlines()[1].split()[4]

    def step() -> int:
        run = read_status(experiment)
        return run.step or 0 if run else 0

    for moment in (
        (experiment / "status.json").exists,  # during imports
        (experiment / "train.log").exists,  # while reading config and data
        lambda: step() > 3,
        lambda: list_checkpoints(experiment / "checkpoints"),
        (experiment / "checkpoints/step_000000240.pt").exists,  # during evaluation
    ):
        job = start("-m", "ablation.grid", "run", grid.path, "--experiments", experiments, "--parallel", 1)
        job.wait_for(moment)
        job.kill()  # the grid, the run and its loader processes
        job.wait_for(lambda: state() == "killed")
    job = start("-m", "ablation.grid", "run", grid.path, "--experiments", experiments, "--parallel", 1)
    assert job.end() == 0
    assert "resumed after step 240" in job.text
    assert state() == "done"
    assert read_status(experiment).state == "done"
    assert len(read_environments(experiment)) >= 3  # a start that is killed before it trains leaves none
    assert list(experiments.glob("experiment_*")) == [experiment]
