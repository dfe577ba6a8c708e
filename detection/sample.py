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

# Those of detection/shapes.py, each with its usual number of training and validation images, and their side in pixels.
SIZES = ("num_train", "num_val", "image_size")
STYLES = {"full": (600, 150, 128), "easy": (1000, 300, 96)}


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.sample",
        description="Draw a small detection data set in COCO's format, unless it is already there.",
        epilog="example: python -m detection.sample datasets/sample",
    )
    parser.add_argument("root", type=Path, help="folder to make, such as datasets/sample")
    parser.add_argument(
        "--style", choices=STYLES, default="full",
        help="full: six classes, crowds, small objects; easy: three classes, few and large shapes (default: full)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other images (default: 0)")
    usual = {name: f"full {full}, easy {easy}" for name, full, easy in zip(SIZES, *STYLES.values(), strict=True)}
    parser.add_argument("--num-train", type=int, metavar="N", help=f"training images ({usual['num_train']})")
    parser.add_argument("--num-val", type=int, metavar="N", help=f"validation images ({usual['num_val']})")
    parser.add_argument(
        "--image-size", type=int, metavar="N", help=f"side of the square images in pixels ({usual['image_size']})"
    )
    arguments = parser.parse_args(words)
    for name, number in zip(SIZES, STYLES[arguments.style], strict=True):
        if getattr(arguments, name) is None:
            setattr(arguments, name, number)
    return arguments


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
