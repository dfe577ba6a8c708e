"""Commands for whole data sets, before anything is trained on them.

python -m detection.data fetch coco2017 datasets/coco                         download COCO
python -m detection.data layout ~/fiftyone/coco-2017                          how it lies there, how to train on it
python -m detection.data convert voc VOCdevkit/VOC2007                        Pascal VOC or YOLO into COCO's format
python -m detection.data split my_export                                      one annotation file into two halves
python -m detection.data check configs/bccd.yaml data.root=/datasets/bccd     what is wrong with it
python -m detection.data shrink /datasets/coco --short-side 400               a copy that loads faster

Each is a module of detection/prepare, and has a --help of its own. docs/data.md tells of all.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detection.prepare.processes import usual_count
from engine.start import start

if TYPE_CHECKING:
    import torch

YAML = (".yaml", ".yml")


def parse_fetch(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line after `fetch`."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.data fetch",
        description="Download COCO 2017 (20 GB; 41 GB of room are needed on the way), or what a folder lacks of it. "
        "Interrupted, it goes on when it is called again.",
        epilog="example: python -m detection.data fetch coco2017 datasets/coco",
    )
    parser.add_argument("name", choices=["coco2017"], help="the data set")
    parser.add_argument(
        "root", type=Path, metavar="ROOT",
        help="folder for it; what is there already, in any layout that `detection.data layout` knows, is kept",
    )  # fmt: skip
    return parser.parse_args(words)


def parse_layout(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line after `layout`."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.data layout",
        description="Recognise how a data set in COCO's format lies in a folder; print how to train on it.",
        epilog="example: python -m detection.data layout ~/fiftyone/coco-2017",
    )
    parser.add_argument("folder", type=Path, help="of the data set, or one that holds it")
    return parser.parse_args(words)


def parse_convert(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line after `convert`."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.data convert",
        description="Convert the annotations of a data set to COCO's format; its images stay where they are.",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # examples to be pasted
        epilog="example: python -m detection.data convert voc VOCdevkit/VOC2007 --train trainval --val test",
    )
    formats = parser.add_subparsers(dest="format", required=True, metavar="voc|yolo")
    voc = formats.add_parser(
        "voc", help="Pascal VOC, an XML file for each image",
        description="Convert Pascal VOC's XML files. Difficult objects become crowds: not trained on, not scored.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m detection.data convert voc VOCdevkit/VOC2007 --train trainval --val test",
    )  # fmt: skip
    yolo = formats.add_parser(
        "yolo", help="YOLO, a text file for each image",
        description="Convert YOLO's text files, of boxes or outlines; data.yaml or classes.txt names the classes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m detection.data convert yolo my_project.v3i.yolov8",
    )  # fmt: skip
    voc.add_argument("source", type=Path, metavar="FOLDER", help="of the data set")
    yolo.add_argument("source", type=Path, metavar="FOLDER|YAML", help="of the data set, or its data.yaml")
    for each, kinds in ((voc, "a list in ImageSets/Main, a folder, or a text file of image names"),
                        (yolo, "a folder of images, or a text file of them")):  # fmt: skip
        each.add_argument("--train", metavar="NAME", help=f"the half to train on: {kinds} (default: the usual ones)")
        each.add_argument("--val", metavar="NAME", help="the half to validate on, likewise")
        each.add_argument(
            "--to", type=Path, metavar="FOLDER", help="where annotations/ is written (default: the data set's folder)"
        )
    voc.add_argument(
        "--zero-based", action="store_true",
        help="boxes are edges counted from 0, as LabelImg writes them, not pixels counted from 1 as in VOC itself",
    )  # fmt: skip
    return parser.parse_args(words)


def parse_check(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line after `check`."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.data check",
        description="Read every annotation and decode every image of a data set; list all that is wrong with it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # an example to be pasted
        epilog="example: python -m detection.data check configs/bccd.yaml data.root=/datasets/bccd",
    )
    parser.add_argument(
        "source", type=Path, metavar="CONFIG|FOLDER|ANNOTATIONS",
        help="YAML file or folder of a data set, of which both halves are checked, or a COCO instances JSON",
    )  # fmt: skip
    parser.add_argument("overrides", nargs="*", metavar="data.field=value", help="replaces a value of the config")
    parser.add_argument(
        "--images", type=Path, metavar="DIRECTORY",
        help="image folder of ANNOTATIONS (default: X or images/X beside annotations/instances_X.json's folder)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write counts and defects there, too")
    parser.add_argument(
        "--workers", type=int, default=usual_count(), metavar="N", help="processes (default: %(default)s)"
    )
    arguments = parser.parse_intermixed_args(words)
    if not 1 <= arguments.workers <= 256:
        parser.error(f"--workers {arguments.workers}: expected 1 to 256")
    if arguments.json and (arguments.json.is_dir() or not arguments.json.parent.is_dir()):
        parser.error(f"--json {arguments.json}: expected a file in a directory that exists")
    if foreign := [override for override in arguments.overrides if not override.startswith("data.")]:
        parser.error(f"{foreign[0]}: expected data.field=value; the check reads nothing else of a config")
    source = arguments.source
    if not source.exists():
        parser.error(f"{source}: no such file or folder")
    kind = "folder" if source.is_dir() else source.suffix.lower()
    if kind not in ("folder", ".json", *YAML):
        parser.error(f"{source}: expected a config (.yaml), annotations (.json) or the folder of a data set")
    if kind not in YAML and arguments.overrides:
        parser.error(f"{arguments.overrides[0]}: only a CONFIG has values to replace, got {source}")
    if kind != ".json" and arguments.images:
        parser.error(f"--images is for an ANNOTATIONS file; {source} names the folders itself")
    return arguments


def parse_shrink(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line after `shrink`."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.data shrink",
        description="Copy a data set with smaller images, which decode in less time; annotations stay as they are.",
        epilog="example: python -m detection.data shrink datasets/coco --short-side 400",
    )
    parser.add_argument(
        "root", type=Path,
        help="data set with annotations/instances_X.json and the images of each in X or images/X",
    )  # fmt: skip
    parser.add_argument(
        "--short-side", type=int, required=True, metavar="PIXELS", help="of the copies; more than model.input_size"
    )
    parser.add_argument("--to", type=Path, metavar="DIRECTORY", help="the copy (default: ROOT_PIXELS)")
    parser.add_argument(
        "--workers", type=int, default=usual_count(), metavar="N", help="processes (default: %(default)s)"
    )
    options = parser.parse_args(words)
    for name in ("short_side", "workers"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: expected 1 or more")
    root = Path(os.path.realpath(options.root))  # resolve() breaks on a circle of links
    options.to = options.to or root.with_name(f"{root.name}_{options.short_side}")
    return options


def parse_split(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line after `split`."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.data split",
        description="Split one COCO annotation file for all images into two, to train on and to validate on.",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # an example to be pasted
        epilog="example: python -m detection.data split my_export --groups '^(patient_[0-9]+)'",
    )
    parser.add_argument("source", type=Path, metavar="FOLDER|ANNOTATIONS", help="of the data set, or its COCO JSON")
    parser.add_argument(
        "--val-share", type=float, default=0.2, metavar="SHARE", help="of the images in val (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="a different seed gives a different split (default: %(default)s)"
    )
    parser.add_argument(
        "--groups", metavar="REGEX",
        help="a pattern found in each file name, whose first group (in parentheses) names what belongs together, such "
        "as a patient or a video; its images stay in one half",
    )  # fmt: skip
    parser.add_argument("--images", type=Path, metavar="DIRECTORY", help="image folder (default: the usual ones)")
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER", help="where annotations/ is written (default: the data set's folder)"
    )
    arguments = parser.parse_args(words)
    if not 0 < arguments.val_share < 1:
        parser.error(f"--val-share {arguments.val_share}: expected a number between 0 and 1, such as 0.2")
    if arguments.seed < 0:
        parser.error(f"--seed {arguments.seed}: expected a whole number from 0 up")
    if arguments.groups is not None:
        try:
            if not re.compile(arguments.groups).groups:
                parser.error(
                    f"--groups {arguments.groups}: expected a group in parentheses, such as '^(patient_[0-9]+)'"
                )
        except re.error as error:
            parser.error(f"--groups {arguments.groups}: not a regular expression: {error}")
    return arguments


PARSERS = {
    "fetch": parse_fetch,
    "layout": parse_layout,
    "convert": parse_convert,
    "split": parse_split,
    "check": parse_check,
    "shrink": parse_shrink,
}


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Raises ValueError if its first word is not a command."""
    name = words[0] if words else ""
    if name in ("-h", "--help"):
        print(__doc__.strip())
        sys.exit()
    if name not in PARSERS:
        *others, last = PARSERS
        raise ValueError(
            f"python -m detection.data {name or '...'}: expected {', '.join(others)} or {last}; see --help"
        )
    arguments = PARSERS[name](words[1:])
    arguments.command = name
    return arguments


def main(arguments: argparse.Namespace, _: "torch.device") -> None:
    """Hand over to the module of the command."""
    from detection.prepare import check, convert, fetch, layouts, shrink, split

    modules = {
        "fetch": fetch, "layout": layouts, "convert": convert, "split": split, "check": check, "shrink": shrink
    }  # fmt: skip
    modules[arguments.command].main(arguments)


if __name__ == "__main__":
    start(parse_arguments, main)
