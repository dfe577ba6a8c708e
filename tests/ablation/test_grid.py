"""ablation/grid.py: working through a grid. Its task is a stub of a few lines: grids know experiments, not tasks."""

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

from ablation import child, runner, slurm
from ablation import grid as grid_command
from ablation.plan import Grid, State, claimed, read_grid
from engine.command import RunError
from engine.logbook import progress_bar
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
names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")
(experiment / "environment.json").write_text(json.dumps([os.environ.get(name) for name in names]))
(experiment / "overrides.json").write_text(json.dumps(sys.argv[2:-2]))
print("said by", experiment, flush=True)
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
if end == "usage":
    print("usage: fake_task ...\\nfake_task: error: no such option --x\\n", file=sys.stderr)
    sys.exit(2)
if end == "meet":  # as many others as there are cells
    import time
    for _ in range(6000):
        if len(list(experiment.parent.glob("*/starts.txt"))) == 2:
            break
        time.sleep(0.01)
    else:
        sys.exit(1)
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
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda *_: (experiment / "stopped").touch() or sys.exit(75))
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


def run(grid: Grid, *, only: str | None = None, rerun_stale: bool = False, parallel: int = 1) -> None:
    arguments = argparse.Namespace(
        grid=grid.path, only=only, seeds=None, experiments=Path("experiments"), rerun_stale=rerun_stale,
        launcher=[sys.executable], parallel=parallel,
    )  # fmt: skip
    grid_command.run_grid(arguments)


def when(paths: list[str], act: Callable[[], object]) -> None:
    """Do something in the background once all these files of experiments/ are there."""

    def wait() -> None:
        while not all(Path("experiments", path).exists() for path in paths):
            time.sleep(0.01)
        act()

    threading.Thread(target=wait, daemon=True).start()


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
    class EditingChild(child.Child):
        def close(self, asked_to_end: bool) -> int:
            (folder / "fake_task.py").write_text(TASK + "# another\n")
            return super().close(asked_to_end)

    monkeypatch.setattr(runner, "Child", EditingChild)
    with pytest.raises(RunError):
        run(grid)
    first, second = (json.loads(Path(f"experiments/experiment_{n}/cell.json").read_text())["code"] for n in (1, 2))
    assert first != second


def test_a_task_that_ends_without_a_word_has_failed_with_its_exit_code(folder, capsys):
    (folder / "grid_fake.yaml").write_text(GRID.replace("end=well", "end=wordless"))
    with pytest.raises(RunError, match="exit code 3 without a word"):
        run(read_grid(folder / "grid_fake.yaml"), only="* x good")


