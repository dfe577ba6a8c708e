"""Recognise the usual folder layouts of COCO-format data sets, and print the config overrides to select one."""

import argparse
import json
import shlex
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from data import DatasetError
from detection.coco.annotations import SplitConfig, Survey, describe, pair_defects, survey_coco
from detection.coco.defects import dataset_error, is_outside_folder, printable_path
from detection.coco.warnings import leak_warnings
from detection.prepare.labels import ALIASES, SPLITS, full_path, visible_paths
from detection.prepare.voc import parse_xml
from engine.files import write_text
from engine.strict_yaml import read_value

PROJECT = Path(__file__).parent.parent.parent
EXAMPLE = "configs/quickstart.yaml"  # any detector config works, because classes are read from the annotations

# Layout -> image folder and annotation file, where {} is the name of a split. Tried in this order.
LAYOUTS = {
    "COCO's archives unpacked into one folder, as torchvision expects them": ("{}", "annotations/instances_{}.json"),
    "images/ and annotations/": ("images/{}", "annotations/instances_{}.json"),
    "an export of FiftyOne": ("{}/data", "{}/labels.json"),
    "a COCO export of Roboflow": ("{}", "{}/_annotations.coco.json"),
}
MARK_KEY = "detection.data"  # first key of the files that `write_annotations` writes; its value is called the mark
MARK_MAX_CHARS = 2**14  # number of characters read from a file to find its mark
MAX_IMAGES_TRIED = 20  # number of images searched for in each folder


class UnsplitDataset(NamedTuple):
    """A data set with one annotation file for all images. It must be split before training."""

    annotations_path: Path
    images_dir: Path


class Layout(NamedTuple):
    """A data set with train and val splits in a folder."""

    name: str  # description of the layout, to be printed
    root: Path
    train: SplitConfig
    val: SplitConfig

    def paths(self, split: str) -> tuple[Path, Path]:
        """Return the annotation file and the image folder of a split, "train" or "val"."""
        config = getattr(self, split)
        return self.root / config.annotations, self.root / config.images


def main(arguments: argparse.Namespace) -> None:
    """Run the `layout` command: print the layout of a folder and the command that trains on it.

    Raises DatasetError if no layout is recognised, or if the data set has defects that prevent training."""
    found = find_data(arguments.folder)
    if isinstance(found, UnsplitDataset):
        raise DatasetError(f"{printable_path(found.annotations_path)}: {split_advice(found)}")
    print(f"{found.root}: {found.name}")
    print(summary(found, [survey_coco(*found.paths(split)) for split in SPLITS]))


