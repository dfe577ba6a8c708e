"""Train a Swin classifier on a folder of class folders, such as ImageNet; score it; ask it what is on an image.

python train_clf_imagenet.py configs/SwinT_clf_300e_default.yaml data.root=/datasets/imagenet
torchrun --standalone --nproc_per_node=4 -m train_clf_imagenet configs/SwinT_clf_300e_default.yaml
python train_clf_imagenet.py --resume experiments/experiment_3
python train_clf_imagenet.py evaluate torchvision_swin_t /datasets/imagenet
python train_clf_imagenet.py predict torchvision_swin_t photo.jpg
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.arguments import parse_training, positive
from engine.files import user_path
from engine.start import start

if TYPE_CHECKING:
    import torch

    from classification.task import ClassificationConfig, ClassificationTask

GUESSES = 5  # classes that `predict` prints at most


def build_task(config: "ClassificationConfig", from_checkpoint: bool) -> "ClassificationTask":
    """The task that a config describes. Raises DatasetError for what is wrong with its data."""
    from classification.data import read_split
    from classification.task import ClassificationTask

    return ClassificationTask(config, read_split(config.data, "train"), read_split(config.data, "val"), from_checkpoint)


def announce(task: "ClassificationTask") -> None:
    """Log what is trained, on what."""
    from data import shared_images
    from engine import distributed
    from engine.logbook import logger

    logger.info(
        "%s, position %s, shift %s", task.config.model.name, task.config.model.position, task.config.model.shift
    )
    if task.started_from:
        logger.info(task.started_from)
    for images in (task.train, task.val):
        logger.info("%s: %d images, %d classes", images.place, len(images), len(images.class_ids))
    if distributed.is_main() and (shared := shared_images(task.train, task.val)):
        logger.warning(shared)


def parse_evaluate(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line after `evaluate`."""
    parser = argparse.ArgumentParser(
        prog="python train_clf_imagenet.py evaluate",
        description="Score a classifier with top-1 and top-5 accuracy, over all and by class.",
        epilog="example: python train_clf_imagenet.py evaluate torchvision_swin_t /datasets/imagenet",
    )
    parser.add_argument(
        "classifier", metavar="EXPERIMENT|CONFIG|WEIGHTS",
        help="an experiment, its checkpoint, a published folder, a config with weights, a public file or its name",
    )  # fmt: skip
    parser.add_argument(
        "rest", nargs="*", metavar="DATA|section.field=value",
        help="a folder of class folders, or with val/ of these in it (default: the config's); values of the config",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=positive, default=64, help="images at once on each process (64)")
    parser.add_argument(
        "--workers",
        type=int,
        choices=range(257),
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="loader processes of each process (default: up to 4)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for evaluation.json and its picture (default: the experiment, if scored on its own data)",
    )
    arguments = parser.parse_intermixed_args(words)
    arguments.overrides = [word for word in arguments.rest if "=" in word]
    data = [word for word in arguments.rest if "=" not in word]
    if len(data) > 1:
        parser.error(f"{data[1]}: one folder of images is scored, and {data[0]} is one")
    arguments.data = user_path(data[0], "DATA") if data else None
    return arguments


def parse_predict(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line after `predict`."""
    parser = argparse.ArgumentParser(
        prog="python train_clf_imagenet.py predict",
        description="Print the likeliest classes of images, with their probabilities.",
        epilog="example: python train_clf_imagenet.py predict torchvision_swin_t photo.jpg",
    )
    parser.add_argument(
        "classifier", metavar="EXPERIMENT|CONFIG|WEIGHTS",
        help="an experiment, its checkpoint, a published folder, a config with weights, a public file or its name",
    )  # fmt: skip
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files of any format and size")
    parser.add_argument("--top", type=int, choices=range(1, GUESSES + 1), default=GUESSES, help="how many classes (5)")
    return parser.parse_args(words)


ACTIONS = {"evaluate": parse_evaluate, "predict": parse_predict}


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; the first word may be an action, else it trains."""
    action = words[0] if words and words[0] in ACTIONS else "train"
    if action == "train":
        arguments = parse_training(
            "train_clf_imagenet",
            description="Train a Swin classifier and score it with top-1 and top-5 accuracy (other actions: "
            "`evaluate --help` and `predict --help`).",
            example="configs/SwinT_clf_300e_default.yaml data.root=/datasets/imagenet train.batch_size=64",
            words=words,
        )
    else:
        arguments = ACTIONS[action](words[1:])
    arguments.action = action
    return arguments


def main(arguments: argparse.Namespace, device: "torch.device") -> None:
    """Evaluate or predict, or train, score and record."""
    if arguments.action == "evaluate":
        from classification.evaluate import evaluate

        evaluate(arguments, device)
    elif arguments.action == "predict":
        from classification.predict import predict

        predict(arguments, device)
    else:
        from classification.record import write_record
        from classification.task import ClassificationConfig
        from runs import TrainCommand, train

        start_from = "model.weights={experiment}"
        train(TrainCommand(ClassificationConfig, build_task, announce, write_record, start_from), arguments, device)


if __name__ == "__main__":
    start(parse_arguments, main)
