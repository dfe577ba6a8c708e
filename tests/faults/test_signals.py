"""Signals to running commands: a save after the current step, no work lost, no process left running."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from engine.checkpoint import list_checkpoints, load_checkpoint

pytestmark = pytest.mark.slow
STEPS = 240  # steps per epoch on one process
CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGHUP: 75, signal.SIGINT: 130}


def last_step(experiment: Path) -> int:
    """Return the step of the newest checkpoint."""
    return load_checkpoint(list_checkpoints(experiment / "checkpoints")[-1])["step"]


def tensors(value: object) -> list[torch.Tensor]:
    """Return all tensors in a checkpoint's state, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [tensor for child in children for tensor in tensors(child)]


# ---- one process ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture(scope="module")
def stopped(start, config_path, folder):
    """Return {signal: job that received it within its first epoch}, and job 0 without a signal; they run in parallel.

    SIGTERM is also sent to the loader processes, as in a system shutdown."""
    jobs = {}
    for number in (0, *CODES):
        (folder / str(number)).mkdir()
        jobs[number] = start("-m", "detection.training", config_path, "--experiment", folder / str(number))
    waiting = set(CODES)
    while waiting:
        number = jobs[0].wait_for(lambda: next((n for n in waiting if "first step" in jobs[n].text), 0))
        for pid in jobs[number].processes() if number == signal.SIGTERM else [jobs[number].process.pid]:
            os.kill(pid, number)
        waiting.remove(number)
    assert jobs[0].end() == 0
    return jobs


@pytest.mark.parametrize("number", CODES)
def test_a_signal_within_an_epoch_stops_the_run_after_a_save_and_leaves_no_process(stopped, folder, number):
    assert stopped[number].end() == CODES[number]
    assert "Traceback" not in stopped[number].text
    assert stopped[number].text.count("is saved") == 1
    assert 0 < last_step(folder / str(number)) < STEPS


def test_resumed_runs_end_bit_identical_to_an_uninterrupted_run(start, stopped, config_path, folder):
    jobs = {n: start("-m", "detection.training", config_path, "--experiment", folder / str(n)) for n in CODES}
    uninterrupted = tensors(load_checkpoint(list_checkpoints(folder / "0/checkpoints")[-1]))
    for number, job in jobs.items():
        assert job.end() == 0
        assert "resumed after step" in job.text
        resumed = tensors(load_checkpoint(list_checkpoints(folder / str(number) / "checkpoints")[-1]))
        assert len(resumed) == len(uninterrupted) > 100
        assert all(map(torch.equal, resumed, uninterrupted))


def test_a_signal_during_evaluation_stops_the_run_without_a_traceback(start, config_path, tmp_path):
    job = start("-m", "detection.training", config_path, "--experiment", tmp_path, "train.eval_every_epochs=1")
    job.wait_for(lambda: (tmp_path / f"checkpoints/step_{STEPS:09d}.pt").exists())
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 75
    assert "Traceback" not in job.text
    assert load_checkpoint(list_checkpoints(tmp_path / "checkpoints")[-1])["line"]["step"] == STEPS


def test_a_signal_that_nohup_ignores_stays_ignored(start, config_path, tmp_path):
    script = tmp_path / "nohup.py"
    script.write_text(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'detection.training', *sys.argv[1:]])\n"
    )
    job = start(script, config_path, "--experiment", tmp_path, "train.epochs=1", "data.workers=0")
    job.wait_for("first step")
    job.process.send_signal(signal.SIGHUP)
    assert job.end() == 0


def test_repeated_ctrl_c_ends_the_run_without_a_traceback(start, config_path, tmp_path):
    job = start("-m", "detection.training", config_path, "--experiment", tmp_path)
    job.wait_for("first step")
    for _ in range(50):
        job.process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    assert job.end() in (130, -signal.SIGINT)
    assert "Traceback" not in job.text


# ---- during start-up --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["torch", "torchvision"])
def test_an_interrupt_during_imports_ends_the_command_silently(start, config_path, tmp_path, module):
    job = start("-m", "detection.training", config_path, "--experiments", tmp_path / "experiments")
    job.wait_for(lambda: f"/{module}/" in Path(f"/proc/{job.process.pid}/maps").read_text())
    job.process.send_signal(signal.SIGINT)
    assert job.end() in (130, -signal.SIGINT)  # -SIGINT until the command line is parsed
    assert job.text == ""


# ---- several processes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", CODES)
def test_after_a_signal_to_torchrun_the_ranks_save_and_end_even_if_torchrun_dies(start, config_path, tmp_path, number):
    job = start("-m", "detection.training", config_path, "--experiment", tmp_path, "data.workers=1", processes=2)
    job.wait_for("first step")
    assert len(job.processes()) >= 5
    job.process.send_signal(number)
    assert job.end() == (-number if number == signal.SIGUSR1 else 1)
    assert job.text.count("is saved") == 1
    assert not job.errors
    assert 0 < last_step(tmp_path) < STEPS // 2
