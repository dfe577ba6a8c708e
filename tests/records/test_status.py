"""records/status.py: how far a run is, how it ended, and that it was killed."""

import json
import os
import platform
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from engine.command import RunError
from engine.signals import Stopped
from records import status as module
from records.status import Status, at_work, begin_status, read_status, training_bar, write_status

ROOT = Path(__file__).parent.parent.parent
WORK = """
import os, sys, time, pathlib
from records.status import at_work, begin_status
with at_work(pathlib.Path(sys.argv[1])):
    begin_status(pathlib.Path(sys.argv[1]))
    child = os.fork()  # as a loader process
    if child:
        print(os.getpid(), child, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


@pytest.fixture
def other_run(tmp_path):
    """Another process that is at work in tmp_path, and its id; a child of it outlives it."""
    command = [sys.executable, "-c", WORK, tmp_path]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        pid, child = map(int, process.stdout.readline().split())
        yield process, pid
        process.kill()
        os.kill(child, signal.SIGKILL)


def test_two_runs_cannot_be_at_work_in_one_experiment(tmp_path, other_run):
    assert read_status(tmp_path).state == "running"
    with pytest.raises(ValueError, match="another process is at work in it"), at_work(tmp_path):
        pass
    assert read_status(tmp_path).pid == other_run[1]


def test_a_run_that_was_killed_is_recognised_and_can_be_resumed(tmp_path, other_run):
    process, pid = other_run
    os.kill(pid, signal.SIGKILL)
    process.wait()
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"
    assert read_status(tmp_path).state == "killed"
    with at_work(tmp_path):
        assert read_status(tmp_path).state == "running"


@pytest.mark.parametrize(
    ("raised", "state", "code", "reason"),
    [
        (None, "done", 0, ""),
        (Stopped("SIGTERM"), "stopped", 75, "SIGTERM"),
        (KeyboardInterrupt(), "stopped", 130, "interrupted from the keyboard"),
        (ValueError("x.yaml: bad"), "failed", 2, "x.yaml: bad"),
        (RunError("step 3"), "failed", 1, "step 3"),
        (KeyError("x"), "failed", 1, "a bug: KeyError: 'x'"),
        (SystemExit(2), "failed", 2, "2"),
    ],
)
def test_a_run_says_how_it_ended(tmp_path, raised, state, code, reason):
    with ExitStack() as stack:
        if raised:
            stack.enter_context(pytest.raises(type(raised)))
        with at_work(tmp_path):
            begin_status(tmp_path)
            if raised:
                raise raised
    status = read_status(tmp_path)
    assert (status.state, status.exit_code, status.reason) == (state, code, reason)
    assert (status.pid, status.host) == (os.getpid(), platform.node())


@pytest.mark.parametrize("earlier", [Status("done", exit_code=0), Status("running", pid=2**22 + 1)])
def test_a_start_that_is_refused_leaves_the_status_as_it_was(tmp_path, earlier):
    write_status(tmp_path, earlier)
    before = (tmp_path / "status.json").read_text()
    with pytest.raises(ValueError, match="made on other data"), at_work(tmp_path):
        raise ValueError("made on other data")
    assert (tmp_path / "status.json").read_text() == before


def test_a_run_says_how_far_it_is_and_a_later_start_remembers(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STATUS_SECONDS", 0)
    with at_work(tmp_path):
        begin_status(tmp_path)
        with training_bar(tmp_path, step=9, steps_per_epoch=10, epochs=3, metric="mAP") as bar:
            bar.update()
            assert read_status(tmp_path).epoch == 1  # its last step
            bar.update()
        status = read_status(tmp_path)
    assert (status.state, status.step, status.total_steps) == ("running", 11, 30)
    assert (status.epoch, status.epochs, status.metric) == (2, 3, "mAP")
    with at_work(tmp_path):
        assert read_status(tmp_path).step == 11


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "asleep"}', '{"state": "done", "step": "x"}'])
def test_a_damaged_status_says_nothing(tmp_path, content):
    (tmp_path / "status.json").write_text(content)
    assert read_status(tmp_path) is None


@pytest.mark.parametrize(
    ("job", "own_job", "said", "state"),
    [("7", None, "7", "running"), ("7", None, "", "killed"), (None, None, "7", "killed"), ("7", "7", "7", "killed")],
)
def test_a_run_on_another_machine_is_asked_for_in_the_queue(tmp_path, monkeypatch, job, own_job, said, state):
    (tmp_path / "squeue").write_text(f"#!/bin/sh\necho {said}\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    if own_job:
        monkeypatch.setenv("SLURM_JOB_ID", own_job)
    write_status(tmp_path, Status("running", host="elsewhere", job=job))
    assert read_status(tmp_path).state == state
