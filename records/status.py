"""Write and read status.json, which has the progress of a run and how it ended.

A run replaces the file atomically. If the run is killed, the file still says "running". `read_status` detects this,
because the operating system releases the locks of every process that ends, even if the process is killed.
"""

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter
from tqdm import tqdm

from engine.command import INTERRUPTED, STOPPED, explain
from engine.files import is_locked, locked, write_text
from engine.logbook import progress_bar
from records.experiment import slurm_job

State = Literal["running", "done", "stopped", "failed", "killed"]  # stopped: ended on request
STATUS = "status.json"
RUN_LOCK, GRID_LOCK = "running.lock", "cell.lock"  # held by the run; by the grid that started the run
START_FIELDS = ("state", "exit_code", "reason", "host", "pid", "job", "started")  # fields that every start replaces
STATUS_SECONDS = 1  # minimum time between two writes of the progress


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _job() -> str | None:
    return (slurm_job() or {}).get("job")


@dataclass(frozen=True)
class Status:
    """Content of status.json."""

    state: State
    step: int | None = None  # optimizer steps taken
    total_steps: int | None = None
    epoch: int | None = None  # current epoch, from 1
    epochs: int | None = None
    metric: str | None = None  # name of the score that runs are compared by
    exit_code: int | None = None  # None while the process runs; negative: the signal that killed it
    reason: str = ""  # why the run ended: error message or signal
    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)
    job: str | None = field(default_factory=_job)  # Slurm job, such as 12 or 12_3
    started: str = field(default_factory=_now)  # time of the newest start, UTC
    updated: str = field(default_factory=_now)


def write_status(experiment: Path, status: Status) -> None:
    """Replace status.json. Errors are ignored, so that they cannot end the run."""
    with suppress(OSError):
        write_text(experiment / STATUS, json.dumps(asdict(status)) + "\n", sync=status.state != "running")


def update_status(experiment: Path, **changes: Any) -> None:
    """Replace some fields of status.json and set `updated` to the current time."""
    write_status(experiment, replace(_read(experiment) or Status("running"), updated=_now(), **changes))


def begin_status(experiment: Path) -> None:
    """Record that this process is running. The progress of an earlier start is kept."""
    start = asdict(Status("running"))
    update_status(experiment, **{name: start[name] for name in START_FIELDS})


def end_status(experiment: Path, state: State, exit_code: int, reason: str) -> int:
    """Record how a run ended, unless the run itself recorded this. Returns the exit code of the run.

    An exit code that the run recorded is kept. It may differ from the exit code of a launcher such as torchrun."""
    status = _read(experiment)
    if status and status.state != "running":
        return exit_code if status.exit_code is None else status.exit_code
    if status:
        update_status(experiment, state=state, exit_code=exit_code, reason=reason)
    return exit_code


def read_status(experiment: Path) -> Status | None:
    """Return the status of an experiment, or None if it is not running and status.json is missing or unreadable.

    The state is "running" while a process holds a lock of the experiment. The state is "killed" if the file says
    "running" but no process is running."""
    status = _read(experiment)
    if any(is_locked(experiment / name) for name in (RUN_LOCK, GRID_LOCK)):
        return replace(status or Status("running", host="", pid=0, job=None), state="running")
    if status and status.state == "running" and not _runs_elsewhere(status):
        return replace(status, state="killed")
    return status


def _read(experiment: Path) -> Status | None:
    with suppress(OSError, ValueError):
        return TypeAdapter(Status).validate_json((experiment / STATUS).read_bytes())


def _runs_elsewhere(status: Status) -> bool:
    """Return whether Slurm reports the run on a different machine, whose locks may not be visible here."""
    # Do not ask about this process's own job: a requeued job keeps its id, so squeue reports it as running.
    if status.host == platform.node() or status.job in (None, _job()):
        return False
    command = ["squeue", "--noheader", f"--jobs={status.job}", "--states=RUNNING,COMPLETING"]
    with suppress(OSError, subprocess.TimeoutExpired):
        return bool(subprocess.run(command, capture_output=True, timeout=60, check=False).stdout.strip())
    return False


@contextmanager
def mark_running(experiment: Path) -> Iterator[None]:
    """Hold the experiment's lock. On exit, record whether the run is done, stopped or failed.

    The end is recorded only after `begin_status`. A start that fails before that leaves the status unchanged.
    Raises ValueError if another process is running in the experiment."""
    busy = ValueError(f"{experiment}: another process is running in it; wait until it ends, or stop it")
    with locked(experiment / RUN_LOCK, busy):
        try:
            yield
        except BaseException as error:
            code, reason, *_ = explain(error)
            _end_own_status(experiment, "stopped" if code in (STOPPED, INTERRUPTED) else "failed", code, reason)
            raise
        _end_own_status(experiment, "done", 0, "")


def _end_own_status(experiment: Path, state: State, exit_code: int, reason: str) -> None:
    if (status := _read(experiment)) and (status.host, status.pid) == (platform.node(), os.getpid()):
        end_status(experiment, state, exit_code, reason)


def training_bar(experiment: Path, step: int, steps_per_epoch: int, epochs: int, metric: str) -> tqdm:
    """Return the progress bar of a training run, which on rank 0 also writes the progress to status.json.

    step: optimizer steps before this start. metric: name of the score that runs are compared by."""
    total = steps_per_epoch * epochs
    bar = progress_bar(bar_class=_TrainingBar, total=total, initial=step, unit="step", smoothing=0.02)
    bar.experiment, bar.steps_per_epoch, bar.epochs, bar.metric = experiment, steps_per_epoch, epochs, metric
    bar.write_progress()
    return bar


class _TrainingBar(tqdm):
    """A progress bar that writes status.json at most once per STATUS_SECONDS, and when it is closed."""

    def update(self, n: float = 1) -> bool | None:
        shown = super().update(n)
        if time.monotonic() - self.written >= STATUS_SECONDS:
            self.write_progress()
        return shown

    def close(self) -> None:
        if not self.disable:
            self.write_progress()
        super().close()

    def write_progress(self) -> None:
        """Write step and epoch, on rank 0."""
        self.written = time.monotonic()
        if not self.disable:
            epoch = max(1, math.ceil(self.n / self.steps_per_epoch))
            progress = {"step": self.n, "total_steps": self.total, "epoch": epoch, "epochs": self.epochs}
            update_status(self.experiment, **progress, metric=self.metric)
