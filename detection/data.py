"""Commands for whole data sets, before anything is trained on them.

python -m detection.data fetch coco2017 datasets/coco                         download COCO
python -m detection.data layout ~/fiftyone/coco-2017                          what it is, and how to train on it
python -m detection.data convert voc VOCdevkit/VOC2007                        Pascal VOC or YOLO into COCO's format
python -m detection.data split my_export                                      one annotation file into two halves
python -m detection.data check configs/bccd.yaml data.root=/datasets/bccd     what is wrong with it
python -m detection.data shrink /datasets/coco --short-side 400               a copy that loads faster

Each is a module of detection/prepare and has a --help of its own; see docs/data.md.
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
    """Read a number between 0 and 1, for argparse."""
    if not 0 < (value := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a number between 0 and 1, such as 0.2")
    return value


def seed(text: str) -> int:
    """Read a whole number from 0 up, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text}, expected a whole number from 0 up")
    return int(text)


def pattern(text: str) -> str:
    """Check a regular expression with a group, for argparse."""
    try:
        if re.compile(text).groups:
            return text
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text}: not a regular expression: {error}") from None
    raise argparse.ArgumentTypeError(f"{text}: expected a group in parentheses, such as '^(patient_[0-9]+)'")


# ---- the arguments of each command --------------------------------------------------------------------------------


def add_fetch(add: Callable[..., object]) -> None:
    """Download COCO 2017 (20 GB; needs 42 GB of room while it runs), or what a folder lacks of it.

    If interrupted, it continues when it is called again."""
    add("name", choices=["coco2017"], help="the data set")
    add("root", type=Path, metavar="ROOT", help="folder for it; what is there already is kept")


def add_layout(add: Callable[..., object]) -> None:
    """Recognise the layout of a data set in COCO's format; print how to train on it."""
    add("folder", type=Path, help="of the data set")


def add_convert(add: Callable[..., object]) -> None:
    """Convert the annotations of a data set to COCO's format; its images stay where they are.

    Pascal VOC has an XML file for each image; its difficult objects become crowds, which are not trained on and not
    scored. YOLO has a text file for each image, of boxes or outlines; data.yaml or classes.txt names the classes."""
    half = "a list in ImageSets/Main (voc), a folder, or a text file of images (default: the usual ones)"
    add("format", choices=["voc", "yolo"], help="of the annotations")
    add("source", type=Path, metavar="FOLDER", help="of the data set; for yolo, or its data.yaml")
    add("--train", metavar="NAME", help=f"the half to train on: {half}")
    add("--val", metavar="NAME", help="the half to validate on, likewise")
    add_to(add)
    add(
        "--zero-based", action="store_true",
        help="voc: boxes are edges counted from 0, as LabelImg writes them, not pixels counted from 1 as in VOC",
    )  # fmt: skip


def add_split(add: Callable[..., object]) -> None:
    """Split one COCO annotation file for all images into two, to train on and to validate on."""
    add("source", type=Path, metavar="FOLDER|ANNOTATIONS", help="of the data set, or its COCO JSON")
    add("--val-share", type=share, default=0.2, metavar="SHARE", help="of the images in val (default: %(default)s)")
    add("--seed", type=seed, default=0, help="a different seed gives a different split (default: %(default)s)")
    add(
        "--groups", type=pattern, metavar="REGEX",
        help="a pattern found in each file name, whose first group (in parentheses) names what belongs together, such "
        "as a patient or a video; its images stay in one half",
    )  # fmt: skip
    add("--images", type=Path, metavar="DIRECTORY", help="image folder (default: the usual ones)")
    add_to(add)


def add_check(add: Callable[..., object]) -> None:
    """Read every annotation and decode every image of a data set; list all that is wrong with it."""
    add(
        "source", type=Path, metavar="CONFIG|FOLDER|ANNOTATIONS",
        help="YAML file or folder of a data set, of which both halves are checked, or a COCO instances JSON",
    )  # fmt: skip
    add("overrides", nargs="*", metavar="data.field=value", help="replaces a value of the config")
    add("--images", type=Path, metavar="DIRECTORY", help="image folder of ANNOTATIONS (default: the usual ones)")
    add("--json", type=Path, metavar="FILE", help="write counts and defects there, too")
    add_workers(add)


def add_shrink(add: Callable[..., object]) -> None:
    """Copy a data set with smaller images, which decode in less time; annotations stay as they are."""
    add("root", type=Path, help="data set with annotations/instances_X.json")
    add("--short-side", type=positive, required=True, metavar="PIXELS", help="of the copies; above model.input_size")
    add("--to", type=Path, metavar="DIRECTORY", help="the copy (default: ROOT_PIXELS)")
    add_workers(add)


def add_to(add: Callable[..., object]) -> None:
    """Add --to."""
    add("--to", type=Path, metavar="FOLDER", help="where annotations/ is written (default: the data set's folder)")


def add_workers(add: Callable[..., object]) -> None:
    """Add --workers."""
    cores = max(1, int(usable_cores()))
    add("--workers", type=positive, default=cores, metavar="N", help="processes (default: %(default)s)")


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
        raise ValueError(f"python -m detection.data {name or '...'}: expected {', '.join(COMMANDS)}; see --help")
    add_arguments, _, example = COMMANDS[name]
    parser = argparse.ArgumentParser(
        prog=f"python -m detection.data {name}",
        description=inspect.getdoc(add_arguments),
        epilog=f"example: python -m detection.data {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # an example to be pasted
    )
    add_arguments(parser.add_argument)
    arguments = parser.parse_intermixed_args(words[1:])
    arguments.command = name
    if name == "check":
        _verify_check(arguments, parser)
    elif name == "convert" and arguments.format == "yolo" and arguments.zero_based:
        parser.error("--zero-based is for voc only")
    elif name == "shrink":
        root = Path(os.path.realpath(arguments.root))  # resolve() breaks on a circle of links
        arguments.to = arguments.to or root.with_name(f"{root.name}_{arguments.short_side}")
    return arguments


def _verify_check(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End with one line if the arguments of `check` do not go together."""
    source, overrides = arguments.source, arguments.overrides
    kind = "folder" if source.is_dir() else source.suffix.lower()
    if not source.exists():
        parser.error(f"{source}: no such file or folder")
    if kind not in ("folder", ".json", *YAML):
        parser.error(f"{source}: expected a config (.yaml), annotations (.json) or the folder of a data set")
    if foreign := [override for override in overrides if kind not in YAML or not override.startswith("data.")]:
        parser.error(f"{foreign[0]}: expected data.field=value, after a CONFIG")
    if kind != ".json" and arguments.images:
        parser.error(f"--images is for an ANNOTATIONS file; {source} names the folders itself")


def main(arguments: argparse.Namespace, _: "torch.device") -> None:
    """Run the module of the command."""
    importlib.import_module(f"detection.prepare.{COMMANDS[arguments.command][1]}").main(arguments)


if __name__ == "__main__":
    start(parse_arguments, main)
