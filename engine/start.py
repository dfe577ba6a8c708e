"""Start a command: parse the command line, set the number of threads, then import slow modules and run.

A command module has `parse_arguments(words)` and `main(arguments, device)`, and ends with

    if __name__ == "__main__":
        start(parse_arguments, main)

The module itself imports only what loads quickly; `main` imports torch and the modules that do the work. So `--help`
and errors in the command line appear at once.
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
    """Run a command; exit with its code if that is not 0 (see engine/command.py).

    on_device: whether the command computes with torch, on one or several ranks. If not, torch is not imported and
    `device` is None."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names of files and classes may contain invalid Unicode
    handle_interrupt(signal.SIG_DFL)
    if on_device:
        read_slurm_step()
    arguments = read_arguments(parse_arguments)
    if on_device:
        fit_threads()  # imports torch before run_command, so Ctrl-C prints no traceback
    run_command(functools.partial(main, arguments), on_device)


def read_arguments(parse_arguments: Callable[[Sequence[str]], argparse.Namespace]) -> argparse.Namespace:
    """Return the parsed command line; if it is invalid, exit with code 2 and an error message.

    Only the first process on each machine does this. The other processes exit silently with code 0, because after a
    different code the launcher would kill the first process before it prints."""
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
