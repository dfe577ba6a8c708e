"""Pascal VOC's annotations, an XML file for each image, as its development kit (2007) and tools like LabelImg have it.

    python -m detection.data convert voc VOCdevkit/VOC2007 --train trainval --val test
    python -m detection.data convert voc photos --zero-based --train train.txt --val val.txt

- VOC's boxes name their first and last pixels, counted from 1: xmin 1 and xmax W span an image of W pixels. So x is
  xmin - 1, and the width is xmax - xmin + 1. Tools write edges counted from 0 instead (LabelImg does, but for 1 in the
  place of 0); `zero_based` takes them so. No file says which it is, and the difference is a pixel.
- `difficult` objects become crowds, `iscrowd` 1. VOC's evaluation counts a detection of one neither as right nor as
  wrong, and that is the one thing in COCO's format that its evaluation treats so; crowds are no training targets.
  COCO is more lenient by a little: a detection need only lie within a crowd to be ignored, not match its box.
- Classes are the names found in both halves, in alphabetical order, with ids from 1. `pose`, `truncated`, `occluded`
  and parts of objects (`part`) have no place in COCO's format and are left out.
- The image of ID.xml is ID.jpg (or .png, ...), as in the kit, and what `filename` says only if there is no such image:
  tools leave it behind when files are renamed.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from data import IMAGE_SUFFIXES, DatasetError
from detection.prepare.labels import (
    Box,
    Findings,
    LabelledImage,
    LabelledObject,
    Labels,
    cut_to_image,
    full_path,
    image_sizes,
    in_order,
    read_list,
)
from detection.prepare.layouts import HALVES, SPLITS
from engine.logbook import progress_bar

LISTS = "ImageSets/Main"  # a text file for each half, with the names of its images
WHOLE = (("Annotations", "JPEGImages"), ("annotations", "images"), (".", "."))  # XML files and images, both halves
HALVED = (
    ("{}", "{}"),
    ("images/{}", "images/{}"),
    ("Annotations/{}", "JPEGImages/{}"),
    ("annotations/{}", "images/{}"),
    ("{}/Annotations", "{}/JPEGImages"),
    ("{}/annotations", "{}/images"),
)
CORNERS = ("xmin", "ymin", "xmax", "ymax")
DIFFICULT = "difficult objects that became crowds, which are neither trained on nor scored"
FROM_ZERO = "boxes that begin at pixel 0, though VOC counts from 1 (if all are counted from 0, give --zero-based)"
NO_SIZE = "XML files without a size, in whose place the image's was taken"
NO_XML = "images left out, for they have no XML file"


class _Half(NamedTuple):
    """Where one half of a data set lies."""

    xml_paths: list[Path]
    images_dir: Path
    is_listed: bool  # by a text file; otherwise it is all that lies in a folder


def read_voc(source: Path, given: Mapping[str, str | None], zero_based: bool, findings: Findings) -> Labels:
    """Read both halves of a data set.

    given: for train and val, the name of a list in ImageSets/Main, of a folder, or a text file of image names; None
    for the usual ones. zero_based: boxes are edges counted from 0.
    Raises DatasetError if a half is nowhere to be found, or its list is empty."""
    found = {half: _find_half(source, half, given[half], findings) for half in HALVES}
    halves = {half: _read_half(half, places, zero_based, findings) for half, places in found.items()}
    names = sorted({thing.class_name for images in halves.values() for image in images for thing in image.objects})
    return Labels(dict(enumerate(names, start=1)), halves)


# ---- finding the files ----------------------------------------------------------------------------------------


def _find_half(source: Path, half: str, given: str | None, findings: Findings) -> _Half:
    for name in [given] if given else SPLITS[half]:
        lists = [source / LISTS / f"{name}.txt", *([Path(name), source / name] if given else [])]
        if list_path := next((path for path in lists if path.is_file()), None):
            return _listed_half(source, list_path, findings)
        for xml_dir, images_dir in HALVED:
            xml_paths = sorted((source / xml_dir.format(name)).glob("*.xml"), key=in_order)
            if xml_paths and (source / images_dir.format(name)).is_dir():
                return _Half(xml_paths, source / images_dir.format(name), is_listed=False)
    there = sorted({path.stem for path in (source / LISTS).glob("*.txt") if "_" not in path.stem})
    there += sorted(
        {
            path.relative_to(source).parts[Path(xml_dir).parts.index("{}")]
            for xml_dir, _ in HALVED
            for path in source.glob(f"{xml_dir.format('*')}/*.xml")
        }
        - {folder for pair in WHOLE for folder in pair}
    )
    raise DatasetError(
        f"{source}: {given or 'the half'} to {'train on' if half == 'train' else 'validate on'} not found: neither a "
        f"list in {LISTS} nor a folder with XML files called {given or ' or '.join(SPLITS[half])}; give --{half} "
        f"{'|'.join(there) or 'FILE, a text file with the name of an image on each line'}"
    )


def _listed_half(source: Path, list_path: Path, findings: Findings) -> _Half:
    """The files that a text file names, one on each line, with or without a suffix, and perhaps a number behind it."""
    folders = [(source / xml_dir, source / images_dir) for xml_dir, images_dir in WHOLE]
    xml_dir, images_dir = next(((x, i) for x, i in folders if i.is_dir() and any(x.glob("*.xml"))), (None, None))
    if xml_dir is None:
        names = " or ".join(f"{xml_dir} and {images_dir}" for xml_dir, images_dir in WHOLE[:-1])
        raise DatasetError(f"{source}: no XML files found; expected {names} in it, or XML files beside the images")
    listed, xml_paths = read_list(list_path), []
    if not listed:
        raise DatasetError(f"{list_path}: names no image")
    for number, line in listed:
        names = (line, line.split()[0])  # an image's name may have spaces in it
        stems = [Path(name).stem if Path(name).suffix.lower() in IMAGE_SUFFIXES else name for name in names]
        path = next((path for stem in stems if (path := xml_dir / f"{stem}.xml").is_file()), None)
        if path:
            xml_paths.append(path)
        else:
            findings.defect(list_path, number, f"{line!r}: there is no {xml_dir / f'{stems[0]}.xml'}")
    return _Half(xml_paths, images_dir, is_listed=True)


def _read_half(half: str, places: _Half, zero_based: bool, findings: Findings) -> list[LabelledImage]:
    images = {
        path.name: full_path(path) for path in places.images_dir.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES
    }
    by_stem = {path.stem: path for path in images.values()}
    read: dict[Path, LabelledImage] = {}
    for xml_path in progress_bar(places.xml_paths, desc=f"reading {half}", unit="file", leave=False):
        try:
            annotation, lines = _parse(xml_path)
        except DatasetError as error:
            findings.defect(xml_path, None, str(error))
            continue
        image_path = by_stem.get(xml_path.stem) or images.get(Path(annotation.findtext("filename", "").strip()).name)
        if image_path is None:
            findings.defect(xml_path, None, f"no image of this name in {places.images_dir}")
        elif image_path in read:
            findings.defect(xml_path, None, f"{image_path.name} is the image of another XML file, too")
        else:
            size = _image_size(annotation, image_path, xml_path, findings)
            objects = list(_objects(annotation, lines, size, xml_path, zero_based, findings)) if size else []
            read[image_path] = LabelledImage(image_path, size or (1, 1), objects)
    if not places.is_listed:
        findings.notes[NO_XML] += len(images) - len(read)
    return list(read.values())


# ---- reading a file -------------------------------------------------------------------------------------------


def _parse(path: Path) -> tuple[Element, dict[Element, int]]:
    """The root of an XML file, and the line of every element in it.

    Raises DatasetError, saying why but not where, if it is no annotation of VOC's."""
    builder, parser, lines = TreeBuilder(), expat.ParserCreate(), {}

    def start(tag: str, attributes: dict[str, str]) -> None:
        lines[builder.start(tag, attributes)] = parser.CurrentLineNumber

    def refuse(*_: object) -> None:
        raise DatasetError("declares an entity, which no annotation needs")  # and which may grow without end

    parser.StartElementHandler, parser.EndElementHandler = start, builder.end
    parser.CharacterDataHandler, parser.EntityDeclHandler = builder.data, refuse
    try:
        parser.Parse(path.read_bytes(), True)
        root = builder.close()
    except OSError as error:
        raise DatasetError(f"cannot be read: {error.strerror}") from None
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter two: of an encoding that expat has not
        raise error if isinstance(error, DatasetError) else DatasetError(f"not XML: {error}") from None
    if root.tag != "annotation":
        raise DatasetError(f"holds <{root.tag}>, expected <annotation>")
    return root, lines


