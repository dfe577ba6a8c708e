"""What is wrong with the images of a data set, found by decoding every one of them in several processes.

Images are read as by detection/coco/dataset.py: before training, with `data.check_images=true`, and by `python -m
detection.data check`.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain

import numpy as np
from PIL import Image

from data import DatasetError
from detection.coco.annotations import CocoFile
from detection.coco.dataset import decode_image
from detection.coco.defects import Defect, dataset_error, summarised
from detection.coco.image_files import ImageFile
from engine import distributed
from engine.logbook import logger, progress_bar

DARK = 15  # of 255: 12 bits that were taken for 16 are no brighter
ROUND = 512  # images that a pool of processes checks; an image that kills a process is among so many


def check_images(cocos: Sequence[CocoFile], workers: int) -> None:
    """Decode every image of checked annotation files before training: each rank its share, in `workers` processes.

    Warns of images that show nothing. Raises DatasetError, on all ranks, naming the first ten broken ones."""
    files = [coco.file(index) for coco in cocos for index in range(len(coco.images))]
    share = files[distributed.rank() :: distributed.world_size()]
    found = [defect for defect in with_bar(share, workers, "checking images") if defect]
    parts = distributed.gather(found)
    everything = distributed.broadcast(parts and sorted(chain.from_iterable(parts)))
    if distributed.is_main():
        for line in summarised(found for found in everything if found.is_warning):
            logger.warning(line)
    if defects := [found for found in everything if not found.is_warning]:
        raise dataset_error(defects)


def with_bar(files: Sequence[ImageFile], workers: int, title: str) -> Iterator[Defect | None]:
    """Run `find_defects` under a progress bar."""
    return progress_bar(find_defects(files, workers), total=len(files), desc=title, unit="image", leave=False)


def find_defects(files: Sequence[ImageFile], workers: int) -> Iterator[Defect | None]:
    """Decode every image in `workers` processes; yield the defect of each, None if it has none, in order.

    A decoder that kills its process is a defect of that image: those without an answer by then are tried again, each in
    a process of its own."""
    for start in range(0, len(files), ROUND):
        left = deque(files[start : start + ROUND])
        try:
            with process_pool(workers) as pool:
                for defect in pool.map(find_defect, left):
                    left.popleft()
                    yield defect
        except BrokenProcessPool:
            yield from map(_find_defect_alone, left)


def find_defect(file: ImageFile) -> Defect | None:
    """Decode an image and, of a PNG, compare the checksums, which Pillow does not do while decoding.

    An image that shows nothing is a warning."""
    try:
        pixels = decode_image(file)
        with Image.open(file.path) as image:
            if image.format == "PNG":
                image.verify()
    except DatasetError as error:
        return file.defect(str(error))
    except Exception as error:
        return file.defect(f"damaged: {error}")
    if pixels.max() <= DARK:
        return file.defect(f"black once decoded to 8 bits: no value is above {DARK} of 255", is_warning=True)
    if np.all(pixels == pixels[0, 0]):
        return file.defect("all pixels have the same colour", is_warning=True)
    return None


def _find_defect_alone(file: ImageFile) -> Defect | None:
    try:
        with process_pool(1) as pool:
            return pool.submit(find_defect, file).result()
    except BrokenProcessPool:
        return file.defect("the process that decoded it died")


def process_pool(count: int) -> ProcessPoolExecutor:
    """Return processes for work on images, which leave signals to this one and end with it."""
    # Forked, they start at once; see data.build_loader.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    return ProcessPoolExecutor(count, context, initializer=_start_process, initargs=(os.getpid(),))


def _start_process(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end when it ends, however it does: an idle process would wait forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # of Pillow, about images that it decodes all the same

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
