"""Annotation files in COCO's format (cocodataset.org/#format-data): read and checked as a whole.

`read_coco` is the door: it finds every defect of an annotation file, and every image that is not there or is empty,
before anything is trained. What it lets through follows these rules:

- A box that reaches over the edge of its image is cut to it; a box without area (COCO's train2017 has two) is left
  out. Both concern training only and are counted; scores are taken against the untouched file.
- Crowds (`iscrowd` 1) are never training targets. `iscrowd`, `area`, `segmentation` and `info` may be missing.
- Category ids may have gaps. Labels inside the network are 1 to num_classes, in the order of the ids; 0 is background.
- Nothing outside the image folder can be named: a `file_name` that is absolute or has `..` in it is a defect, and is
  never opened. Symbolic links are followed, the folder itself and those in it: whoever can put one there owns the
  folder, and folders of links into a shared store are common. What is no regular file (a pipe) is never opened either.
- A folder of images with `shrunk.json` in it holds copies with that short side (detection/prepare/shrink.py).
  Annotations, and scores, stay in the pixels of the originals.

`survey_coco` is the same look for those who want to go on where something is wrong: see `python -m detection.data`.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from data import DatasetError
from detection.coco.plausibility import what_boxes_are
from engine.config import Config
from engine.files import user_path
from engine.terminal import counted, printable

SHRUNK = "shrunk.json"  # marks a folder of shrunken copies: {"short_side": pixels}


class SplitConfig(Config):
    """Where one half of a data set lies."""

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
        """The annotation file and the image folder of one half."""
        root, paths = user_path(self.root, "data.root"), getattr(self, split)
        for field in ("annotations", "images"):
            user_path(str(root / getattr(paths, field)), f"data.{split}.{field}")
        return root / paths.annotations, root / paths.images


MOST_AREA = 1e10  # square pixels; pycocotools' largest
SEE_ALL = "`python -m detection.data check` lists all that is wrong"


class Defect(NamedTuple):
    """One thing that is wrong with a data set."""

    file: Path  # an annotation file or an image
    record: str  # "images[3] (id 7)", "image id 7"; empty where the file as a whole is meant
    what: str
    is_warning: bool = False  # somebody should look at it, but it does not keep anybody from training

    def __str__(self) -> str:
        return ": ".join(filter(None, [shown_path(self.file), self.record, self.what]))


def shown_path(path: Path) -> str:
    """A path fit for a terminal."""
    return printable(str(path))


def dataset_error(defects: Sequence[Defect]) -> DatasetError:
    """The error for defects: the first, how many there are, and the cure; then up to nine more, a line each."""
    lines = [str(defect) for defect in defects[:10]]
    if len(defects) > 1:
        lines[0] += f" (the first of {len(defects)} defects)"
    if defects[0].record:  # one of many that were looked at
        lines[0] += f"; {SEE_ALL}"
    if len(defects) > 10:
        lines.append(f"... and {len(defects) - 10} more")
    return DatasetError("\n  ".join(lines))


def summarised(warnings: Iterable[Defect]) -> list[str]:
    """One line for each kind of warning: the first of its kind and how many there are."""
    kinds: dict[str, list[Defect]] = {}
    for warning in warnings:
        kinds.setdefault(warning.what, []).append(warning)
    return [f"{same[0]}" + f" (the first of {len(same)} such)" * (len(same) > 1) for same in kinds.values()]


class ImageRecord(NamedTuple):
    """One image as the annotation file describes it."""

    id: int
    file_name: str  # relative to the image folder
    width: int  # pixels, of the image as its boxes see it
    height: int


class ImageFile(NamedTuple):
    """An image that lies on the disk, as its record calls it, whatever else is wrong with that."""

    id: Any
    path: Path
    size: tuple[int, int] | None  # width and height in pixels, None where the record gives none
    is_shrunk: bool = False  # then that is the size of the copy


@dataclass(frozen=True, eq=False)
class CocoFile:
    """A checked annotation file.

    The objects of all images lie in a few arrays, image after image: loader processes can share these, whereas
    a million small objects would be copied into each as soon as it looks at them."""

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
    short_side: int | None = None  # of shrunken copies, pixels; None where the images are the originals
    sha256: str = ""  # of the annotation file, as it was read

    def objects(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """boxes_xyxy, labels and is_crowd of the objects in images[index]."""
        span = slice(self.first_object[index], self.first_object[index + 1])
        return self.boxes_xyxy[span], self.labels[span], self.is_crowd[span]

    def file(self, index: int) -> ImageFile:
        """Where images[index] lies."""
        image_id, file_name, *size = self.images[index]
        return _image_file(image_id, self.images_dir / file_name, tuple(size), self.short_side)

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
    """What is there, and what training does not take as it is."""
    targets = np.bincount(np.repeat(np.arange(len(coco.images)), np.diff(coco.first_object))[~coco.is_crowd])
    return {
        "images": len(coco.images),
        "objects": len(coco.labels),
        "classes": len(coco.class_names),
        "boxes_cut": coco.num_cut,
        "boxes_left_out": coco.num_left_out,
        "crowds": int(coco.is_crowd.sum()),
        "images_without_objects": len(coco.images) - int(np.count_nonzero(targets)),
    }


def shown_size(coco: CocoFile) -> str:
    """'292 images (3,941 objects)'."""
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
    """The counts in a line; of what training does not take as it is, those above 0."""
    counts = count(coco)
    notes = [f"{what}: {counts[name]:,}" for name, what in NOTES.items() if counts[name]]
    return "; ".join([f"{shown_size(coco)}, {counted(counts['classes'], 'class', 'classes')}", *notes])


class Survey(NamedTuple):
    """All that an annotation file and the list of its images tell."""

    annotations_path: Path
    images_dir: Path
    coco: CocoFile | None  # of the records without a defect; None where the file holds no such lists
    files: list[ImageFile]  # in the order of the records
    defects: list[Defect]  # the data set is refused because of these
    warnings: list[Defect]  # not refused, but somebody should look
    is_whole: bool = False  # `coco` holds all records, as none has a defect; those of images do not count


# ---- reading and checking an annotation file ----------------------------------------------------------


def read_coco(annotations_path: str | Path, images_dir: str | Path) -> CocoFile:
    """Read an annotation file and check all of it, and that every image is there (but not what is in it).

    Raises DatasetError if anything is wrong: its first line names the file, the first defect and how many there are;
    up to nine more defects follow, a line each."""
    survey = survey_coco(annotations_path, images_dir)
    if survey.defects:
        raise dataset_error(survey.defects)
    return survey.coco


def read_split(config: DataConfig, split: Literal["train", "val"]) -> CocoFile:
    """`read_coco` of one half of a configured data set."""
    return read_coco(*config.paths(split))


def survey_coco(annotations_path: str | Path, images_dir: str | Path) -> Survey:
    """Read an annotation file as far as it can be read, with every defect of it and every image that is missing."""
    annotations_path, images_dir = Path(annotations_path), Path(images_dir)
    try:
        content, sha256 = _read_json(annotations_path)
    except DatasetError as error:
        return Survey(annotations_path, images_dir, None, [], [Defect(annotations_path, "", str(error))], [])

    defects: list[Defect] = []

    def found(record: str, what: str) -> None:
        defects.append(Defect(annotations_path, record, what))

    lists = {name: content.get(name) if isinstance(content.get(name), list) else None for name in _KEYS}
    for name, records in lists.items():
        if records is None:
            found("", f"no list {name!r}, expected the lists {', '.join(_KEYS)}")
        elif not records and name != "annotations":
            found("", f"{name!r} is empty")

    image_of, category_of = _by_id(lists["images"]), _by_id(lists["categories"])
    name_taken: dict[str, int] = {}
    sound = {
        name: _sound_records(lists[name] or [], name, find, found)
        for name, find in (
            ("categories", lambda record: _category_defects(record, name_taken)),
            ("images", lambda record: _image_defects(record, images_dir)),
            ("annotations", lambda record: _annotation_defects(record, image_of, category_of)),
        )
    }
    try:
        short_side = read_short_side(images_dir)
    except DatasetError as error:
        short_side = None
        defects.append(Defect(images_dir / SHRUNK, "", str(error)))
    is_whole = not defects
    files = _find_files(lists["images"] or [], images_dir, short_side, found)
    if what := _implausible(lists["annotations"] or [], image_of or {}):
        defects.insert(0, Defect(annotations_path, "", what))  # it explains those of single records
        is_whole = False
    if defects:  # what belongs to a defective image or class goes with it
        known = {name: {record["id"] for record in sound[name]} for name in ("images", "categories")}
        sound["annotations"] = [
            annotation
            for annotation in sound["annotations"]
            if annotation["image_id"] in known["images"] and annotation["category_id"] in known["categories"]
        ]
    coco = _build(annotations_path, images_dir, short_side, sha256, **sound)
    return Survey(annotations_path, images_dir, coco, files, defects, [], is_whole)


def pair_defects(train: CocoFile, val: CocoFile) -> Iterator[Defect]:
    """What keeps two files, each sound by itself, from being trained and scored on."""
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
    """The CocoFile of records without defects."""
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
    """The object that a file holds, and the file's SHA-256.

    Raises DatasetError, saying why not but not where, if there is none."""
    try:
        text = path.read_bytes()
        content = json.loads(text)
    except OSError as error:
        where = "" if path.is_absolute() else f", relative to {Path.cwd()}"
        raise DatasetError(
            f"cannot be read: {error.strerror}{where}; give data.root=FOLDER, the data set's (`python -m "
            "detection.data layout FOLDER` tells what lies in one)"
        ) from None
    except (ValueError, RecursionError) as error:  # ValueError: of json, and of bytes that are no UTF-8
        raise DatasetError(f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise DatasetError(f"holds a {type(content).__name__}, expected an object with the lists {', '.join(_KEYS)}")
    if not _KEYS.keys() & content:
        raise DatasetError(f"holds none of the lists {', '.join(_KEYS)}; is it an instances JSON of COCO's?")
    return content, hashlib.sha256(text).hexdigest()


_KEYS = {
    "categories": ("id", "name"),
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}


def _sound_records(
    records: list, name: str, find_defects: Callable[[dict], Iterator[str]], found: Callable[[str, str], None]
) -> list[dict]:
    """The records of a list that have no defect; what is wrong with the others goes to `found`.

    find_defects: yields what is wrong with the values of a record, of which any may be missing."""
    keys, taken, sound = _KEYS[name], set(), []
    for position, record in enumerate(records):
        if not isinstance(record, dict):
            found(f"{name}[{position}]", f"expected an object, got {record!r:.50}")
            continue
        defects = [f"no {key!r}" for key in keys if key not in record]
        if "id" in record and not (_is_id(record["id"]) or (name == "annotations" and type(record["id"]) is int)):
            defects.append(f"expected a whole number as id, from 0 to 2 ** 53{_written_as(record['id'])}")
        elif "id" in record and record["id"] in taken:
            defects.append("an earlier one has this id")
        elif "id" in record:
            taken.add(record["id"])
        defects += find_defects(record)
        for what in defects:
            found(f"{name}[{position}] (id {record.get('id')!r:.50})", what)
        if not defects:
            sound.append(record)
    return sound


def _category_defects(category: dict, name_taken: dict[str, int]) -> Iterator[str]:
    """name_taken: the names so far, with the id of the first category to have it."""
    if "name" not in category:
        return
    name = category["name"]
    if not isinstance(name, str) or not name or not _is_unicode(name):
        yield f"name {name!r:.50}, expected text"
        return
    first_id = name_taken.setdefault(name, category.get("id"))
    if first_id != category.get("id"):
        yield f"name {name!r} is that of category {first_id}, too"


def _image_defects(image: dict, images_dir: Path) -> Iterator[str]:
    if "width" in image and "height" in image and not _has_size(image):
        hint = _written_as(image["width"]) or _written_as(image["height"])
        yield f"width {image['width']!r:.50}, height {image['height']!r:.50}, expected whole numbers above 0{hint}"
    if "file_name" in image and not (isinstance(image["file_name"], str) and _is_unicode(image["file_name"])):
        yield f"file_name {image['file_name']!r:.50}, expected text"
    elif "file_name" in image and leads_out(image["file_name"]):
        yield f"file_name {image['file_name']!r} leads out of the image folder {images_dir}"


def leads_out(file_name: str) -> bool:
    """Return whether a file name names something outside the image folder."""
    path = PurePath(file_name)
    return path.is_absolute() or ".." in path.parts


def _annotation_defects(
    annotation: dict, image_of: dict[int, dict] | None, category_of: dict[int, dict] | None
) -> Iterator[str]:
    """image_of, category_of: the records by id; None where there is no list of them, which is said once."""
    image = None
    if "image_id" in annotation and image_of is not None:
        image_id = annotation["image_id"]
        image = image_of.get(image_id) if _is_id(image_id) else None
        if image is None:
            yield f"image_id {image_id!r:.50}: {_why_unknown(image_id, image_of) or 'no such image'}"
    if "category_id" in annotation and category_of is not None:
        category_id = annotation["category_id"]
        if not _is_id(category_id) or category_id not in category_of:
            yield f"category_id {category_id!r:.50}: {_why_unknown(category_id, category_of) or 'no such category'}"
    if "bbox" in annotation:
        bbox = annotation["bbox"]
        if not _is_box(bbox):
            hint = _written_as(bbox)
            yield f"bbox {bbox!r:.100}, expected [x, y, width, height] in pixels, the last two not negative{hint}"
        elif image and _has_size(image) and _is_outside(bbox, image):
            size = "{width} x {height}".format(**image)
            yield f"bbox {bbox} lies outside image {image['id']} of {size} pixels"
    if annotation.get("iscrowd", 0) not in (0, 1):
        yield f"iscrowd {annotation['iscrowd']!r:.50}, expected 0 or 1{_written_as(annotation['iscrowd'])}"
    area = annotation.get("area", 0)
    if not (_is_number(area) and 0 <= area <= MOST_AREA):
        wanted = f"0 to {MOST_AREA:.0e} square pixels: COCO's evaluation ignores any other"
        yield f"area {area!r:.50}, expected {wanted}{_written_as(area)}"


def _implausible(annotations: list, image_of: dict[int, dict]) -> str | None:
    """What is wrong with the boxes as a whole, whatever else is wrong with their records."""
    boxes_xywh, sizes = [], []
    for annotation in filter(lambda record: isinstance(record, dict), annotations):
        image_id, bbox = annotation.get("image_id"), annotation.get("bbox")
        image = image_of.get(image_id) if _is_id(image_id) else None
        if image and _has_size(image) and _is_box(bbox):
            boxes_xywh.append(bbox)
            sizes.append((image["width"], image["height"]))
    return what_boxes_are(np.array(boxes_xywh, np.float64).reshape(-1, 4), np.array(sizes, np.float64).reshape(-1, 2))


def _is_box(bbox: Any) -> bool:
    return isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox)) and min(bbox[2:]) >= 0


def _is_outside(bbox: list[float], image: dict) -> bool:
    """Whether a box that has an area shares none with its image."""
    x, y, width, height = bbox
    misses = x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0
    return width > 0 and height > 0 and misses


def _why_unknown(value: Any, known: dict[int, dict]) -> str:
    """Why a reference to an id that is not written as a whole number finds no record; empty if it is written as one."""
    if not (hint := _written_as(value)):
        return ""
    try:
        number = int(float(value))
    except (TypeError, ValueError, OverflowError):
        return "no such id; it is text where a number is expected: write the id of a record"
    return f"id {number} is {'there' if number in known else 'not there either'}{hint}"


def _written_as(value: Any) -> str:
    """'; it is text where a number is expected', or the like, to end a message; empty if the value is a number."""
    if isinstance(value, str):
        return "; it is text where a number is expected: write it without quotes"
    if isinstance(value, list) and any(isinstance(number, str) for number in value):
        return "; there is text in it where numbers are expected: write them without quotes"
    if isinstance(value, float) and value.is_integer():
        return "; it is a fraction where a whole number is expected: write it without the point"
    return ""


def _by_id(records: list | None) -> dict[int, dict] | None:
    if records is None:
        return None
    return {record["id"]: record for record in records if isinstance(record, dict) and _is_id(record.get("id"))}


def _is_id(value: Any) -> bool:
    # Exact in a table of float64 results; hotcoco takes none below 0. (bool is an int, too.)
    return type(value) is int and 0 <= value < 2**53


def _is_unicode(text: str) -> bool:
    """Whether it can be written down: JSON's escapes can spell half a character."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e12  # false for NaN


