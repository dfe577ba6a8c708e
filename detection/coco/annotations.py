"""Read and check annotation files in COCO's format (cocodataset.org/#format-data).

A file with a defect (see defects.py and image_files.py) is invalid. Valid files are read as follows:

- A box that extends beyond the edge of its image is clipped. A box without area is discarded (COCO's train2017 has
  two). These boxes are counted. This affects only training: scores are computed on the original file.
- Crowds (`iscrowd` 1) are never training targets. `iscrowd`, `area`, `segmentation` and `info` are optional.
- Category ids may have gaps. The network's labels are 1 to num_classes, in the order of the ids; 0 is background.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from data import DatasetError
from detection.coco.defects import FIELDS, Defect, dataset_error, diagnose_annotations, valid_records
from detection.coco.image_files import SHRUNK, ImageFile, find_files, image_file, read_short_side
from engine.config import Config
from engine.files import user_path
from engine.terminal import counted


class SplitConfig(Config):
    """Paths of one split of a data set, train or val."""

    images: str = Field(description="image folder, relative to root; file_name in the annotations is relative to it")
    annotations: str = Field(description="annotation file in COCO's format (JSON), relative to root")


class DataConfig(Config):
    """Which images to train and evaluate on, and how to load them."""

    root: str = Field(description="folder of the data set")
    train: SplitConfig = Field(description="images to train on")
    val: SplitConfig = Field(description="images to evaluate on")
    workers: int = Field(4, ge=0, le=256, description="loader processes per training process; 0: no extra processes")
    cache_images: bool = Field(
        False,
        description="keep decoded images in memory; each training process needs 3 bytes per pixel: 0.9 MB at 640 x 480",
    )
    cache_limit_mib: int = Field(
        8192, ge=1, description="cache size in MiB, for train and for val separately; only images that fit are cached"
    )
    holdout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the training images that are scored in place of the validation images, and not trained "
        "on; chosen by a hash of their ids; 0: score the validation images. For tuning",
    )
    check_images: bool = Field(
        False, description="decode every image before training to find corrupt images; takes 2 ms per 640 x 480 image"
    )

    @property
    def cache_mib(self) -> int:
        """Size of the cache of decoded images in MiB; 0 if caching is off."""
        return self.cache_limit_mib if self.cache_images else 0

    def paths(self, split: Literal["train", "val"]) -> tuple[Path, Path]:
        """Return the paths of the annotation file and the image folder of one split.

        With a holdout, both splits are parts of the training images."""
        if self.holdout:
            split = "train"
        root, paths = user_path(self.root, "data.root"), getattr(self, split)
        for field in ("annotations", "images"):
            user_path(str(root / getattr(paths, field)), f"data.{split}.{field}")
        return root / paths.annotations, root / paths.images


class ImageRecord(NamedTuple):
    """One record of the list `images`."""

    id: int
    file_name: str  # relative to the image folder
    width: int  # pixels, in the orientation that the boxes refer to
    height: int


@dataclass(frozen=True, eq=False)
class CocoFile:
    """A checked annotation file. All objects are stored in a few arrays, which loader processes share."""

    annotations_path: Path
    images_dir: Path
    images: list[ImageRecord]
    class_names: list[str]  # index k - 1 has the name of label k
    category_ids: list[int]  # index k - 1 has the id of label k
    boxes_xyxy: np.ndarray  # (objects, 4) float32 pixels, within their image
    labels: np.ndarray  # (objects,) int64, 1 to len(class_names)
    is_crowd: np.ndarray  # (objects,) bool
    first_object: np.ndarray  # (images + 1,) int64: image i has objects first_object[i] to first_object[i + 1] - 1
    num_clipped: int  # boxes that extended beyond the edge of their image by a pixel or more
    num_discarded: int  # boxes without area
    short_side: int | None = None  # pixels, if the images are shrunken copies; None if they are the originals
    sha256: str = ""  # checksum of the annotation file when it was read

    def objects(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (boxes_xyxy, labels, is_crowd) of the objects in images[index]."""
        span = slice(self.first_object[index], self.first_object[index + 1])
        return self.boxes_xyxy[span], self.labels[span], self.is_crowd[span]

    def file(self, index: int) -> ImageFile:
        """Return the file of images[index]."""
        image_id, file_name, *size = self.images[index]
        return image_file(image_id, self.images_dir / file_name, tuple(size), self.short_side)

    def part(self, is_in_part: np.ndarray) -> "CocoFile":
        """Return the images with a true entry in `is_in_part` (images,) and their objects.

        num_clipped and num_discarded still count the whole file."""
        keep = is_in_part[self.image_indices]
        return replace(
            self,
            images=[record for record, is_kept in zip(self.images, is_in_part, strict=True) if is_kept],
            boxes_xyxy=self.boxes_xyxy[keep],
            labels=self.labels[keep],
            is_crowd=self.is_crowd[keep],
            first_object=np.concatenate([[0], np.cumsum(np.diff(self.first_object)[is_in_part])]),
        )

    @property
    def image_indices(self) -> np.ndarray:
        """(objects,) int64: for each object, the index of its image in `images`."""
        return np.repeat(np.arange(len(self.images)), np.diff(self.first_object))

    @property
    def fractions_xyxy(self) -> np.ndarray:
        """(N, 4) float32: the boxes of all N objects except crowds, as fractions of the sides of their image."""
        sizes = np.array([(record.width, record.height) for record in self.images], np.float32)[self.image_indices]
        return (self.boxes_xyxy / np.tile(sizes, 2))[~self.is_crowd]

    @property
    def image_paths(self) -> list[Path]:
        return [self.images_dir / image.file_name for image in self.images]

    @property
    def classes(self) -> dict[int, str]:
        """Mapping from category id to name, in the order of the labels."""
        return dict(zip(self.category_ids, self.class_names, strict=True))

    @property
    def class_counts(self) -> np.ndarray:
        """(classes,) int64: number of objects per class, without crowds; index k - 1 has the count of label k."""
        return np.bincount(self.labels[~self.is_crowd], minlength=len(self.class_names) + 1)[1:]