def _image_size(annotation: Element, image_path: Path, xml_path: Path, findings: Findings) -> tuple[int, int] | None:
    """Width and height that the boxes are in; None, and a defect, if the image has another size than they say."""
    try:
        stored, upright = image_sizes(image_path)
    except DatasetError as error:
        findings.defect(image_path, None, str(error))
        return None
    said = tuple(annotation.findtext(f"size/{side}", "").strip() for side in ("width", "height"))
    if all(side in ("", "0") for side in said):
        findings.notes[NO_SIZE] += 1
        return upright
    for size in (upright, stored):
        if said == tuple(map(str, size)):
            return size
    findings.defect(
        xml_path, None, f"says {said[0]} x {said[1]} pixels, but {image_path.name} has {stored[0]} x {stored[1]}"
    )
    return None


def _objects(
    annotation: Element,
    lines: Mapping[Element, int],
    size: tuple[int, int],
    path: Path,
    zero_based: bool,
    findings: Findings,
) -> Iterator[LabelledObject]:
    """The objects of an image of `size` that can be converted; the others go to the findings."""
    for element in annotation.findall("object"):
        try:
            box_xyxy = cut_to_image(_box(element, zero_based, findings), size, findings.notes)
            name, difficult = element.findtext("name", "").strip(), element.findtext("difficult", "0").strip() or "0"
            if not name:
                raise ValueError("no <name>, expected the object's class")
            if difficult not in ("0", "1"):
                raise ValueError(f"<difficult> {difficult!r}, expected 0 or 1")
        except ValueError as error:
            findings.defect(path, lines[element], str(error))
            continue
        findings.notes[DIFFICULT] += difficult == "1"
        yield LabelledObject(name, box_xyxy, is_crowd=difficult == "1")


def _box(element: Element, zero_based: bool, findings: Findings) -> Box:
    """Its edges in pixels. Raises ValueError if there is no box, or none with numbers in the right order."""
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
