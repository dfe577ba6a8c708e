"""Ask a classifier what is on images.

python train_clf_imagenet.py predict torchvision_swin_t photo.jpg
python train_clf_imagenet.py predict experiments/experiment_3 photos/*.jpg --top 3
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torchvision.transforms.v2.functional import pil_to_tensor

from classification.classifier import load_classifier
from classification.task import GUESSES, guess
from data import DatasetError, normalize_images, read_image
from engine.command import said_once
from engine.compute.precision import autocast, inference_precision
from engine.logbook import logger
from engine.terminal import printable


def predict(words: Sequence[str], device: torch.device) -> None:
    """Print the likeliest classes of each image. What cannot be read is told, and the others go on.

    Raises DatasetError at the end if there was such a file."""
    arguments = said_once(lambda: parse_arguments(words))
    classifier = load_classifier(arguments.classifier)
    names, model = classifier.class_names, classifier.model.to(device)
    unread = []
    for path in arguments.images:
        try:
            image = classifier.transform(read_image(path))
        except DatasetError as error:
            logger.warning(str(error))
            unread.append(path)
            continue
        images = normalize_images(pil_to_tensor(image)[None].to(device), classifier.channels_last)
        with autocast(device, inference_precision(classifier.precision, device)):
            classes, probabilities = guess(model, images)
        print(path)
        for output, probability in list(zip(classes[0].tolist(), probabilities[0].tolist(), strict=True))[
            : arguments.top
        ]:
            print(f"  {probability:6.1%}  {printable(names[output])}")
    if unread:
        raise DatasetError(
            f"{len(unread)} of {len(arguments.images)} images left out, as told above: {', '.join(map(str, unread))}"
        )


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The command line after `predict`."""
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
