"""The usual layouts of a data set in COCO's format in a folder, and the overrides that name it.

python -m detection.data layout ~/fiftyone/coco-2017
python -m detection.data layout my_project.v3i.coco
"""

import argparse
import json
import shlex
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from data import DatasetError
from detection.coco.annotations import SplitConfig, Survey, describe, pair_defects, survey_coco
from detection.coco.defects import dataset_error, leads_out, shown_path
from detection.coco.warnings import leak_warnings
from detection.prepare.labels import HALVES, SPLITS, visible
from detection.prepare.voc import ONE_FOR_ALL, is_one_for_all
from engine.strict_yaml import read_value

PROJECT = Path(__file__).parent.parent.parent
EXAMPLE = "configs/quickstart.yaml"  # any config of a detector will do: classes are read from the annotations

# Where images and annotations of the half {} are. Tried in this order.
LAYOUTS = {
    "COCO's archives unpacked into one folder, as torchvision takes them": ("{}", "annotations/instances_{}.json"),
    "images/ and annotations/": ("images/{}", "annotations/instances_{}.json"),
    "an export of FiftyOne": ("{}/data", "{}/labels.json"),
    "a COCO export of Roboflow": ("{}", "{}/_annotations.coco.json"),
}
MADE_BY = "by detection.data convert"  # ends the description of what that writes
SPLIT_BY = "by detection.data split"  # likewise
MARKS = ('{"info": ', '{"split": ')  # begin the files of these two
MOST_MARK = 2**14  # characters
MOST_LOOKED_FOR = 20  # images, to find their folder
WITH_YOLO_LABELS = "a YOLO distribution, images/ and labels/, with COCO's annotations/"


class Whole(NamedTuple):
    """A data set with one annotation file for all images, which training cannot use before it is split."""

    annotations_path: Path
    images_dir: Path


class Layout(NamedTuple):
    """A data set in a folder."""

    name: str  # for people
    root: Path
    train: SplitConfig
    val: SplitConfig

    def paths(self, half: str) -> tuple[Path, Path]:
        """Return the annotation file and the image folder of "train" or "val"."""
        split = getattr(self, half)
        return self.root / split.annotations, self.root / split.images


def main(arguments: argparse.Namespace) -> None:
    """Print the layout of the folder that the command line after `layout` names, and how to train on it.

    Raises DatasetError if nothing is recognised, or if training would not read it."""
    layout = find_layout(arguments.folder)
    print(f"{layout.root}: {layout.name}")
    print(summary(layout, [survey_coco(*layout.paths(half)) for half in HALVES]))


def find_layout(folder: Path) -> Layout:
    """Return the data set in a folder, or in the only one of its subfolders that has one.

    Raises DatasetError, naming what was looked for, if there is none, or more than one; or the command that splits
    it if it has one annotation file for all images."""
    found = find_data(folder)
    if isinstance(found, Whole):
        raise DatasetError(f"{shown_path(found.annotations_path)}: {not_split(found)}")
    return found


def not_split(whole: Whole) -> str:
    """Return what to do about a data set with one annotation file, to end a message that names the file."""
    path = whole.annotations_path
    words = [str(path)]
    if (mark := mark_of(path)) and not _is_inside(mark):
        words += ["--images", str(whole.images_dir)]
    if path.parent.name == "annotations" and path.stem in [f"instances_{half}" for half in HALVES]:
        words += ["--to", f"{root_of(path)}_split"]  # a half would overwrite it
    return (
        "the only annotation file, and training needs one to train on and one to validate on; split it: "
        f"`python -m detection.data split {shlex.join(words)}`"
    )


