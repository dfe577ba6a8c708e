"""Tests of verdicts at planned looks (ablation/looks.py), and of runs that are then not needed (stopping.py).

Runs are not trained: a stand-in for the runner writes records with chosen losses."""

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from ablation import compare as compare_command
from ablation import grid as grid_command
from ablation import looks
from ablation.cells import compare
from ablation.comparison import Comparison
from ablation.display import difference_tables, report, tables
from ablation.scheduling import runner
from ablation.scheduling.jobs import Grid, Job, State, read_cells, read_grid, state_of
from engine.strict_yaml import ConfigError
from stats.image_statistics import Losses

IMAGES = 60
EXPERIMENTS = Path("experiments")
# Mean loss of each cell. `far` differs from `base` at the first look; `same` never will; `near` needs all seeds.
MEANS = {"base": 0.5, "far": 0.9, "same": 0.5, "near": 0.53}
# What seed k adds to the loss of a cell, so that the outcome of each look is known
SEEDS = {
    "base": [-0.02, 0.02, 0.0, -0.01, 0.01, 0.0],
    "far": [0.02, -0.02, 0.0, 0.0, 0.0, 0.0],
    "same": [0.02, -0.02, 0.001, 0.0, 0.0, 0.0],
    "near": [-0.02, 0.02, 0.0, 0.01, -0.01, 0.0],
}
GRID = """
task: fake_task
seeds: [7, 8, 9, 10, 11, 12]
{looks}
rows: [{{name: row, config: base.yaml}}]
columns: [{columns}]
"""


