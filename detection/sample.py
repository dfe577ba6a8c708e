"""Draw a small detection data set in COCO's format: no download (detection/shapes.py says what is drawn).

python -m detection.sample datasets/sample
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.start import start

if TYPE_CHECKING:
    import torch

STYLES = ("full", "easy")  # those of detection/shapes.py


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.sample",
        description="Draw a small detection data set in COCO's format, unless it is already there.",
        epilog="example: python -m detection.sample datasets/sample",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("root", type=Path, help="folder to make, such as datasets/sample")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other images")
    parser.add_argument("--num-train", type=int, default=600, help="training images")
    parser.add_argument("--num-val", type=int, default=150, help="validation images")
    parser.add_argument("--image-size", type=int, default=128, help="side of the square images in pixels")
    parser.add_argument("--style", choices=STYLES, default="full", help="easy: three classes, few and large shapes")
    return parser.parse_args(words)


def main(arguments: argparse.Namespace, _: "torch.device") -> None:
    """Draw the data set, unless it is there."""
    from detection.shapes import generate

    try:
        generate(**vars(arguments))
    except OSError as error:
        if error.filename:  # by the system, and not in words for people
            raise OSError(f"{error.filename}: cannot be written: {error.strerror.lower()}") from None
        raise
    print(f"{arguments.root}: {arguments.num_train} training and {arguments.num_val} validation images")


if __name__ == "__main__":
    start(parse_arguments, main, on_device=False)
