"""Prepare a data set for training.

python -m detection.data fetch coco2017 datasets/coco                         download COCO 2017
python -m detection.data layout ~/fiftyone/coco-2017                          print the command that trains on it
python -m detection.data convert voc VOCdevkit/VOC2007                        convert Pascal VOC or YOLO to COCO
python -m detection.data split my_export                                      split one file into train and val
python -m detection.data check configs/bccd.yaml data.root=/datasets/bccd     list all defects
python -m detection.data shrink /datasets/coco --short-side 400               make a copy that loads faster

Each command is a module in detection/prepare and has its own --help. See also docs/data.md.
"""

import argparse
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.arguments import positive
from engine.compute.machine import usable_cores
from engine.start import start

if TYPE_CHECKING:
    import torch

YAML = (".yaml", ".yml")


def share(text: str) -> float:
    """Parse a number between 0 and 1, for argparse."""
    if not 0 < (value := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a number between 0 and 1, such as 0.2")
    return value


def seed(text: str) -> int:
    """Parse a whole number of 0 or more, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text}, expected a whole number of 0 or more")
    return int(text)


def pattern(text: str) -> str:
    """Check that a text is a regular expression with a group, for argparse."""
    try:
        if re.compile(text).groups:
            return text
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text}: not a regular expression: {error}") from None
    raise argparse.ArgumentTypeError(f"{text}: expected a group in parentheses, such as '^(patient_[0-9]+)'")


# ---- the arguments of each command --------------------------------------------------------------------------------


def add_fetch(add: Callable[..., object]) -> None:
    """Download COCO 2017 (20 GB; needs 42 GB of disk space while it runs), or only the parts that a folder lacks.

    After an interruption, run the same command again to continue."""
    add("name", choices=["coco2017"], help="data set to download")
    add("root", type=Path, metavar="ROOT", help="folder for the data set; existing files are kept")


def add_layout(add: Callable[..., object]) -> None:
    """Recognise the folder layout of a COCO-format data set; print the command that trains on it."""
    add("folder", type=Path, metavar="FOLDER", help="folder of the data set")


def add_convert(add: Callable[..., object]) -> None:
    """Convert the annotations of a data set to COCO's format. The images stay where they are.

    Pascal VOC has an XML file per image. Its difficult objects become crowds, which are neither trained on nor scored.
    YOLO has a text file of boxes or outlines per image. Its classes are named by data.yaml or classes.txt."""
    kinds = "a list in ImageSets/Main (voc), a folder, or a text file of images (default: search the usual places)"
    add("format", choices=["voc", "yolo"], help="format of the annotations")
    add("source", type=Path, metavar="FOLDER", help="folder of the data set (for yolo, its data.yaml also works)")
    add("--train", metavar="NAME", help=f"training split: {kinds}")
    add("--val", metavar="NAME", help="validation split, given like --train")
    add_to(add)
    add(
        "--zero-based", action="store_true",
        help="voc: box edges are counted from 0, as LabelImg writes them; without it, pixels are counted from 1 (VOC)",
    )  # fmt: skip


def add_split(add: Callable[..., object]) -> None:
    """Split a single COCO annotation file into train and val."""
    add("source", type=Path, metavar="FOLDER|ANNOTATIONS", help="folder of the data set, or its COCO JSON file")
    add("--val-share", type=share, default=0.2, metavar="SHARE", help="share of images in val (default: %(default)s)")
    add("--seed", type=seed, default=0, help="random seed of the split (default: %(default)s)")
    add(
        "--groups", type=pattern, metavar="REGEX",
        help="regular expression; its first capture group must match the part of the file name that identifies the "
        "patient, video, ...; images with the same match stay in one split",
    )  # fmt: skip
    add("--images", type=Path, metavar="FOLDER", help="image folder (default: search the usual places)")
    add_to(add)


def add_check(add: Callable[..., object]) -> None:
    """Read every annotation and decode every image of a data set; list all defects."""
    add(
        "source", type=Path, metavar="CONFIG|FOLDER|ANNOTATIONS",
        help="config (YAML) or folder of a data set, to check train and val; or a single COCO JSON file",
    )  # fmt: skip
    add("overrides", nargs="*", metavar="data.field=value", help="replaces a value of the config")
    add("--images", type=Path, metavar="FOLDER", help="image folder of ANNOTATIONS (default: search the usual places)")
    add("--json", type=Path, metavar="FILE", help="also write counts, defects and warnings to this file")
    add_workers(add)


def add_shrink(add: Callable[..., object]) -> None:
    """Copy a data set with smaller images, which decode faster. The annotations are copied unchanged."""
    add("root", type=Path, metavar="ROOT", help="folder of the data set, with annotations/instances_X.json")
    add("--short-side", type=positive, required=True, metavar="N", help="short side in pixels, above model.input_size")
    add("--to", type=Path, metavar="FOLDER", help="folder of the copy (default: ROOT_N)")
    add_workers(add)


def add_to(add: Callable[..., object]) -> None:
    """Add --to."""
    add("--to", type=Path, metavar="FOLDER", help="folder to write annotations/ to (default: the data set)")


def add_workers(add: Callable[..., object]) -> None:
    """Add --workers."""
    cores = max(1, int(usable_cores()))
    add("--workers", type=positive, default=cores, metavar="N", help="number of processes (default: %(default)s)")


COMMANDS = {  # name: arguments, module of detection/prepare, example
    "fetch": (add_fetch, "fetch", "coco2017 datasets/coco"),
    "layout": (add_layout, "layouts", "~/fiftyone/coco-2017"),
    "convert": (add_convert, "convert", "voc VOCdevkit/VOC2007 --train trainval --val test"),
    "split": (add_split, "split", "my_export --groups '^(patient_[0-9]+)'"),
    "check": (add_check, "check", "configs/bccd.yaml data.root=/datasets/bccd"),
    "shrink": (add_shrink, "shrink", "datasets/coco --short-side 400"),
}


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Raises ValueError if its first word is not a command."""
    name = words[0] if words else ""
    if name in ("-h", "--help"):
        print(__doc__.strip())
        sys.exit()
    if name not in COMMANDS:
        raise ValueError(f"python -m detection.data {name or '...'}: expected one of {', '.join(COMMANDS)}; see --help")
    add_arguments, _, example = COMMANDS[name]
    parser = argparse.ArgumentParser(
        prog=f"python -m detection.data {name}",
        description=inspect.getdoc(add_arguments),
        epilog=f"example: python -m detection.data {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # do not wrap the example
    )
    add_arguments(parser.add_argument)
    arguments = parser.parse_intermixed_args(words[1:])
    arguments.command = name
    if name == "check":
        _verify_check(arguments, parser)
    elif name == "convert" and arguments.format == "yolo" and arguments.zero_based:
        parser.error("--zero-based is for voc only")
    elif name == "shrink":
        root = Path(os.path.realpath(arguments.root))  # unlike resolve(), accepts a loop of links
        arguments.to = arguments.to or root.with_name(f"{root.name}_{arguments.short_side}")
    return arguments


def _verify_check(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Exit with a one-line error if the arguments of `check` do not fit together."""
    source, overrides = arguments.source, arguments.overrides
    kind = "folder" if source.is_dir() else source.suffix.lower()
    if not source.exists():
        parser.error(f"{source}: no such file or folder")
    if kind not in ("folder", ".json", *YAML):
        parser.error(f"{source}: expected a config (.yaml), annotations (.json) or the folder of a data set")
    if invalid := [override for override in overrides if kind not in YAML or not override.startswith("data.")]:
        parser.error(f"{invalid[0]}: expected data.field=value after a CONFIG; other overrides are not possible")
    if kind != ".json" and arguments.images:
        parser.error(f"--images: only for an ANNOTATIONS file; the image folders of {source} are known")


def main(arguments: argparse.Namespace, _: "torch.device") -> None:
    """Run the module of the requested command."""
    importlib.import_module(f"detection.prepare.{COMMANDS[arguments.command][1]}").main(arguments)


if __name__ == "__main__":
    start(parse_arguments, main)
