"""What a run says and writes down as it goes: progress bars, train.log, metrics.jsonl and the curves drawn from it.

Messages go through the standard logging module; on the terminal they pass above tqdm's progress bars.
metrics.jsonl has one line per epoch, units in the key names; metrics.csv is the same as a table, for spreadsheets.
status.json says where within an epoch a run is, for other programs; it exists while the run trains.
"""

import csv
import io
import json
import logging
import math
import os
import platform
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.files import set_aside, write_text
from engine.ranks import is_first
from engine.terminal import printable_lines

logger = logging.getLogger("workbench")
STATUS_SECONDS = 1  # at least, between two writes of status.json
STOPPED = "stopped: "  # begins the last message of a run that was asked to end, and has saved


class _TqdmHandler(logging.Handler):
    """Prints a message without breaking the progress bar below it; errors are said by engine.command."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            with suppress(OSError):  # nobody reads it any more, or its disk is full; the log file has it, too
                tqdm.write(self.format(record), file=sys.stdout)
                sys.stdout.flush()  # into a file, too, a message comes when it happens


class _Formatter(logging.Formatter):
    """Escapes control characters of names in messages, for whoever reads them in a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def start_logging(experiment: Path | None, verbose: bool) -> None:
    """Send messages to the terminal (`verbose`: all of them, else only warnings) and, given an experiment
    directory, to its train.log."""
    logging.raiseExceptions = False  # a log file on a full disk is no reason for tracebacks
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    terminal = _TqdmHandler(logging.INFO if verbose else logging.WARNING)
    terminal.setFormatter(_Formatter("%(message)s"))
    logger.addHandler(terminal)
    if experiment:
        file = logging.FileHandler(experiment / "train.log", encoding="utf-8", errors="backslashreplace")
        file.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(file)


@contextmanager
def warnings_counted() -> Iterator[Counter]:
    """Inside, warnings are counted, by message."""
    counts: Counter = Counter()

    def count(record: logging.LogRecord) -> bool:
        counts[record.getMessage()] += record.levelno == logging.WARNING
        return True

    logger.addFilter(count)
    try:
        yield counts
    finally:
        logger.removeFilter(count)


class _Lines:
    """A stream that tqdm's bars can be written to: a line for each, as a log file wants it."""

    def write(self, text: str) -> None:
        text = re.sub(r"\x1b\[A|[\r\n]", "", text).strip()
        if text:
            with suppress(OSError):
                sys.stderr.write(text + "\n")

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


def progress_bar(steps: Iterable | None = None, bar_class: type[tqdm] = tqdm, **options: Any) -> tqdm:
    """tqdm over `steps` on rank 0, silent on the others; where the output is a file, a line a minute."""
    minutely = {"file": _Lines(), "delay": 60, "mininterval": 60, "maxinterval": 120, "leave": False}
    options = ({"dynamic_ncols": True} if sys.stderr.isatty() else minutely) | options
    return bar_class(steps, disable=not is_first(), **options)


def training_bar(experiment: Path, step: int, steps_per_epoch: int, epochs: int, metric: str) -> tqdm:
    """Return the progress bar of a training run, which also keeps status.json on rank 0.

    step: optimizer steps done before this start. metric: name of the score that judges the run."""
    total = steps_per_epoch * epochs
    bar = progress_bar(bar_class=_TrainingBar, total=total, initial=step, unit="step", smoothing=0.02)
    bar.path, bar.steps_per_epoch, bar.epochs, bar.metric = experiment / "status.json", steps_per_epoch, epochs, metric
    return bar


