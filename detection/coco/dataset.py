"""Decode images, make samples for training or evaluation, and collate them into batches.

An image is rotated by its EXIF orientation, except if only the unrotated image has the width and height given in the
annotation file. Every image is converted to 8-bit RGB; `data.to_8_bits` scales images of 16 and 32 bits. Only the first
frame of an animation is used.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from data import DatasetError, Key, as_rgb, is_high_bit_depth, open_image
from detection.coco.annotations import CocoFile
from detection.coco.defects import dataset_error
from detection.coco.image_files import ImageFile
from detection.coco.transforms import MOSAIC_CORNERS, Mosaic, Transform, View, render
from engine.logbook import logger, progress_bar


def read_image(coco: CocoFile, index: int) -> np.ndarray:
    """Decode coco.images[index] to (height, width, 3) uint8 RGB, in the orientation that the boxes refer to.

    A shrunken copy is enlarged to the size in the annotation file.
    Raises DatasetError if the image cannot be decoded or has the wrong size."""
    record = coco.images[index]
    pixels = read_file(coco.file(index))
    if pixels.shape[:2] == (record.height, record.width):
        return pixels
    return np.array(Image.fromarray(pixels).resize((record.width, record.height)))


def read_file(file: ImageFile, part: tuple[int, int, int, int] | None = None, reduction: int = 1) -> np.ndarray:
    """Run `decode_image`, but raise errors that also name the file and the command that lists all defects."""
    try:
        return decode_image(file, part, reduction)
    except DatasetError as error:
        raise dataset_error([file.defect(str(error))]) from None


def decode_image(file: ImageFile, part: tuple[int, int, int, int] | None = None, reduction: int = 1) -> np.ndarray:
    """Decode an image to (height, width, 3) uint8 RGB, rotated to match file.size, or upright if file.size is None.

    part: left, top, right, bottom of a crop in pixels; None for the whole image.
    reduction: 1, 2, 4 or 8; must divide the edges of `part`. A JPEG that needs no rotation is decoded at 1/reduction
    of its width and height, which is faster. Other images ignore `reduction`.

    Uses Pillow, because torchvision's decoder can crash the process on a corrupt PNG.
    Raises DatasetError if the image cannot be decoded or has the wrong size; the message does not name the file."""
    with open_image(file.path) as image:
        # Check the size first, because reading the orientation of a PNG decodes it.
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
        if is_high_bit_depth(image):
            image = as_rgb(image)  # before cropping, because the scale depends on all pixel values
        if part is not None:
            image = image.crop(part)
        return np.array(as_rgb(image))


def _wrong_size(image: Image.Image, file: ImageFile) -> DatasetError:
    (width, height), recorded = image.size, f"{file.size[0]} x {file.size[1]}"
    shrunk = " after shrinking" if file.is_shrunk else ""
    swapped = ": width and height are swapped" if file.size == (height, width) else ""
    return DatasetError(f"{width} x {height} pixels, but the annotation file says {recorded}{shrunk}{swapped}")


class Plan(NamedTuple):
    """Content of a sample, chosen before decoding: views of one image or, for a mosaic, of four, and their objects."""

    indices: list[int]  # of the images
    views: list[View]  # one per image
    boxes_xyxy: np.ndarray  # (n, 4) float32 fractions of the square, of all views
    labels: np.ndarray  # (n,) int64


class CocoDetection(Dataset):
    """Data set of images and their objects, indexed by (epoch, index); the same pair always gives the same sample.

    (If a JPEG is resized to half its size or less, its pixels differ slightly with and without the cache.)"""

    def __init__(
        self,
        coco: CocoFile,
        transform: Transform,
        seed: int = 0,
        cache_mib: float = 0,
        mosaic: Mosaic | None = None,
    ) -> None:
        """Create the data set; decode and cache as many of the first images as fit in `cache_mib`.

        transform: see detection/coco/transforms.py. seed: seed of the augmentation, 0 or more. mosaic: used in place of
        the transform in the first `mosaic.epochs` epochs."""
        self.coco, self.transform, self.seed, self.mosaic = coco, transform, seed, mosaic
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
                "cached %d of %d images (cache_limit_mib=%g; all need %.0f)", count, len(files), cache_mib, mib[-1]
            )

    def __len__(self) -> int:
        return len(self.coco.images)

    def __getitem__(self, key: Key) -> dict[str, Tensor | list[int]]:
        """Return one sample, without crowds: a dict with the following entries.

        image: (3, S, S) uint8. boxes_xyxy: (n, 4) float32 fractions. labels: (n,) int64. image_ids: the id of the
        image or, for a mosaic, of each image. colours: (8,) float32 for distort_colours, only if the transform distorts
        colours."""
        return self._load(self.plan(key))

    def __getitems__(self, keys: Sequence[Key]) -> list[dict[str, Tensor | list[int]]]:
        """Return the samples of a batch. All views are planned before decoding, to use the CPU cache better."""
        plans = [self.plan(key) for key in keys]
        return [self._load(plan) for plan in plans]

    def plan(self, key: Key) -> Plan:
        """Return the views of a sample and its objects. Random choices depend only on seed, epoch, index."""
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        mosaic = self.mosaic if self.mosaic and epoch < self.mosaic.epochs else None
        others = rng.integers(len(self), size=len(MOSAIC_CORNERS) - 1).tolist() if mosaic else []
        indices = [index, *others]
        sizes, boxes_xyxy, labels = zip(*map(self._objects, indices), strict=True)
        views = mosaic.views(sizes, boxes_xyxy, rng) if mosaic else [self.transform(sizes[0], boxes_xyxy[0], rng)]
        visible = [each[view.objects] for each, view in zip(labels, views, strict=True)]
        return Plan(indices, views, np.concatenate([view.boxes_xyxy for view in views]), np.concatenate(visible))

    def _objects(self, index: int) -> tuple[tuple[int, int], np.ndarray, np.ndarray]:
        """Return width and height of an image file, and boxes (n, 4) in its pixels and labels (n,), without crowds."""
        record, size = self.coco.images[index], self.coco.file(index).size
        boxes_xyxy, labels, is_crowd = self.coco.objects(index)
        boxes_xyxy, labels = boxes_xyxy[~is_crowd], labels[~is_crowd]
        if size != (record.width, record.height):  # a shrunken copy
            boxes_xyxy = boxes_xyxy * np.tile(np.divide(size, (record.width, record.height)), 2)
        return size, boxes_xyxy, labels

    def _load(self, plan: Plan) -> dict[str, Tensor | list[int]]:
        parts = [self._read(index, view) for index, view in zip(plan.indices, plan.views, strict=True)]
        sample = {
            "image": render(plan.views, parts),
            "boxes_xyxy": torch.from_numpy(plan.boxes_xyxy).clamp(0, 1),  # rounding can exceed the range
            "labels": torch.from_numpy(plan.labels),
            "image_ids": [self.coco.images[index].id for index in plan.indices],
        }
        colours = plan.views[0].colours
        return sample if colours is None else sample | {"colours": torch.from_numpy(colours)}

    def _read(self, index: int, view: View) -> np.ndarray:
        """Return the part of an image that a view shows, (h, w, 3) uint8, at full or reduced size."""
        if index < len(self.cached):
            left, top, right, bottom = view.part
            return self.cached[index][top:bottom, left:right]
        return read_file(self.coco.file(index), view.part, view.reduction)


def collate(samples: list[dict]) -> dict[str, Tensor]:
    """Stack samples of CocoDetection into a batch; pad boxes and labels with zeros.

    Returns images (B, 3, S, S) uint8, boxes_xyxy (B, M, 4) float32 fractions, labels (B, M) int64 (0 is padding), and
    image_ids (B,) int64, or (4 B,) for mosaics. M is the largest number of objects in a sample, at least 1. If the
    samples have colours, also returns colours (B, 8) float32 for distort_colours."""
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
        "image_ids": torch.tensor([image_id for sample in samples for image_id in sample["image_ids"]]),
    }
    if "colours" in samples[0]:
        batch["colours"] = torch.stack([sample["colours"] for sample in samples])
    return batch
