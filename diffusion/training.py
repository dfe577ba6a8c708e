"""Train a class-conditional diffusion model, sample from it as it learns, and record the experiment.

python -m diffusion.training configs/diffusion_mnist_small.yaml data.root=/datasets/mnist
torchrun --standalone --nproc_per_node=4 -m diffusion.training configs/diffusion_unet_SwinT.yaml
python -m diffusion.training --resume experiments/experiment_3
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.arguments import parse_training
from engine.start import start

if TYPE_CHECKING:
    import torch

    from diffusion.task import DiffusionConfig, DiffusionTask


def build_task(config: "DiffusionConfig", from_checkpoint: bool) -> "DiffusionTask":
    """The task that a config describes. Raises DatasetError for what is wrong with its data."""
    from diffusion.data import read_split
    from diffusion.task import DiffusionTask

    return DiffusionTask(config, read_split(config.data, "train"), read_split(config.data, "val"), from_checkpoint)


def announce(task: "DiffusionTask") -> None:
    """Log what is trained, on what."""
    from data import shared_images
    from engine import distributed
    from engine.logbook import logger

    model, noise = task.config.model, task.config.diffusion
    logger.info(
        "Swin-UNet %s, %d pixels, predicts %s, %d timesteps, %s schedule",
        model.name, model.input_size, noise.objective, noise.timesteps, noise.schedule,
    )  # fmt: skip
    if task.started_from:
        logger.info(task.started_from)
    for images in (task.train, task.val):
        logger.info("%s: %d images, %d classes", images.place, len(images), len(images.class_ids))
    if distributed.is_main() and (shared := shared_images(task.train, task.val)):
        logger.warning(shared)


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    return parse_training(
        "diffusion.training",
        description="Train a Swin-UNet to denoise images, and sample from it.",
        example="configs/diffusion_mnist_small.yaml data.root=/datasets/mnist train.epochs=5",
        words=words,
    )


def main(arguments: argparse.Namespace, device: "torch.device") -> None:
    """Train as the command line says, then score and record."""
    from diffusion.record import write_record
    from diffusion.task import DiffusionConfig
    from runs import TrainCommand, train

    train(TrainCommand(DiffusionConfig, build_task, announce, write_record), arguments, device)


if __name__ == "__main__":
    start(parse_arguments, main)
