"""Files that a finished diffusion run writes to its experiment, in addition to those of records/record.py.

image_statistics.npz  the loss on each validation image (stats.image_statistics)
samples/              epoch_010.png, ...: a grid of samples for every scored epoch, always from the same noise
samples.png           the grid of the last epoch
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
    """Write image_statistics.npz and samples.png. Return what this task adds to results.json and README.md."""
    config, model, val, outputs = task.config, task.config.model, task.val, evaluation.predictions
    noise, sampling = config.diffusion, config.eval
    losses = Losses(
        name=np.array("val_loss"),
        image_ids=np.array([val.name(image) for image in outputs.image_ids]),
        class_names=np.array(val.class_names),
        labels=val.labels.astype(np.int16),
        losses=outputs.losses,
    )
    losses.save(experiment)
    draw_grid(experiment / "samples.png", outputs.samples)
    zero = torch.zeros(1, dtype=torch.int64, device=next(task.model.parameters()).device)
    return TaskRecord(
        module="diffusion.training",
        results={
            "task": "diffusion",
            "variant": {"model": model.name, "encoder from": model.weights or "random weights"},
            "scores": evaluation.scores,
            "per_class": val.mean_by_class("val_loss", outputs.losses),
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
        # Cost of one forward pass. A sample needs one per sampling step, or two with guidance.
        gflops=forward_gflops(task.model, model.input_size, CHANNELS[config.data.format], further=(zero, zero)),
        title=f"Swin-UNet {model.name} on {config.data.format}, {model.input_size} pixels",
        model=f"Swin-UNet, {model.name}, input size {model.input_size} pixels, patch size {model.patch_size}",
        data=f"{len(task.train):,} training images, {len(val):,} validation images, {len(val.class_ids)} classes",
        scored=f"mean squared error on all {len(val):,} validation images, each at a fixed timestep with fixed noise; "
        "lower is better",
        facts={
            "Noise": f"{noise.timesteps} timesteps, {noise.schedule} schedule, predicts {noise.objective}, class "
            f"dropped for {noise.label_dropout:.0%} of the training images",
            "Samples": f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}",
        },
        pictures={"samples.png": "Samples, one row per class"},
    )
