"""records/status.py: the progress of a run, how it ended, and whether it was killed."""

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
from records.status import Status, begin_status, mark_running, read_status, training_bar, write_status

ROOT = Path(__file__).parent.parent.parent
WORK = """
import os, sys, time, pathlib
from records.status import mark_running, begin_status
with mark_running(pathlib.Path(sys.argv[1])):
    begin_status(pathlib.Path(sys.argv[1]))
    if os.fork() == 0:  # like a loader process; it prints when it has closed its copy of the lock
        print(os.getppid(), os.getpid(), flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


@pytest.fixture
def other_run(tmp_path):
    """Start a process that runs in tmp_path; its child outlives it. Yields the process and its id."""
    command = [sys.executable, "-c", WORK, tmp_path]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        pid, child = map(int, process.stdout.readline().split())
        yield process, pid
        process.kill()
        os.kill(child, signal.SIGKILL)


def test_two_processes_cannot_run_in_one_experiment(tmp_path, other_run):
    assert read_status(tmp_path).state == "running"
    with pytest.raises(ValueError, match="another process is running in it"), mark_running(tmp_path):
        pass
    assert read_status(tmp_path).pid == other_run[1]


def test_a_killed_run_is_detected_and_can_be_resumed(tmp_path, other_run):
    process, pid = other_run
    os.kill(pid, signal.SIGKILL)
    process.wait()
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"
    assert read_status(tmp_path).state == "killed"
    with mark_running(tmp_path):
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
def test_the_status_records_how_a_run_ended(tmp_path, raised, state, code, reason):
    with ExitStack() as stack:
        if raised:
            stack.enter_context(pytest.raises(type(raised)))
        with mark_running(tmp_path):
            begin_status(tmp_path)
            if raised:
                raise raised
    status = read_status(tmp_path)
    assert (status.state, status.exit_code, status.reason) == (state, code, reason)
    assert (status.pid, status.host) == (os.getpid(), platform.node())


@pytest.mark.parametrize("earlier", [Status("done", exit_code=0), Status("running", pid=2**22 + 1)])
def test_a_refused_start_does_not_change_the_status(tmp_path, earlier):
    write_status(tmp_path, earlier)
    before = (tmp_path / "status.json").read_text()
    with pytest.raises(ValueError, match="the data differ"), mark_running(tmp_path):
        raise ValueError("the data differ")
    assert (tmp_path / "status.json").read_text() == before


def test_a_run_records_its_progress_and_a_later_start_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STATUS_SECONDS", 0)
    with mark_running(tmp_path):
        begin_status(tmp_path)
        with training_bar(tmp_path, step=9, steps_per_epoch=10, epochs=3, metric="mAP") as bar:
            bar.update()
            assert read_status(tmp_path).epoch == 1  # the last step of the epoch
            bar.update()
        status = read_status(tmp_path)
    assert (status.state, status.step, status.total_steps) == ("running", 11, 30)
    assert (status.epoch, status.epochs, status.metric) == (2, 3, "mAP")
    with mark_running(tmp_path):
        assert read_status(tmp_path).step == 11


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "asleep"}', '{"state": "done", "step": "x"}'])
def test_a_corrupt_status_is_ignored(tmp_path, content):
    (tmp_path / "status.json").write_text(content)
    assert read_status(tmp_path) is None


@pytest.mark.parametrize(
    ("job", "own_job", "queue", "state"),
    [("7", None, "7", "running"), ("7", None, "", "killed"), (None, None, "7", "killed"), ("7", "7", "7", "killed")],
)
def test_a_run_on_a_different_machine_is_looked_up_in_the_queue(tmp_path, monkeypatch, job, own_job, queue, state):
    (tmp_path / "squeue").write_text(f"#!/bin/sh\necho {queue}\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    if own_job:
        monkeypatch.setenv("SLURM_JOB_ID", own_job)
    write_status(tmp_path, Status("running", host="elsewhere", job=job))
    assert read_status(tmp_path).state == state
