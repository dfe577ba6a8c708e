"""Run the body of a command: join the process group, report errors in one line, exit with a documented code.

0    done
1    the run cannot continue
2    invalid input: command line, config, data, checkpoint
3    the training diverged: loss, gradient or a weight is not finite
75   stopped by SIGTERM, SIGUSR1 or SIGHUP after saving; can be resumed (EX_TEMPFAIL of sysexits.h)
130  interrupted from the keyboard

Only the first rank that fails reports its error, because the others fail as a consequence or for the same reason.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from tqdm import tqdm

from engine.logbook import logger, start_logging
from engine.ranks import is_first
from engine.signals import Stopped, handle_interrupt
from engine.terminal import printable_lines

if TYPE_CHECKING:
    import torch

LOADER_FAILURE = re.compile(r"DataLoader (worker \(pid.*\) (is killed|exited)|timed out)")
LOADER_CURE = "Check memory and storage, lower data.workers, and continue from the last checkpoint with --resume"
RANK_CURE = "The launcher's report names that process; continue from the last checkpoint with --resume"
FAILED = 1
BAD_INPUT = 2
DIVERGED = 3
STOPPED = 75
INTERRUPTED = 130


class RunError(RuntimeError):
    """Raised if a run cannot continue; the message says where and why."""


class DivergedError(RunError):
    """Raised if the loss, the gradient or a weight is not finite."""


def run_command(main: Callable[["torch.device | None"], None], on_device: bool = True) -> None:
    """Run `main(device)` inside the process group; if it raises, exit with the matching code.

    on_device: if False, there is no process group, torch is not imported, and `device` is None.

    A ValueError or OSError is the user's mistake: it is printed in one line, and its traceback goes only to the
    experiment's log file. Any unexpected exception is a bug, and its traceback is printed."""
    handle_interrupt(signal.default_int_handler)
    ranks = None
    try:
        if on_device:
            from engine import distributed as ranks  # imports torch
        with ranks.process_group() if ranks else contextlib.nullcontext() as device:
            start_logging(None, verbose=is_first())
            main(device)
    except (Exception, Stopped, KeyboardInterrupt) as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would print a traceback
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises for each loader process that ends
        ending = explain(error)
        is_first_failure = not ranks or ranks.is_first_failure()
        if ending.is_bug:
            traceback.print_exception(error)
        if ending.code in (FAILED, BAD_INPUT, DIVERGED):
            _report(error, ending.message, is_first_failure)
        _exit_now(ending.code)
    if "RANK" in os.environ:
        _exit_now(0)  # at a normal exit, a gloo thread that still uses Python may abort the process
    _kill_children()


class Ending(NamedTuple):
    """Exit code and message of a command that ends with an exception."""

    code: int  # exit code
    message: str
    is_bug: bool = False


def explain(error: BaseException) -> Ending:
    """Return the exit code and the message of an exception that ends a command."""
    if isinstance(error, Stopped):
        return Ending(STOPPED, str(error))
    if isinstance(error, KeyboardInterrupt):
        return Ending(INTERRUPTED, "interrupted from the keyboard")
    if isinstance(error, SystemExit):
        return Ending(error.code if isinstance(error.code, int) else int(error.code is not None), str(error))
    text = str(error)
    if "Original Traceback" in text:  # raised in a loader process: PyTorch put the traceback into the message
        text = text.strip().splitlines()[-1].partition(": ")[2]
    first_line = (text.splitlines() or [""])[0].rstrip(".")
    frames = traceback.extract_tb(error.__traceback__)
    is_from_loader = any("torch/utils/data" in each.filename or "multiprocessing" in each.filename for each in frames)
    died_handing_over = isinstance(error, (ConnectionError, EOFError)) and is_from_loader
    if died_handing_over or LOADER_FAILURE.match(text):  # PyTorch may raise it anywhere in the main thread
        return Ending(FAILED, f"a loader process died or hangs ({first_line}). {LOADER_CURE}")
    if isinstance(error, BrokenPipeError):  # the reader of the output, such as `head`, has ended
        return Ending(128 + signal.SIGPIPE, text)
    if isinstance(error, (ValueError, OSError, EOFError)):
        return Ending(BAD_INPUT, text)
    if isinstance(error, RunError):
        return Ending(DIVERGED if isinstance(error, DivergedError) else FAILED, text)
    ranks = sys.modules.get("engine.distributed")
    if ranks and ranks.is_from_another_rank(error):
        return Ending(FAILED, f"another process of this run died or hangs ({first_line}). {RANK_CURE}")
    return Ending(FAILED, f"a bug: {type(error).__name__}: {error}", is_bug=True)


def _report(error: BaseException, message: str, is_first_failure: bool) -> None:
    """Write the error to the log file; print it if this process is the first one that fails."""
    message = printable_lines(message)
    line = f"error: {message}" if is_first() else f"error on rank {os.environ['RANK']}: {message}"
    logger.debug("traceback", exc_info=error)
    logger.error(line)  # only to the log file, see start_logging
    if is_first_failure:
        with contextlib.suppress(OSError):
            tqdm.write(line, file=sys.stderr)


def _kill_children() -> None:
    """Kill loader processes, because they take a moment to end, or hang."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise an error
    for process in multiprocessing.active_children():
        process.kill()


def _exit_now(code: int) -> NoReturn:
    """Exit without waiting for hanging loader processes or threads."""
    _kill_children()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
