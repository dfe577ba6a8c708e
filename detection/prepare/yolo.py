"""YOLO's labels: a text file for each image, a line for each object, and data.yaml with the names of the classes.

    python -m detection.data convert yolo my_project.v3i.yolov8

- A line is `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...`, the outline of an object, as fractions of the image's
  sides; the class counts from 0. Of an outline the box around it is taken, and the outline kept as `segmentation`.
- The labels of images/a/b.jpg are labels/a/b.txt, or beside the image where no folder is called images. An image
  without such a file shows none of the classes, as Ultralytics has it. So does one whose file is empty.
- A line that stands there twice counts once. Category ids are YOLO's own, from 0, for all classes that data.yaml lists.
- `train` and `val` of data.yaml may be a folder, a text file of images, or a list of such. Without them the usual
  folders are tried. Without data.yaml, classes.txt has a name on each line.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data import DatasetError
from detection.prepare.labels import (
    Findings,
    LabelledImage,
    LabelledObject,
    Labels,
    cut_to_image,
    full_path,
    image_sizes,
    images_below,
    is_image,
    lines_of,
    read_list,
)
from detection.prepare.layouts import HALVES, SPLITS
from engine.logbook import progress_bar

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
MAX_YAML_BYTES = 1_000_000
CLASSES = "classes.txt"
FOLDERS = ("images/{}", "{}/images", "{}")  # of the images of a half
ROUNDING = 1e-3  # by which fractions may leave 0 to 1
OUTLINES = "outlines of which the box around them was taken"
NO_LABELS = "images without a file of labels, taken for images without objects"
TWICE = "lines that stand twice in a file, taken once"


def read_yolo(source: Path, given: Mapping[str, str | None], findings: Findings) -> Labels:
    """Read both halves of a data set.

    source: its folder, or its YAML file. given: for train and val, a folder or a text file of images; None for what
    the YAML file says, or the usual ones. Raises DatasetError if the names of the classes, or a half, are not found."""
    yaml_path = source if source.is_file() else _find_yaml(source)
    root = source.parent if source.is_file() else source
    settings = _read_settings(yaml_path) if yaml_path else {}
    names = _class_names(settings, yaml_path, root)
    halves = {}
    for half in HALVES:
        wanted = [given[half]] if given[half] else _places_in(settings, half, yaml_path)
        paths = _find_images(root, half, wanted, *_places_in(settings, "path", yaml_path)[:1])
        halves[half] = _read_half(half, paths, names, findings)
    return Labels(dict(enumerate(names)), halves)


# ---- finding the files ----------------------------------------------------------------------------------------


def _find_yaml(folder: Path) -> Path | None:
    there = [folder / name for name in YAML_NAMES if (folder / name).is_file()]
    if not there:  # it may be called after the data set
        there = [path for path in sorted(folder.glob("*.y*ml")) if "names" in _read_settings(path)]
    return there[0] if there else None


def _read_settings(path: Path) -> dict[str, Any]:
    """What a YAML file says, with every value as text: to YAML 1.1 a class called `no` is False, and one `010` is 8.

    Raises DatasetError if it cannot be read."""
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise DatasetError(f"{path}: {path.stat().st_size / 1e6:.0f} MB, expected a short YAML file")
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=yaml.BaseLoader)  # which runs no code
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: expected lines of `name: value`, with the classes as `names`")
    if "kpt_shape" in content:
        raise DatasetError(f"{path}: kpt_shape: labels of key points, expected labels of boxes or outlines")
    return content


def _class_names(settings: Mapping[str, Any], yaml_path: Path | None, root: Path) -> list[str]:
    """The names of classes 0, 1, ... Raises DatasetError if there are none, or not one for each number."""
    classes_path = next((path for path in (root / CLASSES, root / "labels" / CLASSES) if path.is_file()), None)
    if "names" in settings:
        place, names = yaml_path, settings["names"]
        if isinstance(names, dict):
            if sorted(names) != sorted(map(str, range(len(names)))):
                raise DatasetError(
                    f"{place}: names: expected the numbers 0 to {len(names) - 1}, got {', '.join(names)}"
                )
            names = [names[str(index)] for index in range(len(names))]
    elif classes_path:
        place, names = classes_path, [name for _, name in read_list(classes_path)]
    else:
        raise DatasetError(f"{root}: no names of classes: expected `names` in data.yaml, or a {CLASSES}")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise DatasetError(f"{place}: names: expected a list of the classes' names")
    if twice := [name for name in names if names.count(name) > 1]:
        raise DatasetError(f"{place}: names: {twice[0]!r} is the name of more than one class")
    if settings.get("nc", str(len(names))) != str(len(names)):
        raise DatasetError(f"{place}: nc: {settings['nc']} classes, but {len(names)} names")
    return names


def _places_in(settings: Mapping[str, Any], field: str, yaml_path: Path | None) -> list[str]:
    """The folders or files that a field names: one, several, or none. Raises DatasetError if it holds anything else."""
    value = settings.get(field) or []
    places = [value] if isinstance(value, str) else value
    if not isinstance(places, list) or not all(isinstance(place, str) for place in places):
        raise DatasetError(f"{yaml_path}: {field}: expected a folder, a text file, or a list of such")
    return places


def _find_images(root: Path, half: str, wanted: Sequence[str], base: str = ".") -> list[Path]:
    """The images of a half.

    wanted: folders or text files, relative to `base` or to the root; the usual folders if empty.
    Raises DatasetError if one of them is not there, or has no image in it."""
    if wanted:
        places = [_place(root, name, base, half) for name in wanted]
    else:
        usual = [pattern.format(split) for split in SPLITS[half] for pattern in FOLDERS]
        places = [root / name for name in usual if (root / name).is_dir()][:1]
        if not places:
            raise DatasetError(
                f"{root}: no {half} in data.yaml, and none of the folders {', '.join(usual)}; {_there(root, half)}"
            )
    images = list(itertools.chain.from_iterable(_images_of(place) for place in places))
    if not images:
        raise DatasetError(f"{', '.join(map(str, places))}: no images in it")
    return list({full_path(path): path for path in images}.values())  # each once, however it is spelled


def _place(root: Path, name: str, base: str, half: str) -> Path:
    """Where a folder or file lies that data.yaml names. Raises DatasetError if nowhere."""
    below = name.removeprefix("../")  # Roboflow's exports say ../train/images and mean train/images
    tried = [root / base / name, root / name, root / below, root / "images" / name, Path(name)]
    place = next((path for path in tried if path.exists()), None)
    if place is None:
        all_tried = ", ".join(dict.fromkeys(map(str, tried)))
        raise DatasetError(f"{half}: {name}: no such folder or file; tried {all_tried}; {_there(root, half)}")
    return place


def _there(root: Path, half: str) -> str:
    """What to give for a half that is not found: one of the folders of images, if there are any."""
    folders = [folder for pattern in FOLDERS for folder in sorted(root.glob(pattern.format("*"))) if folder.is_dir()]
    names = [str(folder.relative_to(root)) for folder in folders if any(map(is_image, folder.iterdir()))]
    return f"give --{half} {'|'.join(dict.fromkeys(names)) or 'FOLDER, with images in it'}"


def _images_of(place: Path) -> list[Path]:
    """The images in a folder, or those that a text file names, relative to where it lies."""
    if place.is_dir():
        return images_below(place)
    paths = []
    for number, line in read_list(place):
        path = place.parent / line
        if not path.is_file():
            raise DatasetError(f"{place}: line {number}: {line}: no such image")
        paths.append(path)
    return paths


def labels_path(image_path: Path) -> Path:
    """Where the labels of an image lie: the last folder called images becomes labels."""
    parts = list(image_path.with_suffix(".txt").parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts)


# ---- reading ----------------------------------------------------------------------------------------------------


def _read_half(half: str, paths: Sequence[Path], names: Sequence[str], findings: Findings) -> list[LabelledImage]:
    label_paths = {path: labels_path(path) for path in paths}
    if not any(path.is_file() for path in label_paths.values()):
        first = next(iter(label_paths.values()))
        raise DatasetError(f"{half}: none of the {len(paths)} images has a file of labels; the first would be {first}")
    _find_strays(label_paths, findings)
    read = []
    for path in progress_bar(paths, desc=f"reading {half}", unit="image", leave=False):
        try:
            _, size = image_sizes(full_path(path))
        except DatasetError as error:
            findings.defect(path, None, str(error))
            continue
        if label_paths[path].is_file():
            objects = _read_labels(label_paths[path], size, names, findings)
        else:
            objects = []
            findings.notes[NO_LABELS] += 1
        read.append(LabelledImage(full_path(path), size, objects))
    return read


def _find_strays(label_paths: Mapping[Path, Path], findings: Findings) -> None:
    """Labels without an image are a defect, where labels have folders of their own and the half is all of it."""
    expected = set(label_paths.values())
    for folder in {path.parent for path in expected} - {path.parent for path in label_paths}:
        images_dir = next(image.parent for image, labels in label_paths.items() if labels.parent == folder)
        if any(path not in label_paths for path in images_below(images_dir)):  # listed one by one
            continue
        for path in sorted(folder.glob("*.txt")):
            if path not in expected and path.name != CLASSES:
                findings.defect(path, None, f"no image of this name in {images_dir}")


def _read_labels(path: Path, size: tuple[int, int], names: Sequence[str], findings: Findings) -> list[LabelledObject]:
    """The objects of one image that can be converted; the others go to the findings."""
    objects, seen = [], set()
    try:
        lines = list(lines_of(path))
    except DatasetError as error:
        findings.defect(path, None, str(error))
        return []
    for number, line in lines:
        if line in seen:
            findings.notes[TWICE] += 1
            continue
        seen.add(line)
        try:
            objects.append(_read_line(line, size, names, findings))
        except ValueError as error:
            findings.defect(path, number, str(error))
    return objects


def _read_line(line: str, size: tuple[int, int], names: Sequence[str], findings: Findings) -> LabelledObject:
    """An object of an image of `size`. Raises ValueError saying what is wrong with it."""
    try:
        index, *values = map(float, line.split())
    except ValueError:
        raise ValueError(f"{line:.50}: expected numbers: class cx cy w h") from None
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        with_score = " (the last may be a score; it belongs to detections)" if len(values) == 5 else ""
        raise ValueError(f"{len(values) + 1} numbers, expected 5: class cx cy w h, or an outline of pairs{with_score}")
    if index not in range(len(names)):
        raise ValueError(f"class {index:g}, expected 0 to {len(names) - 1}, for there are {len(names)} names")
    if outside := [value for value in values if not -ROUNDING <= value <= 1 + ROUNDING]:
        raise ValueError(f"{outside[0]:g}, expected fractions of the image's sides, from 0 to 1; are these pixels?")
    width, height = size
    outline = ()
    if len(values) == 4:
        cx, cy, w, h = values
        if min(w, h) < 0:
            raise ValueError(f"width {w:g}, height {h:g}, expected 0 to 1")
        box_xyxy = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
    else:
        findings.notes[OUTLINES] += 1
        xs, ys = ([value * side for value in values[start::2]] for start, side in enumerate(size))
        box_xyxy = (min(xs), min(ys), max(xs), max(ys))
        outline = tuple(itertools.chain.from_iterable(zip(xs, ys, strict=True)))
    return LabelledObject(names[int(index)], cut_to_image(box_xyxy, size, findings.notes), outline=outline)
