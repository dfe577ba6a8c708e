"""Train the runs of a grid on this machine, one or several at a time, each in its own process."""

import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from ablation.scheduling.child import Child, print_line
from ablation.scheduling.jobs import SCHEDULE_LOCK, UNFINISHED, Job, State, read_cells, state_of, write_cell
from engine.checkpoint import list_checkpoints
from engine.command import INTERRUPTED, STOPPED
from engine.compute.machine import memory_limit, usable_cores, visible_gpus
from engine.files import locked
from engine.signals import SIGNALS, Stopped
from records.experiment import new_experiment
from records.status import GRID_LOCK

POLL_SECONDS = 0.1  # time between two checks of the processes
MEMORY_PER_RUN = 2 * 2**30  # bytes; limits the default number of parallel runs


def run(
    jobs: Sequence[Job], experiments: Path, rerun_stale: bool, launcher: Sequence[str], parallel: int = 1
) -> dict[Job, State]:
    """Train every missing run, at most `parallel` at a time, and return the final state of each job.

    If a stop signal arrives, waits for all runs to save and end, then raises KeyboardInterrupt or Stopped."""
    cells = read_cells(experiments)
    missing = [job for job in jobs if needs_training(state_of(job, cells), rerun_stale)]
    slots = range(min(parallel, len(missing)) or 1)
    waiting, states = list(jobs), {}
    running: dict[int, Child] = {}
    with forward_signals(running) as signals:
        while running or (waiting and not signals):
            if waiting and len(running) < len(slots) and not signals:
                job = waiting.pop(0)
                heading = f"[{len(jobs) - len(waiting)}/{len(jobs)}] {job.name}"
                states[job], experiment, claim = claim_experiment(job, experiments, rerun_stale)
                print_line(f"{heading}: {experiment or outcome(states[job])}")
                if experiment:
                    slot = min({*slots} - running.keys())
                    running[slot] = Child(job, heading, experiment, claim, launcher, slot, len(slots))
                    if signals:  # a signal may have arrived before this process existed
                        running[slot].process.terminate()
                continue
            time.sleep(POLL_SECONDS)
            for slot in [slot for slot, child in running.items() if child.has_ended()]:
                child = running.pop(slot)
                code = child.close(stop_requested=bool(signals))
                states[child.job] = state_of(child.job, read_cells(experiments))
                if len(slots) > 1:
                    print_line(f"{child.heading}: {outcome(states[child.job])}")
                if code in (INTERRUPTED, -signal.SIGINT) and not signals:  # only the child received Ctrl-C
                    signals.append(signal.SIGINT)
                    terminate(running.values())
                if code == STOPPED and len(jobs) == 1 and not signals:  # Slurm sent its warning signal only to the run
                    signals.append(signal.SIGUSR1)
    if signal.SIGINT in signals:
        stopped = [f"in {state.experiment}" for state in states.values() if state.kind == "stopped"]
        print_line(f"\nstopped {', '.join(stopped)}; the same command resumes from the last checkpoint")
        raise KeyboardInterrupt
    if signals:
        raise Stopped(signals[0].name)
    return states


def default_parallel(launcher: Sequence[str]) -> int:
    """Return the default number of parallel runs: 1 with GPUs or a launcher, else one per core and 2 GiB of memory."""
    if list(launcher) != [sys.executable] or visible_gpus():
        return 1
    return max(1, int(min(usable_cores(), memory_limit() / MEMORY_PER_RUN)))


def outcome(state: State) -> str:
    """Return a state as text: 'done, experiments/experiment_1 (mAP 0.5000)'."""
    return f"{state.kind}, {state.experiment} ({state.detail})"


def needs_training(state: State, rerun_stale: bool) -> bool:
    """Return whether a job must be trained or resumed."""
    return state.kind in ("waiting", *UNFINISHED) or (state.kind == "stale" and rerun_stale)


@contextmanager
def scheduling_lock(experiments: Path) -> Iterator[None]:
    """Context manager that prevents two grids from choosing runs at the same time."""
    experiments.mkdir(parents=True, exist_ok=True)
    with locked(experiments / SCHEDULE_LOCK):
        yield


def claim_experiment(job: Job, experiments: Path, rerun_stale: bool) -> tuple[State, Path | None, ExitStack]:
    """Lock an experiment for a job. Return the job's state, the experiment (None if nothing to train), and the lock."""
    claim = ExitStack()
    with scheduling_lock(experiments):  # so that two grids do not choose the same run
        state = state_of(job, read_cells(experiments))
        if not needs_training(state, rerun_stale):
            return state, None, claim
        experiment = state.experiment if state.kind in UNFINISHED else new_experiment(experiments)
        if not list_checkpoints(experiment / "checkpoints"):  # nothing to resume: the run starts with the current code
            write_cell(job, experiment)
        claim.enter_context(locked(experiment / GRID_LOCK, ValueError(f"{experiment}: another grid is training in it")))
    return state, experiment, claim


@contextmanager
def forward_signals(running: dict[int, Child]) -> Iterator[list[signal.Signals]]:
    """Forward stop signals to all runs, and yield the list of received signals; on exit, terminate all runs.

    Ctrl-C is forwarded as SIGTERM: the terminal has already sent SIGINT to the runs, and a second SIGINT would stop
    them before they have saved. A second Ctrl-C raises KeyboardInterrupt."""
    received: list[signal.Signals] = []

    def forward(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number))
        for child in running.values():
            child.process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, forward) for number in handled}
    try:
        yield received
    finally:
        terminate(running.values())
        for child in running.values():
            child.close(stop_requested=True)
        for number, handler in previous.items():
            signal.signal(number, handler)


def terminate(children: Iterable[Child]) -> None:
    """Send SIGTERM to runs, so that they save and end."""
    for child in children:
        child.process.terminate()
