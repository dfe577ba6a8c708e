"""What a run says and writes down as it goes: progress bars, train.log, metrics.jsonl and the curves drawn from it.

Messages go through the standard logging module; on the terminal they pass above tqdm's progress bars.
metrics.jsonl has one line per epoch, units in the key names; metrics.csv is the same as a table, for spreadsheets.
"""

import csv
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.ranks import is_first
from engine.storage.files import write_text, writing

logger = logging.getLogger("workbench")
STOPPED = "stopped: "  # begins the last message of a run that was asked to end, and has saved


class _TqdmHandler(logging.Handler):
    """Prints a message without breaking the progress bar below it; errors are said by engine.command."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            with suppress(OSError):  # nobody reads it any more, or its disk is full; the log file has it, too
                tqdm.write(self.format(record), file=sys.stdout)
                sys.stdout.flush()  # into a file, too, a message comes when it happens


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
    terminal.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(terminal)
    if experiment:
        file = logging.FileHandler(experiment / "train.log", encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(file)


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


def progress_bar(steps: Iterable | None = None, **options: Any) -> tqdm:
    """tqdm over `steps` on rank 0, silent on the others; where the output is a file, a line a minute."""
    minutely = {"file": _Lines(), "delay": 60, "mininterval": 60, "maxinterval": 120, "leave": False}
    options = ({"dynamic_ncols": True} if sys.stderr.isatty() else minutely) | options
    return tqdm(steps, disable=not is_first(), **options)


def append_metrics(experiment: Path, line: dict) -> None:
    """Add one epoch to metrics.jsonl, and to metrics.csv."""
    path = experiment / "metrics.jsonl"
    with writing(path), open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())  # not later than the checkpoint that counts on it
    _write_table(experiment, read_metrics(experiment))


def read_metrics(experiment: Path) -> list[dict]:
    """Every epoch written so far, oldest first. Raises ValueError naming the file if it is damaged."""
    path = experiment / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8", errors="backslashreplace")
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]  # one may be cut
    except ValueError as error:
        raise ValueError(f"{path}: damaged, not JSON line by line ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise ValueError(f"{path}: damaged, line {number} is no line of an epoch: {line!r:.50}")
    return lines


def rewind_metrics(experiment: Path, step: int) -> None:
    """Forget epochs that ended after `step`: a resumed run writes them again."""
    kept = [line for line in read_metrics(experiment) if line["step"] <= step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    write_text(experiment / "metrics.jsonl", text)
    _write_table(experiment, kept)


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
