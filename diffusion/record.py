"""What a finished diffusion run leaves in its experiment directory, besides what records/record.py writes.

image_statistics.npz  the loss on each validation image (stats.image_statistics)
samples/              epoch_010.png, ...: a grid of samples for every epoch that was scored, always from the same noise
samples.png           the last of them
"""

from pathlib import Path

import numpy as np
import torch

from diffusion.data import CHANNELS
from diffusion.pictures import draw_grid
from diffusion.task import DiffusionTask
from engine.compute.cost import forward_gflops
from records.record import TaskRecord
from stats.image_statistics import Losses
from training import Evaluation


def record(experiment: Path, task: DiffusionTask, evaluation: Evaluation) -> TaskRecord:
    """Write image_statistics.npz and samples.png; return what results.json and README.md hold of this task."""
    config, model, val, found = task.config, task.config.model, task.val, evaluation.predictions
    noise, sampling = config.diffusion, config.eval
    losses = Losses(
        name=np.array("val_loss"),
        image_ids=np.array([val.name(image) for image in found.image_ids]),
        class_names=np.array(val.class_names),
        labels=val.labels.astype(np.int16),
        losses=found.losses,
    )
    losses.save(experiment)
    draw_grid(experiment / "samples.png", found.samples)
    first = torch.zeros(1, dtype=torch.int64, device=next(task.model.parameters()).device)
    return TaskRecord(
        module="diffusion.training",
        results={
            "task": "diffusion",
            "variant": {"model": model.name, "encoder from": model.weights or "random weights"},
            "scores": evaluation.scores,
            "per_class": val.mean_by_class("val_loss", found.losses),
            "protocol": {
                "images_sha256": val.digest,
                "images": len(val),
                "classes": val.class_names,
                "input_size": model.input_size,
                "timesteps": noise.timesteps,
                "schedule": noise.schedule,
                "objective": noise.objective,
            },
        },
        # Of one prediction; a sample takes as many as the sampler has steps, twice as many with guidance.
        gflops=forward_gflops(task.model, model.input_size, CHANNELS[config.data.format], further=(first, first)),
        title=f"Swin-UNet {model.name} on {config.data.format}, {model.input_size} pixels",
        model=f"Swin-UNet, {model.name}, {model.input_size} pixels, patches of {model.patch_size}",
        data=f"{len(task.train):,} images to train on, {len(val):,} to validate, {len(val.class_ids)} classes",
        scored=f"mean squared error on all {len(val):,} validation images, each at a fixed timestep with fixed noise; "
        "lower is better",
        facts={
            "Noise": f"{noise.timesteps} steps, {noise.schedule} schedule, predicts {noise.objective}, no class for "
            f"{noise.label_dropout:.0%} of the images",
            "Samples": f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}",
        },
        pictures={"samples.png": "Samples, a row for each class"},
    )
