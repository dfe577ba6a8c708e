"""Messages and progress bars: on the terminal, and in the train.log of an experiment.

Messages go through the standard logging module; on the terminal they appear above tqdm's progress bars.
"""

import logging
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.ranks import is_first
from engine.terminal import printable_lines

logger = logging.getLogger("workbench")


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
