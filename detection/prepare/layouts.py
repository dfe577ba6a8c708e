"""In which of the usual layouts a data set in COCO's format lies in a folder, and the overrides that name it.

python -m detection.data layout ~/fiftyone/coco-2017
python -m detection.data layout my_project.v3i.coco
"""

import argparse
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from data import DatasetError
from detection.annotations import SplitConfig, Survey, dataset_error, describe, pair_defects, survey_coco
from engine.storage.strict_yaml import read_value

HALVES = ("train", "val")
PROJECT = Path(__file__).parent.parent.parent
EXAMPLE = "configs/quickstart.yaml"  # any config of a detector will do: classes are read from the annotations

# What the halves are called, and where images and annotations of {} lie. Tried in this order.
SPLITS = {"train": ("train2017", "train2014", "train"), "val": ("val2017", "val2014", "val", "validation", "valid")}
LAYOUTS = {
    "COCO's archives unpacked into one folder, as torchvision takes them": ("{}", "annotations/instances_{}.json"),
    "images/ and annotations/": ("images/{}", "annotations/instances_{}.json"),
    "an export of FiftyOne": ("{}/data", "{}/labels.json"),
    "a COCO export of Roboflow": ("{}", "{}/_annotations.coco.json"),
}
MADE_BY = "by detection.data convert"  # ends the description of what that writes
MOST_MARK = 2**14  # characters
WITH_YOLO_LABELS = "a YOLO distribution, images/ and labels/, with COCO's annotations/"


class Layout(NamedTuple):
    """A data set in a folder."""

    name: str  # for people
    root: Path
    train: SplitConfig
    val: SplitConfig

    def paths(self, half: str) -> tuple[Path, Path]:
        """The annotation file and the image folder of "train" or "val"."""
        split = getattr(self, half)
        return self.root / split.annotations, self.root / split.images


def main(arguments: argparse.Namespace) -> None:
    """Say what lies in the folder that the command line after `layout` names, and how to train on it.

    Raises DatasetError if nothing is recognised, or if training would not read it."""
    layout = find_layout(arguments.folder)
    print(f"{layout.root}: {layout.name}")
    print(summary(layout, [survey_coco(*layout.paths(half)) for half in HALVES]))


def find_layout(folder: Path) -> Layout:
    """The data set in a folder, or in the only one of its subfolders that has one.

    Raises DatasetError, naming what was looked for, if there is none, or more than one."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    if layout := layout_of(folder):
        return layout
    below = [layout for child in sorted(folder.iterdir()) if child.is_dir() and (layout := layout_of(child))]
    if len(below) == 1:
        return below[0]
    if below:
        names = ", ".join(str(each.root) for each in below)
        raise DatasetError(f"{folder}: holds several data sets; name one: {names}")
    first_line = f"{folder}: no data set in COCO's format recognised{_cure(folder)}; looked for"
    raise DatasetError("\n  ".join([first_line, *_looked_for()]))


def layout_of(folder: Path) -> Layout | None:
    """The data set that lies in this very folder, both halves in the same layout."""
    annotations = {half: f"annotations/instances_{half}.json" for half in HALVES}
    marks = {half: _converted(folder / annotations[half]) for half in HALVES}
    if all(marks.values()):
        images = {half: marks[half]["image_folder"] for half in HALVES}
        splits = {half: SplitConfig(images=images[half], annotations=annotations[half]) for half in HALVES}
        return Layout(marks["train"]["description"], folder, **splits)
    for name, patterns in LAYOUTS.items():
        halves = {half: _half(folder, half, *patterns) for half in HALVES}
        if all(halves.values()):
            is_yolo = patterns[0] == "images/{}" and (folder / "labels").is_dir()
            return Layout(WITH_YOLO_LABELS if is_yolo else name, folder, **halves)
    return None


def _half(folder: Path, half: str, images: str, annotations: str) -> SplitConfig | None:
    for split in SPLITS[half]:
        config = SplitConfig(images=images.format(split), annotations=annotations.format(split))
        if (folder / config.images).is_dir() and (folder / config.annotations).is_file():
            return config
    return None


def _converted(annotations_path: Path) -> dict[str, str] | None:
    """`description` and `image_folder`, below the root, with which `convert` begins an annotation file.

    None for any other; it is not read to its end, which takes half a minute of COCO's."""
    try:
        with annotations_path.open(encoding="utf-8", errors="replace") as file:
            mark, _ = json.JSONDecoder().raw_decode(file.read(MOST_MARK).removeprefix('{"info": '))
        images = PurePath(mark["image_folder"])
        is_ours = mark["description"].endswith(MADE_BY)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return mark if is_ours and not images.is_absolute() and ".." not in images.parts else None


def image_folder(annotations_path: Path) -> Path:
    """Where the images of ROOT/annotations/instances_X.json lie: where `convert` says, in ROOT/images/X or in ROOT/X.

    It is the last, as COCO has it, if neither is there."""
    root, name = annotations_path.absolute().parent.parent, annotations_path.stem.removeprefix("instances_")
    if mark := _converted(annotations_path):
        return root / mark["image_folder"]
    folders = [root / name, root / "images" / name]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _cure(folder: Path) -> str:
    """The command that would help, where the files of another format are there."""
    if any(folder.glob("*.xml")) or any(folder.glob("*/*.xml")):
        return f"; Pascal VOC? `python -m detection.data convert voc {shlex.quote(str(folder))}`"
    if (folder / "labels").is_dir() or any(folder.glob("data.y*ml")):
        return f"; YOLO? `python -m detection.data convert yolo {shlex.quote(str(folder))}`"
    return ""


def _looked_for() -> Iterator[str]:
    train, val = ("|".join(SPLITS[half]) for half in HALVES)
    for name, (images, annotations) in LAYOUTS.items():
        yield f"{name}: {images.format('SPLIT')}/ and {annotations.format('SPLIT')}"
    yield f"where SPLIT is {train} for the one half, and {val} for the other"


def summary(layout: Layout, surveys: Sequence[Survey], config: str = EXAMPLE) -> str:
    """What is in both halves, and a command that trains on them.

    surveys: of train and val. config: what to train, a path in the project. Raises DatasetError with what is wrong
    with the data."""
    if defects := [defect for survey in surveys for defect in survey.defects]:
        raise dataset_error(defects)
    if defects := list(pair_defects(*(survey.coco for survey in surveys))):
        raise dataset_error(defects)
    lines = [f"{half}: {describe(survey.coco)}" for half, survey in zip(HALVES, surveys, strict=True)]
    path = shlex.quote(config if Path(config).is_file() else str(PROJECT / config))
    return "\n".join([*lines, f"train on it: python -m detection.training {path} {' '.join(overrides(layout))}"])


def overrides(layout: Layout) -> list[str]:
    """The `data.*` of a config that name a data set, quoted for a shell."""
    values = {"data.root": str(layout.root)}
    for half in HALVES:
        split = getattr(layout, half)
        values |= {f"data.{half}.images": split.images, f"data.{half}.annotations": split.annotations}
    return [shlex.quote(f"{field}={_yaml(value)}") for field, value in values.items()]


def _yaml(text: str) -> str:
    """Text as a config's reader takes it: a folder may be called `2017` or `a: b`."""
    try:
        return text if read_value(text) == text else json.dumps(text)
    except ValueError:
        return json.dumps(text)