def find_data(folder: Path) -> Layout | UnsplitDataset:
    """Return the data set in a folder.

    Raises DatasetError if the folder has no data set; the message names the expected layouts or the command to convert
    the folder. Also raises DatasetError if the folder has several annotation files in an unknown layout."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    if layout := layout_of(folder):
        return layout
    unsplit = find_unsplit(folder)
    if len(unsplit) == 1:
        return unsplit[0]
    if unsplit:
        first, second = (printable_path(whole.annotations_path) for whole in unsplit)
        raise DatasetError(
            f"{folder}: several annotation files, such as {first} and {second}; set data.train and "
            f"data.val in a config, or split one file: `python -m detection.data split {shlex.quote(first)}`"
        )
    text = f"{folder}: no data set in COCO's format recognised"
    if cure := _convert_advice(folder):
        raise DatasetError(f"{text}; {cure}")
    expected = [
        f"{images.format('SPLIT')}/ with {annotations.format('SPLIT')}" for images, annotations in LAYOUTS.values()
    ]
    train, val = ("|".join(ALIASES[split]) for split in SPLITS)
    raise DatasetError(f"{text}; expected {', or '.join(expected)}, where SPLIT is {train} for train and {val} for val")


def split_advice(dataset: UnsplitDataset) -> str:
    """Return why an annotation file must be split, and the command that splits it, as the end of a message."""
    path = dataset.annotations_path
    words = [str(path)]
    if unsplit_at(path) != dataset:
        words += ["--images", str(dataset.images_dir)]
    if path.parent.name == "annotations" and path.stem in [f"instances_{split}" for split in SPLITS]:
        words += ["--to", f"{dataset_root(path)}_split"]  # otherwise `split` would overwrite this file
    return (
        "this is the only annotation file, but training needs one for train and one for val; split the file: "
        f"`python -m detection.data split {shlex.join(words)}`"
    )


def layout_of(folder: Path) -> Layout | None:
    """Return the data set in this folder if both splits have the same layout, else None."""
    annotations = {split: f"annotations/instances_{split}.json" for split in SPLITS}
    marks = {split: read_mark(folder / annotations[split]) for split in SPLITS}
    if all(mark and not is_outside_folder(mark["images"]) for mark in marks.values()):
        splits = {split: SplitConfig(images=marks[split]["images"], annotations=annotations[split]) for split in SPLITS}
        return Layout(f"written by {MARK_KEY} {marks['train']['command']}", folder, **splits)
    for name, patterns in LAYOUTS.items():
        splits = {split: _find_split(folder, split, *patterns) for split in SPLITS}
        if all(splits.values()):
            return Layout(name, folder, **splits)
    return None


def _find_split(folder: Path, split: str, images: str, annotations: str) -> SplitConfig | None:
    for alias in ALIASES[split]:
        config = SplitConfig(images=images.format(alias), annotations=annotations.format(alias))
        if (folder / config.images).is_dir() and (folder / config.annotations).is_file():
            return config
    return None


def _convert_advice(folder: Path) -> str:
    """Return advice if a folder contains annotations in a different format; otherwise return an empty string."""
    quoted = shlex.quote(str(folder))
    if paths := [*visible_paths(folder, "*.xml"), *visible_paths(folder, "*/*.xml")]:
        try:
            parse_xml(paths[0])
        except DatasetError as error:
            return f"{printable_path(paths[0])}: {error}"
        return f"for Pascal VOC, run `python -m detection.data convert voc {quoted}`"
    darknet = visible_paths(folder, "obj.*")
    if darknet or (folder / "labels").is_dir() or visible_paths(folder, "data.y*ml"):
        return f"for {'darknet YOLO' if darknet else 'YOLO'}, run `python -m detection.data convert yolo {quoted}`"
    return ""


# ---- annotation files for all images ------------------------------------------------------------------------------


def find_unsplit(folder: Path) -> list[UnsplitDataset]:
    """Return the annotation files of a folder, or of its subfolders if it has none. Stops at two: reading is slow."""
    subfolders = [child for child in visible_paths(folder, "*") if child.is_dir()]
    for folders in ([folder, folder / "annotations"], subfolders):
        paths = [path for each in folders for path in visible_paths(each, "*.json") if not is_split_output(path)]
        if found := list(islice(filter(None, map(unsplit_at, paths)), 2)):
            return found
    return []


def unsplit_at(path: Path) -> UnsplitDataset | None:
    """Return an annotation file and its image folder; None if the file lists no images or its annotations lack boxes.

    A file that `convert` or `split` wrote names its image folder. For other files, choose the usual folder with most of
    the first images. If no folder has any of them, choose ROOT/X for ROOT/annotations/instances_X.json, as in COCO."""
    root, stem = dataset_root(path), path.stem.removeprefix("instances_")
    if (mark := read_mark(path)) and not is_outside_folder(mark["images"]):
        return UnsplitDataset(path, root / mark["images"])
    try:
        content = json.loads(path.read_bytes())
        images, annotations, _ = (content[name] for name in ("images", "annotations", "categories"))
        names = [image["file_name"] for image in images[:MAX_IMAGES_TRIED]]
        if not names or (annotations and "bbox" not in annotations[0]):
            return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    folders = [root / "images" / stem, root / stem, root / "images", root / "data", root, path.parent]
    names = [name for name in names if isinstance(name, str) and not is_outside_folder(name) and "\0" not in name]
    found = [sum((folder / name).is_file() for name in names) for folder in folders]
    return UnsplitDataset(path, folders[found.index(max(found))] if any(found) else root / stem)


def dataset_root(annotations_path: Path) -> Path:
    """Return the root folder of the data set that an annotation file belongs to."""
    folder = annotations_path.parent
    return folder.parent if folder.name in ("annotations", *ALIASES["train"]) else folder


def find_images_dir(annotations_path: Path) -> Path:
    """Return the image folder of an annotation file, see `unsplit_at`."""
    path = annotations_path.absolute()
    dataset = unsplit_at(path)
    return dataset.images_dir if dataset else dataset_root(path) / path.stem.removeprefix("instances_")


# ---- annotation files that `convert` and `split` write ------------------------------------------------------------


def read_mark(annotations_path: Path) -> dict[str, Any] | None:
    """Return the mark of a file, a dict with "command", "images", ... (see MARK_KEY); None if the file has no mark.

    Read only the beginning of the file, because reading all annotations of COCO takes half a minute."""
    try:
        with annotations_path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MARK_MAX_CHARS)
        start, _, rest = text.partition(": ")
        mark, _ = json.JSONDecoder().raw_decode(rest)
        is_ours = start == f'{{"{MARK_KEY}"' and isinstance(mark["images"], str) and isinstance(mark["command"], str)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return mark if is_ours else None


def is_split_output(path: Path) -> bool:
    """Return whether a file was written by the `split` command."""
    return (read_mark(path) or {}).get("command") == "split"


def write_annotations(
    command: str, root: Path, contents: Mapping[SplitConfig, Mapping[str, Any]], **options: object
) -> None:
    """Write annotation files. The first entry of each is a mark: the command, the image folder and the options.

    Raises DatasetError, without writing anything, if one of the files exists but was not written by this command."""
    for config in contents:
        path = root / config.annotations
        if path.exists() and (read_mark(path) or {}).get("command") != command:
            raise DatasetError(f"{path}: not made by {MARK_KEY} {command}; choose a different folder with --to")
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for config, content in contents.items():
        lists = {name: value for name, value in content.items() if name != MARK_KEY}
        mark = {"command": command, "images": config.images, **options}
        write_text(root / config.annotations, json.dumps({MARK_KEY: mark} | lists))


def config_path(folder: Path, root: Path) -> str:
    """Return the path of a folder for a config: relative to the root if the folder is in it, otherwise absolute."""
    root = full_path(root)
    return str(folder.relative_to(root) if folder.is_relative_to(root) else folder)


# ---- the training command -----------------------------------------------------------------------------------------


def summary(layout: Layout, surveys: Sequence[Survey], config: str = EXAMPLE) -> str:
    """Return text with the counts of train and val, warnings, and the command to train on the data set.

    surveys: the results of `survey_coco` for train and for val. config: training config, relative to the project.
    Raises DatasetError if the data set has defects."""
    cocos = [survey.coco for survey in surveys]
    if defects := [defect for survey in surveys for defect in survey.defects] or list(pair_defects(*cocos)):
        raise dataset_error(defects)
    lines = [f"{split}: {describe(coco)}" for split, coco in zip(SPLITS, cocos, strict=True)]
    lines += [f"warning: {line}" for line in leak_warnings(*cocos)]
    path = shlex.quote(config if Path(config).is_file() else str(PROJECT / config))
    return "\n".join([*lines, f"train on it: python -m detection.training {path} {' '.join(overrides(layout))}"])


def overrides(layout: Layout) -> list[str]:
    """Return the `data.*` overrides that select a data set, quoted for a shell."""
    values = {"data.root": str(layout.root)}
    for split in SPLITS:
        config = getattr(layout, split)
        values |= {f"data.{split}.images": config.images, f"data.{split}.annotations": config.annotations}
    return [shlex.quote(f"{field}={_yaml(value)}") for field, value in values.items()]


def _yaml(text: str) -> str:
    """Quote text that YAML would not read back unchanged, such as the folder names `2017` and `a: b`."""
    try:
        return text if read_value(text) == text else json.dumps(text)
    except ValueError:
        return json.dumps(text)
