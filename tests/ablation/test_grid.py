"""ablation/grid.py: working through a grid. Its task is a stub of a few lines: grids know experiments, not tasks."""

import argparse
import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ablation import grid as grid_command
from ablation import runner, slurm
from ablation.plan import Grid, read_grid
from engine.command import RunError
from engine.signals import Stopped

ROOT = Path(__file__).parent.parent.parent

# Trains nothing; behaves as the override fake.end says, and counts its starts.
TASK = """
import json, os, signal, sys
from pathlib import Path

overrides = dict(word.split("=") for word in sys.argv[2:-2])
experiment, end = Path(sys.argv[-1]), overrides["fake.end"]
starts = experiment / "starts.txt"
starts.write_text((starts.read_text() if starts.exists() else "") + "x")
log = experiment / "train.log"
if end == "fail":
    log.write_text("2026-01-01 00:00:00,000 ERROR error: no such thing\\n")
    sys.exit(2)
if end == "kill_once" and starts.read_text() == "x":
    (experiment / "checkpoints").mkdir()
    (experiment / "checkpoints/step_000000003.pt").touch()
    os.kill(os.getpid(), signal.SIGKILL)
if end == "wordless":
    sys.exit(3)
if end == "wait":
    import time
    (experiment / "waiting").touch()
    while not (experiment / "go").exists():
        time.sleep(0.01)
if end == "saved":
    log.write_text("2026-01-01 00:00:00,000 WARNING stopped: SIGTERM; step_000000022.pt is saved\\n")
    sys.exit(1)
if end in ("stop", "checkpoint"):
    import time
    signal.signal(signal.SIGUSR1, lambda *_: (experiment / "stopped").touch() or sys.exit(75))
    (experiment / "waiting").touch()
    if end == "checkpoint":
        (experiment / "checkpoints").mkdir()
        (experiment / "checkpoints/step_000000010.pt").touch()
    while not (experiment / "stopped").exists():
        time.sleep(0.01)
if end == "interrupt":
    sys.exit(130)
results = {"task": "fake", "variant": {"row": "row", "column": "x"}, "seed": 0, "metric": "mAP", "scores": {"mAP": 0.5}}
results |= {"protocol": {}, "inputs": {}, "cost": {}}
(experiment / "config.yaml").write_text("train: {epochs: 1}")
(experiment / "results.json").write_text(json.dumps(results))
"""

GRID = """
task: fake_task
seeds: [0]
rows: [{name: row, config: base.yaml}]
columns:
  - {name: good, overrides: [fake.end=well]}
  - {name: bad, overrides: [fake.end=fail]}
  - {name: killed, overrides: [fake.end=kill_once]}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A project with a stub of a task and a grid of three cells: one ends well, one fails, one is killed once."""
    (tmp_path / "fake_task.py").write_text(TASK)
    (tmp_path / "base.yaml").write_text("fake: {end: well}\n")
    (tmp_path / "grid_fake.yaml").write_text(GRID)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ablation.plan.PROJECT", tmp_path)
    return tmp_path


@pytest.fixture
def grid(folder) -> Grid:
    return read_grid(folder / "grid_fake.yaml")


def run(grid: Grid, *, only: str | None = None, rerun_stale: bool = False) -> None:
    arguments = argparse.Namespace(
        grid=grid.path, only=only, seeds=None, experiments=Path("experiments"), rerun_stale=rerun_stale,
        launcher=[sys.executable],
    )  # fmt: skip
    grid_command.run_grid(arguments)


def until_waiting() -> None:
    """Until the task of experiment_1 has begun to wait."""
    while not Path("experiments/experiment_1/waiting").exists():
        time.sleep(0.01)


def submitted(grid: Grid) -> Path:
    """The folder of a submission of the whole grid."""
    submission = slurm.prepare(grid.path, Path("experiments"), grid.jobs, rerun_stale=False)
    submission.folder.mkdir(parents=True)
    submission.write()
    return submission.folder


def run_task(folder: Path, index: int, *, smoke: bool = False) -> None:
    slurm.run_task(folder, index, smoke, [sys.executable])


def starts(number: int) -> int:
    """How often an experiment was started."""
    return len(Path(f"experiments/experiment_{number}/starts.txt").read_text())


