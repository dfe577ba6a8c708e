"""Log messages and progress bars, on the terminal and in the train.log of an experiment.

Messages use the standard logging module; on the terminal they appear above tqdm's progress bars.
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
    """Handler that prints messages above the progress bar. Errors are printed by engine/command.py instead."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            with suppress(OSError):  # a closed pipe or a full disk does not end a run
                tqdm.write(self.format(record), file=sys.stdout)
                sys.stdout.flush()  # so that messages appear at once, even if the output is a file


class _Formatter(logging.Formatter):
    """Formatter that escapes control characters in messages, because names in them may be untrusted."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def start_logging(experiment: Path | None, verbose: bool) -> None:
    """Log to the terminal (only warnings if not `verbose`) and to train.log in `experiment`, if not None."""
    logging.raiseExceptions = False  # print no traceback if the log file cannot be written
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
    """Stream for tqdm that writes each state of a progress bar as a line, for log files."""

    def write(self, text: str) -> None:
        text = re.sub(r"\x1b\[A|[\r\n]", "", text).strip()
        if text:
            with suppress(OSError):
                sys.stderr.write(text + "\n")

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


def progress_bar(steps: Iterable | None = None, bar_class: type[tqdm] = tqdm, **options: Any) -> tqdm:
    """Return a tqdm bar over `steps`, disabled on ranks other than 0. Without a terminal, write a line per minute."""
    minutely = {"file": _Lines(), "delay": 60, "mininterval": 60, "maxinterval": 120, "leave": False}
    options = ({"dynamic_ncols": True} if sys.stderr.isatty() else minutely) | options
    return bar_class(steps, disable=not is_first(), **options)
