"""torchrun, but for how it ends: with the exit code of the run, and without a report beside the run's own words.

    python -m engine.launch --standalone --nproc_per_node=4 -m TASK.training CONFIG

All options are torchrun's. It passes SIGUSR1 on as well, which torchrun dies of unless told otherwise. torchrun itself
will do; it ends with 1 whatever has happened, and prints a traceback after every failure and every signal.
"""

import argparse
import importlib.util
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from engine.compute.threads import CHOSEN_THREADS, THREADS
from engine.ranks import LAST_WORDS, LAUNCHER, LastWord
from engine.signals import SIGNALS
from engine.start import start
from engine.text import did_you_mean, nearest

# torchrun's options, of which this module only checks the names: its own parser takes seconds to import.
WITH_VALUE = (
    "nnodes", "nproc-per-node", "node-rank", "rdzv-backend", "rdzv-endpoint", "rdzv-id", "rdzv-conf", "master-addr",
    "master-port", "local-addr", "max-restarts", "monitor-interval", "start-method", "shutdown-timeout", "role",
    "log-dir", "logs-specs", "log-line-prefix-template", "local-ranks-filter", "duplicate-stdout-filters",
    "duplicate-stderr-filters", "event-log-handler", "numa-binding", "signals-to-handle",
)  # fmt: skip
FLAGS = ("standalone", "no-python", "run-path", "virtual-local-rank")


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line as torchrun will; `words` are what it is given."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.launch",
        description="Start a command as several processes that train together: torchrun with the exit code of the run. "
        "`torchrun --help` says what its options mean.",
        epilog="example: python -m engine.launch --standalone --nproc_per_node=4 -m TASK.training CONFIG",
    )
    for name in WITH_VALUE:
        parser.add_argument(*_spellings(name), metavar="VALUE")
    for name in FLAGS:
        parser.add_argument(*_spellings(name), action="store_true")
    for letter, name in (("-r", "--redirects"), ("-t", "--tee")):
        parser.add_argument(letter, name, metavar="VALUE")
    parser.add_argument("-m", "--module", action="store_true", help="PROGRAM is a module, as for python -m")
    parser.add_argument("program", metavar="PROGRAM", help="script, or with -m module, that each process runs")
    parser.add_argument("program_words", nargs=argparse.REMAINDER, metavar="...", help="its command line")
    arguments = parser.parse_args(words)
    program = arguments.program
    if arguments.module and not _is_module(program):
        names = [str(path.with_suffix("")).replace("/", ".") for path in [*Path().glob("*.py"), *Path().glob("*/*.py")]]
        parser.error(f"-m {program}: no such module{did_you_mean(nearest(program, names))}")
    if not (arguments.module or arguments.no_python or Path(program).is_file()):
        parser.error(f"{program}: no such file; for a module: -m {program}")
    arguments.words = list(words)
    return arguments


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('-', '_')}"]))


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # of the package that it would be in; an empty name
        return False


def main(arguments: argparse.Namespace, _: None) -> None:
    """Run what the command line says; leave with the exit code of the process that failed first."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    if THREADS not in os.environ:  # or torchrun would give each rank one, whatever the cores
        os.environ |= {THREADS: "1", CHOSEN_THREADS: "1"}  # each rank chooses its own number
    passed_on = [number.name for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup means it
    logging.disable(logging.ERROR)  # the run's own log and words say it
    with TemporaryDirectory() as folder:
        os.environ |= {LAUNCHER: str(os.getpid()), LAST_WORDS: folder}
        code, line = 0, ""
        try:
            torchrun([f"--signals-to-handle={','.join(passed_on)}", *arguments.words])
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
    start(parse_arguments, main, on_device=False)
