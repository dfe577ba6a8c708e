"""Train a class-conditional diffusion model, sample from it as it learns, and record the experiment.

python -m diffusion.training configs/diffusion_mnist_small.yaml data.root=/datasets/mnist
python -m engine.launch --standalone --nproc_per_node=4 -m diffusion.training configs/diffusion_unet_SwinT.yaml
python -m diffusion.training --resume experiments/experiment_3
"""

import torch

from data import shared_images
from diffusion.data import read_split
from diffusion.record import write_record
from diffusion.task import DiffusionConfig, DiffusionTask
from engine import distributed
from engine.command import run_command
from engine.logbook import logger
from runs import TrainCommand, train


def build_task(config: DiffusionConfig, from_checkpoint: bool) -> DiffusionTask:
    """The task that a config describes. Raises DatasetError for what is wrong with its data."""
    return DiffusionTask(config, read_split(config.data, "train"), read_split(config.data, "val"), from_checkpoint)


def announce(task: DiffusionTask) -> None:
    """Log what is trained, on what."""
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


COMMAND = TrainCommand(
    module="diffusion.training",
    description="Train a Swin-UNet to denoise images, and sample from it.",
    example="configs/diffusion_mnist_small.yaml data.root=/datasets/mnist train.epochs=5",
    config_class=DiffusionConfig,
    build_task=build_task,
    announce=announce,
    write_record=write_record,
)


def main(device: torch.device) -> None:
    """Train as the command line says, then score and record."""
    train(COMMAND, device)


if __name__ == "__main__":
    run_command(main)
