"""Training images of generators: MNIST's own files, grey, or CIFAR-10's, in colour, resized to the model's input."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from data import LabelledImages, Transform, data_folder, read_own_files
from engine.config import Config

CHANNELS = {"mnist": 1, "cifar10": 3}  # of the images of each format


class DataConfig(Config):
    """Which images to learn from, and how they are loaded."""

    root: str = Field(description="folder of the data set, the one with MNIST/raw or cifar-10-batches-py in it")
    format: Literal["mnist", "cifar10"] = Field(description="whose files these are")
    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip while training")
    workers: int = Field(4, ge=0, le=256, description="loader processes per training process; 0: load in the same one")


def read_split(config: DataConfig, split: Literal["train", "val"]) -> LabelledImages:
    """Read one half of the data set that a config names. Raises DatasetError if it is not there."""
    return read_own_files(config.format, data_folder(config.root), split == "train")


def build_transform(config: DataConfig, input_size: int, train: bool) -> Transform:
    """Return the transform of an RGB image to input_size pixels on each side, grey if the data set is.

    train: flip as the config says."""
    from torchvision.transforms import InterpolationMode, v2  # here, because torchvision takes seconds

    # Grey images were made RGB by LabelledImages.read; this undoes it exactly.
    steps = [v2.Grayscale()] if CHANNELS[config.format] == 1 else []
    steps.append(v2.Resize((input_size, input_size), InterpolationMode.BICUBIC))
    if train:
        steps.append(v2.RandomHorizontalFlip(config.flip))
    return v2.Compose(steps)


def to_unit(images: Tensor) -> Tensor:
    """Return bytes, uint8, as the network sees them: float32 from -1 to 1."""
    return images.float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """Return the inverse of `to_unit`; values beyond -1 and 1 are clamped."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
