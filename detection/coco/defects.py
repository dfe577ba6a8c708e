"""Find defects in COCO annotation files: invalid records (see FIELDS), and boxes in a different format."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from data import DatasetError
from engine.inputs import Repeats
from engine.terminal import printable

LIST_ALL = "`python -m detection.data check` lists all defects"
MAX_AREA = 1e10  # square pixels; upper limit of pycocotools' area ranges
Records = Mapping[str, list | None]  # from list name (key of FIELDS) to records; None if the list is missing


class Defect(NamedTuple):
    """One error or warning about a data set."""

    file: Path  # an annotation file or an image
    record: str  # "images[3] (id 7)" or "image id 7"; empty if the defect concerns the whole file
    what: str | Repeats
    is_warning: bool = False  # a warning: training can start

    def __str__(self) -> str:
        return ": ".join(filter(None, [printable_path(self.file), self.record, str(self.what)]))


def printable_path(path: Path) -> str:
    """Return a path as text with control characters escaped."""
    return printable(str(path))


def dataset_error(defects: Sequence[Defect]) -> DatasetError:
    """Return a one-line error with the first defect, the number of defects, and how to list all of them."""
    text = str(defects[0])
    if len(defects) > 1:
        text += f" (the first of {len(defects)} defects)"
    return DatasetError(f"{text}; {LIST_ALL}" if defects[0].record else text)


def summarise_warnings(warnings: Iterable[Defect]) -> list[str]:
    """Group warnings by text. Return one line per text: the first warning and the number of such warnings."""
    groups: dict[object, list[Defect]] = {}
    for warning in warnings:
        groups.setdefault(str(warning.what), []).append(warning)
    return [f"{same[0]}" + (f" (first of {len(same)} such cases)" if len(same) > 1 else "") for same in groups.values()]


# ---- the values of a record ---------------------------------------------------------------------------------------


def is_id(value: Any) -> bool:
    """Return whether a value is an id: an integer, at least 0 (hotcoco requires this), that float64 stores exactly."""
    return type(value) is int and 0 <= value < 2**53  # not isinstance: a bool is an int, too


def has_size(image: Mapping[str, Any]) -> bool:
    """Return whether an image record has a valid width and height."""
    return _is_side(image.get("width")) and _is_side(image.get("height"))


def is_outside_folder(file_name: str) -> bool:
    """Return whether a file name is an absolute path or contains `..`, so that it may leave the image folder."""
    path = PurePath(file_name)
    return path.is_absolute() or ".." in path.parts


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_text(value: Any) -> bool:
    """Return whether `value` is text that can be encoded (JSON escapes can produce lone surrogates)."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e12  # false for NaN


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)) and min(value[2:]) >= 0


class Field(NamedTuple):
    """The rule for one field of a record."""

    is_valid: Callable[[Any], bool]
    expected: str  # description of a valid value, for messages
    is_unique: bool = False
    refers_to: str = ""  # name of the list that must contain a record with this id
    is_optional: bool = False


TEXT, ID = "non-empty text in valid Unicode", "an integer from 0 to 2**53 - 1"
SIDE = Field(_is_side, "an integer from 1 to 2**31 - 1")
FIELDS = {
    "categories": {
        "id": Field(is_id, ID, is_unique=True),
        "name": Field(lambda value: _is_text(value) and value != "", TEXT, is_unique=True),
    },
    "images": {
        "id": Field(is_id, ID, is_unique=True),
        "file_name": Field(_is_text, TEXT),
        "width": SIDE,
        "height": SIDE,
    },
    "annotations": {
        "id": Field(lambda value: type(value) is int, "an integer", is_unique=True),
        "image_id": Field(is_id, ID, refers_to="images"),
        "category_id": Field(is_id, ID, refers_to="categories"),
        "bbox": Field(_is_box, "[x, y, width, height] in pixels: finite numbers, width and height not negative"),
        "iscrowd": Field(lambda value: value in (0, 1), "0 or 1", is_optional=True),
        "area": Field(
            lambda value: _is_number(value) and 0 <= value <= MAX_AREA,
            f"0 to {MAX_AREA:.0e} square pixels, because COCO's evaluation ignores objects outside this range",
            is_optional=True,
        ),
    },
}


def valid_records(lists: Records, images_dir: Path, report: Callable[[str, str], None]) -> dict[str, list[dict]]:
    """Return a dict from list name to its valid records. Call report(record, what) for each defect."""
    known = {name: _by_id(lists[name]) for name in ("images", "categories")}
    valid: dict[str, list[dict]] = {}
    for name in FIELDS:
        first_uses: dict[tuple[str, Any], int] = {}
        valid[name] = []
        for position, record in enumerate(lists[name] or []):
            if not isinstance(record, dict):
                report(f"{name}[{position}]", f"the record is {record!r:.50}, expected a JSON object")
                continue
            defects = list(_defects_of(record, name, position, first_uses, known, images_dir))
            for what in defects:
                report(f"{name}[{position}] (id {record.get('id')!r:.50})", what)
            if not defects:
                valid[name].append(record)
    return valid


