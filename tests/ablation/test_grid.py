"""Tests of ablation/grid.py. The task is a stub of a few lines, because grids know experiments and not tasks."""

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from ablation import grid as grid_command
from ablation.scheduling import child, runner, slurm
from ablation.scheduling.jobs import Grid, read_grid
from engine.command import RunError
from engine.logbook import progress_bar
from engine.signals import Stopped
from records.experiment import list_experiments
from records.status import Status, write_status

ROOT = Path(__file__).parent.parent.parent

# Trains nothing; the override fake.end sets how it ends. It counts its starts.
TASK = """
import json, os, signal, sys, time
from pathlib import Path

COMPUTES = {"stub": ("fake_task.py",)}


def main():
    overrides = dict(word.split("=") for word in sys.argv[2:] if "=" in word)
    end = overrides["fake.end"]
    experiment = Path(sys.argv[-1])
    starts = experiment / "starts.txt"
    starts.write_text((starts.read_text() if starts.exists() else "") + "x")
    (experiment / "environment.json").write_text(json.dumps(os.environ.get("OMP_NUM_THREADS")))
    (experiment / "overrides.json").write_text(json.dumps(sys.argv[2:-2]))
    print("output of", experiment, flush=True)

    def leave(state, code, reason="", status_code=None):
        status = {"state": state, "exit_code": status_code or code, "reason": reason}
        (experiment / "status.json").write_text(json.dumps(status))
        sys.exit(code)

    def wait_for(found):
        for _ in range(6000):
            if found():
                return
            time.sleep(0.01)
        sys.exit(1)

    if end == "fail":
        leave("failed", 2, "disk full")
    if end == "kill_once" and starts.read_text() == "x":
        (experiment / "checkpoints").mkdir()
        (experiment / "checkpoints/step_000000003.pt").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if end in ("silent", "srun"):  # srun adds 128 to the signal that killed one of its processes
        sys.exit(3 if end == "silent" else 137)
    if end == "usage":
        print("usage: fake_task ...\\nfake_task: error: no such option --x\\n", file=sys.stderr)
        sys.exit(2)
    if end == "meet":  # wait until both cells have started
        wait_for(lambda: len(list(experiment.parent.glob("*/starts.txt"))) == 2)
    if end == "wait":
        wait_for((experiment / "go").exists)
    if end == "saved":  # like a launcher whose exit code differs from the status
        leave("stopped", 1, "SIGTERM", status_code=75)
    if end == "stop":
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, lambda *_: (experiment / "stopped").touch() or sys.exit(75))
        (experiment / "waiting").touch()
        wait_for((experiment / "stopped").exists)
    if end == "interrupt":
        sys.exit(130)
    results = {"task": "fake", "variant": {"row": "row", "column": "x"}, "seed": 0, "metric": "mAP"}
    results |= {"scores": {"mAP": 0.5}, "protocol": {"images": 9, "classes": ["a"]}, "inputs": {}, "cost": {}}
    (experiment / "config.yaml").write_text("train: {epochs: 1}")
    (experiment / "results.json").write_text(json.dumps(results))
    leave("done", 0)


if __name__ == "__main__":
    main()
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
    """Return a project with a stub task and a grid of three cells: one succeeds, one fails, one is killed once."""
    (tmp_path / "fake_task.py").write_text(TASK)
    (tmp_path / "base.yaml").write_text("fake: {end: well}\n")
    (tmp_path / "grid_fake.yaml").write_text(GRID)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ablation.scheduling.staleness.PROJECT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def grid(folder) -> Grid:
    return read_grid(folder / "grid_fake.yaml")


def run(grid: Grid, *, only: str | None = None, rerun_stale: bool = False, parallel: int = 1) -> None:
    arguments = argparse.Namespace(
        grid=grid.path, only=only, seeds=None, experiments=Path("experiments"), rerun_stale=rerun_stale,
        launcher=[sys.executable], parallel=parallel,
    )  # fmt: skip
    grid_command.run_grid(arguments)


def call_when_present(paths: list[str], act: Callable[[], object]) -> None:
    """Call `act` in the background once all these files under experiments/ exist."""

    def wait() -> None:
        while not all(Path("experiments", path).exists() for path in paths):
            time.sleep(0.01)
        act()

    threading.Thread(target=wait, daemon=True).start()


def write_submission(grid: Grid) -> Path:
    """Write a submission of the whole grid, and return its folder."""
    submission = slurm.prepare(grid, Path("experiments"), [grid.jobs], rerun_stale=False)[0]
    submission.folder.mkdir(parents=True)
    submission.write()
    return submission.folder


def run_task(folder: Path, index: int) -> None:
    slurm.run_task(folder, index, [sys.executable])


def start_counts() -> list[int]:
    """Return how often each experiment was started."""
    return [len((path / "starts.txt").read_text()) for path in list_experiments(Path("experiments"))]


def states(grid: Grid) -> list[str]:
    """Return the state of each job of a grid."""
    return [line.split()[4] for line in grid_command.status(grid, grid.jobs, Path("experiments")).splitlines()[1:]]


def cell_of(number: int) -> dict:
    return json.loads(Path(f"experiments/experiment_{number}/cell.json").read_text())


def grid_of_ends(folder: Path, *ends: str) -> Grid:
    """Return a grid of one row, with one column per value of fake.end."""
    columns = [f"{{name: c{number}, overrides: [fake.end={end}, fake.n={number}]}}" for number, end in enumerate(ends)]
    head = "task: fake_task\nseeds: [0]\nrows: [{name: row, config: base.yaml}]\n"
    (folder / "grid_fake.yaml").write_text(f"{head}columns: [{', '.join(columns)}]")
    return read_grid(folder / "grid_fake.yaml")


# ---- one run at a time ---------------------------------------------------------------------------------------


def test_all_cells_run_even_if_one_fails_and_a_second_call_resumes_the_unfinished_ones(grid, capsys):
    with pytest.raises(RunError, match=r"(?s)2 of 3 runs did not finish.*row x bad, seed 0: disk full"):
        run(grid)
    assert states(grid) == ["done", "failed", "killed"]
    assert "1 done, 1 failed, 1 killed" in capsys.readouterr().out
    with pytest.raises(RunError, match="1 of 3 runs did not finish"):
        run(grid)
    assert states(grid) == ["done", "failed", "done"]
    assert start_counts() == [1, 2, 2]
    assert "row x good, seed 0: done, experiments/experiment_1 (mAP 0.5000)" in capsys.readouterr().out


def test_stale_runs_are_trained_again_only_on_request(folder, capsys):
    run(read_grid(folder / "grid_fake.yaml"), only="* x good")
    (folder / "fake_task.py").write_text(TASK + "another = 1\n")
    changed = read_grid(folder / "grid_fake.yaml")
    run(changed, only="* x good")
    output = capsys.readouterr().out
    assert "row x good, seed 0: stale, experiments/experiment_1 (mAP 0.5000; " in output
    assert "fake_task.py [stub]" in output
    assert start_counts() == [1]
    run(changed, only="* x good", rerun_stale=True)
    assert start_counts() == [1, 1]


def test_a_resumed_run_keeps_the_code_hashes_of_its_first_start(folder, grid):
    with pytest.raises(RunError):
        run(grid, only="* x killed")
    before = cell_of(1)["computes"]
    (folder / "fake_task.py").write_text(TASK + "another = 1\n")
    run(grid, only="* x killed")
    assert start_counts() == [2]
    assert cell_of(1)["computes"] == before


@pytest.mark.parametrize(
    ("end", "parallel", "kind", "reason"),
    [
        ("silent", 1, "failed", "exit code 3: see the terminal"),
        ("usage", 2, "failed", "exit code 2: fake_task: error: no such option --x"),
        ("kill_once", 1, "killed", "training not started; SIGKILL"),
        ("srun", 1, "killed", "training not started; SIGKILL"),
        ("saved", 1, "stopped", "training not started; SIGTERM"),
    ],
)
def test_the_exit_code_is_the_reason_if_a_run_cannot_write_its_status(folder, end, parallel, kind, reason):
    grid = grid_of_ends(folder, end, "well")
    with pytest.raises(RunError, match=f"row x c0, seed 0: {reason}"):
        run(grid, parallel=parallel)
    assert states(grid) == [kind, "done"]


def test_two_grids_at_once_do_not_train_the_same_cell(grid, capsys):
    _, experiment, claim = runner.claim_experiment(grid.jobs[0], Path("experiments"), rerun_stale=False)
    with claim:  # as if another grid had claimed it
        run(grid, only="* x good")
    assert "row x good, seed 0: running, experiments/experiment_1" in capsys.readouterr().out
    assert [path.name for path in experiment.iterdir() if "lock" not in path.name] == ["cell.json"]
    assert len(list_experiments(Path("experiments"))) == 1


def test_the_launcher_starts_the_runs(grid):
    Path("launcher.py").write_text(
        "import os, sys; from pathlib import Path; Path('launched').write_text(sys.argv[1])\n"
        "os.execv(sys.executable, ['python', *sys.argv[1:]])"
    )
    launcher = f"{sys.executable} launcher.py"
    words = ["run", "grid_fake.yaml", "--only", "* x good", "--launcher", launcher]
    grid_command.main(grid_command.parse_arguments(words), None)
    assert Path("launched").read_text() == "-m"
    assert start_counts() == [1]


# ---- parallel runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ends", "parallel"), [(("meet", "meet"), 2), (("well", "well"), 1)])
def test_parallel_and_sequential_runs_have_their_own_overrides_and_states(folder, ends, parallel):
    grid = grid_of_ends(folder, *ends)  # runs that "meet" wait for each other
    run(grid, parallel=parallel)
    assert states(grid) == ["done", "done"]
    for number, job in enumerate(grid.jobs, start=1):
        overrides = json.loads(Path(f"experiments/experiment_{number}/overrides.json").read_text())
        assert (cell_of(number)["column"], overrides) == (job.column, list(job.overrides))


def test_the_next_run_starts_when_one_fails_and_the_other_run_continues(folder, capfd):
    grid = grid_of_ends(folder, "wait", "fail", "well")
    call_when_present(["experiment_3/results.json"], Path("experiments/experiment_1/go").touch)
    with pytest.raises(RunError, match="1 of 3 runs did not finish"):
        run(grid, parallel=2)
    assert states(grid) == ["done", "failed", "done"]
    ended = [line for line in capfd.readouterr().out.splitlines() if line.endswith(")")]
    assert ended[0] == "[2/3] row x c1, seed 0: failed, experiments/experiment_2 (disk full)"
    assert len(ended) == 3


@pytest.mark.parametrize(
    ("number", "raised", "parallel"),
    [
        (signal.SIGUSR1, Stopped, 1),
        (signal.SIGTERM, Stopped, 2),
        (signal.SIGHUP, Stopped, 2),
        (signal.SIGINT, KeyboardInterrupt, 2),
    ],
)
def test_a_signal_to_the_grid_makes_all_runs_save_and_end_and_starts_no_more(folder, number, raised, parallel):
    grid = grid_of_ends(folder, *["stop"] * parallel, "well")
    experiments = [f"experiment_{n + 1}" for n in range(parallel)]
    call_when_present([f"{name}/waiting" for name in experiments], lambda: os.kill(os.getpid(), number))
    before = signal.signal(number, signal.default_int_handler)  # nohup, for example, ignores it
    try:
        with pytest.raises(raised):
            run(grid, parallel=parallel)
    finally:
        signal.signal(number, before)
    assert states(grid) == [*["stopped"] * parallel, "waiting"]
    if number != signal.SIGHUP:  # the stub does not save on SIGHUP
        assert all(Path("experiments", name, "stopped").exists() for name in experiments)


@pytest.mark.parametrize("ends", [["interrupt"], ["stop", "interrupt"]])
def test_a_run_interrupted_from_the_keyboard_stops_the_other_runs_and_the_grid(folder, ends, capsys):
    grid = grid_of_ends(folder, *ends, "well")
    with pytest.raises(KeyboardInterrupt):
        run(grid, parallel=len(ends))
    assert states(grid) == [*["stopped"] * len(ends), "waiting"]
    assert "stopped in experiments/experiment_1" in capsys.readouterr().out


def test_an_error_in_the_grid_command_stops_all_runs(folder, monkeypatch):
    def has_ended(self: child.Child) -> bool:
        if Path("experiments/experiment_1/waiting").exists() and Path("experiments/experiment_2/waiting").exists():
            raise OSError("disk gone")
        return False

    monkeypatch.setattr(child.Child, "has_ended", has_ended)
    with pytest.raises(OSError, match="disk gone"):
        run(grid_of_ends(folder, "stop", "stop"), parallel=2)
    assert Path("experiments/experiment_1/stopped").exists()
    assert Path("experiments/experiment_2/stopped").exists()


@pytest.mark.parametrize(("user", "expected"), [(None, "3"), ("7", "7")])
def test_parallel_runs_share_the_cores_unless_the_user_has_set_threads(folder, monkeypatch, user, expected):
    monkeypatch.delenv("OMP_NUM_THREADS")
    if user:
        monkeypatch.setenv("OMP_NUM_THREADS", user)
    monkeypatch.setattr(child, "usable_cores", lambda: 6.5)
    run(grid_of_ends(folder, "well", "well"), parallel=2)
    found = [json.loads(path.read_text()) for path in Path("experiments").glob("*/environment.json")]
    assert found == [expected] * 2


def test_gpus_are_divided_among_parallel_runs_if_there_are_enough(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setattr(child, "visible_gpus", lambda: ["4", "5", "6", "7"])
    shares = {n: [child.slot_environment(k, n)["CUDA_VISIBLE_DEVICES"] for k in range(n)] for n in (2, 3, 4, 5)}
    assert shares == {2: ["4,5", "6,7"], 3: ["4", "5", "6"], 4: ["4", "5", "6", "7"], 5: ["4,5,6,7"] * 5}


@pytest.mark.parametrize(
    ("cores", "gibibytes", "gpus", "launcher", "expected"),
    [
        (5.5, 64, [], ["-m", "torch.distributed.run"], 1),
        (5.5, 7, [], [], 3),
        (0.5, 7, [], [], 1),
        (16, 64, ["0", "1"], [], 1),
    ],
)
def test_the_default_is_one_run_per_core_limited_by_memory(monkeypatch, cores, gibibytes, gpus, launcher, expected):
    monkeypatch.setattr(runner, "usable_cores", lambda: cores)
    monkeypatch.setattr(runner, "memory_limit", lambda: gibibytes * 2**30)
    monkeypatch.setattr(runner, "visible_gpus", lambda: gpus)
    assert runner.default_parallel([sys.executable, *launcher]) == expected


def test_the_progress_line_shows_the_status_and_score_from_the_files_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(child, "progress_bar", partial(progress_bar, delay=0, mininterval=0))
    monkeypatch.setattr(child, "STATUS_SECONDS", 0)
    line = child.RunProgress("row x good, seed 0", tmp_path, 0)
    line.update()
    assert "starting" in capsys.readouterr().err
    for step, epoch in ((4, 1), (6, 2)):
        write_status(tmp_path, Status("running", step, total_steps=12, epoch=epoch, epochs=3, metric="mAP"))
        (tmp_path / "metrics.jsonl").write_text('{"step": 4, "mAP": 0.25}\n{"step": 5}\n')
        line.update()
    line.bar.close()
    output = capsys.readouterr().err
    for text in ("row x good, seed 0:  50%", "6/12", "epoch 2/3, mAP 0.2500"):
        assert text in output


# ---- under Slurm ---------------------------------------------------------------------------------------------


def test_a_task_trains_the_submitted_run_even_if_the_grid_was_edited(folder, grid):
    submission = write_submission(grid)
    (folder / "grid_fake.yaml").write_text(GRID.replace("name: good, overrides: [fake.end=well]", "name: x"))
    run_task(submission, 0)
    assert (cell_of(1)["column"], cell_of(1)["recipe"]) == ("good", grid.jobs[0].recipe())


def test_a_task_is_refused_if_its_config_was_edited(folder, grid):
    submission = write_submission(grid)
    (folder / "base.yaml").write_text("fake: {end: well, seconds: 3}\n")
    with pytest.raises(ValueError, match=r"base\.yaml: edited since .*: fake\.seconds was null, is 3; submit the grid"):
        run_task(submission, 0)
    assert not list_experiments(Path("experiments"))


def test_submitting_without_slurm_raises_an_error_and_leaves_no_files(grid, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    Path("sbatch").mkdir()
    Path("sbatch/grid.sbatch").touch()
    with pytest.raises(ValueError, match=r"sbatch: .*login node of a Slurm cluster"):
        grid_command.main(grid_command.parse_arguments(["submit", "grid_fake.yaml"]), None)
    assert not list(Path("experiments").glob("slurm/*"))


def test_reading_a_submission_returns_what_was_written(grid):
    submission = slurm.read_submission(write_submission(grid))
    assert [slurm.job_from(entry) for entry in submission.jobs] == grid.jobs
    assert slurm.read_submissions(Path("experiments")) == [submission]
    assert write_submission(grid).name == "grid_fake-2"


SQUEUE = """#!/bin/sh
echo '7_0|RUNNING|node1'
echo '7_1|FAILED|NonZeroExitCode'
echo '5_2|PENDING|Resources'
"""


def test_tasks_in_the_queue_are_matched_to_jobs_by_recipe(folder, grid, monkeypatch):
    (folder / "squeue").write_text(SQUEUE)
    (folder / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    older, newer = (slurm.read_submission(write_submission(grid)) for _ in range(2))
    replace(older, array="5").write()
    replace(newer, array="7").write()
    submissions = slurm.read_submissions(Path("experiments"))
    found = {job.column: str(task) for job, task in slurm.tasks_of(grid.jobs, submissions).items()}
    assert found == {
        "good": "7_0 RUNNING node1",
        "bad": "7_1 FAILED see experiments/slurm/grid_fake-2/slurm_7_1.out",
        "killed": "5_2 PENDING Resources",
    }
    (folder / "base.yaml").write_text("fake: {end: well, seconds: 3}\n")  # a different recipe in the same cells
    assert slurm.tasks_of(read_grid(folder / "grid_fake.yaml").jobs, submissions) == {}