def count(coco: CocoFile) -> dict[str, int]:
    """Count images, objects, classes, clipped and discarded boxes, crowds, and images without objects."""
    num_with_objects = len(np.unique(coco.image_indices[~coco.is_crowd]))
    return {
        "images": len(coco.images),
        "objects": len(coco.labels),
        "classes": len(coco.class_names),
        "boxes_cut": coco.num_clipped,
        "boxes_left_out": coco.num_discarded,
        "crowds": int(coco.is_crowd.sum()),
        "images_without_objects": len(coco.images) - num_with_objects,
    }


def describe_size(coco: CocoFile) -> str:
    """Return the size of a data set as text, for example '292 images (3,941 objects)'."""
    shrunk = f", shrunk to a short side of {coco.short_side}" if coco.short_side else ""
    objects = counted(len(coco.labels), "object", "objects")
    return f"{counted(len(coco.images), 'image', 'images')} ({objects}{shrunk})"


NOTES = {
    "boxes_cut": "boxes that extend beyond their image",
    "boxes_left_out": "boxes without area",
    "crowds": "crowds",
    "images_without_objects": "images without objects",
}


def describe(coco: CocoFile) -> str:
    """Return the counts as one line of text. Counts named in NOTES are included only if they are above 0."""
    counts = count(coco)
    notes = [f"{what}: {counts[name]:,}" for name, what in NOTES.items() if counts[name]]
    return "; ".join([f"{describe_size(coco)}, {counted(counts['classes'], 'class', 'classes')}", *notes])


class Survey(NamedTuple):
    """The content of an annotation file, with every defect and warning."""

    annotations_path: Path
    images_dir: Path
    coco: CocoFile | None  # the valid records; None if the file is not a JSON object
    files: list[ImageFile]  # the image files that exist and are not empty, in the order of the records
    defects: list[Defect]  # errors: the data set cannot be used
    warnings: list[Defect]  # problems that do not prevent training
    is_complete: bool = False  # `coco` has all records, because no record is invalid; image files may be missing


# ---- reading and checking an annotation file ----------------------------------------------------------


def read_coco(annotations_path: str | Path, images_dir: str | Path) -> CocoFile:
    """Read an annotation file. Check all records, and check that all image files exist, without opening the images.

    If there are defects, raises DatasetError with the first defect and the number of defects."""
    survey = survey_coco(annotations_path, images_dir)
    if survey.defects:
        raise dataset_error(survey.defects)
    return survey.coco


def read_split(config: DataConfig, split: Literal["train", "val"]) -> CocoFile:
    """Run `read_coco` for one split of the configured data set. With a holdout, val is a part of the training images.

    Raises DatasetError if the file has defects, or if the holdout leaves no image for one of the splits."""
    coco = read_coco(*config.paths(split))
    if not config.holdout:
        return coco
    is_held_out = held_out([record.id for record in coco.images], config.holdout)
    if is_held_out.all() or not is_held_out.any():
        raise DatasetError(
            f"{coco.annotations_path}: data.holdout={config.holdout:g} holds out {is_held_out.sum()} of "
            f"{counted(len(coco.images), 'image', 'images')}; at least one must be held out, and one trained on"
        )
    return coco.part(is_held_out if split == "val" else ~is_held_out)


