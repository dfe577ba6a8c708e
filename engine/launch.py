"""torchrun, but for how it ends: with the exit code of the run, and without a report beside the run's own words.

    python -m engine.launch --standalone --nproc_per_node=4 -m detection.training CONFIG

All options are torchrun's. It passes SIGUSR1 on as well, which torchrun dies of unless told otherwise. torchrun itself
will do; it ends with 1 whatever has happened, and prints a traceback after every failure and every signal.
"""

import logging
import os
import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from engine.command import INTERRUPTED, STOPPED
from engine.distributed import LAUNCHER
from engine.signals import SIGNALS


def main() -> None:
    """Run what the command line says; leave with the exit code of the process that failed first."""
    # Not what is ignored: nohup means it.
    passed_on = [number for number in (*SIGNALS, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    logging.disable(logging.ERROR)  # the run's own log and words say it
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        torchrun([f"--signals-to-handle={','.join(number.name for number in passed_on)}", *sys.argv[1:]])
    except SignalException as stop:
        sys.exit(INTERRUPTED if stop.sigval == signal.SIGINT else STOPPED)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            sys.exit(failure.exitcode)  # it has said why
        name = signal.Signals(-failure.exitcode).name
        print(f"error: rank {rank} was killed by {name}; out of memory?", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
