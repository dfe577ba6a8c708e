"""Pascal VOC's annotations, an XML file for each image, as its development kit (2007) and tools like LabelImg have it.

    python -m detection.data convert voc VOCdevkit/VOC2007 --train trainval --val test
    python -m detection.data convert voc photos --zero-based --train train.txt --val val.txt

- VOC's boxes name their first and last pixels, counted from 1: xmin 1 and xmax W span an image of W pixels. So x is
  xmin - 1, and the width is xmax - xmin + 1. Tools write edges counted from 0 instead (LabelImg does, except that it
  writes 1 for 0); `zero_based` reads these. No file says which it is, and the difference is a pixel.
- `difficult` objects become crowds, `iscrowd` 1. VOC's evaluation counts a detection of one neither as right nor as
  wrong, and crowds are the only objects in COCO's format that its evaluation treats so; crowds are no training targets.
  COCO is a little more lenient: a detection need only be within a crowd to be ignored, not match its box.
- Classes are the names found in both halves, in alphabetical order, with ids from 1. `pose`, `truncated`, `occluded`
  and parts of objects (`part`) have no place in COCO's format and are left out.
- The image of ID.xml is ID.jpg (or .png, ...), as in the kit. `filename` counts only if there is no such image, because
  tools keep the old name when files are renamed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from data import IMAGE_SUFFIXES, DatasetError
from detection.prepare.labels import (
    HALVES,
    Box,
    Findings,
    LabelledImage,
    LabelledObject,
    Labels,
    choose_halves,
    cut_to_image,
    full_path,
    group_of,
    grouped,
    image_sizes,
    images_in,
    read_lines,
    visible,
)
from engine.logbook import progress_bar

LISTS = "ImageSets/Main"  # a text file for each half, with the names of its images
CORNERS = ("xmin", "ymin", "xmax", "ymax")
DIFFICULT = "difficult objects that became crowds, which are neither trained on nor scored"
FROM_ZERO = "boxes that begin at pixel 0, though VOC counts from 1 (if all are counted from 0, give --zero-based)"
NO_SIZE = "XML files without a size; the image's was taken"
NO_XML = "images left out because they have no XML file"
ONE_FOR_ALL = (
    "one XML file for all images, which is not Pascal VOC (an XML file for each image): export COCO's format instead"
)


def read_voc(source: Path, given: Mapping[str, str | None], zero_based: bool, findings: Findings) -> Labels:
    """Read a data set.

    given: for train and val, the name of a list in ImageSets/Main, of a folder, or a text file of image names; None
    for the usual ones. zero_based: boxes are edges counted from 0.
    Raises DatasetError if there are no XML files, a half is not found, or its list is empty."""
    source = full_path(source)
    folders, images = grouped(source, visible(source, "**/*.xml")), grouped(source, images_in(source, "**/*"))
    if not folders:
        raise DatasetError(f"{source}: no XML files; expected Annotations/ and JPEGImages/, or XML files beside images")
    whole_dir = folders.get(".", next(iter(folders.values())))[0].parent

    def read(place: Path) -> list[Path]:
        if place.is_dir():
            return [full_path(path) for path in visible(place, "**/*.xml")]
        return [_xml_path(whole_dir, line) for _, line in read_lines(place)]

    # VOC's lists of a class, such as dog_train, have a _ in their names.
    lists = {path.stem: read(path) for path in visible(source, f"{LISTS}/*.txt") if "_" not in path.stem}
    chosen = choose_halves(source, given, dict.fromkeys(HALVES), lists or folders, read)
    halves = {}
    for half, xml_paths in chosen.items():
        halves[half] = _read_half(half, source, xml_paths, images, zero_based, findings)
        if not lists:
            there = [images.get(group, images.get(".", [])) for group in grouped(source, xml_paths)]
            findings.notes[NO_XML] += sum(map(len, there)) - len(halves[half])
    names = sorted({thing.class_name for images in halves.values() for image in images for thing in image.objects})
    return Labels(dict(enumerate(names, start=1)), halves)


def _xml_path(folder: Path, line: str) -> Path:
    """Return the XML file that a line names, with or without a suffix, and perhaps with a number behind it."""
    names = [Path(name) for name in (line, line.split()[0])]  # an image's name may have spaces in it
    stems = [name.stem if name.suffix.lower() in IMAGE_SUFFIXES else str(name) for name in names]
    paths = [folder / f"{stem}.xml" for stem in stems]
    return next(filter(Path.is_file, paths), paths[0])


# ---- reading --------------------------------------------------------------------------------------------------


def _read_half(
    half: str,
    source: Path,
    xml_paths: Sequence[Path],
    images: Mapping[str, Sequence[Path]],
    zero_based: bool,
    findings: Findings,
) -> list[LabelledImage]:
    """Read the XML files of a half. images: those in `source`, by group; an XML file belongs to one of its own group,
    or of no group."""
    by_name = {(group, name): path for group in images for path in images[group] for name in (path.name, path.stem)}
    read: dict[Path, LabelledImage] = {}
    for xml_path in progress_bar(xml_paths, desc=f"reading {half}", unit="file", leave=False):
        try:
            annotation = _parse(xml_path)
            names = (xml_path.stem, Path(annotation.findtext("filename", "").strip()).name)
            keys = [(group, name) for name in names for group in (group_of(xml_path, source), ".")]
            path = next((by_name[key] for key in keys if key in by_name), None)
            if path is None:
                raise DatasetError("no image of this name")
            if path in read:
                raise DatasetError(f"{path.name} is the image of another XML file, too")
            read[path] = LabelledImage(path, (1, 1), [])  # known even if it has a defect
            size = _image_size(annotation, path, findings)
            read[path] = LabelledImage(path, size, list(_objects(annotation, size, xml_path, zero_based, findings)))
        except DatasetError as error:
            findings.defect(xml_path, "", str(error))
    return list(read.values())


def _parse(path: Path) -> ElementTree.Element:
    """Read an XML file. Raises DatasetError, saying why but not where, if it is no annotation of VOC's.

    (expat expands no external entity and stops at an internal one that grows without end.)"""
    try:
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        raise DatasetError(f"cannot be read: {error.strerror}") from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two: an unknown encoding
        raise DatasetError(f"not XML: {error}") from None
    if root.tag != "annotation":
        cure = f": it is {ONE_FOR_ALL}" if root.tag == "annotations" else ""
        raise DatasetError(f"holds <{root.tag}>, expected <annotation>{cure}")
    return root


def is_one_for_all(path: Path) -> bool:
    """Return whether an XML file holds the annotations of all images, as some tools export them."""
    try:
        return ElementTree.parse(path).getroot().tag == "annotations"
    except (OSError, ElementTree.ParseError, LookupError, ValueError):
        return False


def _image_size(annotation: ElementTree.Element, path: Path, findings: Findings) -> tuple[int, int]:
    """Return width and height that the boxes are in. Raises DatasetError if the image has a different size."""
    try:
        sizes = image_sizes(path)
    except DatasetError as error:
        raise DatasetError(f"its image {path}: {error}") from None
    said = tuple(annotation.findtext(f"size/{side}", "").strip() or "0" for side in ("width", "height"))
    findings.notes[NO_SIZE] += said == ("0", "0")
    if said == ("0", "0"):
        return sizes[1]
    if size := next((size for size in reversed(sizes) if said == tuple(map(str, size))), None):
        return size
    raise DatasetError(f"says {said[0]} x {said[1]} pixels, but {path.name} has {sizes[0][0]} x {sizes[0][1]}")


def _objects(
    annotation: ElementTree.Element, size: tuple[int, int], path: Path, zero_based: bool, findings: Findings
) -> Iterator[LabelledObject]:
    """Yield the objects of an image of `size` that can be converted; the others go to the findings."""
    for number, element in enumerate(annotation.findall("object"), start=1):
        name, difficult = (element.findtext(tag, "").strip() for tag in ("name", "difficult"))
        try:
            box_xyxy = cut_to_image(_box(element, zero_based, findings), size, findings.notes)
            if not name:
                raise ValueError("no <name>, expected the object's class")
            if difficult not in ("", "0", "1"):
                raise ValueError(f"<difficult> {difficult!r}, expected 0 or 1")
        except ValueError as error:
            findings.defect(path, f"object {number}", str(error))
            continue
        findings.notes[DIFFICULT] += difficult == "1"
        yield LabelledObject(name, box_xyxy, is_crowd=difficult == "1")


def _box(element: ElementTree.Element, zero_based: bool, findings: Findings) -> Box:
    """Return the edges in pixels. Raises ValueError if there is no box, or none with numbers in the right order."""
    texts = [element.findtext(f"bndbox/{corner}", "").strip() for corner in CORNERS]
    try:
        xmin, ymin, xmax, ymax = corners = [float(text) for text in texts]
    except ValueError:
        corners = [math.nan]
    if not all(map(math.isfinite, corners)):
        got = ", ".join(text or "nothing" for text in texts)
        raise ValueError(f"<bndbox> has {got}; expected numbers as {', '.join(CORNERS)}")
    if xmax < xmin or ymax < ymin:
        raise ValueError(f"<bndbox> from {xmin:g}, {ymin:g} to {xmax:g}, {ymax:g}: its far corner comes first")
    if zero_based:
        return xmin, ymin, xmax, ymax
    findings.notes[FROM_ZERO] += min(xmin, ymin) < 1
    return xmin - 1, ymin - 1, xmax, ymax
