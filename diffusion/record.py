"""What a finished diffusion run leaves in its experiment directory.

image_statistics.npz  the loss on each validation image (stats.image_statistics)
samples/              epoch_010.png, ...: a grid of samples for every epoch that was scored, always from the same noise
samples.png           the last of them
results.json          the loss, per class too, with the protocol it was taken under and what it cost; written last
README.md             what was trained, on what, how, how well and how long, for people
"""

import json
from pathlib import Path

import numpy as np
import torch

from data import LabelledImages
from diffusion.data import CHANNELS
from diffusion.pictures import draw_grid
from diffusion.task import DiffusionTask, Evaluation
from engine.compute.cost import forward_gflops
from engine.files import write_text
from records.experiment import write_readme
from runs import common_facts, common_record, recipe_fact, started_fact
from stats.image_statistics import Losses


def write_record(experiment: Path, task: DiffusionTask) -> dict:
    """Write all this from what `task` evaluated last; returns what results.json holds.

    Called on rank 0, after `environment.json` and `metrics.jsonl` are complete."""
    config, val, results = task.config, task.val, task.results
    record = {
        "task": "diffusion",
        "variant": {"model": config.model.name, "encoder from": config.model.weights or "random weights"},
        "scores": {"val_loss": float(results.losses.mean())},
        "per_class": per_class(results, val),
        "protocol": {
            "images_sha256": val.digest,
            "images": len(val),
            "classes": val.class_names,
            "input_size": config.model.input_size,
            "timesteps": config.diffusion.timesteps,
            "schedule": config.diffusion.schedule,
            "objective": config.diffusion.objective,
        },
        **common_record(experiment, task, pass_gflops(task)),
    }
    statistics(results, val).save(experiment)
    draw_grid(experiment / "samples.png", results.samples)
    write_readme(
        experiment,
        title=f"Swin-UNet {config.model.name} on {config.data.format}, {config.model.input_size} pixels",
        facts=facts(experiment, task, record),
        scores=record["scores"],
        pictures={
            "samples.png": "Samples, a row for each class",
            "curves.png": "Training loss, validation loss and learning rate by epoch",
        },
    )
    # Last: it says that the experiment is finished.
    write_text(experiment / "results.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return record


def pass_gflops(task: DiffusionTask) -> float:
    """Arithmetic of one prediction; an image takes as many as the sampler has steps, twice as many with guidance."""
    first = torch.zeros(1, dtype=torch.int64, device=next(task.model.parameters()).device)
    channels = CHANNELS[task.config.data.format]
    return forward_gflops(task.model, task.config.model.input_size, channels, further=(first, first))


def facts(experiment: Path, task: DiffusionTask, record: dict) -> dict[str, str]:
    """The bullet list of the experiment's README: label to sentence."""
    config = task.config
    model, noise, sampling = config.model, config.diffusion, config.eval
    return {
        "Model": f"Swin-UNet, {model.name}, {model.input_size} pixels, patches of {model.patch_size}, "
        f"{record['cost']['parameters'] / 1e6:.2f} M parameters; {started_fact(experiment, model.weights)}",
        "Data": f"`{config.data.root}`: {len(task.train):,} images to train on, {len(task.val):,} to validate, "
        f"{len(task.val.class_ids)} classes",
        "Noise": f"{noise.timesteps} steps, {noise.schedule} schedule, predicts {noise.objective}, the class untold "
        f"for {noise.label_dropout:.0%} of the images",
        "Recipe": recipe_fact(experiment, config),
        "Scored": f"weights: {record['weights']}; mean squared error on all {len(task.val):,} validation images, "
        "each at a fixed timestep with fixed noise; lower is better",
        "Samples": f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}",
        **common_facts(experiment, record, "diffusion.training"),
    }


def per_class(results: Evaluation, images: LabelledImages) -> dict[str, dict[str, float | None]]:
    """Mean loss on the images of each class, and how many these are; None where there are none."""
    scores = {}
    for label, name in enumerate(images.class_names):
        own = results.losses[images.labels == label]
        scores[name] = {"val_loss": float(own.mean()) if len(own) else None, "images": len(own)}
    return scores


def statistics(results: Evaluation, images: LabelledImages) -> Losses:
    """What a comparison needs to compute the loss again on other choices of images."""
    return Losses(
        name=np.array("val_loss"),
        image_ids=np.array([images.name(image) for image in results.image_ids]),
        class_names=np.array(images.class_names),
        labels=images.labels.astype(np.int16),
        losses=results.losses,
    )
