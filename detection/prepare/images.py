"""Find broken and blank images of a data set by decoding all images in several processes."""

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
from detection.coco.defects import Defect, dataset_error, summarise_warnings
from detection.coco.image_files import ImageFile
from engine import distributed
from engine.logbook import logger, progress_bar

DARK = 15  # of 255; the highest value of a 12-bit image that is scaled as if it had 16 bits
AT_ONCE = 4  # images per batch of a worker process


def check_images(cocos: Sequence[CocoFile], workers: int) -> None:
    """Decode all images of checked annotation files before training, and warn about blank images.

    Each rank decodes its share in `workers` processes. Raises DatasetError on all ranks if an image is broken."""
    files = [coco.file(index) for coco in cocos for index in range(len(coco.images))]
    share = files[distributed.rank() :: distributed.world_size()]
    parts = distributed.gather(find_defects(share, workers, "checking images"))
    found = distributed.broadcast(parts and sorted(chain.from_iterable(parts)))
    if distributed.is_main():
        for line in summarise_warnings(defect for defect in found if defect.is_warning):
            logger.warning(line)
    if defects := [defect for defect in found if not defect.is_warning]:
        raise dataset_error(defects)


def find_defects(files: Sequence[ImageFile], workers: int, title: str) -> list[Defect]:
    """Decode every image in `workers` processes, with a progress bar; return the defects in the order of the files."""
    return [defect for defect in for_each(find_defect, files, workers, title) if defect]


def find_defect(file: ImageFile) -> Defect | None:
    """Decode an image and return its defect, if any. A blank image is a warning.

    Also verify the checksums of a PNG, because Pillow does not verify them while decoding."""
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow warns about images that it can decode
            pixels = decode_image(file)
            with Image.open(file.path) as image:
                if image.format == "PNG":
                    image.verify()
    except DatasetError as error:
        return file.defect(str(error))
    except Exception as error:
        return file.defect(f"corrupt: {error}")
    if pixels.max() <= DARK:
        return file.defect(f"black after decoding to 8 bits: no pixel value is above {DARK} (of 255)", is_warning=True)
    if np.all(pixels == pixels[0, 0]):
        return file.defect("all pixels have the same colour", is_warning=True)
    return None


class _Results(Dataset):
    """Data set whose sample i is function(items[i])."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.function, self.items = function, items

    def __getitem__(self, key: Key) -> Any:
        return self.function(self.items[key[1]])


def for_each(function: Callable[[Any], Any], items: Sequence[Any], workers: int, title: str) -> Iterator[Any]:
    """Yield function(item) for each item, in order, computed in `workers` processes. Errors: see data.build_loader."""
    batches = eval_batches(len(items), AT_ONCE, rank=0, world_size=1)
    loader = build_loader(_Results(function, items), batches, list, workers, torch.device("cpu"))
    results = chain.from_iterable(loader)
    return progress_bar(results, total=len(items), desc=title, unit="image", leave=False)
