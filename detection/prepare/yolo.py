"""Read YOLO labels: one text file per image, one line per object, and data.yaml with the class names.

- A line contains a box, `class cx cy w h`, or the outline of an object, `class x1 y1 x2 y2 x3 y3 ...`. Coordinates are
  fractions of the image sides; classes are numbered from 0. An outline is replaced by its bounding box and kept as
  `segmentation`.
- The labels of images/a/b.jpg are in labels/a/b.txt, or beside the image if no folder is called images. If the label
  file is missing or empty, the image has no objects, as in Ultralytics.
- Repeated lines count once. Category ids are the class numbers, from 0. All classes in data.yaml become categories.
- `train` and `val` in data.yaml may be a folder, a text file of images, or a list of folders and text files. If one is
  missing, the usual folders are tried. If data.yaml is missing, the class names are read from the lines of classes.txt.
- Darknet's obj.data (`train = data/train.txt`, `names = data/obj.names`) is read like data.yaml. The prefix `data/` of
  its paths stands for the folder of obj.data.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from data import DatasetError
from detection.prepare.labels import (
    SPLITS,
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
    resolve_files,
    sibling_folder,
    visible_paths,
)

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
CLASSES = ("classes.txt", "labels/classes.txt", "obj.names")
ROUNDING = 1e-3  # tolerance for fractions below 0 or above 1
OUTLINES = "outlines replaced by their bounding boxes"
NO_LABELS = "images without a label file, converted as images without objects"


def find_yolo(source: Path, requested: Mapping[str, str | None]) -> Labels:
    """Find the images of a data set.

    source: folder or YAML file of the data set. requested: for train and for val, a folder or a text file of images; if
    None, the YAML file decides, or the usual folder is used if the YAML file has no entry.
    Raises DatasetError if the class names or a split are not found."""
    root, settings_path = (source.parent, source) if source.is_file() else (source, _find_settings(source))
    root = full_path(root)
    settings = _read_settings(settings_path) if settings_path else {}
    names = _class_names(settings, settings_path or root)
    groups = group_by_folder(root, images_in(root, "**/*"))
    labelled = {name: paths for name, paths in groups.items() if any(labels_path(path).is_file() for path in paths)}

    def read_list(place: Path) -> list[Path]:
        images = images_in(place, "**/*") if place.is_dir() else _listed_images(place, root)
        if not images:
            raise DatasetError(f"{place}: contains no images")
        return images

    bases = [root / place for place in (*_places(settings, "path", settings_path), ".")]
    declared = {}
    for split in SPLITS:
        if places := [_in_root(place) for place in _places(settings, split, settings_path)]:
            found = itertools.chain.from_iterable(resolve_files(place, bases, groups, read_list) for place in places)
            declared[split] = list(dict.fromkeys(found))
    splits = find_splits(root, requested, declared, labelled or groups, read_list)
    for split, paths in splits.items():
        if not any(labels_path(path).is_file() for path in paths):
            first = labels_path(paths[0])
            raise DatasetError(
                f"{split}: none of the {len(paths)} images has a label file; the first one was expected at {first}"
            )

    def read(path: Path, notes: Counter[str]) -> LabelledImage:
        _, size = image_sizes(path)
        if not labels_path(path).is_file():
            notes[NO_LABELS] += 1
            return LabelledImage(path, size, [])
        return LabelledImage(path, size, _read_labels(labels_path(path), size, names, notes))

    return Labels(splits, read, dict(enumerate(names)), _find_strays(itertools.chain(*splits.values())))


# ---- settings -----------------------------------------------------------------------------------------------------


def _find_settings(folder: Path) -> Path | None:
    """Return the settings file of a data set: YAML with any name, or Darknet's obj.data; None if both are missing."""
    if candidates := [folder / name for name in YAML_NAMES if (folder / name).is_file()]:
        return candidates[0]
    candidates = [path for path in visible_paths(folder, "*.y*ml") if "names" in _read_settings(path)]
    return next(iter([*candidates, *visible_paths(folder, "*.data")]), None)


