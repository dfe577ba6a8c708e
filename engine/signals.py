"""Signals that ask a run to end: Slurm's before a time limit or a preemption, a terminal's when it closes, Ctrl-C.

The first one is only noted, so that the loop can finish its step and save; see `StopRequest`.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


def interrupt_imports_silently() -> None:
    """Let Ctrl-C end a command that is still importing, which takes seconds, by the signal itself: no traceback.

    For the `__init__` of a package with commands; does nothing but in `python -m PACKAGE.MODULE`, which has "-m" for
    its name while Python imports the package."""
    if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def interrupts_silent() -> Iterator[None]:
    """Ctrl-C ends the process inside by the signal itself, without a traceback; afterwards it does what it did before.

    For imports that take seconds, when there is nothing to save yet."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def interrupts_raised() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt inside, as is usual in Python; afterwards it does what it did before."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Stopped(BaseException):
    """A run ended because a signal asked it to; what it had done is saved. An interrupt, hence no Exception."""


class StopRequest:
    """Which signal has asked this process to stop, if any has.

    Inside `noted()` SIGTERM, SIGUSR1, SIGHUP and SIGINT are only noted, but for those that were ignored: nohup means
    it. A second SIGINT interrupts at once, for someone at the keyboard who can't wait; others may come twice, as Slurm
    sends them."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Handle the signals inside; afterwards they do what they did before."""
        heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._note) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop_if_asked(self) -> None:
        """Raises what a signal to this process asks for, if there was one. For work that has nothing to save."""
        if self.signal:
            self.stop()

    def stop(self) -> None:
        """Raises what the noted signal asks for: KeyboardInterrupt for SIGINT, else Stopped.

        Raises Stopped, too, where only another process has got a signal."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped(self.signal.name if self.signal else "a signal to another process")

    def _note(self, number: int, _: FrameType | None) -> None:
        again = self.signal == number == signal.SIGINT
        self.signal = signal.Signals(number)
        if again:
            sys.unraisablehook = lambda _: (
                None
            )  # where Python can't raise it, in a callback, it would print a traceback
            self.stop()
