"""Annotation files in COCO's format (cocodataset.org/#format-data): read and checked as a whole.

What is a defect: see defects.py and image_files.py. What is accepted follows these rules:

- A box that reaches over the edge of its image is cut to it; a box without area (COCO's train2017 has two) is left
  out. Both concern training only and are counted; scores are taken against the untouched file.
- Crowds (`iscrowd` 1) are never training targets. `iscrowd`, `area`, `segmentation` and `info` may be missing.
- Category ids may have gaps. Labels inside the network are 1 to num_classes, in the order of the ids; 0 is background.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from data import DatasetError
from detection.coco.defects import FIELDS, Defect, dataset_error, implausible, sound_records
from detection.coco.image_files import SHRUNK, ImageFile, find_files, image_file, read_short_side
from engine.config import Config
from engine.files import user_path
from engine.terminal import counted


class SplitConfig(Config):
    """Where one half of a data set is."""

    images: str = Field(description="folder that file_name in the annotations is relative to; relative to root")
    annotations: str = Field(description="COCO instances JSON; relative to root")


class DataConfig(Config):
    """Which images to train and score on, and how they are loaded."""

    root: str = Field(description="folder of the data set")
    train: SplitConfig = Field(description="images to train on")
    val: SplitConfig = Field(description="images to score")
    workers: int = Field(4, ge=0, le=256, description="loader processes per training process; 0: load in the same one")
    cache_images: bool = Field(
        False,
        description="keep decoded images in memory: 3 bytes a pixel, 0.9 MB for 640 x 480, per training process",
    )
    cache_limit_mib: int = Field(
        8192, ge=1, description="memory for the decoded images of train and of val, each; what does not fit is not kept"
    )
    check_images: bool = Field(
        False, description="decode every image before training starts, to find broken ones: 2 ms each at 640 x 480"
    )

    @property
    def cache_mib(self) -> int:
        """Memory for decoded images, 0 for none."""
        return self.cache_limit_mib if self.cache_images else 0

    def paths(self, split: Literal["train", "val"]) -> tuple[Path, Path]:
        """Return the annotation file and the image folder of one half."""
        root, paths = user_path(self.root, "data.root"), getattr(self, split)
        for field in ("annotations", "images"):
            user_path(str(root / getattr(paths, field)), f"data.{split}.{field}")
        return root / paths.annotations, root / paths.images


class ImageRecord(NamedTuple):
    """One image as the annotation file describes it."""

    id: int
    file_name: str  # relative to the image folder
    width: int  # pixels, of the image as its boxes see it
    height: int


@dataclass(frozen=True, eq=False)
class CocoFile:
    """A checked annotation file; the objects of all images are in a few arrays, which loader processes share."""

    annotations_path: Path
    images_dir: Path
    images: list[ImageRecord]
    class_names: list[str]  # of label k at k - 1
    category_ids: list[int]  # of label k at k - 1
    boxes_xyxy: np.ndarray  # (objects, 4) float32 pixels, within their image
    labels: np.ndarray  # (objects,) int64, 1 to len(class_names)
    is_crowd: np.ndarray  # (objects,) bool
    first_object: np.ndarray  # (images + 1,) int64: image i has objects first_object[i] to first_object[i + 1] - 1
    num_cut: int  # boxes that reached over the edge of their image by a pixel or more
    num_left_out: int  # boxes without area
    short_side: int | None = None  # of shrunken copies, pixels; None if the images are the originals
    sha256: str = ""  # of the annotation file, as it was read

    def objects(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return boxes_xyxy, labels and is_crowd of the objects in images[index]."""
        span = slice(self.first_object[index], self.first_object[index + 1])
        return self.boxes_xyxy[span], self.labels[span], self.is_crowd[span]

    def file(self, index: int) -> ImageFile:
        """Return the file of images[index]."""
        image_id, file_name, *size = self.images[index]
        return image_file(image_id, self.images_dir / file_name, tuple(size), self.short_side)

    @property
    def image_indices(self) -> np.ndarray:
        """(objects,) int64: the position in `images` of each object's image."""
        return np.repeat(np.arange(len(self.images)), np.diff(self.first_object))

    @property
    def image_paths(self) -> list[Path]:
        return [self.images_dir / image.file_name for image in self.images]

    @property
    def classes(self) -> dict[int, str]:
        """Category id to name, in the order of the labels."""
        return dict(zip(self.category_ids, self.class_names, strict=True))

    @property
    def class_counts(self) -> np.ndarray:
        """(classes,) int64: how many objects to train on each class has, crowds aside; label k at k - 1."""
        return np.bincount(self.labels[~self.is_crowd], minlength=len(self.class_names) + 1)[1:]


