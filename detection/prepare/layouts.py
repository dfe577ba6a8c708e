"""In which of the usual layouts a data set in COCO's format lies in a folder, and the overrides that name it.

python -m detection.data layout ~/fiftyone/coco-2017
python -m detection.data layout my_project.v3i.coco
"""

import argparse
import json
import shlex
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from data import DatasetError
from detection.coco.annotations import (
    SplitConfig,
    Survey,
    dataset_error,
    describe,
    leads_out,
    pair_defects,
    shown_path,
    survey_coco,
)
from detection.coco.leaks import leak_warnings
from engine.strict_yaml import read_value

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

    Raises DatasetError, naming what was looked for, if there is none, or more than one; or the command that splits
    it if it has one annotation file for all images."""
    found = find_data(folder)
    if isinstance(found, Whole):
        raise DatasetError(f"{shown_path(found.annotations_path)}: {not_split(found)}")
    return found


def not_split(whole: Whole) -> str:
    """What to do about a data set with one annotation file, to end a message that names the file."""
    path = whole.annotations_path
    is_target = path.parent.name == "annotations" and path.stem in [f"instances_{half}" for half in HALVES]
    to = f" --to {shlex.quote(f'{root_of(path)}_split')}" if is_target else ""  # a half would overwrite it
    return (
        "the only annotation file, and training needs one to train on and one to validate on; split it: "
        f"`python -m detection.data split {shlex.quote(str(path))}{to}`"
    )


def find_data(folder: Path) -> Layout | Whole:
    """As find_layout, but a data set that is not split yet is no error."""
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
    wholes = find_wholes(folder)
    if len(wholes) == 1:
        return wholes[0]
    cure = _several(wholes) if wholes else _cure(folder)
    first_line = f"{folder}: no data set in COCO's format recognised{cure}; looked for"
    raise DatasetError("\n  ".join([first_line, *_looked_for()]))


def layout_of(folder: Path) -> Layout | None:
    """The data set that lies in this very folder, both halves in the same layout."""
    annotations = {half: f"annotations/instances_{half}.json" for half in HALVES}
    marks = {half: mark_of(folder / annotations[half]) for half in HALVES}
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


def find_wholes(folder: Path) -> list[Whole]:
    """Annotation files for all images in a folder, or else in its subfolders; no more than two, for each is read."""
    children = [child for child in sorted(folder.iterdir()) if child.is_dir()]
    for folders in ([folder, folder / "annotations"], children):
        paths = [path for each in folders for path in sorted(each.glob("*.json")) if not path.name.startswith(".")]
        others = [path for path in paths if not is_half(path)]
        if wholes := list(islice(filter(None, map(whole_at, others)), 2)):
            return wholes
    return []


def _several(wholes: Sequence[Whole]) -> str:
    names = [shown_path(whole.annotations_path) for whole in wholes]
    split = f"`python -m detection.data split {shlex.quote(names[0])}`"
    return f"; it holds several annotation files, such as {' and '.join(names)}: name both in a config, or {split}"


def is_half(path: Path) -> bool:
    """Whether `split` wrote a file."""
    return ((mark_of(path) or {}).get("description") or "").endswith(SPLIT_BY)


def whole_at(path: Path) -> Whole | None:
    """An annotation file and the folder of its images; None if it lists no images, or no boxes."""
    try:
        content = json.loads(path.read_bytes())
        images, annotations, _ = (content[name] for name in ("images", "annotations", "categories"))
        names = [image["file_name"] for image in images[:MOST_LOOKED_FOR]]
        if not names or (annotations and "bbox" not in annotations[0]):
            return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    root, half = root_of(path), path.stem.removeprefix("instances_")
    folders = [root / "images" / half, root / half, root / "images", root / "data", root, path.parent]
    names = [name for name in names if isinstance(name, str) and not leads_out(name) and "\0" not in name]
    found = [sum((folder / name).is_file() for name in names) for folder in folders]
    return Whole(path, folders[found.index(max(found))] if any(found) else root / half)


def root_of(annotations_path: Path) -> Path:
    """The folder of the data set that an annotation file belongs to."""
    folder = annotations_path.parent
    return folder.parent if folder.name == "annotations" else folder


def mark_of(annotations_path: Path) -> dict[str, Any] | None:
    """`description` and `image_folder`, below the root, with which `convert` and `split` begin an annotation file.

    None for any other; it is not read to its end, which takes half a minute of COCO's."""
    try:
        with annotations_path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MOST_MARK)
            mark, _ = json.JSONDecoder().raw_decode(text.partition(": ")[2] if text.startswith(MARKS) else text)
        images = PurePath(mark["image_folder"])
        is_ours = mark["description"].endswith((MADE_BY, SPLIT_BY))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return mark if is_ours and not images.is_absolute() and ".." not in images.parts else None


def image_folder(annotations_path: Path) -> Path:
    """Where the images of ROOT/annotations/instances_X.json lie: where `convert` or `split` says, in ROOT/images/X, in
    ROOT/X, or wherever in ROOT they are found.

    It is ROOT/X, as COCO has it, if they are not found."""
    root, name = annotations_path.absolute().parent.parent, annotations_path.stem.removeprefix("instances_")
    if mark := mark_of(annotations_path):
        return root / mark["image_folder"]
    folders = [root / name, root / "images" / name]
    if folder := next((folder for folder in folders if folder.is_dir()), None):
        return folder
    whole = whole_at(annotations_path.absolute())
    return whole.images_dir if whole else folders[0]


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
    lines += [f"warning: {line}" for line in leak_warnings(*(survey.coco for survey in surveys))]
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
