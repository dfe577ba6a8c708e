"""Train a class-conditional diffusion model, sample from it during training, and record the experiment.

python -m diffusion.training configs/diffusion_mnist_small.yaml data.root=/datasets/mnist
torchrun --standalone --nproc_per_node=4 -m diffusion.training configs/diffusion_unet_SwinT.yaml
python -m diffusion.training --resume experiments/experiment_3
"""

import argparse
import functools
from typing import TYPE_CHECKING

from engine.arguments import parse_training
from engine.start import start

if TYPE_CHECKING:
    import torch

    from diffusion.task import DiffusionConfig, DiffusionTask

# Files that determine weights and scores, in addition to the files of the training loop. If one of these files changes,
# earlier results are stale (ablation/scheduling).
COMPUTES = {
    "network": ("model.py", "diffusion/model.py"),
    "noise": ("diffusion/schedule.py",),
    "data": ("diffusion/data.py",),
    "task": ("diffusion/task.py",),
}


def build_task(config: "DiffusionConfig", from_checkpoint: bool) -> "DiffusionTask":
    """Return the task that a config describes. Raises DatasetError if its data cannot be used."""
    from diffusion.data import read_split
    from diffusion.task import DiffusionTask

    train, val = read_split(config.data, "train"), read_split(config.data, "val")
    return DiffusionTask(config, train, val, from_checkpoint=from_checkpoint)


def announce(task: "DiffusionTask") -> None:
    """Log the model and the data sets."""
    from data import log_images
    from engine.logbook import logger

    model, noise = task.config.model, task.config.diffusion
    logger.info(
        "Swin-UNet %s, %d pixels, predicts %s, %d timesteps, %s schedule",
        model.name, model.input_size, noise.objective, noise.timesteps, noise.schedule,
    )  # fmt: skip
    log_images(task.train, task.val)


parse_arguments = functools.partial(
    parse_training,
    "diffusion.training",
    "Train a Swin-UNet to denoise images, and sample from it.",
    "configs/diffusion_mnist_small.yaml data.root=/datasets/mnist train.epochs=5",
)


def main(arguments: argparse.Namespace, device: "torch.device") -> None:
    """Train a diffusion model, score it and record the experiment."""
    from diffusion.record import record
    from diffusion.task import DiffusionConfig
    from runs import TrainCommand, train

    train(TrainCommand(DiffusionConfig, build_task, announce, record), arguments, device)


if __name__ == "__main__":
    start(parse_arguments, main)
