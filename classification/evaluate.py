"""Score a classifier: top-1, top-5, top-1 of every class, and which classes it takes for which.

python train_clf_imagenet.py evaluate experiments/experiment_3
python train_clf_imagenet.py evaluate torchvision_swin_t /datasets/imagenet
python train_clf_imagenet.py evaluate configs/SwinB_clf_384.yaml model.weights=microsoft_swin_b_384 /datasets/imagenet

The images may be of some of the classes only: folders are found among the classifier's outputs by their names.
evaluation.json and evaluation_confusion.png land in the experiment that is scored on its own data, or in --output.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10

from classification.classifier import Classifier, load_classifier
from classification.data import DataConfig, read_folders, read_split
from classification.pictures import draw_confusion
from classification.record import per_class
from classification.task import guess_all, scores_of
from data import LabelledImages, eval_loader
from engine.command import positive, said_once
from engine.compute.precision import inference_precision
from engine.experiment import shown_score
from engine.logbook import logger
from engine.storage.files import user_path, write_text
from engine.storage.strict_yaml import ConfigError
from engine.terminal import printable

LISTED_CLASSES = 50  # printed; of more of them, as many of the worst


def evaluate(words: Sequence[str], device: torch.device) -> None:
    """Score as the command line says, print the scores, keep evaluation.json."""
    arguments = said_once(lambda: parse_arguments(words))
    classifier = load_classifier(arguments.classifier, arguments.overrides)
    images = find_images(arguments.data, classifier)
    outputs = classifier.outputs_of(images.class_ids)
    # From here on the classes are those of the classifier, of which the images may have some.
    images = replace(
        images, labels=outputs[images.labels], class_ids=classifier.class_ids, class_names=classifier.class_names
    )
    logger.info(
        "%s on %d images in %s, of %d of its %d classes",
        classifier.path, len(images), images.place, len(outputs), len(classifier.class_ids),
    )  # fmt: skip
    loader = eval_loader(images, classifier.transform, arguments.batch_size, arguments.workers, device)
    model = classifier.model.to(device)
    precision = inference_precision(classifier.precision, device)
    guesses = guess_all(model, loader, device, precision, classifier.channels_last)
    if guesses is None:
        return
    scores = scores_of(guesses, images.labels, len(images.class_ids))
    by_class = {name: found for name, found in per_class(guesses, images).items() if found["images"]}
    record = {
        "weights": str(classifier.path),
        "images": len(images),
        "images_sha256": images.digest,
        "input_size": classifier.input_size,
        "resize_size": classifier.resize_size,
        "precision": precision,
        "scores": scores,
        "per_class": by_class,
    }
    worst = sorted(by_class, key=lambda name: by_class[name]["top1"])[:LISTED_CLASSES]
    if len(by_class) > len(worst):
        print(f"the {len(worst)} worst of {len(by_class)} classes:")
    for name in worst:
        print(f"{shown_score(by_class[name]['top1'])}  {printable(name)} ({by_class[name]['images']} images)")
    print("  ".join(f"{name} {shown_score(value)}" for name, value in scores.items()))
    if folder := arguments.output or (None if arguments.data else classifier.experiment):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "evaluation.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        picture = folder / "evaluation_confusion.png"
        draw_confusion(picture, images.labels, guesses.classes[:, 0], images.class_names)
        print(f"written to {folder / 'evaluation.json'}; confusions: {picture}")
    else:
        print("not written down: --output FOLDER keeps evaluation.json and a picture of the confusions")


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The command line after `evaluate`."""
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
    arguments.data = user_path(data[0], "data.root") if data else None
    return arguments


def find_images(folder: Path | None, classifier: Classifier) -> LabelledImages:
    """The images to score: those in a folder, or else the validation images of the classifier's config.

    Raises DatasetError if they are not there, ConfigError if there is neither."""
    if folder is None:
        if classifier.data is None:
            raise ConfigError(f"{classifier.path}: has no data of its own; name a folder of images to score, too")
        return read_split(classifier.data, "val")
    if (folder / CIFAR10.base_folder).is_dir():
        return read_split(DataConfig(root=str(folder), format="cifar10"), "val")
    if (folder / "MNIST/raw").is_dir():
        return read_split(DataConfig(root=str(folder), format="mnist"), "val")
    return read_folders(folder / "val" if (folder / "val").is_dir() else folder)
