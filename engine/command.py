"""The frame of every command: one process group, one line per error, documented exit codes.

0    done
1    the run could not go on (a loss that is not finite, ...)
2    bad input: command line, config, data, checkpoint
75   stopped by SIGTERM or SIGUSR1 after a save; the same command goes on (EX_TEMPFAIL of sysexits.h)
130  interrupted from the keyboard
"""

import os
import re
import signal
import sys
import time
from collections.abc import Callable

import torch

from engine import distributed
from engine.logbook import logger, start_logging
from engine.signals import Stopped, interrupts_raised

LOADER_FAILURE = re.compile(r"DataLoader (worker \(pid.*\) (is killed|exited)|timed out)")
LOADER_CURE = "Out of memory, or storage that hangs? Lower data.workers; --resume goes on from the last checkpoint"
RANK_0_FIRST_SECONDS = 3
RANK_CURE = "The cause is in its own lines, if it left any; --resume goes on from the last checkpoint"
STOPPED = 75
INTERRUPTED = 130


class RunError(RuntimeError):
    """A run that cannot go on; the message says where and why."""


@interrupts_raised()
def run_command(main: Callable[[torch.device], None]) -> None:
    """Run `main(device)` inside the process group; leave with the exit code of what happened.

    A ValueError or OSError is the user's to mend: one line, its traceback only in the log file of the
    experiment, if there is one by then. Anything unforeseen is a bug and keeps its traceback. Either way the
    log file's last line of level ERROR says why the run ended."""
    try:
        with distributed.process_group() as device:
            start_logging(None, verbose=distributed.is_main())
            main(device)
    except (ConnectionError, EOFError) as error:  # what a loader process leaves that dies while it hands over a batch
        _fail(RunError(f"a loader process has died ({error}). {LOADER_CURE}"), 1)
    except (ValueError, OSError) as error:
        _fail(error, 2)
    except RunError as error:
        _fail(error, 1)
    except Stopped:
        sys.exit(STOPPED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if LOADER_FAILURE.match(str(error)):  # PyTorch raises it wherever the main thread happens to be
            _fail(RunError(f"{str(error).splitlines()[0].rstrip('.')}. {LOADER_CURE}"), 1)
        if distributed.tells_of_another_rank(error):
            what = str(error).splitlines()[0].rstrip(".")
            _fail(RunError(f"another process of this run has died or hangs ({what}). {RANK_CURE}"), 1)
        logger.error("error: a bug: %s: %s", type(error).__name__, error, exc_info=error)
        sys.exit(1)


def _fail(error: Exception, code: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise once more for a dead loader process
    logger.debug("traceback", exc_info=error)
    message = str(error)
    if "Original Traceback" in message:  # raised in a loader process, whose traceback PyTorch put into the message
        message = message.strip().splitlines()[-1].partition(": ")[2]
    rank = os.environ.get("RANK", "0")
    if rank != "0":  # where all ranks fail alike, torchrun ends this one before it repeats what rank 0 says
        time.sleep(RANK_0_FIRST_SECONDS)
    logger.error(f"error: {message}" if rank == "0" else f"error on rank {rank}: {message}")
    sys.exit(code)
