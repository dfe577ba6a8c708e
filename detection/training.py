"""Train a detector, score it and record the experiment.

python -m detection.training configs/quickstart.yaml
python -m detection.training configs/detection_ssd_SwinT.yaml model.neck=fpn data.root=/datasets/coco
torchrun --standalone --nproc_per_node=4 -m detection.training configs/detection_ssd_resnet50.yaml
python -m detection.training --resume experiments/experiment_3
python -m detection.training configs/bccd.yaml --experiment experiments/bccd  # starts or resumes in this folder
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.arguments import parse_training
from engine.start import start

if TYPE_CHECKING:
    import torch

    from detection.task import DetectionConfig, DetectionTask

HOLDOUT = "data.holdout"  # field that holds out training images, so that grids can tune (ablation/scheduling)
# The files that compute weights and scores, in addition to the files of the training loop. If one of them changes,
# earlier results are stale (ablation/scheduling). If several entries list a file, it belongs to the first entry.
COMPUTES = {
    "loss": (
        "detection/network/loss.py",
        "detection/network/losses/*.py",
        "detection/network/assignment/*.py",
        "detection/network/boxes.py",
    ),
    "network": ("model.py", "detection/network/*.py"),
    "data": (
        "detection/coco/annotations.py",
        "detection/coco/image_files.py",
        "detection/coco/dataset.py",
        "detection/coco/transforms.py",
    ),
    "score": ("detection/coco/evaluation.py", "detection/coco/errors.py"),
    "task": ("detection/task.py", "weights/timm_weights.py"),  # the second file chooses mean and std of the pixels
}


def build_task(config: "DetectionConfig", from_checkpoint: bool) -> "DetectionTask":
    """Validate the data of a config and return the task. Raises DatasetError if the data are invalid."""
    from detection.coco.annotations import read_split
    from detection.prepare.images import check_images
    from detection.task import DetectionTask

    train_split, val_split = read_split(config.data, "train"), read_split(config.data, "val")
    if config.data.check_images:
        check_images([train_split, val_split], max(1, config.data.workers))
    return DetectionTask(config, train_split, val_split, from_checkpoint=from_checkpoint)


def announce(task: "DetectionTask") -> None:
    """Log model and data. Warn if the annotations or the config prevent the scores from reaching 1."""
    import numpy as np

    from detection.anchor_fit import report_fit
    from detection.coco.annotations import describe
    from detection.coco.warnings import ceiling_warning, leak_warnings
    from detection.detector import pixel_statistics
    from detection.recipe import describe_recipe
    from engine import distributed
    from engine.logbook import logger
    from engine.terminal import counted

    model, train, val = task.config.model, task.train, task.val
    logger.info("%s with neck %s; recipe: %s", model.backbone, model.neck, describe_recipe(task.config))
    if model.freeze != "none":
        parameters = list(task.model.parameters())
        total = sum(parameter.numel() for parameter in parameters)
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        logger.info("model.freeze %s: %s of %s parameters are trained", model.freeze, f"{trained:,}", f"{total:,}")
    statistics = pixel_statistics(task.model)
    logger.info("pixels are normalised with mean %s and std %s", statistics["mean"], statistics["std"])
    for coco in (train, val):
        logger.info("%s: %s", coco.annotations_path, describe(coco))
    ids = val.category_ids
    unused = ids[-1] - ids[0] + 1 - len(ids)
    classes = counted(len(ids), "class", "classes")
    logger.info("%s, category ids %d to %d (%d unused)", classes, ids[0], ids[-1], unused)
    if not val.class_counts.any():
        logger.warning("%s: contains no objects, so every score will be undefined", val.annotations_path)
    if not distributed.is_main():
        return
    report_fit(task.anchor_fit, train, task.model)
    for line in leak_warnings(train, val):
        logger.warning(line)
    if (warning := ceiling_warning(val)) is not None:
        logger.warning("%s: %s", val.annotations_path, warning)
    limit = task.config.eval.max_detections
    if number := int(np.sum(np.diff(val.first_object) > limit)):
        message = "%s: more objects than eval.max_detections (%d) in %d images; raise it to detect all objects"
        logger.warning(message, val.annotations_path, limit, number)


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    return parse_training(
        "detection.training",
        description="Train an SSD detector and score it with COCO mAP.",
        example="configs/bccd.yaml model.neck=fpn train.batch_size=8",
        words=words,
    )


def main(arguments: argparse.Namespace, device: "torch.device") -> None:
    """Train, score and record an experiment."""
    from detection.record import record
    from detection.task import DetectionConfig
    from runs import TrainCommand, train

    start_from = "model.weights=null model.start_from={experiment}"
    train(TrainCommand(DetectionConfig, build_task, announce, record, start_from), arguments, device)


if __name__ == "__main__":
    start(parse_arguments, main)
