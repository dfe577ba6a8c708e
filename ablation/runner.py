"""Training the runs of a grid on this machine, one or several at a time, each as a command of its own."""

import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from ablation.child import Child, say
from ablation.plan import UNFINISHED, Job, State, read_cells, remember, state_of
from engine.checkpoint import list_checkpoints
from engine.command import INTERRUPTED, STOPPED
from engine.compute.machine import memory_limit, usable_cores, visible_gpus
from engine.files import locked
from engine.signals import SIGNALS, Stopped
from records.experiment import new_experiment
from records.status import GRID_LOCK

POLL_SECONDS = 0.1  # between two looks at the processes
MEMORY_PER_RUN = 2 * 2**30  # bytes, for the default number of runs at a time


def run(
    jobs: Sequence[Job], experiments: Path, rerun_stale: bool, launcher: Sequence[str], parallel: int = 1
) -> dict[Job, State]:
    """Train every job that is not done, at most `parallel` at a time; return the state of each afterwards.

    Raises KeyboardInterrupt or Stopped, after all runs have saved and ended, if a signal asked to end."""
    cells = read_cells(experiments)
    missing = [job for job in jobs if is_wanted(state_of(job, cells), rerun_stale)]
    slots = range(min(parallel, len(missing)) or 1)
    waiting, states = list(jobs), {}
    running: dict[int, Child] = {}
    with supervised(running) as signals:
        while running or (waiting and not signals):
            if waiting and len(running) < len(slots) and not signals:
                job = waiting.pop(0)
                heading = f"[{len(jobs) - len(waiting)}/{len(jobs)}] {job.name}"
                states[job], experiment, claim = claim_experiment(job, experiments, rerun_stale)
                say(f"{heading}: {experiment or outcome(states[job])}")
                if experiment:
                    slot = min({*slots} - running.keys())
                    running[slot] = Child(job, heading, experiment, claim, launcher, slot, len(slots))
                    if signals:  # one may have come before the process could get it
                        running[slot].process.terminate()
                continue
            time.sleep(POLL_SECONDS)
            for slot in [slot for slot, child in running.items() if child.has_ended()]:
                child = running.pop(slot)
                code = child.close(asked_to_end=bool(signals))
                states[child.job] = state_of(child.job, read_cells(experiments))
                if len(slots) > 1:
                    say(f"{child.heading}: {outcome(states[child.job])}")
                if code in (INTERRUPTED, -signal.SIGINT) and not signals:  # the signal came to the child alone
                    signals.append(signal.SIGINT)
                    terminate(running.values())
                if code == STOPPED and len(jobs) == 1 and not signals:  # Slurm has warned the run alone
                    signals.append(signal.SIGUSR1)
    if signal.SIGINT in signals:
        stopped = [f"in {state.experiment}" for state in states.values() if state.kind == "stopped"]
        say(f"\nstopped {', '.join(stopped)}; the same command resumes from the last checkpoint")
        raise KeyboardInterrupt
    if signals:
        raise Stopped(signals[0].name)
    return states


def default_parallel(launcher: Sequence[str]) -> int:
    """Return how many runs to train at a time: with GPUs or a launcher one, else one per core and 2 GiB of memory."""
    if list(launcher) != [sys.executable] or visible_gpus():
        return 1
    return max(1, int(min(usable_cores(), memory_limit() / MEMORY_PER_RUN)))


def outcome(state: State) -> str:
    """'done, experiments/experiment_1 (mAP 0.5000)'."""
    return f"{state.kind}, {state.experiment} ({state.detail})"


def is_wanted(state: State, rerun_stale: bool) -> bool:
    """Whether a job is to be trained or resumed."""
    return state.kind in ("waiting", *UNFINISHED) or (state.kind == "stale" and rerun_stale)


@contextmanager
def one_at_a_time(experiments: Path) -> Iterator[None]:
    """Inside, no other grid chooses what to train."""
    experiments.mkdir(parents=True, exist_ok=True)
    with locked(experiments / "grid.lock"):
        yield


def claim_experiment(job: Job, experiments: Path, rerun_stale: bool) -> tuple[State, Path | None, ExitStack]:
    """Return the state of a job and, if it is to be trained, its experiment and what holds that until it is closed."""
    claim = ExitStack()
    with one_at_a_time(experiments):  # two grids that start at once do not choose the same cell
        state = state_of(job, read_cells(experiments))
        if not is_wanted(state, rerun_stale):
            return state, None, claim
        experiment = state.experiment if state.kind in UNFINISHED else new_experiment(experiments)
        if not list_checkpoints(experiment / "checkpoints"):  # nothing to resume: it starts with the present code
            remember(job, experiment)
        claim.enter_context(locked(experiment / GRID_LOCK, ValueError(f"{experiment}: another grid is at work in it")))
    return state, experiment, claim


@contextmanager
def supervised(running: dict[int, Child]) -> Iterator[list[signal.Signals]]:
    """Pass signals that ask to end on to all runs, and yield the list of those that came; at the end, end all runs.

    Ctrl-C is passed on as SIGTERM: a terminal has sent the runs SIGINT already, and a second one would keep them from
    saving. A second Ctrl-C raises KeyboardInterrupt."""
    came: list[signal.Signals] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and number in came:
            raise KeyboardInterrupt
        came.append(signal.Signals(number))
        for child in running.values():
            child.process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in handled}
    try:
        yield came
    finally:
        terminate(running.values())
        for child in running.values():
            child.close(asked_to_end=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def terminate(children: Iterable[Child]) -> None:
    """Ask them to save and end."""
    for child in children:
        child.process.terminate()
