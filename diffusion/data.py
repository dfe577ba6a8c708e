"""Data sets for diffusion: the original files of MNIST (grey) or CIFAR-10 (RGB), resized to the model's input size."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from data import LabelledImages, Transform, data_folder, read_binary_dataset
from engine.config import Config

CHANNELS = {"mnist": 1, "cifar10": 3}  # image channels by data format


class DataConfig(Config):
    """The images to train on, and how to load them."""

    root: str = Field(description="folder of the data set, with MNIST/raw or cifar-10-batches-py in it")
    format: Literal["mnist", "cifar10"] = Field(description="format of the data set's files")
    flip: float = Field(0.0, ge=0, le=1, description="probability of a horizontal flip of a training image")
    workers: int = Field(4, ge=0, le=256, description="loader processes per rank; 0: load in the training process")


def read_split(config: DataConfig, split: Literal["train", "val"]) -> LabelledImages:
    """Read one split of a config's data set. Raises DatasetError if it is missing or unreadable."""
    return read_binary_dataset(config.format, data_folder(config.root), split == "train")


def build_transform(config: DataConfig, input_size: int, train: bool) -> Transform:
    """Return the transform from an RGB image to input_size x input_size pixels, in grey if the data set is grey.

    train: flip images with the probability of the config."""
    from torchvision.transforms import InterpolationMode, v2  # here, because torchvision takes seconds

    # LabelledImages.read converts grey images to RGB; Grayscale recovers them exactly.
    steps = [v2.Grayscale()] if CHANNELS[config.format] == 1 else []
    steps.append(v2.Resize((input_size, input_size), InterpolationMode.BICUBIC))
    if train:
        steps.append(v2.RandomHorizontalFlip(config.flip))
    return v2.Compose(steps)


def to_unit(images: Tensor) -> Tensor:
    """Convert uint8 images to the range of the network: float32 from -1 to 1."""
    return images.float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """Convert images in the range of the network to uint8, the inverse of `to_unit`; clamp values to [-1, 1]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
