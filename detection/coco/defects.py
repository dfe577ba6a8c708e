"""What is wrong with an annotation file in COCO's format: record by record (FIELDS), and in its boxes as a whole."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from data import DatasetError
from engine.inputs import Repeats
from engine.terminal import printable

SEE_ALL = "`python -m detection.data check` lists all that is wrong"
MOST_AREA = 1e10  # square pixels; pycocotools' largest
Records = Mapping[str, list | None]  # the lists of an annotation file by their names; None if there is no such list


class Defect(NamedTuple):
    """One thing that is wrong with a data set."""

    file: Path  # an annotation file or an image
    record: str  # "images[3] (id 7)", "image id 7"; empty if the file as a whole is meant
    what: str | Repeats
    is_warning: bool = False  # does not keep anybody from training

    def __str__(self) -> str:
        return ": ".join(filter(None, [shown_path(self.file), self.record, str(self.what)]))


def shown_path(path: Path) -> str:
    """Return a path fit for a terminal."""
    return printable(str(path))


def dataset_error(defects: Sequence[Defect]) -> DatasetError:
    """Return the error for defects: the first, how many there are, and the cure, in one line."""
    text = str(defects[0])
    if len(defects) > 1:
        text += f" (the first of {len(defects)} defects)"
    return DatasetError(f"{text}; {SEE_ALL}" if defects[0].record else text)


def summarised(warnings: Iterable[Defect]) -> list[str]:
    """Return one line for each kind of warning: the first of its kind and how many there are."""
    kinds: dict[object, list[Defect]] = {}
    for warning in warnings:
        kinds.setdefault(str(warning.what), []).append(warning)
    return [f"{same[0]}" + (f" (the first of {len(same)} such)" if len(same) > 1 else "") for same in kinds.values()]


# ---- the values of a record ---------------------------------------------------------------------------------------


def is_id(value: Any) -> bool:
    """Return whether a value is exact in a table of float64 results; hotcoco takes none below 0."""
    return type(value) is int and 0 <= value < 2**53  # bool is an int, too


def has_size(image: Mapping[str, Any]) -> bool:
    """Return whether the record of an image has a valid width and height."""
    return _is_side(image.get("width")) and _is_side(image.get("height"))


def leads_out(file_name: str) -> bool:
    """Return whether a file name names something outside the image folder."""
    path = PurePath(file_name)
    return path.is_absolute() or ".." in path.parts


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_text(value: Any) -> bool:
    """Whether a value can be written down: JSON's escapes can spell half a character."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e12  # false for NaN


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)) and min(value[2:]) >= 0


class Field(NamedTuple):
    """What a field of a record must be."""

    is_valid: Callable[[Any], bool]
    expected: str
    is_unique: bool = False
    refers_to: str = ""  # the list that holds a record with this id
    is_optional: bool = False


TEXT, ID = "text", "a whole number from 0 to 2 ** 53"
SIDE = Field(_is_side, "a whole number above 0")
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
        "id": Field(lambda value: type(value) is int, "a whole number", is_unique=True),
        "image_id": Field(is_id, ID, refers_to="images"),
        "category_id": Field(is_id, ID, refers_to="categories"),
        "bbox": Field(_is_box, "[x, y, width, height] in pixels, the last two not negative"),
        "iscrowd": Field(lambda value: value in (0, 1), "0 or 1", is_optional=True),
        "area": Field(
            lambda value: _is_number(value) and 0 <= value <= MOST_AREA,
            f"0 to {MOST_AREA:.0e} square pixels: COCO's evaluation ignores any other",
            is_optional=True,
        ),
    },
}


def sound_records(lists: Records, images_dir: Path, report: Callable[[str, str], None]) -> dict[str, list[dict]]:
    """Return the records without a defect, by the name of their list; report(record, what) gets each defect."""
    known = {name: _by_id(lists[name]) for name in ("images", "categories")}
    sound: dict[str, list[dict]] = {}
    for name in FIELDS:
        taken: dict[tuple[str, Any], int] = {}
        sound[name] = []
        for position, record in enumerate(lists[name] or []):
            if not isinstance(record, dict):
                report(f"{name}[{position}]", f"expected an object, got {record!r:.50}")
                continue
            defects = list(_defects_of(record, name, position, taken, known, images_dir))
            for what in defects:
                report(f"{name}[{position}] (id {record.get('id')!r:.50})", what)
            if not defects:
                sound[name].append(record)
    return sound


