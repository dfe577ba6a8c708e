"""Print the most likely classes of images.

python -m classification.predict torchvision_swin_t photo.jpg
python -m classification.predict experiments/experiment_3 photos/*.jpg --top 3
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.arguments import CLASSIFIERS
from engine.start import start

if TYPE_CHECKING:
    import torch

TOP_K = 5  # number of most likely classes per image, as in classification/task.py


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m classification.predict",
        description="Print the most likely classes of images, with their probabilities.",
        epilog="example: python -m classification.predict torchvision_swin_t photo.jpg",
    )
    parser.add_argument("classifier", metavar="EXPERIMENT|CONFIG|WEIGHTS", help=CLASSIFIERS)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files of any size")
    parser.add_argument("--top", type=int, choices=range(1, TOP_K + 1), default=TOP_K, help="classes to print (5)")
    return parser.parse_args(words)


def main(arguments: argparse.Namespace, device: "torch.device") -> None:
    """Print the most likely classes of each image. Unreadable files are reported, one line each, and skipped.

    Raises DatasetError at the end if any file was skipped."""
    from classification.classifier import load_classifier
    from classification.task import predict_batch
    from data import DatasetError, image_tensor, normalize_images, read_image
    from engine.compute.precision import autocast, inference_precision
    from engine.logbook import logger
    from engine.terminal import printable

    classifier = load_classifier(arguments.classifier)
    names, model = classifier.class_names, classifier.model.to(device)
    skipped = []
    for path in arguments.images:
        try:
            image = classifier.transform(read_image(path))
        except DatasetError as error:
            logger.warning(str(error))
            skipped.append(path)
            continue
        images = normalize_images(image_tensor(image)[None].to(device), classifier.channels_last)
        with autocast(device, inference_precision(classifier.precision, device)):
            classes, probabilities = predict_batch(model, images)
        print(path)
        best = zip(classes[0, : arguments.top].tolist(), probabilities[0].tolist(), strict=False)
        for output, probability in best:
            print(f"  {probability:6.1%}  {printable(names[output])}")
    if skipped:
        raise DatasetError(f"{len(skipped)} of {len(arguments.images)} images skipped: {', '.join(map(str, skipped))}")


if __name__ == "__main__":
    start(parse_arguments, main)
