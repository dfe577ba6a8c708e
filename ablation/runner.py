"""Training the runs of a grid on this machine, one or several at a time, each as a command of its own."""

import fcntl
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ablation.child import Child, passed_on_to, say
from ablation.plan import Job, State, claimed, last_error, last_of_each, read_cells, remember, state_of, was_stopped
from engine.checkpoint import list_checkpoints
from engine.command import INTERRUPTED, STOPPED, RunError
from engine.compute.machine import memory_limit, usable_cores, visible_gpus
from engine.signals import Stopped
from records.experiment import new_experiment

BAD_INPUT = 2  # the exit code that says so
POLL_SECONDS = 0.1  # between two looks at the processes
MEMORY_PER_RUN = 2 * 2**30  # bytes, for the default number of runs at a time
SMOKE_SECONDS = 60  # that a smoke test trains
SMOKE_LIMIT_SECONDS = 900  # within which it must have come to a checkpoint


def run(
    jobs: Sequence[Job], experiments: Path, rerun_stale: bool, launcher: Sequence[str], parallel: int = 1
) -> dict[Job, State]:
    """Train every job that is not done, at most `parallel` at a time; return the state of each afterwards.

    If two runs of a row fail in a row with the same bad input, the rest of that row is put off to the end.
    Raises ValueError if another row, or the rest of the only one left, fails the same way; KeyboardInterrupt or Stopped
    if a signal asked to end. In both cases no run is left behind: those at work end first."""
    cells = read_cells(experiments)
    missing = [job for job in jobs if is_wanted(state_of(job, cells), rerun_stale)]
    slots = range(min(parallel, len(missing)) or 1)
    waiting, running, states, alike, give_up = list(jobs), {}, {}, [], ""
    with supervised(running) as signals:
        while True:
            if waiting and len(running) < len(slots) and not signals and not give_up:
                job = waiting.pop(0)
                heading = f"[{len(jobs) - len(waiting)}/{len(jobs)}] {job.name}"
                states[job], experiment, claim = claim_experiment(job, experiments, rerun_stale)
                if experiment is None:
                    say(f"{heading}: {outcome(states[job])}")
                    continue
                say(f"{heading}: {experiment}")
                slot = min({*slots} - running.keys())
                running[slot] = Child(job, heading, experiment, claim, launcher, slot, len(slots))
                if signals:  # one may have come before the process could get it
                    running[slot].process.terminate()
                continue
            if not running:
                break
            time.sleep(POLL_SECONDS)
            for slot in [slot for slot, child in running.items() if child.has_ended()]:
                child = running.pop(slot)
                code, job = child.close(asked_to_end=bool(signals)), child.job
                states[job] = state_of(job, read_cells(experiments))
                if len(slots) > 1:
                    say(f"{child.heading}: {outcome(states[job])}")
                if code in (INTERRUPTED, -signal.SIGINT) and not signals:  # the signal came to the child alone
                    signals.append(signal.SIGINT)
                    terminate(running.values())
                if code == STOPPED and len(jobs) == 1 and not signals:  # Slurm has warned the run alone
                    signals.append(signal.SIGUSR1)
                alike = [other for other in alike if states[other].detail == states[job].detail]
                alike = [*alike, job] if code == BAD_INPUT else []
                if len(alike) > 1 and not give_up:
                    give_up = reason_to_give_up(alike, waiting, states[job].detail)
                    waiting.sort(key=lambda other: other.row == job.row)  # the other rows may be good
    if signal.SIGINT in signals:
        stopped = [f"in {state.experiment}" for state in states.values() if state.kind == "interrupted"]
        say(f"\ninterrupted {', '.join(stopped)}; the same command goes on from the last checkpoint")
        raise KeyboardInterrupt
    if signals:
        raise Stopped(signals[0].name)
    if give_up:
        raise ValueError(give_up)
    return states


