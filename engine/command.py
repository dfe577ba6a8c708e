"""The frame of every command: one process group, one line per error, documented exit codes.

0    done
1    the run could not go on (a loss that is not finite, ...)
2    bad input: command line, config, data, checkpoint
75   stopped by SIGTERM, SIGUSR1 or SIGHUP after a save; the same command goes on (EX_TEMPFAIL of sysexits.h)
130  interrupted from the keyboard

Of several processes none speaks: each leaves its last word to engine.launch, which says one line for all.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from tqdm import tqdm

from engine.logbook import logger, start_logging
from engine.ranks import LastWord, is_first, leave_word
from engine.signals import Stopped, interrupts_raised
from engine.terminal import printable_lines

if TYPE_CHECKING:
    import torch

LOADER_FAILURE = re.compile(r"DataLoader (worker \(pid.*\) (is killed|exited)|timed out)")
LOADER_CURE = "Out of memory, or storage that hangs? Lower data.workers; --resume goes on from the last checkpoint"
RANK_CURE = "The cause is in its own lines, if it left any; --resume goes on from the last checkpoint"
RANK_0_FIRST_SECONDS = 5  # the other ranks wait, so that the launcher ends them before they repeat what rank 0 prints
BAD_INPUT = 2
STOPPED = 75
INTERRUPTED = 130


class RunError(RuntimeError):
    """A run that cannot go on; the message says where and why."""


@interrupts_raised()
def run_command(main: Callable[["torch.device | None"], None], on_device: bool = True) -> None:
    """Run `main(device)` inside the process group; leave with the exit code of what happened.

    on_device: if False, there is no process group, torch is not imported, and `device` is None.

    A ValueError or OSError is the user's to mend: one line, its traceback only in the log file of the
    experiment, if there is one by then. Anything unforeseen is a bug and keeps its traceback. Either way the
    log file's last line of level ERROR says why the run ended."""
    repair_streams()
    try:
        with _process_group() if on_device else contextlib.nullcontext() as device, _deaf_to_children_after_errors():
            start_logging(None, verbose=is_first())
            main(device)
        _kill_children()
    except (Stopped, KeyboardInterrupt, Exception) as error:
        ending = explain(error)
        if isinstance(error, BrokenPipeError) and ending.code == BAD_INPUT:  # the reader, such as `head`, has enough
            os._exit(128 + signal.SIGPIPE)
        if ending.code in (STOPPED, INTERRUPTED):
            leave_word(LastWord(ending.code))
            _leave(ending.code)
        if ending.is_bug:
            traceback.print_exc()
        _fail(error, ending)


class Ending(NamedTuple):
    """How a command ends because of an exception."""

    code: int  # exit code
    message: str
    of_another: bool = False  # another process is to blame, and may say more
    is_bug: bool = False


def explain(error: BaseException) -> Ending:
    """Return the exit code and the message of an exception that ends a command."""
    message = str(error)
    if isinstance(error, Stopped):
        return Ending(STOPPED, message)
    if isinstance(error, KeyboardInterrupt):
        return Ending(INTERRUPTED, "interrupted from the keyboard")
    if isinstance(error, SystemExit):
        return Ending(error.code if isinstance(error.code, int) else int(error.code is not None), message)
    first_line = (message.splitlines() or [""])[0].rstrip(".")
    if isinstance(error, (ConnectionError, EOFError)) and _is_from_loader(error):  # it died handing over a batch
        return Ending(1, f"a loader process has died ({error}). {LOADER_CURE}")
    if "Original Traceback" in message:  # raised in a loader process, whose traceback PyTorch put into the message
        message = message.strip().splitlines()[-1].partition(": ")[2]
    if isinstance(error, (ValueError, OSError, EOFError)):
        return Ending(BAD_INPUT, message)
    if isinstance(error, RunError):
        return Ending(1, message)
    if LOADER_FAILURE.match(message):  # PyTorch raises it wherever the main thread happens to be
        return Ending(1, f"{first_line}. {LOADER_CURE}")
    if _tells_of_another_rank(error):
        return Ending(1, f"another process of this run has died or hangs ({first_line}). {RANK_CURE}", of_another=True)
    return Ending(1, f"a bug: {type(error).__name__}: {message}", is_bug=True)


def repair_streams() -> None:
    """Let printing never fail: on a stream that was closed before the start, or of file names that are not text."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (as long as the process)
        getattr(sys, name).reconfigure(errors="backslashreplace")


def _process_group() -> contextlib.AbstractContextManager["torch.device"]:
    from engine import distributed  # imports torch

    return distributed.process_group()


def _tells_of_another_rank(error: Exception) -> bool:
    if "torch.distributed" not in sys.modules:
        return False
    from engine import distributed

    return distributed.tells_of_another_rank(error)


@contextlib.contextmanager
def _deaf_to_children_after_errors() -> Iterator[None]:
    """PyTorch raises once more, wherever that may be, when the system tells of a dead loader process."""
    try:
        yield
    except BaseException:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise


def _is_from_loader(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return any("torch/utils/data" in frame.filename or "multiprocessing" in frame.filename for frame in frames)


def _fail(error: BaseException, ending: Ending) -> NoReturn:
    """Write the error to the log file, say it or have it said, and leave."""
    rank = os.environ.get("RANK", "0")
    message = printable_lines(ending.message)
    line = f"error: {message}" if rank == "0" else f"error on rank {rank}: {message}"
    logger.debug("traceback", exc_info=error)
    logger.error(line)  # to the log file; see start_logging
    if not leave_word(LastWord(ending.code, line, ending.of_another)):
        if rank != "0":
            time.sleep(RANK_0_FIRST_SECONDS)
        with contextlib.suppress(OSError):
            tqdm.write(line, file=sys.stderr)
    _leave(ending.code)


def _kill_children() -> None:
    """Loader processes that are not needed any more; to end of themselves takes them a moment, or for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or PyTorch would call it an error
    for process in multiprocessing.active_children():
        process.kill()


def _leave(code: int) -> NoReturn:
    """At once, whatever a loader process that hangs or a thread of another library would wait for."""
    _kill_children()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