def _defects_of(
    record: dict,
    name: str,
    position: int,
    first_uses: dict[tuple[str, Any], int],
    known: Mapping[str, dict[int, dict] | None],
    images_dir: Path,
) -> Iterator[str]:
    """Yield a message for each defect of lists[name][position].

    first_uses: for unique fields, from (field, value) to the first position of this value; updated here.
    known: from list name to its records by id, or to None if the file lacks the list (reported by `survey_coco`)."""
    for field, rule in FIELDS[name].items():
        value = record.get(field)
        if field not in record:
            if not rule.is_optional:
                yield f"field {field!r} is missing"
        elif not rule.is_valid(value):
            hint = "; this is text: write it without quotes" if isinstance(value, str) and rule.expected != TEXT else ""
            yield f"{field} is {value!r:.100}, expected {rule.expected}{hint}"
        elif rule.is_unique and (first := first_uses.setdefault((field, value), position)) != position:
            yield f"duplicate {field} {value!r}: already used by {name}[{first}]; give each record its own {field}"
        elif field == "file_name" and is_outside_folder(value):
            yield f"file_name is {value!r}, expected a path relative to the image folder {images_dir}, without .."
        elif rule.refers_to and known[rule.refers_to] is not None and value not in known[rule.refers_to]:
            yield f"{field} {value}: no such {field.removesuffix('_id')}; correct the id or add the missing record"
    if name == "annotations" and (image := _image_of(record, known["images"])) and _is_outside(record["bbox"], image):
        size = f"{image['width']} x {image['height']}"
        yield f"bbox {record['bbox']} is outside image {image['id']} ({size} pixels); correct the box or the image size"


def _image_of(annotation: dict, images: dict[int, dict] | None) -> dict | None:
    """Return the image record of an annotation; None if the box, the image id or the image's size is invalid."""
    image_id = annotation.get("image_id")
    image = images.get(image_id) if images and is_id(image_id) else None
    return image if image and has_size(image) and _is_box(annotation.get("bbox")) else None


def _is_outside(bbox: list[float], image: dict) -> bool:
    """Return whether a box has an area but does not overlap its image."""
    x, y, width, height = bbox
    misses = x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0
    return width > 0 and height > 0 and misses


def _by_id(records: list | None) -> dict[int, dict] | None:
    if records is None:
        return None
    return {record["id"]: record for record in records if isinstance(record, dict) and is_id(record.get("id"))}


# ---- the format of all boxes of a file ----------------------------------------------------------------------------

MIN_AGREEMENT = 0.99  # fraction of the boxes that must fit a wrong format before it is reported
MAX_OVERHANG = 0.1  # a box is suspicious if it extends beyond the edge by more than this fraction of the image side
MIN_SUSPICIOUS = 0.2  # wrong formats are considered only if at least this fraction of the boxes is suspicious
MIN_BOXES = 4  # fewer boxes are not enough to detect corners, centres or swapped sides
EXPECTED = "expected bbox as [x, y, width, height] in pixels"


def diagnose_annotations(lists: Records) -> str | None:
    """Run `diagnose_boxes` on all annotations with a valid box and image size, even if other fields are invalid."""
    images = _by_id(lists["images"])
    annotations = [record for record in lists["annotations"] or [] if isinstance(record, dict)]
    pairs = [(record["bbox"], image) for record in annotations if (image := _image_of(record, images))]
    boxes_xywh = np.array([bbox for bbox, _ in pairs], np.float64).reshape(-1, 4)
    sizes = np.array([(image["width"], image["height"]) for _, image in pairs], np.float64).reshape(-1, 2)
    return diagnose_boxes(boxes_xywh, sizes)


def diagnose_boxes(boxes_xywh: np.ndarray, sizes: np.ndarray) -> str | None:
    """Return a message if the boxes of a file seem to have a wrong format, with the cure; otherwise return None.

    boxes_xywh: (N, 4) float64, as stored in the file. sizes: (N, 2) width and height of each box's image, pixels."""
    has_area = (boxes_xywh[:, 2:] > 0).all(axis=1)  # an empty box fits every format
    boxes_xywh, sizes = boxes_xywh[has_area], sizes[has_area]
    if len(boxes_xywh) == 0:
        return None
    if _agree((boxes_xywh[:, 2:] <= 1).all(axis=1) & (sizes > 2).all(axis=1)):
        return (
            f"almost all boxes are at most one pixel wide and high: are they fractions of the image size? {EXPECTED}; "
            "multiply x and width by the image width, y and height by the image height"
        )
    starts, sides = boxes_xywh[:, :2], boxes_xywh[:, 2:]
    ends, halves = starts + sides, sides / 2
    is_far_over = (ends > sizes * (1 + MAX_OVERHANG)).any(axis=1)
    if len(boxes_xywh) < MIN_BOXES or is_far_over.mean() < MIN_SUSPICIOUS:
        return None
    limits = sizes + 1  # one pixel of tolerance, because some tools count pixels from 1
    explanations = (
        ((sides > starts) & (sides <= limits), "are they [x1, y1, x2, y2]? Subtract x1 from x2 and y1 from y2"),
        (ends <= limits[:, ::-1], "are the width and height of the images swapped? Swap them in the list 'images'"),
        (
            (starts + halves <= limits) & (starts - halves >= -1),
            "are they [cx, cy, width, height]? Subtract half the width from cx and half the height from cy",
        ),
    )
    for fits, question in explanations:
        if _agree(fits.all(axis=1)):
            suspicious = f"{is_far_over.sum():,} of {len(ends):,} boxes"
            return f"{suspicious} extend far beyond the right or bottom edge of their image: {question}; {EXPECTED}"
    return None


def _agree(fits: np.ndarray) -> bool:
    return fits.mean() >= MIN_AGREEMENT
