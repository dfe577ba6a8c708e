"""Training the runs of a grid on this machine, one after the other, each as a command of its own."""

import fcntl
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import FrameType

from ablation.plan import Job, State, claimed, last_error, last_of_each, read_cells, remember, state_of, was_stopped
from engine.checkpoint import list_checkpoints
from engine.command import INTERRUPTED, STOPPED, RunError
from engine.experiment import new_experiment
from engine.signals import SIGNALS, Stopped

BAD_INPUT = 2  # the exit code that says so
SMOKE_SECONDS = 60  # that a smoke test trains
SMOKE_LIMIT_SECONDS = 900  # within which it must have come to a checkpoint


def run(jobs: Sequence[Job], experiments: Path, rerun_stale: bool, launcher: Sequence[str]) -> dict[Job, State]:
    """Train every job that is not done; returns how far each is then.

    Two of one row in a row that end with the same bad input put the rest of that row off to the end.
    Raises ValueError where another row, or the rest of the only one left, would go the same way; KeyboardInterrupt or
    Stopped if one was interrupted."""
    states, waiting, alike = {}, list(jobs), []
    while waiting:
        job = waiting.pop(0)
        heading = f"[{len(jobs) - len(waiting)}/{len(jobs)}] {job.name}"
        with ExitStack() as stack:
            with one_at_a_time(experiments):  # two grids that start at once do not choose the same cell
                state = state_of(job, read_cells(experiments))
                wanted = is_wanted(state, rerun_stale)
                if wanted:
                    experiment = choose_experiment(job, state, experiments)
                    stack.enter_context(claimed(experiment))
            if wanted:
                print(f"{heading}: {experiment}", flush=True)
                code = train(job, experiment, launcher)
            else:
                print(f"{heading}: {state.kind}, {state.experiment} ({state.detail})", flush=True)
        states[job] = state_of(job, read_cells(experiments))
        if wanted and code == BAD_INPUT:
            reason = states[job].detail
            alike = [*(other for other in alike if states[other].detail == reason), job]
        elif wanted:
            alike = []
        if wanted and len(alike) > 1:
            if len({other.row for other in alike}) > 1 or all(other.row == job.row for other in waiting):
                left = f", and {len(waiting)} more were not started, for they would too" * bool(waiting)
                raise ValueError(f"{len(alike)} runs in a row failed alike{left}; mend it and call again: {reason}")
            waiting.sort(key=lambda other: other.row == job.row)  # is it the row?
    return states


def is_wanted(state: State, rerun_stale: bool) -> bool:
    """Whether a job is to be trained, or gone on with."""
    return state.kind in ("waiting", "interrupted", "failed") or (state.kind == "stale" and rerun_stale)


@contextmanager
def one_at_a_time(experiments: Path) -> Iterator[None]:
    """Inside, no other grid chooses what to train."""
    experiments.mkdir(parents=True, exist_ok=True)
    with open(experiments / "grid.lock", "a") as file:
        with suppress(OSError):  # a file system without locks keeps no two grids apart
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def choose_experiment(job: Job, state: State, experiments: Path) -> Path:
    """Where to train a job: where it was interrupted or failed, else in a new experiment, which remembers the job."""
    goes_on = state.kind in ("interrupted", "failed")
    experiment = state.experiment if goes_on else new_experiment(experiments)
    if not list_checkpoints(experiment / "checkpoints"):  # nothing to go on from: it starts with the present code
        remember(job, experiment)
    return experiment


def train(job: Job, experiment: Path, launcher: Sequence[str]) -> int:
    """Train a job into its experiment, or go on there; returns the exit code.

    Raises KeyboardInterrupt or Stopped if a signal came meanwhile, which the run has had as well."""
    process = subprocess.Popen(job.command(experiment, launcher))
    with passed_on_to(process) as signals:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # a terminal tells both, `kill -INT` does not; let the other end in its own time
            process.terminate()
            process.wait()
            code = INTERRUPTED
    if signals:
        raise Stopped(signals[0].name)
    if code in (INTERRUPTED, -signal.SIGINT):
        print(f"\ninterrupted in {experiment}; the same command goes on from its last checkpoint", flush=True)
        raise KeyboardInterrupt
    if code > 0 and not was_stopped(experiment) and not last_error(experiment):  # before it could write to its own log
        with open(experiment / "train.log", "a", encoding="utf-8") as log:
            moment = datetime.now().isoformat(sep=" ", timespec="seconds")
            log.write(f"{moment} ERROR error: exit code {code} without a word in train.log; see the terminal\n")
    return code


@contextmanager
def passed_on_to(process: subprocess.Popen) -> Iterator[list[signal.Signals]]:
    """Inside, all signals that ask to end but Ctrl-C go to `process`; yields the list of those that have come."""
    came: list[signal.Signals] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        came.append(signal.Signals(number))
        process.send_signal(number)

    heeded = {*SIGNALS} - {signal.SIGINT} - {number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN}
    before = {number: signal.signal(number, pass_on) for number in heeded}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def try_out(job: Job, folder: Path, launcher: Sequence[str]) -> None:
    """Train a job for a minute, in a folder that is deleted if all goes well. Raises RunError if it fails."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    overrides = last_of_each([*job.overrides, "train.checkpoint_every_steps=10"])  # a checkpoint shows that it trains
    process = subprocess.Popen(replace(job, overrides=overrides).command(folder, launcher))
    began, seconds, told = time.monotonic(), 0.0, False
    with passed_on_to(process) as signals:
        while process.poll() is None:
            seconds = time.monotonic() - began
            trains = seconds > SMOKE_SECONDS and list_checkpoints(folder / "checkpoints")
            if not told and (trains or seconds > SMOKE_LIMIT_SECONDS):
                process.send_signal(signal.SIGUSR1)
                told = True
            time.sleep(1)
    error = last_error(folder)
    if not error and signals:
        error = f"ended by {signals[0].name}"
    if not error and not list_checkpoints(folder / "checkpoints"):
        error = f"no checkpoint after {seconds:.0f} s, exit code {process.returncode}"
    if not error and process.returncode not in (0, STOPPED) and not was_stopped(folder):
        error = f"exit code {process.returncode}"
    if error:
        raise RunError(f"{job.name}: {error}")
    print(f"{job.name}: trains")
    shutil.rmtree(folder)
