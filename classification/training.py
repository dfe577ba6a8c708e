"""Train a Swin classifier on images in class folders, such as ImageNet, score it and record the experiment.

python -m classification.training configs/SwinT_clf_300e_default.yaml data.root=/datasets/imagenet
torchrun --standalone --nproc_per_node=4 -m classification.training configs/SwinT_clf_300e_default.yaml
python -m classification.training --resume experiments/experiment_3
"""

import argparse
import functools
from typing import TYPE_CHECKING

from engine.arguments import parse_training
from engine.start import start

if TYPE_CHECKING:
    import torch

    from classification.task import ClassificationConfig, ClassificationTask

# Files that determine weights and scores, in addition to the files of the training loop. If one of these files changes,
# earlier results are stale (ablation/scheduling).
COMPUTES = {
    "network": ("model.py",),
    "data": ("classification/data.py", "classification/transforms.py"),
    "task": ("classification/task.py",),
}


def build_task(config: "ClassificationConfig", from_checkpoint: bool) -> "ClassificationTask":
    """Return the task that a config describes. Raises DatasetError if its data cannot be used."""
    from classification.data import read_split
    from classification.task import ClassificationTask

    train, val = read_split(config.data, "train"), read_split(config.data, "val")
    return ClassificationTask(config, train, val, from_checkpoint=from_checkpoint)


def announce(task: "ClassificationTask") -> None:
    """Log the model and the data sets."""
    from data import log_images
    from engine.logbook import logger

    model = task.config.model
    logger.info("%s, position encoding %s, shifted windows %s", model.name, model.position, model.shift)
    log_images(task.train, task.val)


parse_arguments = functools.partial(
    parse_training,
    "classification.training",
    "Train a Swin classifier and score its top-1 and top-5 accuracy.",
    "configs/SwinT_clf_300e_default.yaml data.root=/datasets/imagenet train.batch_size=64",
)


def main(arguments: argparse.Namespace, device: "torch.device") -> None:
    """Train a classifier, score it and record the experiment."""
    from classification.record import record
    from classification.task import ClassificationConfig
    from runs import TrainCommand, train

    start_from = "model.weights={experiment}"
    train(TrainCommand(ClassificationConfig, build_task, announce, record, start_from), arguments, device)


if __name__ == "__main__":
    start(parse_arguments, main)
