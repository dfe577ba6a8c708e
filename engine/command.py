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
from typing import TYPE_CHECKING, NoReturn

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
    except (ValueError, OSError, EOFError) as error:
        if isinstance(error, (ConnectionError, EOFError)) and _is_from_loader(error):  # it died handing over a batch
            _fail(RunError(f"a loader process has died ({error}). {LOADER_CURE}"), 1)
        if isinstance(error, BrokenPipeError):  # who read what is printed, such as `head`, has enough
            os._exit(128 + signal.SIGPIPE)
        _fail(error, BAD_INPUT)
    except RunError as error:
        _fail(error, 1)
    except Stopped:
        leave_word(LastWord(STOPPED))
        _leave(STOPPED)
    except KeyboardInterrupt:
        leave_word(LastWord(INTERRUPTED))
        _leave(INTERRUPTED)
    except Exception as error:
        if LOADER_FAILURE.match(str(error)):  # PyTorch raises it wherever the main thread happens to be
            _fail(RunError(f"{str(error).splitlines()[0].rstrip('.')}. {LOADER_CURE}"), 1)
        if _tells_of_another_rank(error):
            what = str(error).splitlines()[0].rstrip(".")
            text = f"another process of this run has died or hangs ({what}). {RANK_CURE}"
            _fail(RunError(text), 1, of_another=True)
        traceback.print_exc()
        _fail(RunError(f"a bug: {type(error).__name__}: {error}"), 1)


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


def _fail(error: Exception, code: int, of_another: bool = False) -> NoReturn:
    """Write the error to the log file, say it or have it said, and leave.

    of_another: another process is to blame, and may say more."""
    message = str(error)
    if "Original Traceback" in message:  # raised in a loader process, whose traceback PyTorch put into the message
        message = message.strip().splitlines()[-1].partition(": ")[2]
    rank = os.environ.get("RANK", "0")
    message = printable_lines(message)
    line = f"error: {message}" if rank == "0" else f"error on rank {rank}: {message}"
    logger.debug("traceback", exc_info=error)
    logger.error(line)  # to the log file; see start_logging
    if not leave_word(LastWord(code, line, of_another)):
        if rank != "0":
            time.sleep(RANK_0_FIRST_SECONDS)
        with contextlib.suppress(OSError):
            tqdm.write(line, file=sys.stderr)
    _leave(code)


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
