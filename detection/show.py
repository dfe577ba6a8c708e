"""Draw the images and boxes that a detector is trained on, to check them before training; list backbones.

    python -m detection.show configs/bccd.yaml --what data       images with their objects, crowds dashed
    python -m detection.show configs/bccd.yaml --what augment    the same image, augmented as in the first epochs
    python -m detection.show configs/bccd.yaml --what anchors    default boxes of one grid cell per level, to scale
    python -m detection.show configs/bccd.yaml --what matches    which default boxes match which objects
    python -m detection.show backbones 'convnext*'               backbones for model.backbone, see detection/listing.py

Images, augmentations and boxes of each epoch are the same as in training with this config. (With `data.cache_images`,
pixel values may differ by 1 or 2.)

`matches` also measures the recall of the default boxes on all training images, see detection/anchor_fit.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.arguments import check_config, positive
from engine.start import start

if TYPE_CHECKING:
    import torch

SHOWS = {"data": 9, "augment": 3, "anchors": 1, "matches": 4}  # value of --what: default number of images
MAX_IMAGES = 48  # keeps each side of the picture below 2 ** 16 pixels


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    if words and words[0] == "backbones":
        return parse_backbones(words[1:])
    parser = argparse.ArgumentParser(
        prog="python -m detection.show",
        description="Draw what a detector is trained on: images, augmentation, default boxes, and their matches.",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # do not wrap the examples
        epilog="example: python -m detection.show configs/bccd.yaml --what matches model.input_size=300\n"
        "list backbones instead: python -m detection.show backbones --help",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="config (YAML) of detection.training")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="replaces a value of the config")
    parser.add_argument(
        "--what", choices=SHOWS, required=True,
        help="data: images with their objects; augment: the same image in several epochs; anchors: default boxes of "
        "each level, to scale; matches: default boxes that match objects, with statistics of all training images",
    )  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--images", type=positive, metavar="N",
        help=f"number of images, evenly spaced ({', '.join(f'{what}: {images}' for what, images in SHOWS.items())})",
    )  # fmt: skip
    which.add_argument("--ids", type=image_ids, metavar="ID,ID", help="ids of the images to draw, instead of --images")
    parser.add_argument("--output", type=Path, default=Path("show"), metavar="FOLDER", help="folder (default: show)")
    options = parser.parse_intermixed_args(words)
    if (count := max(options.images or 0, len(options.ids or ()))) > MAX_IMAGES:
        parser.error(f"--images or --ids: {count} images requested, expected at most {MAX_IMAGES}")
    if options.output.exists() and not options.output.is_dir():
        parser.error(f"--output {options.output}: a file, expected a folder")
    options.images = options.images or SHOWS[options.what]
    check_config(options.config)
    return options


def parse_backbones(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line after the word `backbones`."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.show backbones",
        description="List backbones for model.backbone, with parameters and strides of the trunk, ImageNet-1k accuracy "
        "of the default weights, and the number of weights.",
        epilog="example: python -m detection.show backbones 'convnext*'",
    )
    parser.add_argument(
        "pattern", nargs="?", metavar="PATTERN",
        help="names of timm models, such as 'resnet*' (quote the *); one name also lists all weights of this model; "
        "without it: the project's own backbones",
    )  # fmt: skip
    return argparse.Namespace(what="backbones", pattern=parser.parse_args(words).pattern)


def image_ids(text: str) -> list[int]:
    """Parse comma-separated image ids, for argparse."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers, such as 3,7") from None


def main(arguments: argparse.Namespace, _: "torch.device") -> None:
    """Draw the requested pictures, or list backbones."""
    if arguments.what == "backbones":
        from detection.listing import list_backbones

        print(list_backbones(arguments.pattern))
    else:
        from detection.inspection import show

        show(arguments)


if __name__ == "__main__":
    start(parse_arguments, main)
