"""Read Pascal VOC annotations: one XML file per image, as in the 2007 development kit and from tools like LabelImg.

- VOC boxes name their first and last pixels, counted from 1: xmin 1 and xmax W span an image of W pixels. So x is
  xmin - 1, and the width is xmax - xmin + 1. Many tools instead write edges counted from 0 (LabelImg does, but writes
  1 for 0); `zero_based` reads these. No file says which convention it uses; they differ by one pixel.
- `difficult` objects become crowds, because COCO's evaluation ignores detections that match a crowd, as VOC's does for
  `difficult`. COCO is a little more lenient: a detection only has to be within the crowd.
- The classes are all names found in train and val, in alphabetical order, with ids from 1. `pose`, `truncated`,
  `occluded` and `part` are ignored.
- The image of ID.xml is ID.jpg (or .png, ...), in the same folder or in JPEGImages/ or images/ instead of Annotations/.
  `filename` is used only if there is no such image, because tools do not update it when files are renamed.
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
    clip_to_image,
    find_splits,
    full_path,
    group_by_folder,
    image_sizes,
    images_in,
    read_lines,
    sibling_folder,
    visible_paths,
)

LISTS = "ImageSets/Main"  # holds a text file per split, with the names of its images
IMAGE_FOLDERS = (("Annotations", "JPEGImages"), ("annotations", "images"))
CORNERS = ("xmin", "ymin", "xmax", "ymax")
DIFFICULT = "difficult objects that became crowds, which are neither trained on nor scored"
FROM_ZERO = "boxes that begin at pixel 0, although VOC counts from 1 (if all boxes count from 0, give --zero-based)"


def find_voc(source: Path, requested: Mapping[str, str | None], zero_based: bool) -> Labels:
    """Find the XML files of a data set.

    requested: for train and val, a list in ImageSets/Main, a folder, or a text file of image names; None to search for
    the usual names. zero_based: boxes are edges counted from 0.
    Raises DatasetError if there are no XML files, or if a split is missing or empty."""
    source = full_path(source)
    folders = group_by_folder(source, visible_paths(source, "**/*.xml"))
    if not folders:
        raise DatasetError(f"{source}: no XML files; expected Annotations/ and JPEGImages/, or XML files beside images")
    xml_dir = folders.get(".", next(iter(folders.values())))[0].parent

    def read_list(place: Path) -> list[Path]:
        if place.is_dir():
            return [full_path(path) for path in visible_paths(place, "**/*.xml")]
        return [_xml_path(xml_dir, line) for _, line in read_lines(place)]

    # Lists with a _ in their names, such as dog_train, are for a single class.
    lists = {path.stem: read_list(path) for path in visible_paths(source, f"{LISTS}/*.txt") if "_" not in path.stem}
    splits = find_splits(source, requested, {}, lists or folders, read_list)
    images_by_name = cache(_images_by_name)

    def read(path: Path, notes: Counter[str]) -> LabelledImage:
        try:
            return _read_image(path, images_by_name, zero_based, notes)
        except ValueError as error:
            raise DatasetError(f"{path}: {error}") from None

    return Labels(splits, read)


def _xml_path(folder: Path, line: str) -> Path:
    """Return the XML file that a line of a list names. The line may end in an image suffix or a number."""
    names = [Path(name) for name in (line, line.split()[0])]  # the name itself may contain spaces
    stems = [name.stem if name.suffix.lower() in IMAGE_SUFFIXES else str(name) for name in names]
    paths = [folder / f"{stem}.xml" for stem in stems]
    return next(filter(Path.is_file, paths), paths[0])


def _images_by_name(folder: Path) -> dict[str, Path]:
    """Return a dict from name to path of the images in a folder; each name is a key with and without its suffix."""
    return {name: path for path in images_in(folder) for name in (path.name, path.stem)}


def _read_image(
    path: Path, images_by_name: Callable[[Path], Mapping[str, Path]], zero_based: bool, notes: Counter[str]
) -> LabelledImage:
    """Read the XML file of an image. Raises ValueError if it is invalid."""
    annotation = parse_xml(path)
    folders = [path.parent, *(sibling_folder(path.parent, *names) for names in IMAGE_FOLDERS)]
    names = (path.stem, Path(annotation.findtext("filename", "").strip()).name)
    found = (images_by_name(folder).get(name) for name in names for folder in folders)
    image_path = next(filter(None, found), None)
    if image_path is None:
        raise ValueError("no image with this name")
    size = _image_size(annotation, image_path)
    objects = []
    for number, element in enumerate(annotation.findall("object"), start=1):
        try:
            objects.append(_read_object(element, size, zero_based, notes))
        except ValueError as error:
            raise ValueError(f"object {number}: {error}") from None
    return LabelledImage(image_path, size, objects)


def parse_xml(path: Path) -> ElementTree.Element:
    """Parse an XML file. Raises DatasetError, without naming the file, if it is not a VOC annotation.

    (The parser, expat, ignores external entities and limits the expansion of internal ones.)"""
    try:
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        raise DatasetError(f"cannot be read: {error.strerror}") from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two: an unknown encoding
        raise DatasetError(f"not XML: {error}") from None
    if root.tag == "annotations":
        raise DatasetError(
            "one XML file for all images, but Pascal VOC has one XML file per image; export the annotations in COCO's "
            "format instead"
        )
    if root.tag != "annotation":
        raise DatasetError(f"root element is <{root.tag}>, expected <annotation>")
    return root


def _image_size(annotation: ElementTree.Element, path: Path) -> tuple[int, int]:
    """Return the (width, height) that the boxes refer to. Raises DatasetError if the image has a different size."""
    stored, upright = image_sizes(path)
    stated = tuple(annotation.findtext(f"size/{side}", "").strip() or "0" for side in ("width", "height"))
    if stated == ("0", "0"):
        return upright
    if size := next((size for size in (upright, stored) if stated == tuple(map(str, size))), None):
        return size
    raise DatasetError(f"<size> is {stated[0]} x {stated[1]} pixels, but {path.name} has {stored[0]} x {stored[1]}")


def _read_object(
    element: ElementTree.Element, size: tuple[int, int], zero_based: bool, notes: Counter[str]
) -> LabelledObject:
    """Read an <object> of an image. Raises ValueError if it is invalid."""
    box_xyxy = clip_to_image(_box(element, zero_based, notes), size, notes)
    name = element.findtext("name", "").strip()
    if not name:
        raise ValueError("<name> is missing or empty, expected the class of the object")
    is_difficult = element.findtext("difficult", "").strip() == "1"
    notes[DIFFICULT] += is_difficult
    return LabelledObject(name, box_xyxy, is_crowd=is_difficult)


def _box(element: ElementTree.Element, zero_based: bool, notes: Counter[str]) -> Box:
    """Return the edges of the box in pixels. Raises ValueError if corners are missing or not in order."""
    texts = [element.findtext(f"bndbox/{corner}", "").strip() for corner in CORNERS]
    try:
        xmin, ymin, xmax, ymax = (float(text) for text in texts)
    except ValueError:
        xmin = ymin = xmax = ymax = math.nan
    if not (-math.inf < xmin <= xmax < math.inf and -math.inf < ymin <= ymax < math.inf):  # false for NaN
        got = ", ".join(text or "nothing" for text in texts)
        raise ValueError(f"<bndbox> is {got}; expected numbers {', '.join(CORNERS)} with xmin <= xmax and ymin <= ymax")
    if zero_based:
        return xmin, ymin, xmax, ymax
    notes[FROM_ZERO] += min(xmin, ymin) < 1
    return xmin - 1, ymin - 1, xmax, ymax