class _TrainingBar(tqdm):
    """A progress bar that writes status.json at most once a second, and deletes it at the end."""

    written = -math.inf

    def update(self, n: float = 1) -> bool | None:
        shown = super().update(n)
        if not self.disable and time.monotonic() - self.written >= STATUS_SECONDS:
            self.written = time.monotonic()
            status = {
                "state": "running",
                "step": self.n,
                "total_steps": self.total,
                "epoch": math.ceil(self.n / self.steps_per_epoch),
                "epochs": self.epochs,
                "metric": self.metric,
                "host": platform.node(),
                "pid": os.getpid(),
                "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            with suppress(OSError):  # no run ends because its progress cannot be shown
                write_text(self.path, json.dumps(status) + "\n", sync=False)
        return shown

    def close(self) -> None:
        if not self.disable:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
        super().close()


def read_status(experiment: Path) -> dict | None:
    """Return what status.json says, None if the run is not training."""
    try:
        return json.loads((experiment / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a power failure can leave it empty
        return None


def write_metrics(experiment: Path, lines: Sequence[dict]) -> None:
    """Write every epoch so far to metrics.jsonl and metrics.csv, in place of what is there.

    The whole file each time: a run that knows its epochs does not depend on what happens to the file meanwhile."""
    write_text(experiment / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    _write_table(experiment, lines)


def read_metrics(experiment: Path) -> list[dict]:
    """Every epoch written so far, oldest first. Raises ValueError naming the file if it is damaged."""
    path = experiment / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8", errors="backslashreplace")
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]  # one may be cut
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, not JSON line by line ({error}); move it away") from None
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise ValueError(f"{path}: damaged, line {number} is no line of an epoch: {line!r:.50}; move it away")
    return lines


def restore_metrics(experiment: Path, lines: Sequence[dict]) -> None:
    """Have metrics.jsonl hold the epochs of a checkpoint, and none after it: a resumed run writes them again.

    A file that lacks one of them, or has another in its place, is kept aside and reported."""
    path = experiment / "metrics.jsonl"
    try:
        found = read_metrics(experiment)[: len(lines)]
        damage = f"{path}: {len(found)} of {len(lines)} epochs in it, or others than in the checkpoint"
    except (OSError, ValueError) as error:
        found, damage = None, str(error)
    if found is None or list(map(json.dumps, found)) != list(map(json.dumps, lines)):
        kept = f"; kept as {set_aside(path).name}" if path.exists() else ""
        logger.warning("%s%s, and written again from the checkpoint", damage, kept)
    write_metrics(experiment, lines)


def _write_table(experiment: Path, lines: Sequence[dict]) -> None:
    """metrics.csv anew, for an epoch may bring columns that those before it do not have, such as scores.

    Without lines there is none."""
    if not lines:
        (experiment / "metrics.csv").unlink(missing_ok=True)
        return
    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(experiment / "metrics.csv", table.getvalue())


def draw_curves(experiment: Path, metrics: Sequence[str], reference_losses: dict[str, float]) -> None:
    """curves.png from metrics.jsonl: training losses, validation metrics, the learning rate, over epochs.

    reference_losses: name of a loss to the value that a model which learned nothing reaches, drawn dashed."""
    lines = read_metrics(experiment)
    if not lines:
        return
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from engine.charts import save_chart

    figure = Figure(figsize=(13, 4), layout="constrained")
    losses, scores, rate = figure.subplots(1, 3)
    epochs = [line["epoch"] for line in lines]
    marker = "o" if len(lines) < 30 else None
    keys = [key for key in lines[0] if key.startswith("train_loss_")]
    for index, key in enumerate(keys[1:] if len(keys) == 2 else keys):  # of one loss the total is the same line
        name = key.removeprefix("train_loss_")
        losses.plot(epochs, [line[key] for line in lines], label=name, color=f"C{index}", marker=marker, ms=3)
        if name in reference_losses:
            losses.axhline(
                reference_losses[name], color=f"C{index}", ls="--", lw=1, label=f"{name}, constant predictor"
            )
    scored = [line for line in lines if line.get(metrics[0]) is not None]
    for metric in metrics:
        scores.plot(
            [line["epoch"] for line in scored], [line[metric] for line in scored], label=metric, marker=marker, ms=3
        )
    rate.plot(epochs, [line["learning_rate"] for line in lines], color="C2", marker=marker, ms=3)
    for axes, title in ((losses, "training loss"), (scores, "validation score"), (rate, "learning rate")):
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.set_xlim(0.5, epochs[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_ylim(bottom=0)  # and up to what was reached: the first epochs would be a flat line on a scale up to 1
    losses.legend(fontsize=8)
    if scored:
        scores.legend(fontsize=8)
    save_chart(experiment / "curves.png", figure)
