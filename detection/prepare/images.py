"""What is wrong with the images of a data set, found by decoding every one of them.

Images are read as by detection/coco/dataset.py: before training, with `data.check_images=true`, and by `python -m
detection.data check`.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from itertools import chain

import numpy as np
from PIL import Image

from data import DatasetError
from detection.coco.annotations import CocoFile, Defect, ImageFile, dataset_error, image_defect, summarised
from detection.coco.dataset import decode_image
from detection.prepare.processes import process_pool
from engine import distributed
from engine.logbook import logger, progress_bar

DARK = 15  # of 255: 12 bits that were taken for 16 are no brighter
ROUND = 512  # images that a pool of processes checks; whichever kills a process is among so many


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
    """`find_defects` under a progress bar."""
    return progress_bar(find_defects(files, workers), total=len(files), desc=title, unit="image", leave=False)


def find_defects(files: Sequence[ImageFile], workers: int) -> Iterator[Defect | None]:
    """Decode every image in `workers` processes; yields what is wrong with each, None where nothing is, in order.

    A decoder that takes its process down is a defect of that image: those without an answer by then are tried
    again, each in a process of its own."""
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
    """Decode an image and, of a PNG, compare the checksums, which Pillow does not do on the way.

    An image that shows nothing is a warning."""
    try:
        pixels = decode_image(file)
        with Image.open(file.path) as image:
            if image.format == "PNG":
                image.verify()
    except DatasetError as error:
        return image_defect(file, str(error))
    except Exception as error:
        return image_defect(file, f"damaged: {error}")
    if (what := _why_blank(pixels)) is not None:
        return image_defect(file, what, is_warning=True)
    return None


def _why_blank(pixels: np.ndarray) -> str | None:
    """Why nobody would see anything in an image, (H, W, 3) uint8; None if that is not so."""
    if pixels.max() <= DARK:
        return f"black once decoded to 8 bits: no value is above {DARK} of 255"
    if (pixels == pixels[0, 0]).all():
        return "all pixels have the same colour"
    return None


def _find_defect_alone(file: ImageFile) -> Defect | None:
    try:
        with process_pool(1) as pool:
            return pool.submit(find_defect, file).result()
    except BrokenProcessPool:
        return image_defect(file, "the process that decoded it died")
