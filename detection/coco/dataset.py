"""Detection data image by image: decoding, samples, batches.

An image is turned as its EXIF orientation says, unless only the unturned one has the width and height of the annotation
file. Every kind of image becomes 8-bit RGB (data.to_8_bits says how 16 and 32 bits are scaled); of an animation the
first picture counts.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from data import DatasetError, Key, as_rgb, is_deep, opened_image
from detection.coco.annotations import CocoFile
from detection.coco.defects import dataset_error
from detection.coco.image_files import ImageFile
from detection.coco.transforms import Transform, View
from engine.logbook import logger, progress_bar


def read_image(coco: CocoFile, index: int) -> np.ndarray:
    """Decode coco.images[index] to (height, width, 3) uint8 RGB, turned the way its boxes see it.

    A shrunken copy is enlarged to the recorded size.
    Raises DatasetError if it cannot be decoded or its size differs."""
    record = coco.images[index]
    pixels = read_file(coco.file(index))
    if pixels.shape[:2] == (record.height, record.width):
        return pixels
    return np.array(Image.fromarray(pixels).resize((record.width, record.height)))


def read_file(file: ImageFile, part: tuple[int, int, int, int] | None = None, reduction: int = 1) -> np.ndarray:
    """Run `decode_image`, with errors that name the file and the command that finds all such."""
    try:
        return decode_image(file, part, reduction)
    except DatasetError as error:
        raise dataset_error([file.defect(str(error))]) from None


def decode_image(file: ImageFile, part: tuple[int, int, int, int] | None = None, reduction: int = 1) -> np.ndarray:
    """Decode an image to (height, width, 3) uint8 RGB, turned so that it has file.size, or upright without that.

    part: left, top, right, bottom in pixels; None for the whole image.
    reduction: 1, 2, 4 or 8, which divides these: a JPEG that needs no turning may be decoded to so many times
    fewer pixels on each side.

    Pillow decodes, because torchvision's decoder can crash the process on a broken PNG.
    Raises DatasetError, saying why but not where, if it cannot be decoded or has a different size."""
    with opened_image(file.path) as image:
        # Before anything else, because asking a PNG for its orientation decodes it.
        if file.size and file.size not in (image.size, image.size[::-1]):
            raise _wrong_size(image, file)
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        upright_size = image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
        if file.size and file.size not in (image.size, upright_size):
            raise _wrong_size(image, file)
        if orientation != 1 and (file.size or upright_size) == upright_size:
            image = ImageOps.exif_transpose(image)
        elif reduction > 1 and image.format == "JPEG":
            image.draft(None, (image.width // reduction, image.height // reduction))
            part = tuple(edge // reduction for edge in part)
        if is_deep(image):
            image = as_rgb(image)  # before cropping: its scale depends on all of its values
        if part is not None:
            image = image.crop(part)
        return np.array(as_rgb(image))


def _wrong_size(image: Image.Image, file: ImageFile) -> DatasetError:
    (width, height), recorded = image.size, f"{file.size[0]} x {file.size[1]}"
    shrunk = " once shrunk" if file.is_shrunk else ""
    swapped = ": width and height are swapped" if file.size == (height, width) else ""
    return DatasetError(f"{width} x {height} pixels, the annotation file says {recorded}{shrunk}{swapped}")


class CocoDetection(Dataset):
    """Images and their objects, by (epoch, index): the same pair always gives the same sample.

    (A JPEG that is shown at half its size or less differs a little if it is cached.)"""

    def __init__(self, coco: CocoFile, transform: Transform, seed: int = 0, cache_mib: float = 0) -> None:
        """transform: see detection/coco/transforms.py. seed: of the augmentation, 0 or more.

        cache_mib: decode now and keep the first images, as many as fit; forked loader processes share them."""
        self.coco, self.transform, self.seed = coco, transform, seed
        self.cached: list[np.ndarray] = []
        if cache_mib:
            self._fill_cache(cache_mib)

    def _fill_cache(self, cache_mib: float) -> None:
        files = [self.coco.file(index) for index in range(len(self))]
        mib = np.cumsum([3 * math.prod(file.size) / 2**20 for file in files])
        count = int(np.searchsorted(mib, cache_mib, side="right"))
        bar = progress_bar(files[:count], desc="decoding images", unit="image", leave=False)
        self.cached = [read_file(file) for file in bar]
        if count < len(files):
            logger.info(
                "%d of %d images fit into a cache of %g MiB; all need %.0f", count, len(files), cache_mib, mib[-1]
            )

    def __len__(self) -> int:
        return len(self.coco.images)

    def __getitem__(self, key: Key) -> dict[str, Tensor | int]:
        """One sample, with crowds left out:
        image (3, S, S) uint8, boxes_xyxy (n, 4) float32 fractions, labels (n,) int64, image_id int,
        and, if colours are to be distorted, colours (8,) float32 for distort_colours."""
        return self._load(key[1], self.plan(key))

    def __getitems__(self, keys: Sequence[Key]) -> list[dict[str, Tensor | int]]:
        """The samples of a batch, all planned before any is decoded: that leaves the processor's cache to the plans."""
        plans = [self.plan(key) for key in keys]
        return [self._load(index, plan) for (_, index), plan in zip(keys, plans, strict=True)]

    def plan(self, key: Key) -> tuple[View, np.ndarray]:
        """Return what is seen, and the labels of that: drawn from (seed, epoch, index) alone."""
        epoch, index = key
        record, size = self.coco.images[index], self.coco.file(index).size
        boxes_xyxy, labels, is_crowd = self.coco.objects(index)
        boxes_xyxy, labels = boxes_xyxy[~is_crowd], labels[~is_crowd]
        if size != (record.width, record.height):  # a shrunken copy
            boxes_xyxy = boxes_xyxy * np.tile(np.divide(size, (record.width, record.height)), 2)
        view = self.transform(size, boxes_xyxy, np.random.default_rng((self.seed, epoch, index)))
        return view, labels[view.objects]

    def _load(self, index: int, plan: tuple[View, np.ndarray]) -> dict[str, Tensor | int]:
        view, labels = plan
        if index < len(self.cached):
            left, top, right, bottom = view.part
            pixels = self.cached[index][top:bottom, left:right]
        else:
            pixels = read_file(self.coco.file(index), view.part, view.reduction)
        sample = {
            "image": view.render(pixels),
            "boxes_xyxy": torch.from_numpy(view.boxes_xyxy).clamp(0, 1),  # rounding
            "labels": torch.from_numpy(labels),
            "image_id": self.coco.images[index].id,
        }
        return sample if view.colours is None else sample | {"colours": torch.from_numpy(view.colours)}


def collate(samples: list[dict]) -> dict[str, Tensor]:
    """Stack samples of CocoDetection; those with fewer objects are padded with zeros.

    Returns images (B, 3, S, S) uint8, boxes_xyxy (B, M, 4) float32 fractions, labels (B, M) int64, 0 for no object,
    and image_ids (B,) int64; M is the largest number of objects, at least 1. If the samples have colours, also these,
    (B, 8) float32: distort_colours(images, colours) makes the images to train on."""
    max_objects = max(1, *(len(sample["labels"]) for sample in samples))
    boxes_xyxy = torch.zeros(len(samples), max_objects, 4)
    labels = torch.zeros(len(samples), max_objects, dtype=torch.int64)
    for row, sample in enumerate(samples):
        boxes_xyxy[row, : len(sample["labels"])] = sample["boxes_xyxy"]
        labels[row, : len(sample["labels"])] = sample["labels"]
    batch = {
        "images": torch.stack([sample["image"] for sample in samples]),
        "boxes_xyxy": boxes_xyxy,
        "labels": labels,
        "image_ids": torch.tensor([sample["image_id"] for sample in samples]),
    }
    if "colours" in samples[0]:
        batch["colours"] = torch.stack([sample["colours"] for sample in samples])
    return batch