def _has_size(image: dict) -> bool:
    return all(type(side) is int and 0 < side < 2**31 for side in (image.get("width"), image.get("height")))


def image_defect(file: ImageFile, what: str, is_warning: bool = False) -> Defect:
    """What is wrong with what is in an image's file."""
    return Defect(file.path, f"image id {file.id!r:.50}", what, is_warning)


# ---- the images on the disk ---------------------------------------------------------------------------


def shrunk_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Width and height of a copy with that short side in pixels; an image that is no larger keeps its own."""
    scale = min(1.0, short_side / min(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def read_short_side(images_dir: Path) -> int | None:
    """The short side of the shrunken copies in a folder, pixels; None if it holds no `shrunk.json`.

    Raises DatasetError, saying why but not where, if that is not what detection.prepare.shrink writes."""
    if not (images_dir / SHRUNK).exists():
        return None
    try:
        short_side = json.loads((images_dir / SHRUNK).read_bytes())["short_side"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"cannot be read: {error!r:.100}") from None
    if type(short_side) is not int or short_side < 1:
        raise DatasetError(f"short_side {short_side!r:.50}, expected a whole number above 0")
    return short_side


def _image_file(image_id: Any, path: Path, size: tuple[int, int] | None, short_side: int | None) -> ImageFile:
    if size is None or short_side is None:
        return ImageFile(image_id, path, size)
    return ImageFile(image_id, path, shrunk_size(size, short_side), is_shrunk=True)


def _find_files(
    records: list, images_dir: Path, short_side: int | None, found: Callable[[str, str], None]
) -> list[ImageFile]:
    """The image files that lie in their folder and are not empty; the others go to `found`."""
    if records and not os.path.isdir(images_dir):
        found("", f"its image folder {images_dir}: no such folder")
        return []
    listings: dict[Path, dict[str, os.DirEntry]] = {}
    files = []
    for position, record in enumerate(records):
        name = record.get("file_name") if isinstance(record, dict) else None
        if not isinstance(name, str) or leads_out(name):
            continue
        if what := _file_defect(name, images_dir, listings):
            found(f"images[{position}] (id {record.get('id')!r:.50})", f"file_name {name!r}: {what}")
            continue
        size = (record["width"], record["height"]) if _has_size(record) else None
        files.append(_image_file(record.get("id"), images_dir / name, size, short_side))
    return files


def _file_defect(file_name: str, images_dir: Path, listings: dict[Path, dict[str, os.DirEntry]]) -> str | None:
    """listings: what folders hold, kept: to list a folder once beats looking for each of 100,000 names in it."""
    path = PurePath(file_name)
    folder = images_dir / path.parent
    if folder not in listings:
        try:
            with os.scandir(folder) as entries:
                listings[folder] = {entry.name: entry for entry in entries}
        except (OSError, ValueError):  # ValueError: a name that no folder can have
            listings[folder] = {}
    entry = listings[folder].get(path.name)
    try:
        if entry is None or not entry.is_file():
            return f"no such file in {images_dir}"
        return None if entry.stat().st_size else "empty, 0 bytes"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
