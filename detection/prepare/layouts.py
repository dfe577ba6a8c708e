"""The usual layouts of a data set in COCO's format in a folder, and the overrides that name it."""

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from data import DatasetError
from detection.coco.annotations import SplitConfig, Survey, describe, pair_defects, survey_coco
from detection.coco.defects import dataset_error, leads_out, shown_path
from detection.coco.warnings import leak_warnings
from detection.prepare.labels import HALVES, SPLITS, full_path, visible
from detection.prepare.voc import parse_xml
from engine.files import write_text
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
MARK = "detection.data"  # the first key of files that this command writes: what wrote it, and where the images are
MOST_MARK = 2**14  # characters
MOST_LOOKED_FOR = 20  # images, to find their folder


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
    found = find_data(arguments.folder)
    if isinstance(found, Whole):
        raise DatasetError(f"{shown_path(found.annotations_path)}: {not_split(found)}")
    print(f"{found.root}: {found.name}")
    print(summary(found, [survey_coco(*found.paths(half)) for half in HALVES]))


def find_data(folder: Path) -> Layout | Whole:
    """Return the data set in a folder.

    Raises DatasetError, naming what was looked for or the command that would help, if there is none, or if there are
    several annotation files of which none is a half."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    if layout := layout_of(folder):
        return layout
    wholes = find_wholes(folder)
    if len(wholes) == 1:
        return wholes[0]
    if wholes:
        first, second = (shown_path(whole.annotations_path) for whole in wholes)
        raise DatasetError(
            f"{folder}: holds several annotation files, such as {first} and {second}: name both in a config, or split "
            f"one: `python -m detection.data split {shlex.quote(first)}`"
        )
    text = f"{folder}: no data set in COCO's format recognised"
    if cure := _other_format(folder):
        raise DatasetError(f"{text}; {cure}")
    looked_for = [
        f"{images.format('SPLIT')}/ with {annotations.format('SPLIT')}" for images, annotations in LAYOUTS.values()
    ]
    train, val = ("|".join(SPLITS[half]) for half in HALVES)
    raise DatasetError(f"{text}; looked for {', '.join(looked_for)}, where SPLIT is {train}, and {val}")


def not_split(whole: Whole) -> str:
    """Return what to do about a data set with one annotation file, to end a message that names the file."""
    path = whole.annotations_path
    words = [str(path)]
    if whole_at(path) != whole:
        words += ["--images", str(whole.images_dir)]
    if path.parent.name == "annotations" and path.stem in [f"instances_{half}" for half in HALVES]:
        words += ["--to", f"{root_of(path)}_split"]  # a half would overwrite it
    return (
        "the only annotation file, and training needs one to train on and one to validate on; split it: "
        f"`python -m detection.data split {shlex.join(words)}`"
    )


def layout_of(folder: Path) -> Layout | None:
    """Return the data set in this very folder, both halves in the same layout."""
    annotations = {half: f"annotations/instances_{half}.json" for half in HALVES}
    marks = {half: mark_of(folder / annotations[half]) for half in HALVES}
    if all(mark and not leads_out(mark["images"]) for mark in marks.values()):
        splits = {half: SplitConfig(images=marks[half]["images"], annotations=annotations[half]) for half in HALVES}
        return Layout(f"written by {MARK} {marks['train']['command']}", folder, **splits)
    for name, patterns in LAYOUTS.items():
        halves = {half: _half(folder, half, *patterns) for half in HALVES}
        if all(halves.values()):
            return Layout(name, folder, **halves)
    return None


def _half(folder: Path, half: str, images: str, annotations: str) -> SplitConfig | None:
    for split in SPLITS[half]:
        config = SplitConfig(images=images.format(split), annotations=annotations.format(split))
        if (folder / config.images).is_dir() and (folder / config.annotations).is_file():
            return config
    return None


def _other_format(folder: Path) -> str:
    """Return the command that would help if the files of another format are there; empty if none are."""
    quoted = shlex.quote(str(folder))
    if paths := [*visible(folder, "*.xml"), *visible(folder, "*/*.xml")]:
        try:
            parse_xml(paths[0])
        except DatasetError as error:
            return f"{shown_path(paths[0])}: {error}"
        return f"Pascal VOC? `python -m detection.data convert voc {quoted}`"
    darknet = visible(folder, "obj.*")
    if darknet or (folder / "labels").is_dir() or visible(folder, "data.y*ml"):
        return f"{'darknet YOLO' if darknet else 'YOLO'}? `python -m detection.data convert yolo {quoted}`"
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


def whole_at(path: Path) -> Whole | None:
    """Return an annotation file and the folder of its images; None if it lists no images, or no boxes.

    The folder is the one that `convert` or `split` has recorded, or else the usual one in which the first images are;
    ROOT/X for ROOT/annotations/instances_X.json, as in COCO, if they are in none."""
    root, half = root_of(path), path.stem.removeprefix("instances_")
    if (mark := mark_of(path)) and not leads_out(mark["images"]):
        return Whole(path, root / mark["images"])
    try:
        content = json.loads(path.read_bytes())
        images, annotations, _ = (content[name] for name in ("images", "annotations", "categories"))
        names = [image["file_name"] for image in images[:MOST_LOOKED_FOR]]
        if not names or (annotations and "bbox" not in annotations[0]):
            return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    folders = [root / "images" / half, root / half, root / "images", root / "data", root, path.parent]
    names = [name for name in names if isinstance(name, str) and not leads_out(name) and "\0" not in name]
    found = [sum((folder / name).is_file() for name in names) for folder in folders]
    return Whole(path, folders[found.index(max(found))] if any(found) else root / half)


def root_of(annotations_path: Path) -> Path:
    """Return the folder of the data set that an annotation file belongs to."""
    folder = annotations_path.parent
    return folder.parent if folder.name in ("annotations", *SPLITS["train"]) else folder


def image_folder(annotations_path: Path) -> Path:
    """Return where the images of an annotation file are, see `whole_at`."""
    path = annotations_path.absolute()
    whole = whole_at(path)
    return whole.images_dir if whole else root_of(path) / path.stem.removeprefix("instances_")


# ---- annotation files that `convert` and `split` write ------------------------------------------------------------


def mark_of(annotations_path: Path) -> dict[str, Any] | None:
    """Return what `write_annotations` has put first in a file: "command", "images", ...; None for any other file.

    Only the beginning of the file is read, because all of COCO's takes half a minute."""
    try:
        with annotations_path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MOST_MARK)
        start, _, rest = text.partition(": ")
        mark, _ = json.JSONDecoder().raw_decode(rest)
        is_ours = start == f'{{"{MARK}"' and isinstance(mark["images"], str) and isinstance(mark["command"], str)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return mark if is_ours else None


def is_half(path: Path) -> bool:
    """Return whether `split` wrote a file."""
    return (mark_of(path) or {}).get("command") == "split"


def write_annotations(
    command: str, root: Path, contents: Mapping[SplitConfig, Mapping[str, Any]], **how: object
) -> None:
    """Write annotation files, marked with the command that makes them, the folder of their images, and `how`.

    Raises DatasetError, with nothing written, if a file is there that this command did not write."""
    for split in contents:
        path = root / split.annotations
        if path.exists() and (mark_of(path) or {}).get("command") != command:
            raise DatasetError(f"{path}: not made by {MARK} {command}; choose another folder by --to")
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split, content in contents.items():
        lists = {name: value for name, value in content.items() if name != MARK}
        mark = {"command": command, "images": split.images, **how}
        write_text(root / split.annotations, json.dumps({MARK: mark} | lists))


def below(folder: Path, root: Path) -> str:
    """Return a folder as a config names it: relative to the root, or in full if it is not below it."""
    root = full_path(root)
    return str(folder.relative_to(root) if folder.is_relative_to(root) else folder)


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