def _read_settings(path: Path) -> dict[str, Any]:
    """Read a settings file. All values stay text, because a class may be called `no` or `010`.

    Raises DatasetError if the file cannot be read, or if it declares key points."""
    if path.suffix == ".data":
        lines = [line.partition("=") for _, line in read_lines(path)]
        settings = {name.strip(): value.strip() for name, _, value in lines}
        names_path = path.parent / _in_root(settings.pop("names", "obj.names"))
        val = {"val": settings["valid"]} if "valid" in settings else {}
        return settings | val | {"names": [name for _, name in read_lines(names_path)]}
    try:
        content = YAML(typ="base", pure=True).load(path.read_text(encoding="utf-8-sig"))  # runs no code
    except (OSError, YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: expected lines of `key: value`, with the class names under the key `names`")
    if "kpt_shape" in content:
        raise DatasetError(f"{path}: kpt_shape: the labels are key points, expected boxes or outlines")
    return content


def _class_names(settings: Mapping[str, Any], path: Path) -> list[str]:
    """Return the class names, in the order of class numbers. Raises DatasetError if they are missing or invalid.

    path: the settings file, or the folder of the data set if there is no settings file."""
    names = settings.get("names")
    if names is None:
        root = path.parent if settings else path
        names_path = next((root / name for name in CLASSES if (root / name).is_file()), None)
        if names_path is None:
            raise DatasetError(f"{root}: no class names: expected the key `names` in data.yaml, or a file {CLASSES[0]}")
        names = [name for _, name in read_lines(names_path)]
    if isinstance(names, dict) and sorted(names) == sorted(map(str, range(len(names)))):
        names = [names[str(index)] for index in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise DatasetError(f"{path}: names: expected a list of names, or lines `0: name`, `1: name`, ..., got {names}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise DatasetError(f"{path}: names: duplicate class name {twice[0]!r}")
    if settings.get("nc", str(len(names))) != str(len(names)):
        raise DatasetError(f"{path}: nc: {settings['nc']} classes, but {len(names)} names")
    return names


def _places(settings: Mapping[str, Any], field: str, path: Path | None) -> list[str]:
    """Return the folders or files in a settings field, if any. Raises DatasetError if the value has a wrong type."""
    value = settings.get(field) or []
    places = [value] if isinstance(value, str) else value
    if not isinstance(places, list) or not all(isinstance(place, str) for place in places):
        raise DatasetError(f"{path}: {field}: expected a folder, a text file, or a list of folders and text files")
    return places


# ---- the files ----------------------------------------------------------------------------------------------------


def _listed_images(list_path: Path, root: Path) -> list[Path]:
    """Return the images listed in a text file, without duplicates. Raises DatasetError if an image does not exist."""
    paths = []
    for number, line in read_lines(list_path):
        tried = (list_path.parent / line, root / _in_root(line))
        if not (path := next(filter(Path.is_file, tried), None)):
            raise DatasetError(f"{list_path}: line {number}: image {line} does not exist")
        paths.append(full_path(path))
    return list(dict.fromkeys(paths))


def _in_root(name: str) -> str:
    """Remove the prefix data/ of a Darknet path, so that the path is relative to the data set."""
    return name.removeprefix("data/")


def labels_path(image_path: Path) -> Path:
    """Return the path of an image's label file: the last folder called `images` is replaced by `labels`."""
    return sibling_folder(image_path.parent, "images", "labels") / f"{image_path.stem}.txt"


def _find_strays(paths: Iterable[Path]) -> list[str]:
    """Return a defect for each label file without an image. Folders with both labels and images are skipped."""
    strays = []
    for images_dir in dict.fromkeys(path.parent for path in paths):
        folder = sibling_folder(images_dir, "images", "labels")
        if folder != images_dir:
            expected = {"classes", *(path.stem for path in images_in(images_dir))}
            found = [path for path in visible_paths(folder, "*.txt") if path.stem not in expected]
            strays += [f"{path}: no image with this name in {images_dir}" for path in found]
    return strays


def _read_labels(path: Path, size: tuple[int, int], names: Sequence[str], notes: Counter[str]) -> list[LabelledObject]:
    """Read the objects of one image. Raises DatasetError naming the file and the line if a line is invalid."""
    lines: dict[str, int] = {}
    for number, line in read_lines(path):
        lines.setdefault(line, number)
    objects = []
    for line, number in lines.items():
        try:
            objects.append(_read_line(line, size, names, notes))
        except ValueError as error:
            raise DatasetError(f"{path}: line {number}: {error}") from None
    return objects


def _read_line(line: str, size: tuple[int, int], names: Sequence[str], notes: Counter[str]) -> LabelledObject:
    """Read a line of a label file. size: (width, height) of the image. Raises ValueError if the line is invalid."""
    try:
        index, *values = map(float, line.split())
    except ValueError:
        raise ValueError(f"{line:.50}: expected numbers: class cx cy w h") from None
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(f"{len(values) + 1} numbers, expected 5 (class cx cy w h) or 7, 9, ... (an outline)")
    if index not in range(len(names)):
        raise ValueError(f"class {index:g}, expected 0 to {len(names) - 1} (number of class names: {len(names)})")
    if outside := [value for value in values if not -ROUNDING <= value <= 1 + ROUNDING]:
        raise ValueError(f"coordinate {outside[0]:g}, expected fractions of the image sides, 0 to 1; is it in pixels?")
    width, height = size
    outline: tuple[float, ...] = ()
    if len(values) > 4:
        notes[OUTLINES] += 1
        outline = tuple(value * side for value, side in zip(values, itertools.cycle(size), strict=False))
        xs, ys = outline[::2], outline[1::2]
        box_xyxy = (min(xs), min(ys), max(xs), max(ys))
    else:
        cx, cy, w, h = values
        if min(w, h) < 0:
            raise ValueError(f"width {w:g}, height {h:g}, expected 0 to 1")
        box_xyxy = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
    return LabelledObject(names[int(index)], clip_to_image(box_xyxy, size, notes), outline=outline)
