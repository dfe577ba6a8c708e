"""A data set of corrupted validation images, and a cache of them on disk."""

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data import DatasetError
from detection.coco.annotations import CocoFile
from detection.coco.dataset import CocoDetection, Plan
from detection.coco.transforms import View, eval_transform
from detection.corruptions.images import MIN_SIDE, corrupt
from engine.files import write_atomically


class CorruptedImages(CocoDetection):
    """Data set of the whole images of an annotation file, corrupted before they are resized to the network's input.

    Set `corruption` to (name, severity); with None, the samples are those of CocoDetection."""

    def __init__(self, coco: CocoFile, input_size: int, cache_mib: float = 0, folder: Path | None = None) -> None:
        """Create the data set. cache_mib: see CocoDetection.

        folder: to keep the network's inputs, (3, input_size, input_size) uint8, for other detectors; None: nowhere.
        Raises DatasetError if an image is too small to be corrupted."""
        small = next((image for image in coco.images if min(image.width, image.height) < MIN_SIDE), None)
        if small:
            size = f"{small.width} x {small.height} pixels"
            raise DatasetError(
                f"{small.file_name}: {size}; corruptions need at least {MIN_SIDE} x {MIN_SIDE}; remove this image"
            )
        super().__init__(coco, eval_transform(input_size), cache_mib=cache_mib)
        self.input_size, self.folder = input_size, folder
        self.corruption: tuple[str, int] | None = None

    def _load(self, plan: Plan) -> dict[str, Tensor | list[int]]:
        if self.folder is None or self.corruption is None:
            return super()._load(plan)
        name, severity = self.corruption
        image_id = self.coco.images[plan.indices[0]].id
        path = self.folder / f"{name}_{severity}" / f"{image_id}_{self.input_size}.npy"
        if not path.is_file():
            sample = super()._load(plan)
            path.parent.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            np.save(buffer, sample["image"].numpy())
            write_atomically(path, lambda file: file.write(buffer.getvalue()))
            return sample
        return {
            "image": torch.from_numpy(np.load(path)),
            "boxes_xyxy": torch.from_numpy(plan.boxes_xyxy).clamp(0, 1),
            "labels": torch.from_numpy(plan.labels),
            "image_ids": [image_id],
        }

    def _read(self, index: int, view: View) -> np.ndarray:
        pixels = super()._read(index, view)  # the whole image, at full size
        if self.corruption is None:
            return pixels
        name, severity = self.corruption
        return corrupt(pixels, name, severity, self.coco.images[index].id)