def write_grid(columns: Sequence[str], plan: str = "looks: [3, 4, 6]") -> Grid:
    """Write a grid of one row and read it."""
    listed = ", ".join(f"{{name: {name}, overrides: [fake.name={name}]}}" for name in columns)
    Path("grid_fake.yaml").write_text(GRID.format(looks=plan, columns=listed))
    return read_grid(Path("grid_fake.yaml"))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Return a project with a fake task, and let `ablation.grid run` write records instead of training."""
    (tmp_path / "fake_task.py").write_text('COMPUTES = {"stub": ("fake_task.py",)}\n')
    (tmp_path / "base.yaml").write_text("fake: {name: x}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ablation.scheduling.staleness.PROJECT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(runner, "run", fake_run)
    monkeypatch.setattr(fake_run, "left", None, raising=False)
    return tmp_path


def fake_run(jobs: Sequence[Job], experiments: Path, rerun_stale: bool, *_: object) -> dict[Job, State]:
    """Write the records of all missing runs; after `fake_run.left` runs, raise KeyboardInterrupt."""
    states = {}
    for job in jobs:
        if fake_run.left == 0:
            raise KeyboardInterrupt
        _, experiment, claim = runner.claim_experiment(job, experiments, rerun_stale)
        with claim:
            if experiment:
                write_records(job, experiment)
                fake_run.left = fake_run.left and fake_run.left - 1
        states[job] = state_of(job, read_cells(experiments))
    return states


def write_records(job: Job, experiment: Path) -> None:
    """Write the records of a run whose loss on the images is as MEANS and SEEDS say."""
    noise = np.random.default_rng(0).normal(0, 0.05, IMAGES)
    own = np.random.default_rng([job.seed, *job.column.encode()]).normal(0, 0.02, IMAGES)
    losses = MEANS[job.column] + SEEDS[job.column][job.seed - 7] + noise + own - own.mean()
    results = {
        "task": "fake", "variant": {"row": "row", "column": job.column}, "seed": job.seed, "metric": "val_loss",
        "lower_is_better": True, "scores": {"val_loss": float(losses.mean())}, "inputs": {},
        "protocol": {"images": IMAGES, "classes": ["a"]}, "cost": {"train_seconds": 1800.0, "processes": 2},
    }  # fmt: skip
    start = {"started": "2026-11-20T10:15:00+00:00", "command": "python", "commit": "c87c5e7aa7e6a7bb", "processes": 2,
             "device": "cpu", "cpu": "AMD EPYC", "uncommitted_changes": False}  # fmt: skip
    (experiment / "environment.json").write_text(json.dumps([start]))
    (experiment / "config.yaml").write_text(json.dumps(job.recipe()))
    (experiment / "results.json").write_text(json.dumps(results))
    labels = np.zeros(IMAGES, np.int16)
    Losses(np.array("val_loss"), np.arange(IMAGES).astype(str), np.array(["a"]), labels, losses).save(experiment)


def run(grid: Grid, **changes: object) -> None:
    arguments = {"grid": grid.path, "only": None, "seeds": None, "experiments": EXPERIMENTS, "rerun_stale": False,
                 "launcher": [sys.executable], "parallel": 1, "all_seeds": False, "pairs": False, "baseline": None,
                 "replicates": 2000, "margin": None}  # fmt: skip
    grid_command.run_grid(argparse.Namespace(**arguments | changes))


def trained(grid: Grid) -> dict[str, int]:
    """Return the number of finished runs of each column."""
    known = read_cells(EXPERIMENTS)
    done = [job.column for job in grid.jobs if state_of(job, known).kind == "done"]
    return {column.name: done.count(column.name) for column in grid.config.columns}


def compared(grid: Grid, replicates: int = 2000) -> Comparison:
    return compare([grid.path], EXPERIMENTS, replicates=replicates)


def verdicts(grid: Grid) -> dict[str, tuple[int | None, bool]]:
    return {
        each.label.split(" - ")[0].removeprefix("row x "): tuple(each.at_looks)[:2]
        for each in compared(grid).differences
    }


# ---- stopping --------------------------------------------------------------------------------------------------


def test_only_cells_of_open_differences_get_more_seeds(folder, capsys):
    grid = write_grid(["base", "far", "near"])
    run(grid)
    assert trained(grid) == {"base": 6, "far": 3, "near": 6}
    found = verdicts(grid)
    assert found["far"] == (1, False)
    assert found["near"] == (3, False)
    output = capsys.readouterr().out
    assert "look 1 of 3: 1 of 2 differences decided; 2 cells get more seeds, up to 4" in output
    assert output.count("saved 3 device-hours (3 runs)") == 1  # each run took half an hour on two devices


def test_training_stops_when_every_difference_is_settled(folder, capsys):
    grid = write_grid(["base", "far", "same"])
    run(grid)
    assert trained(grid) == {"base": 3, "far": 3, "same": 3}
    assert verdicts(grid) == {"far": (1, False), "same": (None, True)}
    output = capsys.readouterr().out
    assert "stopped after look 1 of 3: 1 of 2 differences decided, 1 can't be decided by more seeds" in output
    assert "saved 9 device-hours (9 runs)" in output


def test_a_repeated_command_comes_to_the_same_decision_and_records_it_once(folder, capsys):
    grid = write_grid(["base", "far", "same"])
    run(grid)
    first = capsys.readouterr().out.splitlines()
    run(grid)
    assert trained(grid) == {"base": 3, "far": 3, "same": 3}
    assert first[-2] in capsys.readouterr().out
    assert len(looks.read_looks(grid, EXPERIMENTS)) == 1


@pytest.mark.parametrize("runs", [1, 9, 10])
def test_a_killed_command_continues_as_if_it_had_not_been_killed(folder, runs):
    grid = write_grid(["base", "far", "near"])
    fake_run.left = runs
    with suppress(KeyboardInterrupt):
        run(grid)
    assert sum(trained(grid).values()) == runs
    fake_run.left = None
    run(grid)
    assert trained(grid) == {"base": 6, "far": 3, "near": 6}
    assert verdicts(grid)["far"] == (1, False)


def test_all_seeds_and_grids_without_a_plan_train_everything(folder):
    grid = write_grid(["base", "far"])
    run(grid, all_seeds=True)
    assert trained(grid) == {"base": 6, "far": 6}
    assert verdicts(grid)["far"] == (1, False)


def test_a_selection_limits_the_runs_and_the_first_look_waits_for_the_others(folder):
    grid = write_grid(["base", "far"])
    run(grid, only="* x far")
    assert trained(grid) == {"base": 0, "far": 3}
    run(grid)
    assert trained(grid) == {"base": 3, "far": 3}


def test_status_shows_which_runs_are_not_needed(folder):
    grid = write_grid(["base", "far", "near"])
    run(grid)
    lines = grid_command.status(grid, grid.jobs, EXPERIMENTS).splitlines()
    marked = [line for line in lines if "not needed (decided at look 1)" in line]
    assert len(marked) == 3
    assert all("row x far" in line and "waiting" in line for line in marked)


def test_submitting_counts_only_the_seeds_of_the_next_look(folder, capsys, monkeypatch):
    grid = write_grid(["base", "far", "near"])
    Path("sbatch").mkdir()
    Path("sbatch/grid.sbatch").touch()
    monkeypatch.setattr("ablation.scheduling.slurm.preview", lambda groups, *_: f"jobs: {len(groups[0].jobs)}")
    words = ["submit", "grid_fake.yaml", "--dry-run", "--replicates", "2000"]
    grid_command.main(grid_command.parse_arguments(words), None)
    assert "jobs: 9" in capsys.readouterr().out  # three seeds of three cells
    fake_run.left = 9
    with pytest.raises(KeyboardInterrupt):
        run(grid)
    grid_command.main(grid_command.parse_arguments(words), None)
    assert "jobs: 2" in capsys.readouterr().out  # one more seed of `base` and `near`


# ---- verdicts --------------------------------------------------------------------------------------------------


def train(grid: Grid, seeds: Sequence[int]) -> None:
    fake_run([job for job in grid.jobs if job.seed in seeds], EXPERIMENTS, False)


def test_without_a_complete_look_nothing_is_significant(folder):
    grid = write_grid(["base", "far"], "looks: [4, 6]")
    train(grid, [7, 8])
    comparison = compared(grid)
    assert comparison.looks.complete == 0
    assert not any(each.is_significant for each in comparison.differences)
    assert any("no planned look is complete" in each and "row x base has 2" in each for each in comparison.warnings)


def test_between_two_looks_the_verdicts_are_those_of_the_last_one(folder, monkeypatch):
    monkeypatch.setitem(SEEDS, "near", [-0.02, 0.02, 0.0, 0.01, 5.0, 0.0])  # the fifth run is an outlier
    grid = write_grid(["base", "near"])
    train(grid, [7, 8, 9, 10])
    at_look = compared(grid)
    assert not at_look.differences[0].at_looks.is_hopeless
    train(grid, [11])
    between = compared(grid)
    assert between.looks.levels == at_look.looks.levels
    assert [each.at_looks for each in between.differences] == [each.at_looks for each in at_look.differences]
    assert any("not a planned look" in each and "next at 6 seeds" in each for each in between.warnings)
    assert not any("planned look" in each for each in at_look.warnings)


def test_a_look_uses_the_first_seeds_only(folder):
    """A run of a later seed does not stand in for a missing one."""
    grid = write_grid(["base", "far"])
    train(grid, [7, 8, 10])
    assert compared(grid).looks.complete == 0
    train(grid, [9])
    comparison = compared(grid)
    assert comparison.looks.complete == 1  # `far` is shown, so nothing is tested at the second look
    assert comparison.differences[0].is_significant


def test_the_level_of_a_look_is_below_5_percent_and_depends_on_the_information(folder):
    grid = write_grid(["base", "near"])
    train(grid, grid.config.seeds)
    found = compared(grid).looks
    assert found.complete == 3
    assert 1 / 2 <= found.fractions[0] <= found.fractions[1] <= found.fractions[2] == 1
    assert 0 < found.levels[0] < found.levels[1] < found.levels[2] < 0.05
    assert compared(grid).differences[0].level == found.levels[-1]


def test_too_few_resamples_for_the_level_of_a_look_give_a_warning(folder):
    grid = write_grid(["base", "near"])
    train(grid, [7, 8, 9])
    assert any("too few for look 1" in each for each in compared(grid, replicates=100).warnings)
    assert not any("too few for look 1" in each for each in compared(grid, replicates=2000).warnings)


@pytest.mark.parametrize(("mean", "is_stable"), [(0.5, True), (0.6, False), (0.9, True)])
def test_verdicts_at_a_look_that_depend_on_the_resamples_are_warned_about(folder, monkeypatch, mean, is_stable):
    monkeypatch.setitem(MEANS, "near", mean)
    grid = write_grid(["base", "near"])
    train(grid, [7, 8, 9])
    found = [compare([grid.path], EXPERIMENTS, replicates=2000, resample_seed=seed) for seed in range(3)]
    assert {each.differences[0].is_stable for each in found} == {is_stable}
    for each in found:
        assert is_stable or each.differences[0].p_holm < 0.03  # it would be stable at the level without looks
        assert any("verdict on row x near - row x base (at look 1)" in text for text in each.warnings) != is_stable


# ---- the record of looks ---------------------------------------------------------------------------------------


def table(grid: Grid, capsys) -> str:
    words = [str(grid.path), "--replicates", "200"]
    compare_command.main(compare_command.parse_arguments(words), None)
    return capsys.readouterr().out


def test_without_a_plan_every_table_with_more_seeds_is_a_look_and_is_announced(folder, capsys):
    grid = write_grid(["base", "near"], "")
    counts = []
    for seeds in ([7], [8], [8], [9], [10]):
        train(grid, seeds)
        output = table(grid, capsys)
        counts.append(next((n for n, word in enumerate(looks.ORDINALS, 1) if f"{word} look at this grid" in output), 1))
    assert counts == [1, 1, 1, 2, 3]  # one seed per cell gives no verdict, and the same seeds are not a new look
    assert "third look at this grid (2, 3, 4 seeds per cell)" in output
    assert len(looks.read_looks(grid, EXPERIMENTS)) == 3
    assert "third look" in table(grid, capsys)


def test_other_recipes_start_a_new_count(folder, capsys):
    grid = write_grid(["base", "near"], "")
    for seeds in ([7, 8], [9]):
        train(grid, seeds)
        table(grid, capsys)
    Path("base.yaml").write_text("fake: {name: x, size: 2}\n")
    fake_run([job for job in read_grid(grid.path).jobs if job.seed < 10], EXPERIMENTS, True)
    assert "look at this grid" not in table(grid, capsys)


def test_a_plan_that_came_after_a_look_is_reported(folder, capsys):
    grid = write_grid(["base", "near"], "")
    train(grid, [7, 8])
    table(grid, capsys)
    grid = write_grid(["base", "near"])
    assert "was added or changed after 1 looks" in table(grid, capsys)


def test_planned_looks_are_not_announced(folder, capsys):
    grid = write_grid(["base", "near"])
    for seeds in ([7, 8, 9], [10], [11, 12]):
        train(grid, seeds)
        assert "look at this grid" not in table(grid, capsys)
    assert [each["complete"] for each in looks.read_looks(grid, EXPERIMENTS)] == [1, 2, 3]


def test_nothing_is_recorded_where_no_grid_was_trained_or_where_files_cannot_be_written(folder, capsys):
    grid = write_grid(["base", "near"], "")
    train(grid, [7, 8])
    (EXPERIMENTS / "looks").touch()  # a file, so that the folder cannot be created
    assert "look at this grid" not in table(grid, capsys)
    (EXPERIMENTS / "looks").unlink()
    (EXPERIMENTS / "grid.lock").unlink()
    table(grid, capsys)
    assert not (EXPERIMENTS / "looks").exists()


def test_a_corrupt_record_is_named(folder, capsys):
    grid = write_grid(["base", "near"], "")
    train(grid, [7, 8])
    table(grid, capsys)
    looks.looks_file(grid, EXPERIMENTS).write_text("{")
    with pytest.raises(ValueError, match=r"grid_fake\.jsonl: corrupt"):
        table(grid, capsys)


# ---- grid files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", ["[6]", "[4, 3, 6]", "[3, 3, 6]", "[3, 4]", "[1, 6]", "[3, 8]"])
def test_a_plan_must_increase_up_to_all_seeds(folder, plan):
    with pytest.raises(ConfigError, match=r"looks: got .*, expected .* the last 6, all seeds"):
        write_grid(["base", "far"], f"looks: {plan}")


# ---- display ---------------------------------------------------------------------------------------------------


def test_tables_and_page_show_the_looks_and_their_verdicts(folder):
    grid = write_grid(["base", "far", "same", "near"])
    train(grid, [7, 8, 9])
    comparison = compared(grid)
    shown = difference_tables.looks_table(comparison)
    assert [row[:2] for row in shown.rows] == [["look 1", "3"], ["look 2", "4"], ["look 3", "6"]]
    assert shown.rows[0][3:] == [f"{comparison.looks.levels[0]:.4f}", "1 of 3"]
    assert [row[2] for row in shown.rows[1:]] == ["not complete"] * 2
    answers = [comparison.verdict(each) for each in comparison.differences]
    assert answers == ["significant, at look 1", "not shown", "not yet shown"]
    report.write_report(Path("page.html"), comparison)
    page = Path("page.html").read_text()
    assert 'id="looks"' in page
    assert all(f">{answer}</td>" in page for answer in answers)
    options = argparse.Namespace(format="md", columns=(), per_class=False, errors=False)
    assert "| look 1 | 3 |" in tables.as_text(comparison, options)
    lines = csv.DictReader(io.StringIO(tables.to_csv(comparison)))
    assert [line["shown_at_look"] for line in lines] == ["", "1", "", ""]
