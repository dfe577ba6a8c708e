"""The start of every command: read the command line, fit the threads to the machine, then import what takes seconds.

A command module has `parse_arguments(words)` and `main(arguments, device)`, and ends with

    if __name__ == "__main__":
        start(parse_arguments, main)

At its top it imports only modules that load quickly; `main` imports torch and the modules that do the work. So `--help`
and every mistake on the command line are answered at once.
"""

import argparse
import contextlib
import functools
import io
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from engine.command import BAD_INPUT, run_command
from engine.compute.threads import fit_threads
from engine.ranks import is_first_on_node, read_slurm_step
from engine.signals import handle_interrupt

if TYPE_CHECKING:
    import torch


def start(
    parse_arguments: Callable[[Sequence[str]], argparse.Namespace],
    main: Callable[[argparse.Namespace, "torch.device | None"], None],
    on_device: bool = True,
) -> None:
    """Run a command; leave with its exit code if that is not 0, see engine/command.py.

    on_device: whether the command computes with torch, alone or as one of several ranks. If not, torch is not imported
    and `device` is None."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names of files and classes may not be text
    handle_interrupt(signal.SIG_DFL)
    if on_device:
        read_slurm_step()
    arguments = read_arguments(parse_arguments)
    if on_device:
        fit_threads()  # imports torch: here, because Ctrl-C must be silent in the seconds that it takes
    run_command(functools.partial(main, arguments), on_device)


def read_arguments(parse_arguments: Callable[[Sequence[str]], argparse.Namespace]) -> argparse.Namespace:
    """Return the parsed command line, or leave with exit code 2 and one line.

    Of several processes the first on each machine does so. The others leave silently with 0, because with an error code
    the launcher would end the first before it prints."""
    try:
        with contextlib.redirect_stderr(sys.stderr if is_first_on_node() else io.StringIO()):
            return parse_arguments(sys.argv[1:])
    except (SystemExit, ValueError, OSError) as error:
        if not is_first_on_node():
            sys.exit(0)
        if isinstance(error, SystemExit):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