def test_the_rest_is_run_after_a_cell_fails_and_the_end_says_which_and_why(grid, capsys):
    with pytest.raises(RunError, match=r"(?s)2 of 3 runs did not finish.*row x bad, seed 0: no such thing"):
        run(grid)
    assert Path("experiments/experiment_1/results.json").exists()
    assert [starts(number) for number in (1, 2, 3)] == [1, 1, 1]
    assert "1 done, 1 failed, 1 interrupted" in capsys.readouterr().out


TWO_ROWS = """
task: fake_task
seeds: [0]
rows: [{name: one, config: base.yaml}, {name: other, config: base.yaml, overrides: [fake.row=other]}]
columns: [{name: a}, {name: b, overrides: [fake.b=1]}, {name: c, overrides: [fake.c=1]}]
"""


def test_where_two_rows_fail_alike_the_rest_is_not_started(folder):
    (folder / "grid_fake.yaml").write_text(f"{TWO_ROWS}overrides: [fake.end=fail]")
    with pytest.raises(ValueError, match=r"3 runs in a row failed alike, and 3 more were not started.*: no such thing"):
        run(read_grid(folder / "grid_fake.yaml"))
    assert len(list(Path("experiments").glob("experiment_*"))) == 3


def test_where_one_row_fails_the_others_are_run_first_and_of_its_rest_nothing(folder):
    rows = TWO_ROWS.replace("one, config: base.yaml", "one, config: base.yaml, overrides: [fake.end=fail]")
    (folder / "grid_fake.yaml").write_text(f"{rows}overrides: [fake.end=well]")
    with pytest.raises(RunError, match=r"(?s)3 of 6 runs did not finish\n  3 runs: no such thing$"):
        run(read_grid(folder / "grid_fake.yaml"))
    assert len(list(Path("experiments").glob("*/results.json"))) == 3


def test_a_second_run_skips_what_is_done_and_goes_on_with_the_rest_where_it_was(grid, capsys):
    for _ in range(2):
        with pytest.raises(RunError):
            run(grid)
    assert [starts(number) for number in (1, 2, 3)] == [1, 2, 2]
    assert not Path("experiments/experiment_4").exists()
    assert Path("experiments/experiment_3/results.json").exists()
    assert "row x good, seed 0: done, experiments/experiment_1 (mAP 0.5000)" in capsys.readouterr().out


def test_a_selected_cell_is_run_alone(grid):
    run(grid, only="row x good")
    assert [path.name for path in Path("experiments").glob("experiment_*")] == ["experiment_1"]


def test_a_run_interrupted_from_the_keyboard_ends_the_grid(folder, capsys):
    (folder / "grid_fake.yaml").write_text(GRID.replace("end=well", "end=interrupt"))
    with pytest.raises(KeyboardInterrupt):
        run(read_grid(folder / "grid_fake.yaml"))
    assert not Path("experiments/experiment_2").exists()
    assert "interrupted in experiments/experiment_1; the same command goes on" in capsys.readouterr().out


def test_what_is_stale_is_left_alone_unless_asked_for(folder, capsys):
    run(read_grid(folder / "grid_fake.yaml"), only="* x good")
    (folder / "fake_task.py").write_text(TASK + "# another\n")
    changed = read_grid(folder / "grid_fake.yaml")
    run(changed, only="* x good")
    assert (
        "row x good, seed 0: stale, experiments/experiment_1 (mAP 0.5000; the code has changed since (fake_task.py))"
        in capsys.readouterr().out
    )
    assert not Path("experiments/experiment_2").exists()
    run(changed, only="* x good", rerun_stale=True)
    assert starts(1) == starts(2) == 1


def test_a_run_that_goes_on_keeps_the_code_it_was_started_with(folder, grid):
    with pytest.raises(RunError):
        run(grid, only="* x killed")
    before = json.loads(Path("experiments/experiment_1/cell.json").read_text())["code"]
    (folder / "fake_task.py").write_text(TASK + "# another\n")
    run(grid, only="* x killed")
    assert starts(1) == 2
    assert json.loads(Path("experiments/experiment_1/cell.json").read_text())["code"] == before


def test_code_that_changes_while_a_grid_runs_is_recorded_as_it_was_at_each_start(grid, folder, monkeypatch):
    train = runner.train

    def train_then_edit(*arguments):
        train(*arguments)
        (folder / "fake_task.py").write_text(TASK + "# another\n")

    monkeypatch.setattr(runner, "train", train_then_edit)
    with pytest.raises(RunError):
        run(grid)
    first, second = (json.loads(Path(f"experiments/experiment_{n}/cell.json").read_text())["code"] for n in (1, 2))
    assert first != second


