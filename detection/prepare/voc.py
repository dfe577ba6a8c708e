"""Pascal VOC's annotations, an XML file for each image, as its development kit (2007) and tools like LabelImg have it.

- VOC's boxes name their first and last pixels, counted from 1: xmin 1 and xmax W span an image of W pixels. So x is
  xmin - 1, and the width is xmax - xmin + 1. Tools write edges counted from 0 instead (LabelImg does, except that it
  writes 1 for 0); `zero_based` reads these. No file says which it is, and the difference is a pixel.
- `difficult` objects become crowds, the only objects of which COCO's evaluation counts a detection neither as right nor
  as wrong, as VOC's does for `difficult`. COCO is a little more lenient: a detection need only be within a crowd.
- Classes are the names found in both halves, in alphabetical order, with ids from 1. `pose`, `truncated`, `occluded`
  and `part` are left out.
- The image of ID.xml is ID.jpg (or .png, ...) beside it or in JPEGImages/ or images/ for Annotations/. `filename`
  counts only if there is no such image, because tools keep the old name when files are renamed.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

from data import IMAGE_SUFFIXES, DatasetError
from detection.prepare.labels import (
    Box,
    LabelledImage,
    LabelledObject,
    Labels,
    choose_halves,
    cut_to_image,
    full_path,
    grouped,
    image_sizes,
    images_in,
    read_lines,
    sibling_folder,
    visible,
)

LISTS = "ImageSets/Main"  # a text file for each half, with the names of its images
IMAGE_FOLDERS = (("Annotations", "JPEGImages"), ("annotations", "images"))
CORNERS = ("xmin", "ymin", "xmax", "ymax")
DIFFICULT = "difficult objects that became crowds, which are neither trained on nor scored"
FROM_ZERO = "boxes that begin at pixel 0, though VOC counts from 1 (if all are counted from 0, give --zero-based)"


def find_voc(source: Path, given: Mapping[str, str | None], zero_based: bool) -> Labels:
    """Find the XML files of a data set.

    given: for train and val, the name of a list in ImageSets/Main, of a folder, or a text file of image names; None
    for the usual ones. zero_based: boxes are edges counted from 0.
    Raises DatasetError if there are no XML files, a half is not found, or its list is empty."""
    source = full_path(source)
    folders = grouped(source, visible(source, "**/*.xml"))
    if not folders:
        raise DatasetError(f"{source}: no XML files; expected Annotations/ and JPEGImages/, or XML files beside images")
    whole_dir = folders.get(".", next(iter(folders.values())))[0].parent

    def read_list(place: Path) -> list[Path]:
        if place.is_dir():
            return [full_path(path) for path in visible(place, "**/*.xml")]
        return [_xml_path(whole_dir, line) for _, line in read_lines(place)]

    # VOC's lists of a class, such as dog_train, have a _ in their names.
    lists = {path.stem: read_list(path) for path in visible(source, f"{LISTS}/*.txt") if "_" not in path.stem}
    halves = choose_halves(source, given, {}, lists or folders, read_list)
    images_by_name = cache(_images_by_name)

    def read(path: Path, notes: Counter[str]) -> LabelledImage:
        try:
            return _read_image(path, images_by_name, zero_based, notes)
        except ValueError as error:
            raise DatasetError(f"{path}: {error}") from None

    return Labels(halves, read)


def _xml_path(folder: Path, line: str) -> Path:
    """Return the XML file that a line names, with or without a suffix, and perhaps with a number behind it."""
    names = [Path(name) for name in (line, line.split()[0])]  # an image's name may have spaces in it
    stems = [name.stem if name.suffix.lower() in IMAGE_SUFFIXES else str(name) for name in names]
    paths = [folder / f"{stem}.xml" for stem in stems]
    return next(filter(Path.is_file, paths), paths[0])


def _images_by_name(folder: Path) -> dict[str, Path]:
    """Return the images in a folder by their names, with and without suffix."""
    return {name: path for path in images_in(folder) for name in (path.name, path.stem)}


def _read_image(
    path: Path, images_by_name: Callable[[Path], Mapping[str, Path]], zero_based: bool, notes: Counter[str]
) -> LabelledImage:
    """Read an XML file. Raises ValueError saying what is wrong with it."""
    annotation = parse_xml(path)
    folders = [path.parent, *(sibling_folder(path.parent, *names) for names in IMAGE_FOLDERS)]
    names = (path.stem, Path(annotation.findtext("filename", "").strip()).name)
    found = (images_by_name(folder).get(name) for name in names for folder in folders)
    image_path = next(filter(None, found), None)
    if image_path is None:
        raise ValueError("no image of this name")
    size = _image_size(annotation, image_path)
    objects = []
    for number, element in enumerate(annotation.findall("object"), start=1):
        try:
            objects.append(_read_object(element, size, zero_based, notes))
        except ValueError as error:
            raise ValueError(f"object {number}: {error}") from None
    return LabelledImage(image_path, size, objects)


def parse_xml(path: Path) -> ElementTree.Element:
    """Read an XML file. Raises DatasetError, saying why but not where, if it is no annotation of VOC's.

    (expat expands no external entity and stops at an internal one that grows without end.)"""
    try:
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        raise DatasetError(f"cannot be read: {error.strerror}") from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two: an unknown encoding
        raise DatasetError(f"not XML: {error}") from None
    if root.tag == "annotations":
        raise DatasetError(
            "one XML file for all images, which is not Pascal VOC (an XML file for each image): export COCO's format "
            "instead"
        )
    if root.tag != "annotation":
        raise DatasetError(f"holds <{root.tag}>, expected <annotation>")
    return root


def _image_size(annotation: ElementTree.Element, path: Path) -> tuple[int, int]:
    """Return width and height that the boxes are in. Raises DatasetError if the image has a different size."""
    stored, upright = image_sizes(path)
    said = tuple(annotation.findtext(f"size/{side}", "").strip() or "0" for side in ("width", "height"))
    if said == ("0", "0"):
        return upright
    if size := next((size for size in (upright, stored) if said == tuple(map(str, size))), None):
        return size
    raise DatasetError(f"says {said[0]} x {said[1]} pixels, but {path.name} has {stored[0]} x {stored[1]}")


def _read_object(
    element: ElementTree.Element, size: tuple[int, int], zero_based: bool, notes: Counter[str]
) -> LabelledObject:
    """Return an object of an image of `size`. Raises ValueError saying what is wrong with it."""
    box_xyxy = cut_to_image(_box(element, zero_based, notes), size, notes)
    name = element.findtext("name", "").strip()
    if not name:
        raise ValueError("no <name>, expected the object's class")
    is_difficult = element.findtext("difficult", "").strip() == "1"
    notes[DIFFICULT] += is_difficult
    return LabelledObject(name, box_xyxy, is_crowd=is_difficult)


def _box(element: ElementTree.Element, zero_based: bool, notes: Counter[str]) -> Box:
    """Return the edges in pixels. Raises ValueError if there is no box, or none with numbers in the right order."""
    texts = [element.findtext(f"bndbox/{corner}", "").strip() for corner in CORNERS]
    try:
        xmin, ymin, xmax, ymax = (float(text) for text in texts)
    except ValueError:
        xmin = ymin = xmax = ymax = math.nan
    if not (-math.inf < xmin <= xmax < math.inf and -math.inf < ymin <= ymax < math.inf):  # false for NaN
        got = ", ".join(text or "nothing" for text in texts)
        raise ValueError(f"<bndbox> has {got}; expected {', '.join(CORNERS)}, the last two not below the first")
    if zero_based:
        return xmin, ymin, xmax, ymax
    notes[FROM_ZERO] += min(xmin, ymin) < 1
    return xmin - 1, ymin - 1, xmax, ymax
