"""One run of a grid as a child process: its environment, output, progress line and final status."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from tqdm import tqdm

from ablation.scheduling.jobs import Job
from engine.command import INTERRUPTED, STOPPED
from engine.compute.machine import usable_cores, visible_gpus
from engine.logbook import progress_bar
from engine.terminal import printable_lines
from records.experiment import format_score
from records.metrics import read_metrics
from records.status import STATUS_SECONDS, begin_status, end_status, read_status

OUTPUT = "output.log"  # stdout and stderr of a run; only written by parallel runs


class Child:
    """The process that trains a job (one cell and seed of a grid) in an experiment.

    A single run uses the terminal and all threads. If several runs are parallel, each run writes its output to
    output.log and has a progress line on the terminal."""

    def __init__(
        self, job: Job, heading: str, experiment: Path, claim: ExitStack, launcher: Sequence[str], slot: int, slots: int
    ) -> None:
        """Start the process. claim: lock, released by `close`. slot: index of this run among `slots` parallel runs."""
        self.job, self.heading, self.experiment, self.claim = job, heading, experiment, claim
        self.progress, options = None, {}
        begin_status(experiment)
        with ExitStack() as stack:
            if slots > 1:
                self.progress = RunProgress(job.name, experiment, slot)
                output = stack.enter_context(open(experiment / OUTPUT, "wb"))
                options = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
                options["env"] = slot_environment(slot, slots)
            self.process = subprocess.Popen(job.command(experiment, launcher), **options)

    def has_ended(self) -> bool:
        """Update the progress line, and return whether the process has ended."""
        if self.progress:
            self.progress.update()
        return self.process.poll() is not None

    def close(self, stop_requested: bool) -> int:
        """Wait for the process, release the experiment, and return the exit code.

        Writes the final status if the process did not. stop_requested: whether the process was asked to stop."""
        code = self.process.wait()
        if self.progress:
            self.progress.bar.close()
        if stop_requested or code in (STOPPED, INTERRUPTED, -signal.SIGINT):
            code = end_status(self.experiment, "stopped", code, "")
        elif name := signal_name(code):
            code = end_status(self.experiment, "killed", code, name)
        elif code > 0:
            text = (self.experiment / OUTPUT).read_text(errors="replace") if self.progress else "see the terminal"
            last = [line.strip() for line in text.splitlines() if line.strip()][-1:]
            code = end_status(self.experiment, "failed", code, f"exit code {code}: {''.join(last) or 'no output'}")
        self.claim.close()
        return code


def signal_name(code: int) -> str:
    """Return the name of the signal that killed a process, or "". code: exit code, such as -9, or 137 from srun."""
    with suppress(ValueError):
        return signal.Signals(-code if code < 0 else code - 128).name
    return ""


def slot_environment(slot: int, slots: int) -> dict[str, str]:
    """Return the environment of one of `slots` parallel runs, which limits the run to its share of cores and GPUs.

    OMP_NUM_THREADS is kept if the user has set it. If there are fewer GPUs than runs, every run can use all GPUs."""
    environment = {"OMP_NUM_THREADS": str(max(1, int(usable_cores() / slots)))} | os.environ
    gpus = visible_gpus()
    share = len(gpus) // slots
    if share:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot * share : (slot + 1) * share])
    return environment


class RunProgress:
    """The progress line of one run: step, time left, epoch and latest score."""

    def __init__(self, name: str, experiment: Path, slot: int) -> None:
        """Create the line. slot: position of the line on the terminal, from 0."""
        self.experiment, self.updated = experiment, 0.0
        self.bar = progress_bar(desc=name, position=slot, leave=False, unit="step", smoothing=0, postfix="starting")

    def update(self) -> None:
        """Read the run's status and redraw the line, at most once a second."""
        if time.monotonic() - self.updated < STATUS_SECONDS:
            return
        self.updated = time.monotonic()
        status = read_status(self.experiment)
        if status and status.total_steps:
            if self.bar.total is None:  # first step: exclude the start-up time from the speed
                self.bar.reset(status.total_steps)
                self.bar.initial = self.bar.n = self.bar.last_print_n = status.step
            text = f"epoch {status.epoch}/{status.epochs}"
            with suppress(ValueError):  # a corrupt metrics file is reported later, when the finished run is read
                scores = [line[status.metric] for line in read_metrics(self.experiment) if status.metric in line]
                text += f", {status.metric} {format_score(scores[-1])}" if scores else ""
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(status.step - self.bar.n)
        if sys.stderr.isatty():
            self.bar.refresh()  # update the elapsed time while a run starts or is scored


def print_line(text: str) -> None:
    """Print a line above the progress lines."""
    tqdm.write(printable_lines(text), file=sys.stdout)
    sys.stdout.flush()