def test_a_task_that_ends_without_a_word_has_failed_with_its_exit_code(folder, capsys):
    (folder / "grid_fake.yaml").write_text(GRID.replace("end=well", "end=wordless"))
    with pytest.raises(RunError, match="exit code 3 without a word"):
        run(read_grid(folder / "grid_fake.yaml"), only="* x good")


def test_two_grids_at_once_do_not_train_the_same_cell(folder, capsys):
    (folder / "grid_fake.yaml").write_text(GRID.replace("end=well", "end=wait"))
    waiting = read_grid(folder / "grid_fake.yaml")

    def second() -> None:
        until_waiting()
        run(waiting, only="* x good")
        Path("experiments/experiment_1/go").touch()

    other = threading.Thread(target=second, daemon=True)
    other.start()
    run(waiting, only="* x good")
    other.join()
    assert "row x good, seed 0: running, experiments/experiment_1" in capsys.readouterr().out
    assert starts(1) == 1
    assert not Path("experiments/experiment_2").exists()


def test_a_launcher_starts_the_runs(grid, monkeypatch):
    Path("launcher.py").write_text(
        "import os, sys; from pathlib import Path; Path('launched').write_text(sys.argv[1])\n"
        "os.execv(sys.executable, ['python', *sys.argv[1:]])"
    )
    launcher = f"{sys.executable} launcher.py"
    monkeypatch.setattr(sys, "argv", ["grid", "run", "grid_fake.yaml", "--only", "* x good", "--launcher", launcher])
    grid_command.main(grid_command.parse_arguments(sys.argv[1:]), None)
    assert Path("launched").read_text() == "-m"
    assert starts(1) == 1


def test_a_signal_goes_to_the_run_and_ends_the_grid(folder):
    (folder / "grid_fake.yaml").write_text(GRID.replace("end=well", "end=stop"))
    grid = read_grid(folder / "grid_fake.yaml")

    def warn() -> None:
        until_waiting()
        os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=warn, daemon=True)
    thread.start()
    with pytest.raises(Stopped, match="SIGUSR1"):
        run(grid)
    thread.join()
    assert Path("experiments/experiment_1/stopped").exists()
    assert not Path("experiments/experiment_2").exists()
    assert grid_command.status(grid, grid.jobs, Path("experiments")).splitlines()[0].split()[5] == "interrupted"


def test_a_task_trains_what_was_submitted_though_the_grid_has_been_edited(folder, grid):
    submission = submitted(grid)
    (folder / "grid_fake.yaml").write_text(GRID.replace("name: good, overrides: [fake.end=well]", "name: x"))
    run_task(submission, 0)
    cell = json.loads(Path("experiments/experiment_1/cell.json").read_text())
    assert (cell["column"], cell["recipe"]) == ("good", grid.jobs[0].recipe())


def test_a_task_whose_config_has_been_edited_is_refused(folder, grid):
    submission = submitted(grid)
    (folder / "base.yaml").write_text("fake: {end: well, seconds: 3}\n")
    with pytest.raises(ValueError, match=r"base\.yaml: edited since .*: fake\.seconds was null, is 3; submit the grid"):
        run_task(submission, 0)
    assert not list(Path("experiments").glob("experiment_*"))


def test_a_task_whose_run_is_not_done_has_failed(grid):
    with pytest.raises(RunError, match="row x bad, seed 0: failed, no such thing"):
        run_task(submitted(grid), 1)


def test_a_run_that_torchrun_ends_with_1_after_a_save_was_interrupted_and_has_not_failed(folder, capsys):
    (folder / "grid_fake.yaml").write_text(GRID.replace("end=well", "end=saved"))
    grid = read_grid(folder / "grid_fake.yaml")
    with pytest.raises(RunError):
        run(grid, only="* x good")
    assert grid_command.status(grid, grid.jobs, Path("experiments")).splitlines()[0].split()[5] == "interrupted"


