"""One run of a grid as a process of its own: its environment, its output, its progress line, and signals to it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from tqdm import tqdm

from ablation.plan import Job
from engine.command import INTERRUPTED, STOPPED
from engine.compute.machine import usable_cores, visible_gpus
from engine.logbook import progress_bar
from engine.terminal import printable_lines
from records.experiment import shown_score
from records.metrics import read_metrics
from records.status import STATUS_SECONDS, begin_status, end_status, read_status

OUTPUT = "output.log"  # what a run beside others prints


class Child:
    """A job at work in its experiment.

    Alone it has the terminal and all threads. Beside others its output goes to output.log, and a progress line shows
    how far it is."""

    def __init__(
        self, job: Job, heading: str, experiment: Path, claim: ExitStack, launcher: Sequence[str], slot: int, slots: int
    ) -> None:
        """claim: closed when the run has ended. slot: which of the `slots` runs at a time this is."""
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
        """Look at the process, and show how far it is."""
        if self.progress:
            self.progress.update()
        return self.process.poll() is not None

    def close(self, asked_to_end: bool) -> int:
        """Wait for the process, complete its status if it could not, and release the experiment; return the exit code.

        asked_to_end: by a signal that the grid passed on."""
        code = self.process.wait()
        if self.progress:
            self.progress.bar.close()
        if asked_to_end or code in (STOPPED, INTERRUPTED, -signal.SIGINT):
            code = end_status(self.experiment, "stopped", code, "")
        elif name := signal_name(code):
            code = end_status(self.experiment, "killed", code, name)
        elif code > 0:
            text = (self.experiment / OUTPUT).read_text(errors="replace") if self.progress else "see the terminal"
            last = [line.strip() for line in text.splitlines() if line.strip()][-1:]
            code = end_status(
                self.experiment, "failed", code, f"exit code {code}: {''.join(last) or 'it printed nothing'}"
            )
        self.claim.close()
        return code


def signal_name(code: int) -> str:
    """Return the signal that a process died of, by its exit code (-9) or that of srun (137); "" if of none."""
    with suppress(ValueError):
        return signal.Signals(-code if code < 0 else code - 128).name
    return ""


def slot_environment(slot: int, slots: int) -> dict[str, str]:
    """Return the environment of a run beside others: its share of the cores and GPUs, unless the user has set threads.

    If there are fewer GPUs than runs, all runs see all GPUs."""
    environment = {"OMP_NUM_THREADS": str(max(1, int(usable_cores() / slots)))} | os.environ
    gpus = visible_gpus()
    share = len(gpus) // slots
    if share:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot * share : (slot + 1) * share])
    return environment


class RunProgress:
    """The progress line of one run: step, time left, epoch and the score so far."""

    def __init__(self, name: str, experiment: Path, slot: int) -> None:
        """slot: which line of the terminal, from 0."""
        self.experiment, self.updated = experiment, 0.0
        self.bar = progress_bar(desc=name, position=slot, leave=False, unit="step", smoothing=0, postfix="starting")

    def update(self) -> None:
        """Show how far the run is now, at most every second."""
        if time.monotonic() - self.updated < STATUS_SECONDS:
            return
        self.updated = time.monotonic()
        status = read_status(self.experiment)
        if status and status.total_steps:
            if self.bar.total is None:  # at its first step; the time before that says nothing about the time left
                self.bar.reset(status.total_steps)
                self.bar.initial = self.bar.n = self.bar.last_print_n = status.step
            text = f"epoch {status.epoch}/{status.epochs}"
            with suppress(ValueError):  # a damaged file is reported when the run is read as a whole
                scores = [line[status.metric] for line in read_metrics(self.experiment) if status.metric in line]
                text += f", {status.metric} {shown_score(scores[-1])}" if scores else ""
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(status.step - self.bar.n)
        if sys.stderr.isatty():
            self.bar.refresh()  # the clock keeps running while a run starts or is scored


def say(text: str) -> None:
    """Print a line above all progress lines."""
    tqdm.write(printable_lines(text), file=sys.stdout)
    sys.stdout.flush()