def find_data(folder: Path) -> Layout | Whole:
    """As `find_layout`, but a data set that is not split yet is no error."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    if layout := layout_of(folder):
        return layout
    below = [layout for child in visible(folder, "*") if child.is_dir() and (layout := layout_of(child))]
    if len(below) == 1:
        return below[0]
    if below:
        names = ", ".join(str(each.root) for each in below)
        raise DatasetError(f"{folder}: holds several data sets; name one: {names}")
    wholes = find_wholes(folder)
    if len(wholes) == 1:
        return wholes[0]
    if wholes:
        names = [shown_path(whole.annotations_path) for whole in wholes]
        cure = f"it holds several annotation files, such as {' and '.join(names)}: name both in a config, or " + (
            f"`python -m detection.data split {shlex.quote(names[0])}`"
        )
    else:
        cure = _other_format(folder)
    lines = [f"{folder}: no data set in COCO's format recognised{'; ' if cure else ''}{cure}; looked for"]
    lines += [
        f"{name}: {images.format('SPLIT')}/ and {annotations.format('SPLIT')}"
        for name, (images, annotations) in LAYOUTS.items()
    ]
    train, val = ("|".join(SPLITS[half]) for half in HALVES)
    raise DatasetError("\n  ".join([*lines, f"where SPLIT is {train} for the one half, and {val} for the other"]))


def layout_of(folder: Path) -> Layout | None:
    """Return the data set in this very folder, both halves in the same layout."""
    annotations = {half: f"annotations/instances_{half}.json" for half in HALVES}
    marks = {half: mark_of(folder / annotations[half]) for half in HALVES}
    if all(mark and _is_inside(mark) for mark in marks.values()):
        splits = {
            half: SplitConfig(images=marks[half]["image_folder"], annotations=annotations[half]) for half in HALVES
        }
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


def _other_format(folder: Path) -> str:
    """Return the command that would help if the files of another format are there; empty if none are."""
    if paths := [*visible(folder, "*.xml"), *visible(folder, "*/*.xml")]:
        if is_one_for_all(paths[0]):
            return f"{shown_path(paths[0])} is {ONE_FOR_ALL}"
        return f"Pascal VOC? `python -m detection.data convert voc {shlex.quote(str(folder))}`"
    darknet = visible(folder, "obj.*")
    if darknet or (folder / "labels").is_dir() or visible(folder, "data.y*ml"):
        name = "darknet's YOLO" if darknet else "YOLO"
        return f"{name}? `python -m detection.data convert yolo {shlex.quote(str(folder))}`"
    return ""


# ---- annotation files for all images ------------------------------------------------------------------------------


def find_wholes(folder: Path) -> list[Whole]:
    """Return annotation files for all images in a folder, or else in its subfolders; at most two, as each is read."""
    children = [child for child in visible(folder, "*") if child.is_dir()]
    for folders in ([folder, folder / "annotations"], children):
        paths = [path for each in folders for path in visible(each, "*.json") if not is_half(path)]
        if wholes := list(islice(filter(None, map(whole_at, paths)), 2)):
            return wholes
    return []


def is_half(path: Path) -> bool:
    """Return whether `split` wrote a file."""
    return ((mark_of(path) or {}).get("description") or "").endswith(SPLIT_BY)


def whole_at(path: Path) -> Whole | None:
    """Return an annotation file and the folder of its images; None if it lists no images, or no boxes."""
    try:
        content = json.loads(path.read_bytes())
        images, annotations, _ = (content[name] for name in ("images", "annotations", "categories"))
        names = [image["file_name"] for image in images[:MOST_LOOKED_FOR]]
        if not names or (annotations and "bbox" not in annotations[0]):
            return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    root, half = root_of(path), path.stem.removeprefix("instances_")
    if (mark := mark_of(path)) and _is_inside(mark):
        return Whole(path, root / mark["image_folder"])
    folders = [root / "images" / half, root / half, root / "images", root / "data", root, path.parent]
    names = [name for name in names if isinstance(name, str) and not leads_out(name) and "\0" not in name]
    found = [sum((folder / name).is_file() for name in names) for folder in folders]
    return Whole(path, folders[found.index(max(found))] if any(found) else root / half)


def root_of(annotations_path: Path) -> Path:
    """Return the folder of the data set that an annotation file belongs to."""
    folder = annotations_path.parent
    return folder.parent if folder.name == "annotations" else folder


def mark_of(annotations_path: Path) -> dict[str, Any] | None:
    """Return `description` and `image_folder`, with which `convert` and `split` begin an annotation file.

    None for any other. Only the beginning of the file is read, because all of COCO's takes half a minute."""
    try:
        with annotations_path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MOST_MARK)
        mark, _ = json.JSONDecoder().raw_decode(text.partition(": ")[2] if text.startswith(MARKS) else text)
        is_ours = mark["description"].endswith((MADE_BY, SPLIT_BY)) and isinstance(mark["image_folder"], str)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return mark if is_ours else None


def _is_inside(mark: dict[str, Any]) -> bool:
    """Whether a mark names a folder in the data set: no other is opened because an annotation file says so."""
    return not leads_out(mark["image_folder"])


def image_folder(annotations_path: Path) -> Path:
    """Return where the images of ROOT/annotations/instances_X.json are: where `convert` or `split` says, in ROOT/X, in
    ROOT/images/X, or wherever in ROOT they are found.

    ROOT/X, as in COCO, if they are not found."""
    path = annotations_path.absolute()
    root, name = path.parent.parent, path.stem.removeprefix("instances_")
    if (mark := mark_of(path)) and _is_inside(mark):
        return root / mark["image_folder"]
    folders = [root / name, root / "images" / name]
    if folder := next((folder for folder in folders if folder.is_dir()), None):
        return folder
    whole = whole_at(path)
    return whole.images_dir if whole else folders[0]


# ---- what to do with a data set -----------------------------------------------------------------------------------


def summary(layout: Layout, surveys: Sequence[Survey], config: str = EXAMPLE) -> str:
    """Return what is in both halves, and a command that trains on them.

    surveys: of train and val. config: what to train, a path in the project. Raises DatasetError with what is wrong
    with the data."""
    cocos = [survey.coco for survey in surveys]
    if defects := [defect for survey in surveys for defect in survey.defects] or list(pair_defects(*cocos)):
        raise dataset_error(defects)
    lines = [f"{half}: {describe(coco)}" for half, coco in zip(HALVES, cocos, strict=True)]
    lines += [f"warning: {line}" for line in leak_warnings(*cocos)]
    path = shlex.quote(config if Path(config).is_file() else str(PROJECT / config))
    return "\n".join([*lines, f"train on it: python -m detection.training {path} {' '.join(overrides(layout))}"])


def overrides(layout: Layout) -> list[str]:
    """Return the `data.*` of a config that name a data set, quoted for a shell."""
    values = {"data.root": str(layout.root)}
    for half in HALVES:
        split = getattr(layout, half)
        values |= {f"data.{half}.images": split.images, f"data.{half}.annotations": split.annotations}
    return [shlex.quote(f"{field}={_yaml(value)}") for field, value in values.items()]


def _yaml(text: str) -> str:
    """Return text as a config's reader takes it: a folder may be called `2017` or `a: b`."""
    try:
        return text if read_value(text) == text else json.dumps(text)
    except ValueError:
        return json.dumps(text)
