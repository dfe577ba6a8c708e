"""Labelled images: a folder of class folders in ImageNet's layout, or CIFAR-10's own files.

    root/train/n01440764/*.JPEG  root/val/n01440764/*.JPEG     format: folders; a folder is a class, whatever its name
    root/cifar-10-batches-py/data_batch_1 ... test_batch       format: cifar10 (www.cs.toronto.edu/~kriz/cifar.html)

Classes are numbered from 0 in the order of their folders' names, as torchvision's ImageFolder does. Folders that are
named by the WordNet ids of ImageNet-1k are shown by their English names.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.transforms.v2.functional import pil_to_tensor

from data import DatasetError, Key, as_rgb, opened_image
from engine.config import Config

IMAGENET_CLASSES = Path(__file__).parent / "imagenet_classes.tsv"
LISTED = 8  # classes named in a message


class DataConfig(Config):
    """Which images to train and score on, and how they are loaded."""

    root: str = Field(description="folder of the data set")
    format: Literal["folders", "cifar10"] = Field("folders", description="a folder per class, or CIFAR-10's own files")
    train: str = Field("train", description="folders: those to train on; relative to root")
    val: str = Field("val", description="folders: those to score; relative to root")
    workers: int = Field(4, ge=0, le=256, description="loader processes per training process; 0: load in the same one")


@dataclass(frozen=True)
class LabelledImages:
    """One split of a data set.

    place: where it lies. images: (N,) bytes, files below `place`, or (N, H, W, 3) uint8, the pixels: arrays, which
    loader processes share. labels: (N,) int64. class_ids: names of the folders, by label.
    digest: SHA-256 of the labels and the files' names, or the pixels. inputs: the data set's own files, if few."""

    place: Path
    images: np.ndarray
    labels: np.ndarray
    class_ids: list[str]
    digest: str
    inputs: list[Path]

    @property
    def class_names(self) -> list[str]:
        """The classes as people call them."""
        return shown_names(self.class_ids)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """What to call an image: its file below `place`, or its number."""
        return os.fsdecode(self.images[index]) if self.images.dtype.kind == "S" else str(index)

    def read(self, index: int) -> Image.Image:
        """One image, upright, 8-bit RGB. Raises DatasetError naming the file if it cannot be decoded."""
        if self.images.dtype.kind == "S":
            return read_image(self.place / self.name(index))
        return Image.fromarray(self.images[index])


def read_image(path: Path) -> Image.Image:
    """Decode a file to an upright 8-bit RGB image. Raises DatasetError naming it if that cannot be done."""
    if not path.is_file():
        raise DatasetError(f"{path}: {'a folder; name the files in it' if path.is_dir() else 'no such file'}")
    try:
        with opened_image(path) as image:
            return as_rgb(ImageOps.exif_transpose(image))
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}; get it again, or take it away") from None


# ---- classes -------------------------------------------------------------------------------------------------


@functools.cache
def imagenet_classes() -> dict[str, str]:
    """WordNet id to English name of the classes of ImageNet-1k, in the order of public classifiers' outputs."""
    lines = IMAGENET_CLASSES.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines if not line.startswith("#"))


def shown_names(class_ids: Sequence[str]) -> list[str]:
    """Folders' names as people call them: those of ImageNet-1k in English, others as they are."""
    return [imagenet_classes().get(class_id, class_id) for class_id in class_ids]


# ---- reading a data set --------------------------------------------------------------------------------------


def read_split(config: DataConfig, split: Literal["train", "val"]) -> LabelledImages:
    """One half of the data set that a config names. Raises DatasetError if it is not there or not of its format."""
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise DatasetError(f"data.root {config.root}: no such folder; name the one that holds the data set")
    return _read_cifar10(root, split) if config.format == "cifar10" else read_folders(root / getattr(config, split))


def read_folders(folder: Path) -> LabelledImages:
    """A folder with a folder of images for each class.

    Raises DatasetError if there are none, or if one of them is empty."""
    if not folder.is_dir():
        raise DatasetError(
            f"{folder}: no such folder; expected one with a folder of images for each class, below data.root where "
            "data.train and data.val say (for CIFAR-10's own files: data.format=cifar10)"
        )
    try:
        found = ImageFolder(folder)
    except FileNotFoundError as error:  # no class folder, or one without images
        raise DatasetError(f"{folder}: {str(error).splitlines()[0].rstrip('.')}") from None
    images = np.array([os.fsencode(os.path.relpath(path, folder)) for path, _ in found.samples])
    labels = np.array(found.targets, np.int64)
    return LabelledImages(folder, images, labels, found.classes, _digest(images, labels), [])


def _digest(images: np.ndarray, labels: np.ndarray) -> str:
    digest = hashlib.sha256(images.tobytes())
    digest.update(labels)
    return digest.hexdigest()


class _Cifar10(CIFAR10):
    """torchvision's reader for files that need not be the original's byte for byte, such as a part of it."""

    train_list = [[name, None] for name, _ in CIFAR10.train_list]  # noqa: RUF012 (as in the base)
    test_list = [[name, None] for name, _ in CIFAR10.test_list]  # noqa: RUF012
    meta = CIFAR10.meta | {"md5": None}


def _read_cifar10(root: Path, split: str) -> LabelledImages:
    folder = root / CIFAR10.base_folder
    try:
        found = _Cifar10(root, train=split == "train")
    except RuntimeError:
        raise DatasetError(f"{folder}: not all of CIFAR-10's files; unpack cifar-10-python.tar.gz in {root}") from None
    except Exception as error:  # of unpickling
        raise DatasetError(f"{folder}: cannot be read ({error}); get CIFAR-10 again") from None
    labels = np.array(found.targets, np.int64)
    files = [folder / name for name, _ in (found.train_list if split == "train" else found.test_list)]
    return LabelledImages(folder, found.data, labels, found.classes, _digest(found.data, labels), files)


def check_pair(train: LabelledImages, val: LabelledImages) -> None:
    """Raises DatasetError if both halves do not have the same classes."""
    if train.class_ids != val.class_ids:
        differing = [
            f"{', '.join(some[:LISTED])}{', ...' * (len(some) > LISTED)} only in {split.place}"
            for split, other in ((train, val), (val, train))
            if (some := [name for name in split.class_ids if name not in other.class_ids])
        ]
        raise DatasetError(f"not the same classes to train on and to score: {'; '.join(differing)}")


# ---- samples -------------------------------------------------------------------------------------------------

Transform = Callable[[Image.Image], Image.Image]


class Classification(Dataset):
    """Images and their labels, by (epoch, index): the same pair always gives the same sample."""

    def __init__(self, images: LabelledImages, transform: Transform, seed: int) -> None:
        """transform: may draw from torch's random numbers. seed: of these."""
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> dict[str, Tensor | int]:
        """image (3, S, S) uint8, label int from 0, image_id int, its number in the split."""
        epoch, index = key
        image = self.images.read(index)
        with torch.random.fork_rng(devices=[]):
            state = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1, np.uint64)
            torch.manual_seed(int(state[0] >> 1))
            image = self.transform(image)
        return {"image": pil_to_tensor(image), "label": int(self.images.labels[index]), "image_id": index}


def collate(samples: list[dict]) -> dict[str, Tensor]:
    """Stack samples: images (B, 3, S, S) uint8, labels (B,) int64, image_ids (B,) int64."""
    return {
        "images": torch.stack([sample["image"] for sample in samples]),
        "labels": torch.tensor([sample["label"] for sample in samples]),
        "image_ids": torch.tensor([sample["image_id"] for sample in samples]),
    }
