"""YOLO's labels: a text file for each image, a line for each object, and data.yaml with the names of the classes.

- A line is `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...`, the outline of an object, as fractions of the image's
  sides; the class counts from 0. Of an outline the box around it is taken, and the outline kept as `segmentation`.
- The labels of images/a/b.jpg are labels/a/b.txt, or beside the image if no folder is called images. An image without
  such a file shows none of the classes, as in Ultralytics. So does one whose file is empty.
- A repeated line counts once. Category ids are YOLO's own, from 0, for all classes that data.yaml lists.
- `train` and `val` of data.yaml may be a folder, a text file of images, or a list of such. Without them the usual
  folders are tried. Without data.yaml, classes.txt has a name on each line.
- Darknet's obj.data (`train = data/train.txt`, `names = data/obj.names`) is read like data.yaml; the `data/` of its
  paths is the folder itself.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from data import DatasetError
from detection.prepare.labels import (
    HALVES,
    LabelledImage,
    LabelledObject,
    Labels,
    choose_halves,
    cut_to_image,
    files_at,
    full_path,
    grouped,
    image_sizes,
    images_in,
    read_lines,
    sibling_folder,
    visible,
)

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
CLASSES = ("classes.txt", "labels/classes.txt", "obj.names")
ROUNDING = 1e-3  # by which fractions may leave 0 to 1
OUTLINES = "outlines, replaced by the box around them"
NO_LABELS = "images without a file of labels, taken for images without objects"


def find_yolo(source: Path, given: Mapping[str, str | None]) -> Labels:
    """Find the images of a data set.

    source: its folder, or its YAML file. given: for train and val, a folder or a text file of images; None for what
    the YAML file says, or the usual ones. Raises DatasetError if the names of the classes, or a half, are not found."""
    root, settings_path = (source.parent, source) if source.is_file() else (source, _find_settings(source))
    root = full_path(root)
    settings = _read_settings(settings_path) if settings_path else {}
    names = _class_names(settings, settings_path or root)
    groups = grouped(root, images_in(root, "**/*"))
    labelled = {name: paths for name, paths in groups.items() if any(labels_path(path).is_file() for path in paths)}

    def read_list(place: Path) -> list[Path]:
        images = images_in(place, "**/*") if place.is_dir() else _listed_images(place, root)
        if not images:
            raise DatasetError(f"{place}: no images in it")
        return images

    bases = [root / place for place in (*_places(settings, "path", settings_path), ".")]
    named = {}
    for half in HALVES:
        if places := [_in_root(place) for place in _places(settings, half, settings_path)]:
            found = itertools.chain.from_iterable(files_at(place, bases, groups, read_list) for place in places)
            named[half] = list(dict.fromkeys(found))
    halves = choose_halves(root, given, named, labelled or groups, read_list)
    for half, paths in halves.items():
        if not any(labels_path(path).is_file() for path in paths):
            first = labels_path(paths[0])
            raise DatasetError(
                f"{half}: none of the {len(paths)} images has a file of labels; the first would be {first}"
            )

    def read(path: Path, notes: Counter[str]) -> LabelledImage:
        _, size = image_sizes(path)
        if not labels_path(path).is_file():
            notes[NO_LABELS] += 1
            return LabelledImage(path, size, [])
        return LabelledImage(path, size, _read_labels(labels_path(path), size, names, notes))

    return Labels(halves, read, dict(enumerate(names)), _find_strays(itertools.chain(*halves.values())))


# ---- settings -----------------------------------------------------------------------------------------------------


def _find_settings(folder: Path) -> Path | None:
    """Return the YAML file of a data set, whatever it is called, or darknet's; None if there is neither."""
    if there := [folder / name for name in YAML_NAMES if (folder / name).is_file()]:
        return there[0]
    there = [path for path in visible(folder, "*.y*ml") if "names" in _read_settings(path)]
    return next(iter([*there, *visible(folder, "*.data")]), None)


def _read_settings(path: Path) -> dict[str, Any]:
    """Return what a settings file says, every value as text: a class may be called `no` or `010`.

    Raises DatasetError if it cannot be read."""
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
        raise DatasetError(f"{path}: expected lines of `name: value`, with the classes as `names`")
    if "kpt_shape" in content:
        raise DatasetError(f"{path}: kpt_shape: labels of key points, expected labels of boxes or outlines")
    return content


