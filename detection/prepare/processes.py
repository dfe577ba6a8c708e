"""Processes that share the work on the images of a data set."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor

from engine.compute.machine import usable_cores


def usual_count() -> int:
    """How many processes to use unless told otherwise: one for each core."""
    return max(1, int(usable_cores()))


def process_pool(count: int) -> ProcessPoolExecutor:
    """Processes for work on images, which leave signals to this one and end with it."""
    # Forked, they start at once; see data.build_loader.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    return ProcessPoolExecutor(count, context, initializer=_start_process, initargs=(os.getpid(),))


def _start_process(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end when that ends, however it does: an idle process would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # of Pillow, about images that it decodes all the same

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
