"""Draw a small detection data set in COCO's format, without a download (see detection/shapes.py).

python -m detection.sample datasets/sample
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.start import start

if TYPE_CHECKING:
    import torch

# Default number of training images, number of validation images, and image side in pixels.
STYLES = {
    "full": {"num_train": 600, "num_val": 150, "image_size": 128},
    "easy": {"num_train": 1000, "num_val": 300, "image_size": 96},
}


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.sample",
        description="Draw a small detection data set in COCO's format, unless the folder already contains it.",
        epilog="example: python -m detection.sample datasets/sample",
    )
    parser.add_argument("root", type=Path, help="folder for the data set, such as datasets/sample")
    parser.add_argument(
        "--style", choices=STYLES, default="full",
        help="full: six classes with crowds and small objects; easy: three classes, few large shapes (default: full)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="random seed of the images (default: 0)")
    parser.add_argument("--num-train", type=int, metavar="N", help="number of training images (full: 600, easy: 1000)")
    parser.add_argument("--num-val", type=int, metavar="N", help="number of validation images (full: 150, easy: 300)")
    parser.add_argument("--image-size", type=int, metavar="N", help="image side in pixels (full: 128, easy: 96)")
    arguments = parser.parse_args(words)
    for name, number in STYLES[arguments.style].items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, number)
    return arguments


def main(arguments: argparse.Namespace, _: "torch.device") -> None:
    """Draw the data set, unless it exists already."""
    from detection.shapes import generate

    generate(**vars(arguments))
    print(f"{arguments.root}: {arguments.num_train} training and {arguments.num_val} validation images")


if __name__ == "__main__":
    start(parse_arguments, main, on_device=False)