def count(coco: CocoFile) -> dict[str, int]:
    """Return the numbers of what is there, and of what training changes or leaves out."""
    num_with_objects = len(np.unique(coco.image_indices[~coco.is_crowd]))
    return {
        "images": len(coco.images),
        "objects": len(coco.labels),
        "classes": len(coco.class_names),
        "boxes_cut": coco.num_cut,
        "boxes_left_out": coco.num_left_out,
        "crowds": int(coco.is_crowd.sum()),
        "images_without_objects": len(coco.images) - num_with_objects,
    }


def shown_size(coco: CocoFile) -> str:
    """Return such as '292 images (3,941 objects)'."""
    shrunk = f", shrunk to a short side of {coco.short_side}" if coco.short_side else ""
    objects = counted(len(coco.labels), "object", "objects")
    return f"{counted(len(coco.images), 'image', 'images')} ({objects}{shrunk})"


NOTES = {
    "boxes_cut": "boxes over the edge of their image",
    "boxes_left_out": "boxes without area",
    "crowds": "crowds",
    "images_without_objects": "images without objects",
}


def describe(coco: CocoFile) -> str:
    """Return the counts in a line; of what training changes or leaves out, those above 0."""
    counts = count(coco)
    notes = [f"{what}: {counts[name]:,}" for name, what in NOTES.items() if counts[name]]
    return "; ".join([f"{shown_size(coco)}, {counted(counts['classes'], 'class', 'classes')}", *notes])


class Survey(NamedTuple):
    """The content of an annotation file, and all that is wrong with it and with the list of its images."""

    annotations_path: Path
    images_dir: Path
    coco: CocoFile | None  # of the records without a defect; None if the file holds no such lists
    files: list[ImageFile]  # in the order of the records
    defects: list[Defect]  # the data set is refused because of these
    warnings: list[Defect]  # not refused
    is_whole: bool = False  # `coco` holds all records, as none has a defect; those of images do not count


# ---- reading and checking an annotation file ----------------------------------------------------------


def read_coco(annotations_path: str | Path, images_dir: str | Path) -> CocoFile:
    """Read an annotation file and check all of it, and that every image exists (but not its content).

    Raises DatasetError if anything is wrong, see `dataset_error`."""
    survey = survey_coco(annotations_path, images_dir)
    if survey.defects:
        raise dataset_error(survey.defects)
    return survey.coco


def read_split(config: DataConfig, split: Literal["train", "val"]) -> CocoFile:
    """Run `read_coco` for one half of a configured data set."""
    return read_coco(*config.paths(split))


def survey_coco(annotations_path: str | Path, images_dir: str | Path) -> Survey:
    """Read an annotation file as far as it can be read, with every defect of it and every image that is missing."""
    annotations_path, images_dir = Path(annotations_path), Path(images_dir)
    try:
        content, sha256 = _read_json(annotations_path)
    except DatasetError as error:
        return Survey(annotations_path, images_dir, None, [], [Defect(annotations_path, "", str(error))], [])

    defects: list[Defect] = []

    def report(record: str, what: str) -> None:
        defects.append(Defect(annotations_path, record, what))

    lists = {name: content[name] if isinstance(content.get(name), list) else None for name in FIELDS}
    for name, records in lists.items():
        if records is None:
            report("", f"no list {name!r}, expected the lists {', '.join(FIELDS)}")
        elif not records and name != "annotations":
            report("", f"{name!r} is empty")
    sound = sound_records(lists, images_dir, report)
    try:
        short_side = read_short_side(images_dir)
    except DatasetError as error:
        short_side = None
        defects.append(Defect(images_dir / SHRUNK, "", str(error)))
    is_whole = not defects
    files = find_files(lists["images"] or [], images_dir, short_side, report)
    if what := implausible(lists):
        defects.insert(0, Defect(annotations_path, "", what))  # it explains those of single records
        is_whole = False
    if defects:  # what belongs to a defective image or class goes with it
        image_ids, category_ids = ({record["id"] for record in sound[name]} for name in ("images", "categories"))
        sound["annotations"] = [
            annotation
            for annotation in sound["annotations"]
            if annotation["image_id"] in image_ids and annotation["category_id"] in category_ids
        ]
    coco = _build(annotations_path, images_dir, short_side, sha256, **sound)
    return Survey(annotations_path, images_dir, coco, files, defects, [], is_whole)