def held_out(image_ids: Sequence[int], share: float) -> np.ndarray:
    """Return which images are held out, (images,) bool: those with the lowest hash of their id.

    share: of the images, rounded to a whole number. The choice does not depend on the order of the images."""
    hashes = [hashlib.sha256(str(image_id).encode()).hexdigest() for image_id in image_ids]
    chosen = np.zeros(len(hashes), bool)
    chosen[np.argsort(hashes)[: round(share * len(hashes))]] = True
    return chosen


def survey_coco(annotations_path: str | Path, images_dir: str | Path) -> Survey:
    """Read the valid records of an annotation file and collect all defects, including missing image files."""
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
            report("", f"no list {name!r}, expected a JSON object with the lists {', '.join(FIELDS)}")
        elif not records and name != "annotations":
            report("", f"list {name!r} is empty, expected at least one record")
    valid = valid_records(lists, images_dir, report)
    try:
        short_side = read_short_side(images_dir)
    except DatasetError as error:
        short_side = None
        defects.append(Defect(images_dir / SHRUNK, "", str(error)))
    is_complete = not defects
    files = find_files(lists["images"] or [], images_dir, short_side, report)
    if what := diagnose_annotations(lists):
        defects.insert(0, Defect(annotations_path, "", what))  # first, because it explains defects of single records
        is_complete = False
    if defects:  # discard annotations that refer to an invalid image or category record
        image_ids, category_ids = ({record["id"] for record in valid[name]} for name in ("images", "categories"))
        valid["annotations"] = [
            annotation
            for annotation in valid["annotations"]
            if annotation["image_id"] in image_ids and annotation["category_id"] in category_ids
        ]
    coco = _build(annotations_path, images_dir, short_side, sha256, **valid)
    return Survey(annotations_path, images_dir, coco, files, defects, [], is_complete)


def pair_defects(train: CocoFile, val: CocoFile) -> Iterator[Defect]:
    """Yield why two valid files cannot be used for training: their classes differ, or train has no usable objects."""
    if train.classes != val.classes:
        what = f"categories {val.classes} differ from {train.classes} in {train.annotations_path}"
        yield Defect(val.annotations_path, "", f"{what}; both files must list the same classes (ids and names)")
    if not train.class_counts.any():
        unusable = {"without area": train.num_discarded, "crowds": int(train.is_crowd.sum())}
        shown = ", ".join(f"{number:,} {what}" for what, number in unusable.items() if number)
        what = f"no usable object to train on ({shown})" if shown else "no objects to train on"
        yield Defect(train.annotations_path, "", f"{what}; training needs boxes that have an area and are not crowds")


def _build(
    annotations_path: Path,
    images_dir: Path,
    short_side: int | None,
    sha256: str,
    categories: list[dict],
    images: list[dict],
    annotations: list[dict],
) -> CocoFile:
    """Build a CocoFile from valid records."""
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
    clipped = corners.clip(0, sizes[:, None])
    num_clipped = int(np.any(np.abs(clipped - corners) >= 1, axis=(1, 2)).sum())
    boxes_xyxy = clipped.reshape(-1, 4).astype(np.float32)  # rounding can make a side 0
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
        num_clipped=num_clipped,
        num_discarded=int((~has_area).sum()),
        short_side=short_side,
        sha256=sha256,
    )


def _read_json(path: Path) -> tuple[dict, str]:
    """Return the JSON object in a file and the file's SHA-256.

    Raises DatasetError if the file has no JSON object; the message gives the reason but not the path."""
    try:
        text = path.read_bytes()
        content = json.loads(text)
    except OSError as error:
        where = "" if path.is_absolute() else f", relative to {Path.cwd()}"
        raise DatasetError(
            f"cannot be read: {error.strerror}{where}; set data.root=FOLDER to the folder of the data set "
            "(`python -m detection.data layout FOLDER` prints the command that trains on it)"
        ) from None
    except (ValueError, RecursionError) as error:  # ValueError: invalid JSON or invalid UTF-8
        raise DatasetError(f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise DatasetError(f"is a JSON {type(content).__name__}, expected an object with the lists {', '.join(FIELDS)}")
    return content, hashlib.sha256(text).hexdigest()