def _class_names(settings: Mapping[str, Any], path: Path) -> list[str]:
    """Return the names of classes 0, 1, ...; path: of the settings, or the data set's folder if it has none.

    Raises DatasetError if there are none, or not one for each number."""
    names = settings.get("names")
    if names is None:
        root = path.parent if settings else path
        names_path = next((root / name for name in CLASSES if (root / name).is_file()), None)
        if names_path is None:
            raise DatasetError(f"{root}: no names of classes: expected `names` in data.yaml, or a {CLASSES[0]}")
        names = [name for _, name in read_lines(names_path)]
    if isinstance(names, dict) and sorted(names) == sorted(map(str, range(len(names)))):
        names = [names[str(index)] for index in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise DatasetError(f"{path}: names: expected a list of names, or a name for each number from 0, got {names}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise DatasetError(f"{path}: names: {twice[0]!r} is the name of more than one class")
    if settings.get("nc", str(len(names))) != str(len(names)):
        raise DatasetError(f"{path}: nc: {settings['nc']} classes, but {len(names)} names")
    return names


def _places(settings: Mapping[str, Any], field: str, path: Path | None) -> list[str]:
    """Return the folders or files that a field names: one, several, or none. Raises DatasetError for anything else."""
    value = settings.get(field) or []
    places = [value] if isinstance(value, str) else value
    if not isinstance(places, list) or not all(isinstance(place, str) for place in places):
        raise DatasetError(f"{path}: {field}: expected a folder, a text file, or a list of such")
    return places


# ---- the files ----------------------------------------------------------------------------------------------------


def _listed_images(list_path: Path, root: Path) -> list[Path]:
    """Return the images that a text file names, relative to its folder."""
    paths = []
    for number, line in read_lines(list_path):
        tried = (list_path.parent / line, root / _in_root(line))
        if not (path := next(filter(Path.is_file, tried), None)):
            raise DatasetError(f"{list_path}: line {number}: {line}: no such image")
        paths.append(full_path(path))
    return list(dict.fromkeys(paths))


def _in_root(name: str) -> str:
    """Return a path of darknet's relative to the data set."""
    return name.removeprefix("data/")


def labels_path(image_path: Path) -> Path:
    """Return where the labels of an image are: the last folder called images becomes labels."""
    return sibling_folder(image_path.parent, "images", "labels") / f"{image_path.stem}.txt"


def _find_strays(paths: Iterable[Path]) -> list[str]:
    """Return labels without an image, where labels have folders of their own."""
    strays = []
    for images_dir in dict.fromkeys(path.parent for path in paths):
        folder = sibling_folder(images_dir, "images", "labels")
        if folder != images_dir:
            expected = {"classes", *(path.stem for path in images_in(images_dir))}
            found = [path for path in visible(folder, "*.txt") if path.stem not in expected]
            strays += [f"{path}: no image of this name in {images_dir}" for path in found]
    return strays


def _read_labels(path: Path, size: tuple[int, int], names: Sequence[str], notes: Counter[str]) -> list[LabelledObject]:
    """Return the objects of one image. Raises DatasetError naming the file, and the line that cannot be converted."""
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
    """Return an object of an image of `size`. Raises ValueError saying what is wrong with it."""
    try:
        index, *values = map(float, line.split())
    except ValueError:
        raise ValueError(f"{line:.50}: expected numbers: class cx cy w h") from None
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(f"{len(values) + 1} numbers, expected 5: class cx cy w h, or an outline of pairs")
    if index not in range(len(names)):
        raise ValueError(f"class {index:g}, expected 0 to {len(names) - 1}: there are {len(names)} names")
    if outside := [value for value in values if not -ROUNDING <= value <= 1 + ROUNDING]:
        raise ValueError(f"{outside[0]:g}, expected fractions of the image's sides, from 0 to 1; are these pixels?")
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
    return LabelledObject(names[int(index)], cut_to_image(box_xyxy, size, notes), outline=outline)
