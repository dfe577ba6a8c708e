"""Train a Swin classifier on a folder of class folders, such as ImageNet; score it; ask it what is on an image.

python train_clf_imagenet.py configs/SwinT_clf_300e_default.yaml data.root=/datasets/imagenet
python -m engine.launch --standalone --nproc_per_node=4 -m train_clf_imagenet configs/SwinT_clf_300e_default.yaml
python train_clf_imagenet.py --resume experiments/experiment_3
python train_clf_imagenet.py evaluate torchvision_swin_t /datasets/imagenet
python train_clf_imagenet.py predict torchvision_swin_t photo.jpg
"""

import sys

import torch

from classification.data import read_split
from classification.evaluate import evaluate
from classification.predict import predict
from classification.record import write_record
from classification.task import ClassificationConfig, ClassificationTask
from data import shared_images
from engine import distributed
from engine.command import run_command
from engine.logbook import logger
from runs import TrainCommand, train


def build_task(config: ClassificationConfig, from_checkpoint: bool) -> ClassificationTask:
    """The task that a config describes. Raises DatasetError for what is wrong with its data."""
    return ClassificationTask(config, read_split(config.data, "train"), read_split(config.data, "val"), from_checkpoint)


def announce(task: ClassificationTask) -> None:
    """Log what is trained, on what."""
    logger.info(
        "%s, position %s, shift %s", task.config.model.name, task.config.model.position, task.config.model.shift
    )
    if task.started_from:
        logger.info(task.started_from)
    for images in (task.train, task.val):
        logger.info("%s: %d images, %d classes", images.place, len(images), len(images.class_ids))
    if distributed.is_main() and (shared := shared_images(task.train, task.val)):
        logger.warning(shared)


COMMAND = TrainCommand(
    module="train_clf_imagenet",
    description="Train a Swin classifier and score it with top-1 and top-5 accuracy (`evaluate --help` and "
    "`predict --help` tell of the other two actions).",
    example="configs/SwinT_clf_300e_default.yaml data.root=/datasets/imagenet train.batch_size=64",
    config_class=ClassificationConfig,
    build_task=build_task,
    announce=announce,
    write_record=write_record,
    start_from="model.weights={experiment}",
)


ACTIONS = {"evaluate": evaluate, "predict": predict}


def main(device: torch.device) -> None:
    """Evaluate or predict if the first word says so; else train, score and record."""
    action, *words = sys.argv[1:] or [""]
    if action in ACTIONS:
        ACTIONS[action](words, device)
    else:
        train(COMMAND, device)


if __name__ == "__main__":
    run_command(main)
