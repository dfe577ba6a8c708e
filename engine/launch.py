"""torchrun, but for how it ends: with the exit code of the run, and without a report beside the run's own words.

    python -m engine.launch --standalone --nproc_per_node=4 -m detection.training CONFIG

All options are torchrun's. It passes SIGUSR1 on as well, which torchrun dies of unless told otherwise. torchrun itself
will do; it ends with 1 whatever has happened, and prints a traceback after every failure and every signal.
"""

import json
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

from engine.distributed import LAST_WORDS, LAUNCHER, LastWord
from engine.signals import SIGNALS


def main() -> None:
    """Run what the command line says; leave with the exit code of the process that failed first."""
    passed_on = [number.name for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup means it
    logging.disable(logging.ERROR)  # the run's own log and words say it
    with TemporaryDirectory() as folder:
        os.environ |= {LAUNCHER: str(os.getpid()), LAST_WORDS: folder}
        code, line = 0, ""
        try:
            torchrun([f"--signals-to-handle={','.join(passed_on)}", *sys.argv[1:]])
        except SignalException as stop:
            code = 128 + stop.sigval
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            code = failure.exitcode
            if code < 0:
                code, line = 1, f"error: rank {rank} was killed by {signal.Signals(-code).name}; out of memory?"
        except (AssertionError, ValueError, OSError, DistError) as error:
            code, line = 2, f"error: torchrun: {(str(error).splitlines() or ['bad arguments'])[0]}"
        words = [LastWord(*json.loads(path.read_text())) for path in sorted(Path(folder).iterdir())] if code else []
    # Who knows best: a process that failed by itself, what was seen from here, one that failed for want of another.
    words.sort(key=lambda word: (not word.line, word.of_another))
    if words and not (line and words[0].of_another):
        code, line, _ = words[0]
    if line:
        print(line, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