def test_a_smoke_test_leaves_nothing_behind_unless_it_fails(folder, monkeypatch):
    (folder / "grid_fake.yaml").write_text(GRID.replace("end=well", "end=checkpoint"))
    grid = read_grid(folder / "grid_fake.yaml")
    submission = submitted(grid)
    monkeypatch.setattr(runner, "SMOKE_SECONDS", 0)
    run_task(submission, 0, smoke=True)  # goes on for ever if it is not stopped
    with pytest.raises(RunError, match="row x bad, seed 0: no such thing"):
        run_task(submission, 1, smoke=True)
    with pytest.raises(RunError, match="row x killed, seed 0: exit code -9"):
        run_task(submission, 2, smoke=True)
    monkeypatch.setattr(runner, "SMOKE_LIMIT_SECONDS", 0)
    (folder / "grid_fake.yaml").write_text(GRID.replace("end=well", "end=stop"))
    with pytest.raises(RunError, match=r"row x good, seed 0: no checkpoint after \d+ s"):
        runner.try_out(read_grid(folder / "grid_fake.yaml").jobs[0], submission / "smoke_0", [sys.executable])
    assert sorted(path.name for path in submission.iterdir() if path.is_dir()) == ["smoke_0", "smoke_1", "smoke_2"]
    assert not list(Path("experiments").glob("experiment_*"))


def test_without_slurm_a_submission_says_so_and_leaves_nothing(grid, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    Path("sbatch").mkdir()
    Path("sbatch/grid.sbatch").touch()
    monkeypatch.setattr(sys, "argv", ["grid", "submit", "grid_fake.yaml"])
    with pytest.raises(ValueError, match="sbatch: no such command; this is for the login node of a Slurm cluster"):
        grid_command.main(grid_command.parse_arguments(sys.argv[1:]), None)
    assert not list(Path("experiments").glob("slurm/*"))


def test_a_submission_is_read_as_it_was_written_and_tries_the_first_run_of_every_cell(folder):
    (folder / "grid_fake.yaml").write_text(GRID.replace("seeds: [0]", "seeds: [5, 6]"))
    grid = read_grid(folder / "grid_fake.yaml")
    submission = slurm.read_submission(submitted(grid))
    assert [slurm.job_of(entry) for entry in submission.jobs] == grid.jobs
    assert [slurm.job_of(entry) for entry in submission.smoke_jobs] == grid.jobs[:3]
    assert slurm.read_submissions(Path("experiments")) == [submission]
    assert submitted(grid).name == "grid_fake-2"


SQUEUE = """#!/bin/sh
echo '7_0|RUNNING|node1'
echo '7_1|CANCELLED|'
echo '6_2|FAILED|NonZeroExitCode'
echo '5_2|PENDING|Resources'
"""


def test_the_queue_is_asked_for_the_runs_of_this_grid_alone(folder, grid, monkeypatch):
    (folder / "squeue").write_text(SQUEUE)
    (folder / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    older, newer = (slurm.read_submission(submitted(grid)) for _ in range(2))
    replace(older, array="5").write()
    replace(newer, array="7", smoke="6").write()
    submissions = slurm.read_submissions(Path("experiments"))
    told = {job.column: str(task) for job, task in slurm.tasks_of(grid.jobs, submissions).items()}
    assert told == {
        "good": "7_0 RUNNING node1",
        "bad": "7_1 CANCELLED for the smoke test of row x killed, seed 0 failed, "
        "see experiments/slurm/grid_fake-2/smoke_6_2.out",
        "killed": "5_2 PENDING Resources",
    }
    (folder / "base.yaml").write_text("fake: {end: well, seconds: 3}\n")  # another recipe in the same places
    assert slurm.tasks_of(read_grid(folder / "grid_fake.yaml").jobs, submissions) == {}


def test_what_to_type_next_can_be_pasted():
    arguments = argparse.Namespace(grid=Path("my grids/grid.yaml"), experiments=Path("else where"))
    assert grid_command.command("status", arguments) == (
        "python -m ablation.grid status 'my grids/grid.yaml' --experiments 'else where'"
    )
    arguments.experiments = Path("experiments")
    assert grid_command.command("table", arguments) == "python -m ablation.grid table 'my grids/grid.yaml'"


def test_status_has_a_line_for_each_cell_with_how_far_it_is(grid):
    with pytest.raises(RunError):
        run(grid)
    Path("experiments/experiment_1/results.json").unlink()
    lines = grid_command.status(grid, grid.jobs, Path("experiments")).splitlines()
    assert [line.split()[5] for line in lines] == ["interrupted", "failed", "interrupted"]
    assert lines[1].endswith("experiments/experiment_2  no such thing")


def test_a_bad_grid_is_one_line_from_the_command(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["grid", "status", "grid_fakee.yaml"])
    with pytest.raises(ValueError, match=r"no such file; did you mean 'grid_fake\.yaml'"):
        grid_command.main(grid_command.parse_arguments(sys.argv[1:]), None)
