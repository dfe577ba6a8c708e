"""Signals that ask a run to end: Slurm's before a time limit or a preemption, a terminal's when it closes, Ctrl-C.

`StopRequest` only notes the first one, so that the loop can finish its step and save.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


def handle_interrupt(handler: Callable | signal.Handlers) -> None:
    """Handle Ctrl-C by `handler` from now on, unless it is ignored.

    signal.default_int_handler raises KeyboardInterrupt, as is usual in Python. signal.SIG_DFL ends the process by the
    signal itself, without a traceback: for imports that take seconds, when there is nothing to save yet."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


class Stopped(BaseException):
    """A run ended because a signal asked it to, after a save. An interrupt, so not an Exception."""


class StopRequest:
    """The signal that has asked this process to stop, if any has.

    Inside `noted()` SIGTERM, SIGUSR1, SIGHUP and SIGINT are only noted, except those that were ignored, as by nohup. A
    second SIGINT interrupts at once, for someone at the keyboard who can't wait; others may come twice, as Slurm sends
    them."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Handle the signals inside; afterwards they do what they did before."""
        handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._note) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                if signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, handler)

    def stop_if_asked(self) -> None:
        """Raise what a signal to this process asks for, if there was one. For work that has nothing to save."""
        if self.signal:
            self.stop()

    def stop(self) -> None:
        """Raise KeyboardInterrupt if the noted signal is SIGINT, else Stopped.

        Also Stopped if only another process has got a signal."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped(self.signal.name if self.signal else "a signal to another process")

    def _note(self, number: int, _: FrameType | None) -> None:
        again = self.signal == number == signal.SIGINT
        self.signal = signal.Signals(number)
        if again:
            sys.unraisablehook = lambda _: None  # in a callback Python can't raise it, and would print a traceback
            self.stop()
