"""Images to classify: a folder of class folders in ImageNet's layout, or CIFAR-10's or MNIST's own files.

    root/train/n01440764/*.JPEG  root/val/n01440764/*.JPEG     format: folders; a folder is a class, whatever its name
    root/cifar-10-batches-py/data_batch_1 ... test_batch       format: cifar10
    root/MNIST/raw/train-images-idx3-ubyte ...                 format: mnist; digits become grey RGB images

Classes are numbered from 0 in the order of their folders' names, as torchvision's ImageFolder does. Folders that are
named by the WordNet ids of ImageNet-1k are shown by their English names.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from data import DatasetError, LabelledImages, data_folder, digest_of, read_own_files
from engine.config import Config
from engine.text import listed

IMAGENET_CLASSES = Path(__file__).parent / "imagenet_classes.tsv"
LISTED = 8  # classes named in a message


class DataConfig(Config):
    """Which images to train and score on, and how they are loaded."""

    root: str = Field(description="folder of the data set")
    format: Literal["folders", "cifar10", "mnist"] = Field(
        "folders", description="a folder per class, or the own files of CIFAR-10 or MNIST"
    )
    train: str = Field("train", description="folders: those to train on; relative to root")
    val: str = Field("val", description="folders: those to score; relative to root")
    workers: int = Field(4, ge=0, le=256, description="loader processes per training process; 0: load in the same one")


# ---- classes -------------------------------------------------------------------------------------------------


@functools.cache
def imagenet_classes() -> dict[str, str]:
    """Return WordNet id to English name of ImageNet-1k's classes, in the order of public classifiers' outputs."""
    lines = IMAGENET_CLASSES.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines if not line.startswith("#"))


def shown_names(class_ids: Sequence[str]) -> list[str]:
    """Return names of classes for people: WordNet ids of ImageNet-1k in English, others unchanged."""
    return [imagenet_classes().get(class_id, class_id) for class_id in class_ids]


# ---- reading a data set --------------------------------------------------------------------------------------


def read_split(config: DataConfig, split: Literal["train", "val"]) -> LabelledImages:
    """Read one half of the data set that a config names. Raises DatasetError if it is missing or not of its format."""
    root = data_folder(config.root)
    if config.format == "folders":
        return read_folders(root / getattr(config, split))
    return read_own_files(config.format, root, split == "train")


def read_folders(folder: Path) -> LabelledImages:
    """Read a folder with a folder of images for each class.

    Raises DatasetError if there are none, or if one of them is empty."""
    if not folder.is_dir():
        raise DatasetError(
            f"{folder}: no such folder; expected one with a folder of images for each class, below data.root where "
            "data.train and data.val say (for CIFAR-10's own files: data.format=cifar10)"
        )
    from torchvision.datasets import ImageFolder  # here, because torchvision takes seconds

    try:
        found = ImageFolder(folder)
    except FileNotFoundError as error:  # no class folder, or one without images
        raise DatasetError(f"{folder}: {str(error).splitlines()[0].rstrip('.')}") from None
    images = np.array([os.fsencode(os.path.relpath(path, folder)) for path, _ in found.samples])
    labels = np.array(found.targets, np.int64)
    return LabelledImages(
        folder, images, labels, found.classes, shown_names(found.classes), digest_of(images, labels), {}
    )


def check_pair(train: LabelledImages, val: LabelledImages) -> None:
    """Raise DatasetError if the halves do not have the same classes."""
    if train.class_ids != val.class_ids:
        only = [
            f"{listed(some, LISTED)} only in {split.place}"
            for split, other in ((train, val), (val, train))
            if (some := [name for name in split.class_ids if name not in other.class_ids])
        ]
        raise DatasetError(f"not the same classes to train on and to score: {'; '.join(only)}")