def pair_defects(train: CocoFile, val: CocoFile) -> Iterator[Defect]:
    """Yield what keeps two files, each sound by itself, from being trained and scored on."""
    if train.classes != val.classes:
        what = f"categories {val.classes} differ from {train.classes} in {train.annotations_path}"
        yield Defect(val.annotations_path, "", f"{what}; both files must list the same classes")
    if not train.class_counts.any():
        left_out = {"without area": train.num_left_out, "crowds": int(train.is_crowd.sum())}
        shown = ", ".join(f"{number:,} {what}" for what, number in left_out.items() if number)
        what = f"no object is left to learn from ({shown})" if shown else "no objects in it to learn from"
        yield Defect(train.annotations_path, "", f"{what}; training needs boxes with an area that are not crowds")


def _build(
    annotations_path: Path,
    images_dir: Path,
    short_side: int | None,
    sha256: str,
    categories: list[dict],
    images: list[dict],
    annotations: list[dict],
) -> CocoFile:
    """Return the CocoFile of records without defects."""
    records = [ImageRecord(r["id"], r["file_name"], r["width"], r["height"]) for r in images]
    categories = sorted(categories, key=lambda category: category["id"])
    index_of_image = {record.id: index for index, record in enumerate(records)}
    label_of_category = {category["id"]: label for label, category in enumerate(categories, start=1)}

    image_indices = np.array([index_of_image[a["image_id"]] for a in annotations], np.int64)
    labels = np.array([label_of_category[a["category_id"]] for a in annotations], np.int64)
    is_crowd = np.array([a.get("iscrowd", 0) for a in annotations], bool)
    boxes_xywh = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)

    sizes = np.array([(record.width, record.height) for record in records], np.float64).reshape(-1, 2)[image_indices]
    corners = np.stack([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)  # (objects, 2, 2)
    cut = corners.clip(0, sizes[:, None])
    num_cut = int(np.any(np.abs(cut - corners) >= 1, axis=(1, 2)).sum())
    boxes_xyxy = cut.reshape(-1, 4).astype(np.float32)  # a side may vanish
    has_area = np.all(boxes_xyxy[:, 2:] > boxes_xyxy[:, :2], axis=1)

    order = np.argsort(image_indices, kind="stable")
    order = order[has_area[order]]
    return CocoFile(
        annotations_path,
        images_dir,
        records,
        class_names=[category["name"] for category in categories],
        category_ids=[category["id"] for category in categories],
        boxes_xyxy=boxes_xyxy[order],
        labels=labels[order],
        is_crowd=is_crowd[order],
        first_object=np.searchsorted(image_indices[order], np.arange(len(records) + 1)),
        num_cut=num_cut,
        num_left_out=int((~has_area).sum()),
        short_side=short_side,
        sha256=sha256,
    )


def _read_json(path: Path) -> tuple[dict, str]:
    """Return the object that a file holds, and the file's SHA-256.

    Raises DatasetError, saying why but not where, if there is none."""
    try:
        text = path.read_bytes()
        content = json.loads(text)
    except OSError as error:
        where = "" if path.is_absolute() else f", relative to {Path.cwd()}"
        raise DatasetError(
            f"cannot be read: {error.strerror}{where}; give data.root=FOLDER, the data set's (`python -m "
            "detection.data layout FOLDER` shows what is in one)"
        ) from None
    except (ValueError, RecursionError) as error:  # ValueError: of json, and of bytes that are no UTF-8
        raise DatasetError(f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise DatasetError(f"holds a {type(content).__name__}, expected an object with the lists {', '.join(FIELDS)}")
    return content, hashlib.sha256(text).hexdigest()
