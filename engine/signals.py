"""Handle signals that request a run to stop: from Slurm before a time limit, from a closing terminal, or Ctrl-C.

`StopRequest` only records the signal, so that the training loop can finish its step and save a checkpoint.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


def handle_interrupt(handler: Callable | signal.Handlers) -> None:
    """Set the handler of Ctrl-C (SIGINT), unless that signal is ignored.

    signal.default_int_handler raises KeyboardInterrupt, which is Python's default. signal.SIG_DFL ends the process
    without a traceback; this is used during imports, when there is nothing to save yet."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


class Stopped(BaseException):
    """Raised to end a run after a signal, when its checkpoint is saved. Not an Exception, like KeyboardInterrupt."""


class StopRequest:
    """The signal that requested this process to stop, or None.

    Inside `catch_signals()`, SIGTERM, SIGUSR1, SIGHUP and SIGINT are only recorded; signals that were ignored, for
    example by nohup, stay ignored. A second SIGINT interrupts at once. Other repeated signals do not,
    because Slurm sends signals twice."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @contextmanager
    def catch_signals(self) -> Iterator[None]:
        """Context manager that records signals, and restores the former handlers at its end."""
        handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._record) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                if signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, handler)

    def stop_if_requested(self) -> None:
        """Raise Stopped or KeyboardInterrupt if this process has received a signal. Saves nothing."""
        if self.signal:
            self.raise_stop()

    def raise_stop(self) -> None:
        """Raise KeyboardInterrupt if the recorded signal is SIGINT, else Stopped.

        Without a recorded signal, the message says that another process has received a signal."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped(self.signal.name if self.signal else "a signal to another process")

    def _record(self, number: int, _: FrameType | None) -> None:
        is_second_interrupt = self.signal == number == signal.SIGINT
        self.signal = signal.Signals(number)
        if is_second_interrupt:
            sys.unraisablehook = lambda _: None  # print no traceback if raised in a callback
            self.raise_stop()