def _defects_of(
    record: dict,
    name: str,
    position: int,
    taken: dict[tuple[str, Any], int],
    known: Mapping[str, dict[int, dict] | None],
    images_dir: Path,
) -> Iterator[str]:
    """Yield what is wrong with a record of the list `name`.

    taken: unique values so far, with the position of the first record to have them. known: the records that can be
    referred to, by id; None if there is no list of them, which is reported once."""
    for field, rule in FIELDS[name].items():
        value = record.get(field)
        if field not in record:
            if not rule.is_optional:
                yield f"no {field!r}"
        elif not rule.is_valid(value):
            hint = "; it is text: write it without quotes" if isinstance(value, str) and rule.expected != TEXT else ""
            yield f"{field} {value!r:.100}, expected {rule.expected}{hint}"
        elif rule.is_unique and (first := taken.setdefault((field, value), position)) != position:
            yield f"{field} {value!r} is that of {name}[{first}], too"
        elif field == "file_name" and leads_out(value):
            yield f"file_name {value!r} leads out of the image folder {images_dir}"
        elif rule.refers_to and known[rule.refers_to] is not None and value not in known[rule.refers_to]:
            yield f"{field} {value}: no such {field.removesuffix('_id')}"
    if name == "annotations" and (image := _image_of(record, known["images"])) and _is_outside(record["bbox"], image):
        size = f"{image['width']} x {image['height']}"
        yield f"bbox {record['bbox']} lies outside image {image['id']} of {size} pixels"


def _image_of(annotation: dict, images: dict[int, dict] | None) -> dict | None:
    """The image that an annotation with a valid box belongs to, if it has a valid size."""
    image_id = annotation.get("image_id")
    image = images.get(image_id) if images and is_id(image_id) else None
    return image if image and has_size(image) and _is_box(annotation.get("bbox")) else None


def _is_outside(bbox: list[float], image: dict) -> bool:
    """Whether a box that has an area shares none with its image."""
    x, y, width, height = bbox
    misses = x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0
    return width > 0 and height > 0 and misses


def _by_id(records: list | None) -> dict[int, dict] | None:
    if records is None:
        return None
    return {record["id"]: record for record in records if isinstance(record, dict) and is_id(record.get("id"))}


# ---- the boxes of a file as a whole -------------------------------------------------------------------------------

AGREE = 0.99  # share of the boxes that must fit an explanation
FAR_OVER = 0.1  # of the image's side: a box that reaches further over the edge than this was not meant to
MANY = 0.2  # share of the boxes that must reach so far over before anything is suspected
FEW_BOXES = 4  # fewer prove nothing about corners, centres or swapped sides
EXPECTED = "expected bbox as [x, y, width, height] in pixels"


def implausible(lists: Records) -> str | None:
    """Return `what_boxes_are` of the annotations with a valid box and image, whatever else is wrong with them."""
    images = _by_id(lists["images"])
    annotations = [record for record in lists["annotations"] or [] if isinstance(record, dict)]
    pairs = [(record["bbox"], image) for record in annotations if (image := _image_of(record, images))]
    boxes_xywh = np.array([bbox for bbox, _ in pairs], np.float64).reshape(-1, 4)
    sizes = np.array([(image["width"], image["height"]) for _, image in pairs], np.float64).reshape(-1, 2)
    return what_boxes_are(boxes_xywh, sizes)


def what_boxes_are(boxes_xywh: np.ndarray, sizes: np.ndarray) -> str | None:
    """Return what the boxes of a file seem to be, with the cure; None if they can be what they should be.

    boxes_xywh: (N, 4) float64, as the file has them. sizes: (N, 2) width and height of their images, pixels."""
    has_area = (boxes_xywh[:, 2:] > 0).all(axis=1)  # empty boxes fit everything
    boxes_xywh, sizes = boxes_xywh[has_area], sizes[has_area]
    if len(boxes_xywh) == 0:
        return None
    if _agree((boxes_xywh[:, 2:] <= 1).all(axis=1) & (sizes > 2).all(axis=1)):
        return (
            f"all boxes are smaller than a pixel: are these fractions of the image? {EXPECTED}; multiply x and width "
            "by the width of the image, y and height by its height"
        )
    starts, sides = boxes_xywh[:, :2], boxes_xywh[:, 2:]
    ends, halves = starts + sides, sides / 2
    is_far_over = (ends > sizes * (1 + FAR_OVER)).any(axis=1)
    if len(boxes_xywh) < FEW_BOXES or is_far_over.mean() < MANY:
        return None
    limits = sizes + 1  # a pixel more: some count them from 1
    explanations = (
        ((sides > starts) & (sides <= limits), "are these [x1, y1, x2, y2]? Subtract x and y from the other two"),
        (ends <= limits[:, ::-1], "are width and height of the images swapped? Swap them in the file's images"),
        (
            (starts + halves <= limits) & (starts - halves >= -1),
            "are these [cx, cy, width, height]? Subtract half the width from x and half the height from y",
        ),
    )
    for fits, question in explanations:
        if _agree(fits.all(axis=1)):
            many = f"{is_far_over.sum():,} of {len(ends):,} boxes"
            return f"{many} reach far over the right or bottom edge of their image: {question}; {EXPECTED}"
    return None


def _agree(fits: np.ndarray) -> bool:
    return fits.mean() >= AGREE
