"""torchrun, but for how it ends: with the exit code of the run, and without a report beside the run's own words.

    python -m engine.launch --standalone --nproc_per_node=4 -m detection.training CONFIG

All options are torchrun's. It passes SIGUSR1 on as well, which torchrun dies of unless told otherwise. torchrun itself
will do; it ends with 1 whatever has happened, and prints a traceback after every failure and every signal.
"""

import logging
import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from engine.distributed import LAST_WORD, LAUNCHER
from engine.signals import SIGNALS


def main() -> None:
    """Run what the command line says; leave with the exit code of the process that failed first."""
    passed_on = [number.name for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup means it
    logging.disable(logging.ERROR)  # the run's own log and words say it
    with TemporaryDirectory() as folder:
        last_word = Path(folder) / "last_word"
        os.environ |= {LAUNCHER: str(os.getpid()), LAST_WORD: str(last_word)}
        try:
            torchrun([f"--signals-to-handle={','.join(passed_on)}", *sys.argv[1:]])
        except SignalException as stop:
            sys.exit(_code(last_word) or 128 + stop.sigval)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            code = _code(last_word) or max(failure.exitcode, 0)
            if not code:
                name = signal.Signals(-failure.exitcode).name
                print(f"error: rank {rank} was killed by {name}; out of memory?", file=sys.stderr)
            sys.exit(code or 1)
        except (ValueError, OSError, DistError) as error:
            print(f"error: torchrun: {str(error).splitlines()[0]}", file=sys.stderr)
            sys.exit(2)


def _code(last_word: Path) -> int | None:
    """Of the first process here that ended otherwise than well, if it came to say so."""
    return int(last_word.read_text()) if last_word.exists() else None


if __name__ == "__main__":
    main()
