"""Look at what a detector is trained on, before training.

    python -m detection.show configs/bccd.yaml --what data       images with their objects, crowds dashed
    python -m detection.show configs/bccd.yaml --what augment    the same image in each of the first epochs
    python -m detection.show configs/bccd.yaml --what anchors    default boxes of one cell of each level, to scale
    python -m detection.show configs/bccd.yaml --what matches    which default boxes match which objects

Images, views and boxes are those of training with the same config: epoch 1 here is epoch 1 there. (With
`data.cache_images` a pixel may differ by a level or two.)

`matches` also measures the recall of the default boxes over all training images, see detection/anchor_fit.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.arguments import check_config, positive
from engine.start import start

if TYPE_CHECKING:
    import torch

SHOWS = {"data": 9, "augment": 3, "anchors": 1, "matches": 4}  # what can be drawn: how many images of it by default
MOST_IMAGES = 48  # a picture has less than 2 ** 16 pixels on a side


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.show",
        description="Draw what a detector is trained on: data, augmentation, default boxes, and what these match.",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # an example to be pasted
        epilog="example: python -m detection.show configs/bccd.yaml --what matches model.input_size=300",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file, as for detection.training")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="replaces a value of the config")
    parser.add_argument(
        "--what", choices=SHOWS, required=True,
        help="images with their objects; the same image in several epochs; default boxes of each level to scale; "
        "default boxes that match objects, with statistics of the training images",
    )  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--images", type=positive, metavar="N",
        help=f"how many, spread evenly ({', '.join(f'{what}: {images}' for what, images in SHOWS.items())})",
    )  # fmt: skip
    which.add_argument("--ids", type=image_ids, metavar="ID,ID", help="which, by id in the annotation file")
    parser.add_argument("--output", type=Path, default=Path("show"), metavar="DIRECTORY", help="default: show")
    options = parser.parse_intermixed_args(words)
    if (count := max(options.images or 0, len(options.ids or ()))) > MOST_IMAGES:
        parser.error(f"{count} images asked for by --images or --ids: expected at most {MOST_IMAGES} at once")
    if options.output.exists() and not options.output.is_dir():
        parser.error(f"--output {options.output}: expected a folder")
    options.images = options.images or SHOWS[options.what]
    check_config(options.config)
    return options


def image_ids(text: str) -> list[int]:
    """Parse image ids with commas between them, for argparse."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers, such as 3,7") from None


def main(arguments: argparse.Namespace, _: "torch.device") -> None:
    """Draw what the command line asks for."""
    from detection.inspection import show

    show(arguments)


if __name__ == "__main__":
    start(parse_arguments, main)