def default_parallel(launcher: Sequence[str]) -> int:
    """Return how many runs to train at a time: with GPUs or a launcher one, else one per core and 2 GiB of memory."""
    if list(launcher) != [sys.executable] or visible_gpus():
        return 1
    return max(1, int(min(usable_cores(), memory_limit() / MEMORY_PER_RUN)))


def outcome(state: State) -> str:
    """'done, experiments/experiment_1 (mAP 0.5000)'."""
    return f"{state.kind}, {state.experiment} ({state.detail})"


def reason_to_give_up(alike: Sequence[Job], waiting: Sequence[Job], detail: str) -> str:
    """Return why no more jobs are started after those in `alike` failed with the same bad input; '' if they are."""
    rows = {job.row for job in alike}
    if len(rows) == 1 and not all(job.row in rows for job in waiting):
        return ""
    left = f", and {len(waiting)} more were not started" if waiting else ""
    return f"{len(alike)} runs in a row failed alike{left}; fix the cause and run the same command again: {detail}"


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


def claim_experiment(job: Job, experiments: Path, rerun_stale: bool) -> tuple[State, Path | None, ExitStack]:
    """Return the state of a job and, if it is to be trained, its experiment and what holds that until it is closed."""
    claim = ExitStack()
    with one_at_a_time(experiments):  # two grids that start at once do not choose the same cell
        state = state_of(job, read_cells(experiments))
        if not is_wanted(state, rerun_stale):
            return state, None, claim
        experiment = choose_experiment(job, state, experiments)
        claim.enter_context(claimed(experiment))
    return state, experiment, claim


def choose_experiment(job: Job, state: State, experiments: Path) -> Path:
    """Where to train a job: where it was interrupted or failed, else in a new experiment, which remembers the job."""
    goes_on = state.kind in ("interrupted", "failed")
    experiment = state.experiment if goes_on else new_experiment(experiments)
    if not list_checkpoints(experiment / "checkpoints"):  # nothing to go on from: it starts with the present code
        remember(job, experiment)
    return experiment


@contextmanager
def supervised(running: dict[int, Child]) -> Iterator[list[signal.Signals]]:
    """Inside, signals go to all that run, as by `passed_on_to`; after an exception all are ended and waited for."""
    with passed_on_to(lambda: [child.process for child in running.values()]) as signals:
        try:
            yield signals
        finally:
            terminate(running.values())
            for child in running.values():
                child.close(asked_to_end=True)


def terminate(children: Iterable[Child]) -> None:
    """Ask them to save and end."""
    for child in children:
        child.process.terminate()


def try_out(job: Job, folder: Path, launcher: Sequence[str]) -> None:
    """Train a job for a minute, in a folder that is deleted if all goes well. Raises RunError if it fails."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    overrides = last_of_each([*job.overrides, "train.checkpoint_every_steps=10"])  # a checkpoint shows that it trains
    process = subprocess.Popen(replace(job, overrides=overrides).command(folder, launcher))
    began, seconds, told = time.monotonic(), 0.0, False
    with passed_on_to(lambda: [process]) as signals:
        while process.poll() is None:
            seconds = time.monotonic() - began
            trains = seconds > SMOKE_SECONDS and list_checkpoints(folder / "checkpoints")
            if not told and (trains or seconds > SMOKE_LIMIT_SECONDS):
                process.send_signal(signal.SIGUSR1)
                told = True
            time.sleep(1)
    if process.returncode == STOPPED and not told and not signals:  # Slurm has warned the run alone
        raise Stopped(signal.SIGUSR1.name)
    error = last_error(folder)
    if not error and signals:
        error = f"ended by {signals[0].name}"
    if not error and not list_checkpoints(folder / "checkpoints"):
        error = f"no checkpoint after {seconds:.0f} s, exit code {process.returncode}"
    ends = (0, STOPPED, -signal.SIGUSR1, 128 + signal.SIGUSR1)  # the last two if it is scored already
    if not error and process.returncode not in ends and not was_stopped(folder):
        error = f"exit code {process.returncode}"
    if error:
        raise RunError(f"{job.name}: {error}")
    print(f"{job.name}: trains")
    shutil.rmtree(folder)
