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
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engine.compute.machine import usable_cores
from engine.start import start

if TYPE_CHECKING:
    import torch

YAML = (".yaml", ".yml")
Argument = tuple[tuple[str, ...], dict[str, Any]]


def argument(*names: str, **options: Any) -> Argument:
    """Return an entry for ArgumentParser.add_argument."""
    return names, options


def number(kind: Callable[[str], float], least: float, most: float, what: str) -> Callable[[str], float]:
    """Return a reader of numbers from `least` to `most`; `what` is expected."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"got {text}, expected {what}")
        return value

    return read


def pattern(text: str) -> str:
    """Check a regular expression with a group."""
    try:
        if re.compile(text).groups:
            return text
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text}: not a regular expression: {error}") from None
    raise argparse.ArgumentTypeError(f"{text}: expected a group in parentheses, such as '^(patient_[0-9]+)'")


class Command(NamedTuple):
    """A command, for its parser."""

    module: str  # of detection/prepare
    description: str
    example: str
    arguments: list[Argument]


TO = argument(
    "--to", type=Path, metavar="FOLDER", help="where annotations/ is written (default: the data set's folder)"
)
WORKERS = argument(
    "--workers", type=number(int, 1, 256, "1 to 256"), default=max(1, int(usable_cores())), metavar="N",
    help="processes (default: %(default)s)",
)  # fmt: skip
SHARE = number(float, 1e-9, 1 - 1e-9, "a number between 0 and 1, such as 0.2")
HALF = "a list in ImageSets/Main (voc), a folder, or a text file of images (default: the usual ones)"
COMMANDS = {
    "fetch": Command(
        "fetch",
        "Download COCO 2017 (20 GB; needs 41 GB of room while it runs), or what a folder lacks of it. If interrupted, "
        "it continues when it is called again.",
        "fetch coco2017 datasets/coco",
        [
            argument("name", choices=["coco2017"], help="the data set"),
            argument("root", type=Path, metavar="ROOT", help="folder for it; what is there already is kept, in any "
                     "layout that `detection.data layout` knows"),
        ],
    ),
    "layout": Command(
        "layouts",
        "Recognise the layout of a data set in COCO's format; print how to train on it.",
        "layout ~/fiftyone/coco-2017",
        [argument("folder", type=Path, help="of the data set, or one that holds it")],
    ),
    "convert": Command(
        "convert",
        "Convert the annotations of a data set to COCO's format; its images stay where they are. Pascal VOC has an XML "
        "file for each image; its difficult objects become crowds, which are not trained on and not scored. YOLO has a "
        "text file for each image, of boxes or outlines; data.yaml or classes.txt names the classes.",
        "convert voc VOCdevkit/VOC2007 --train trainval --val test",
        [
            argument("format", choices=["voc", "yolo"], help="of the annotations"),
            argument("source", type=Path, metavar="FOLDER", help="of the data set; for yolo, or its data.yaml"),
            argument("--train", metavar="NAME", help=f"the half to train on: {HALF}"),
            argument("--val", metavar="NAME", help="the half to validate on, likewise"),
            TO,
            argument("--zero-based", action="store_true", help="voc: boxes are edges counted from 0, as LabelImg "
                     "writes them, not pixels counted from 1 as in VOC itself"),
        ],
    ),
    "split": Command(
        "split",
        "Split one COCO annotation file for all images into two, to train on and to validate on.",
        "split my_export --groups '^(patient_[0-9]+)'",
        [
            argument("source", type=Path, metavar="FOLDER|ANNOTATIONS", help="of the data set, or its COCO JSON"),
            argument("--val-share", type=SHARE, default=0.2, metavar="SHARE", help="of the images in val (default: "
                     "%(default)s)"),
            argument("--seed", type=number(int, 0, math.inf, "a whole number from 0 up"), default=0,
                     help="a different seed gives a different split (default: %(default)s)"),
            argument("--groups", type=pattern, metavar="REGEX", help="a pattern found in each file name, whose first "
                     "group (in parentheses) names what belongs together, such as a patient or a video; its images "
                     "stay in one half"),
            argument("--images", type=Path, metavar="DIRECTORY", help="image folder (default: the usual ones)"),
            TO,
        ],
    ),
    "check": Command(
        "check",
        "Read every annotation and decode every image of a data set; list all that is wrong with it.",
        "check configs/bccd.yaml data.root=/datasets/bccd",
        [
            argument("source", type=Path, metavar="CONFIG|FOLDER|ANNOTATIONS", help="YAML file or folder of a data "
                     "set, of which both halves are checked, or a COCO instances JSON"),
            argument("overrides", nargs="*", metavar="data.field=value", help="replaces a value of the config"),
            argument("--images", type=Path, metavar="DIRECTORY", help="image folder of ANNOTATIONS (default: X or "
                     "images/X beside annotations/instances_X.json's folder)"),
            argument("--json", type=Path, metavar="FILE", help="write counts and defects there, too"),
            WORKERS,
        ],
    ),
    "shrink": Command(
        "shrink",
        "Copy a data set with smaller images, which decode in less time; annotations stay as they are.",
        "shrink datasets/coco --short-side 400",
        [
            argument("root", type=Path, help="data set with annotations/instances_X.json and the images of each in X "
                     "or images/X"),
            argument("--short-side", type=number(int, 1, math.inf, "1 or more"), required=True, metavar="PIXELS",
                     help="of the copies; more than model.input_size"),
            argument("--to", type=Path, metavar="DIRECTORY", help="the copy (default: ROOT_PIXELS)"),
            WORKERS,
        ],
    ),
}  # fmt: skip


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Raises ValueError if its first word is not a command."""
    name = words[0] if words else ""
    if name in ("-h", "--help"):
        print(__doc__.strip())
        sys.exit()
    if name not in COMMANDS:
        *others, last = COMMANDS
        raise ValueError(
            f"python -m detection.data {name or '...'}: expected {', '.join(others)} or {last}; see --help"
        )
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(
        prog=f"python -m detection.data {name}",
        description=command.description,
        epilog=f"example: python -m detection.data {command.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # an example to be pasted
    )
    for names, options in command.arguments:
        parser.add_argument(*names, **options)
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
    if arguments.json and (arguments.json.is_dir() or not arguments.json.parent.is_dir()):
        parser.error(f"--json {arguments.json}: expected a file in a directory that exists")
    if foreign := [override for override in overrides if not override.startswith("data.")]:
        parser.error(f"{foreign[0]}: expected data.field=value; the check reads nothing else of a config")
    if not source.exists():
        parser.error(f"{source}: no such file or folder")
    if kind not in ("folder", ".json", *YAML):
        parser.error(f"{source}: expected a config (.yaml), annotations (.json) or the folder of a data set")
    if kind not in YAML and overrides:
        parser.error(f"{overrides[0]}: only a CONFIG has values to replace, got {source}")
    if kind != ".json" and arguments.images:
        parser.error(f"--images is for an ANNOTATIONS file; {source} names the folders itself")


def main(arguments: argparse.Namespace, _: "torch.device") -> None:
    """Run the module of the command."""
    importlib.import_module(f"detection.prepare.{COMMANDS[arguments.command].module}").main(arguments)


if __name__ == "__main__":
    start(parse_arguments, main)