def test_two_grids_at_once_do_not_train_the_same_cell(grid, capsys):
    experiment = runner.choose_experiment(grid.jobs[0], State("waiting"), Path("experiments"))
    with claimed(experiment):  # as by another grid
        run(grid, only="* x good")
    assert "row x good, seed 0: running, experiments/experiment_1" in capsys.readouterr().out
    assert [path.name for path in experiment.iterdir() if "lock" not in path.name] == ["cell.json"]
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

    when(["experiment_1/waiting"], lambda: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(Stopped, match="SIGUSR1"):
        run(grid)
    assert Path("experiments/experiment_1/stopped").exists()
    assert not Path("experiments/experiment_2").exists()
    assert grid_command.status(grid, grid.jobs, Path("experiments")).splitlines()[0].split()[5] == "interrupted"


# ---- several runs at once ------------------------------------------------------------------------------------


def cells(folder: Path, *ends: str) -> Grid:
    """A grid of one row and a column for each of these ends."""
    columns = [f"{{name: c{number}, overrides: [fake.end={end}, fake.n={number}]}}" for number, end in enumerate(ends)]
    head = "task: fake_task\nseeds: [0]\nrows: [{name: row, config: base.yaml}]\n"
    (folder / "grid_fake.yaml").write_text(f"{head}columns: [{', '.join(columns)}]")
    return read_grid(folder / "grid_fake.yaml")


def kinds(grid: Grid) -> list[str]:
    """The states of a grid's jobs."""
    return [line.split()[5] for line in grid_command.status(grid, grid.jobs, Path("experiments")).splitlines()]


@pytest.mark.parametrize(("ends", "parallel"), [(("meet", "meet"), 2), (("well", "well"), 1)])
def test_runs_at_once_or_one_after_the_other_have_their_own_overrides_and_states(folder, ends, parallel):
    grid = cells(folder, *ends)  # those that meet wait for each other
    run(grid, parallel=parallel)
    assert kinds(grid) == ["done", "done"]
    for number, job in enumerate(grid.jobs, start=1):
        experiment = Path(f"experiments/experiment_{number}")
        assert json.loads((experiment / "cell.json").read_text())["column"] == job.column
        assert json.loads((experiment / "overrides.json").read_text()) == list(job.overrides)


def test_a_run_that_fails_makes_room_for_the_next_and_leaves_the_other_alone(folder, capfd):
    grid = cells(folder, "wait", "fail", "well")
    when(["experiment_3/results.json"], Path("experiments/experiment_1/go").touch)
    with pytest.raises(RunError, match="1 of 3 runs did not finish"):
        run(grid, parallel=2)
    assert kinds(grid) == ["done", "failed", "done"]
    ended = [line for line in capfd.readouterr().out.splitlines() if line.endswith(")")]
    assert ended[0] == "[2/3] row x c1, seed 0: failed, experiments/experiment_2 (no such thing)"
    assert sorted(ended[1:]) == [
        "[1/3] row x c0, seed 0: done, experiments/experiment_1 (mAP 0.5000)",
        "[3/3] row x c2, seed 0: done, experiments/experiment_3 (mAP 0.5000)",
    ]


@pytest.mark.parametrize(
    ("number", "raised"),
    [
        (signal.SIGUSR1, Stopped),
        (signal.SIGTERM, Stopped),
        (signal.SIGHUP, Stopped),
        (signal.SIGINT, KeyboardInterrupt),
    ],
)
def test_a_signal_to_the_grid_ends_all_runs_after_a_save_and_starts_no_other(folder, capfd, number, raised):
    grid = cells(folder, "stop", "stop", "well")
    when(["experiment_1/waiting", "experiment_2/waiting"], lambda: os.kill(os.getpid(), number))
    before = signal.signal(number, signal.default_int_handler)  # it may be ignored here, as by nohup
    try:
        with pytest.raises(raised):
            run(grid, parallel=2)
    finally:
        signal.signal(number, before)
    assert kinds(grid) == ["interrupted", "interrupted", "waiting"]
    if number != signal.SIGHUP:  # this stub does not save for it
        assert Path("experiments/experiment_1/stopped").exists()
        assert Path("experiments/experiment_2/stopped").exists()
    assert not Path("experiments/experiment_3").exists()


def test_a_run_interrupted_from_the_keyboard_ends_the_others_too(folder):
    grid = cells(folder, "stop", "interrupt", "well")
    with pytest.raises(KeyboardInterrupt):
        run(grid, parallel=2)
    assert kinds(grid) == ["interrupted", "interrupted", "waiting"]


def test_runs_that_were_interrupted_at_once_go_on_where_they_were(folder):
    grid = cells(folder, "kill_once", "kill_once")
    for _ in range(2):
        try:
            run(grid, parallel=2)
        except RunError:
            assert kinds(grid) == ["interrupted", "interrupted"]
    assert kinds(grid) == ["done", "done"]
    assert [starts(number) for number in (1, 2)] == [2, 2]
    assert not Path("experiments/experiment_3").exists()


def test_where_runs_at_once_fail_alike_the_rest_is_not_started(folder):
    (folder / "grid_fake.yaml").write_text(f"{TWO_ROWS}overrides: [fake.end=fail]")
    with pytest.raises(ValueError, match=r"runs in a row failed alike, and \d more were not started.*: no such thing"):
        run(read_grid(folder / "grid_fake.yaml"), parallel=2)
    assert len(list(Path("experiments").glob("experiment_*"))) < 6


def test_a_grid_that_gives_up_lets_the_runs_at_work_finish(folder, monkeypatch):
    grid = cells(folder, "wait", "fail", "fail", "fail")
    reason_to_give_up = runner.reason_to_give_up

    def give_up_then_go(*arguments) -> str:
        Path("experiments/experiment_1/go").touch()
        return reason_to_give_up(*arguments)

    monkeypatch.setattr(runner, "reason_to_give_up", give_up_then_go)
    with pytest.raises(ValueError, match="2 runs in a row failed alike, and 1 more were not started"):
        run(grid, parallel=2)
    assert kinds(grid) == ["done", "failed", "failed", "waiting"]


def test_an_error_in_the_grid_itself_leaves_no_run_behind(folder, monkeypatch):
    def has_ended(self: child.Child) -> bool:
        if Path("experiments/experiment_1/waiting").exists() and Path("experiments/experiment_2/waiting").exists():
            raise OSError("disk gone")
        return False

    monkeypatch.setattr(child.Child, "has_ended", has_ended)
    with pytest.raises(OSError, match="disk gone"):
        run(cells(folder, "stop", "stop"), parallel=2)
    assert Path("experiments/experiment_1/stopped").exists()
    assert Path("experiments/experiment_2/stopped").exists()


def environments(grid: Grid, parallel: int) -> list[list[str | None]]:
    """OMP_NUM_THREADS and OMP_WAIT_POLICY of the runs of a grid."""
    run(grid, parallel=parallel)
    return [json.loads(path.read_text()) for path in Path("experiments").glob("*/environment.json")]


def test_runs_at_once_share_the_cores_and_wait_passively(folder, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(child, "usable_cores", lambda: 6.5)
    assert environments(cells(folder, "well", "well"), parallel=2) == [["3", "PASSIVE"]] * 2


def test_threads_that_the_user_has_set_stay(folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert environments(cells(folder, "well", "well"), parallel=2) == [["7", "ACTIVE"]] * 2


def test_a_run_alone_has_all_threads_however_many_there_could_be(folder, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert environments(cells(folder, "well"), parallel=4) == [[None, None]]


def test_gpus_are_divided_among_the_runs_if_there_are_enough(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setattr(child, "visible_gpus", lambda: ["4", "5", "6", "7"])
    shares = {n: [child.slot_environment(k, n)["CUDA_VISIBLE_DEVICES"] for k in range(n)] for n in (2, 3, 4, 5)}
    assert shares == {2: ["4,5", "6,7"], 3: ["4", "5", "6"], 4: ["4", "5", "6", "7"], 5: ["4,5,6,7"] * 5}


def test_by_default_there_is_a_run_per_core_if_there_is_memory_for_it(monkeypatch):
    monkeypatch.setattr(runner, "usable_cores", lambda: 5.5)
    monkeypatch.setattr(runner, "memory_limit", lambda: 64 * 2**30)
    monkeypatch.setattr(runner, "visible_gpus", lambda: [])
    assert runner.default_parallel([sys.executable]) == 5
    assert runner.default_parallel(["torchrun", "--nproc_per_node=2"]) == 1
    monkeypatch.setattr(runner, "memory_limit", lambda: 7 * 2**30)
    assert runner.default_parallel([sys.executable]) == 3
    monkeypatch.setattr(runner, "usable_cores", lambda: 0.5)
    assert runner.default_parallel([sys.executable]) == 1
    monkeypatch.setattr(runner, "visible_gpus", lambda: ["0", "1"])
    monkeypatch.setattr(runner, "usable_cores", lambda: 16)
    assert runner.default_parallel([sys.executable]) == 1


def test_what_runs_at_once_say_goes_to_files_of_their_own(folder, capfd):
    run(cells(folder, "well", "well"), parallel=2)
    told = capfd.readouterr()
    assert "said by" not in told.out + told.err
    assert Path("experiments/experiment_2/output.log").read_text() == "said by experiments/experiment_2\n"
    assert told.err == ""  # less than a minute
    assert len(told.out.splitlines()) == 5  # a start and an end each, and the summary


def test_what_a_run_says_before_it_has_a_log_is_the_reason_why_it_failed(folder):
    grid = cells(folder, "usage", "well")
    with pytest.raises(RunError, match="row x c0, seed 0: exit code 2: fake_task: error: no such option --x"):
        run(grid, parallel=2)


def test_the_progress_of_a_run_is_read_from_its_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(child, "progress_bar", partial(progress_bar, delay=0, mininterval=0))
    monkeypatch.setattr(child, "STATUS_SECONDS", 0)
    line = child.RunProgress("row x good, seed 0", tmp_path, 0)
    line.update()
    assert "starting" in capsys.readouterr().err
    status = {"step": 4, "total_steps": 12, "epoch": 1, "epochs": 3, "metric": "mAP"}
    (tmp_path / "status.json").write_text(json.dumps(status))
    line.update()
    (tmp_path / "status.json").write_text(json.dumps(status | {"step": 6, "epoch": 2}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "mAP": 0.25}\n{"step": 5}\n')
    line.update()
    line.close()
    told = capsys.readouterr().err
    assert "row x good, seed 0:  50%" in told
    assert "6/12" in told
    assert "epoch 2/3, mAP 0.2500" in told


# ---- under Slurm ---------------------------------------------------------------------------------------------


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
