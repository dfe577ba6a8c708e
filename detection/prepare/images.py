"""What is wrong with the images of a data set, found by decoding every one of them in several processes."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from data import DatasetError, Key, build_loader, eval_batches
from detection.coco.annotations import CocoFile
from detection.coco.dataset import decode_image
from detection.coco.defects import Defect, dataset_error, summarised
from detection.coco.image_files import ImageFile
from engine import distributed
from engine.logbook import logger, progress_bar

DARK = 15  # of 255: 12 bits that were taken for 16 are no brighter
AT_ONCE = 4  # images that a process hands over at once


def check_images(cocos: Sequence[CocoFile], workers: int) -> None:
    """Decode every image of checked annotation files before training: each rank its share, in `workers` processes.

    Warns of images that show nothing. Raises DatasetError, on all ranks, naming the first broken one."""
    files = [coco.file(index) for coco in cocos for index in range(len(coco.images))]
    share = files[distributed.rank() :: distributed.world_size()]
    parts = distributed.gather(find_defects(share, workers, "checking images"))
    everything = distributed.broadcast(parts and sorted(chain.from_iterable(parts)))
    if distributed.is_main():
        for line in summarised(found for found in everything if found.is_warning):
            logger.warning(line)
    if defects := [found for found in everything if not found.is_warning]:
        raise dataset_error(defects)


def find_defects(files: Sequence[ImageFile], workers: int, title: str) -> list[Defect]:
    """Decode every image in `workers` processes, under a progress bar; return what is wrong, in order."""
    return [found for found in for_each(find_defect, files, workers, title) if found]


def find_defect(file: ImageFile) -> Defect | None:
    """Decode an image and, of a PNG, compare the checksums, which Pillow does not do while decoding.

    An image that shows nothing is a warning."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of Pillow, about images that it decodes all the same
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


class _Results(Dataset):
    """What a function returns for each item."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.function, self.items = function, items

    def __getitem__(self, key: Key) -> Any:
        return self.function(self.items[key[1]])


def for_each(function: Callable[[Any], Any], items: Sequence[Any], workers: int, title: str) -> Iterator[Any]:
    """Yield function(item) for each item, in order, from `workers` processes. Errors as in data.build_loader."""
    batches = eval_batches(len(items), AT_ONCE, rank=0, world_size=1)
    loader = build_loader(_Results(function, items), batches, list, workers, torch.device("cpu"))
    results = chain.from_iterable(loader)
    return progress_bar(results, total=len(items), desc=title, unit="image", leave=False)
