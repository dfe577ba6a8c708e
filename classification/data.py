"""Data sets for classification: class folders in ImageNet's layout, or the original files of CIFAR-10 or MNIST.

    root/train/n01440764/*.JPEG  root/val/n01440764/*.JPEG     format: folders; one folder per class, with any name
    root/cifar-10-batches-py/data_batch_1 ... test_batch       format: cifar10
    root/MNIST/raw/train-images-idx3-ubyte ...                 format: mnist; digits become grey RGB images

A label is the index of the folder in the sorted list of folders, as in torchvision's ImageFolder. Folders named by
WordNet ids of ImageNet-1k are displayed with the English names of their classes.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from data import DatasetError, LabelledImages, data_folder, read_binary_dataset, split_digest
from engine.config import Config
from engine.text import listed

IMAGENET_CLASSES = Path(__file__).parent / "imagenet_classes.tsv"
MAX_LISTED = 8  # classes listed in an error message


class DataConfig(Config):
    """The images to train on and to score, and how to load them."""

    root: str = Field(description="folder of the data set")
    format: Literal["folders", "cifar10", "mnist"] = Field(
        "folders", description="one folder per class, or the original files of CIFAR-10 or MNIST"
    )
    train: str = Field("train", description="folder of the training images, relative to root, if the format is folders")
    val: str = Field("val", description="folder of the validation images, relative to root, if the format is folders")
    workers: int = Field(4, ge=0, le=256, description="loader processes per rank; 0: load in the training process")


# ---- classes -------------------------------------------------------------------------------------------------


@functools.cache
def imagenet_classes() -> dict[str, str]:
    """Return ImageNet-1k's classes as {WordNet id: English name}, in the order of public classifiers' outputs."""
    lines = IMAGENET_CLASSES.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines if not line.startswith("#"))


def display_names(class_ids: Sequence[str]) -> list[str]:
    """Return the class names to display: English names for WordNet ids of ImageNet-1k, all other ids unchanged."""
    return [imagenet_classes().get(class_id, class_id) for class_id in class_ids]


# ---- reading a data set --------------------------------------------------------------------------------------


def read_split(config: DataConfig, split: Literal["train", "val"]) -> LabelledImages:
    """Read one split of a config's data set. Raises DatasetError if it is missing or in a different format."""
    root = data_folder(config.root)
    if config.format == "folders":
        return read_folders(root / getattr(config, split))
    return read_binary_dataset(config.format, root, split == "train")


def read_folders(folder: Path) -> LabelledImages:
    """Read a folder with one subfolder of images per class. Raises DatasetError if subfolders are missing or empty."""
    if not folder.is_dir():
        raise DatasetError(
            f"{folder}: no such folder; expected a folder with one subfolder of images per class. Correct data.root, "
            "data.train or data.val (for CIFAR-10's original files, set data.format=cifar10)"
        )
    from torchvision.datasets import ImageFolder  # here, because torchvision takes seconds

    try:
        dataset = ImageFolder(folder)
    except FileNotFoundError as error:  # no class folder, or a class folder without images
        raise DatasetError(f"{folder}: {str(error).splitlines()[0].rstrip('.')}") from None
    images = np.array([os.fsencode(os.path.relpath(path, folder)) for path, _ in dataset.samples])
    labels = np.array(dataset.targets, np.int64)
    return LabelledImages(
        folder, images, labels, dataset.classes, display_names(dataset.classes), split_digest(images, labels), {}
    )


def check_same_classes(train: LabelledImages, val: LabelledImages) -> None:
    """Raise DatasetError if the two splits have different classes."""
    if train.class_ids != val.class_ids:
        only = [
            f"{listed(names, MAX_LISTED)} only in {split.place}"
            for split, other in ((train, val), (val, train))
            if (names := [name for name in split.class_ids if name not in other.class_ids])
        ]
        raise DatasetError(f"training and validation images have different classes: {'; '.join(only)}")
