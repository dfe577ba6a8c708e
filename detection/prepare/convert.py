"""Annotations of other formats (voc.py, yolo.py) into COCO's.

Writes annotations/instances_{train,val}.json, or instances_all.json if the data set has no halves; the images stay
where they are. Everything is read before anything is written: if files cannot be converted, all are listed, and nothing
is written. What is converted with a change, such as a box cut at the edge of its image, is counted.

(supervision reads both formats, but drops `difficult`, lists of images and outlines, and stops at the first broken
file.)
"""

import argparse
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data import DatasetError
from detection.coco.annotations import SplitConfig, describe, read_coco, survey_coco
from detection.coco.defects import shown_path
from detection.prepare.labels import HALVES, WHOLE, LabelledImage, Labels
from detection.prepare.layouts import Layout, Whole, below, not_split, summary, write_annotations
from detection.prepare.voc import find_voc
from detection.prepare.yolo import find_yolo
from engine.logbook import progress_bar
from engine.terminal import counted, printable

DIGITS = 3  # of a pixel


def main(arguments: argparse.Namespace) -> None:
    """Convert as the command line after `convert` says; print what was found, and how to continue.

    Raises DatasetError, with nothing written, if anything cannot be converted."""
    source, notes = arguments.source, Counter()
    given = {"train": arguments.train, "val": arguments.val}
    if not (source.exists() if arguments.format == "yolo" else source.is_dir()):
        raise DatasetError(f"{source}: no such folder")
    labels = find_voc(source, given, arguments.zero_based) if arguments.format == "voc" else find_yolo(source, given)
    halves = read_halves(labels, notes, source)
    root = arguments.to or (source if source.is_dir() else source.parent)
    splits = write_coco(halves, labels.categories or _found_classes(halves), root)
    for what, count in notes.items():
        if count:
            print(f"{what}: {count:,}")
    if WHOLE in splits:
        whole = Whole(root / splits[WHOLE].annotations, root / splits[WHOLE].images)
        print(f"{shown_path(whole.annotations_path)}: {describe(read_coco(*whole))}; {not_split(whole)}")
    else:
        layout = Layout("converted", root, **splits)
        print(summary(layout, [survey_coco(*layout.paths(half)) for half in HALVES]))


def read_halves(labels: Labels, notes: Counter[str], source: Path) -> dict[str, list[LabelledImage]]:
    """Read all files. Raises DatasetError if some cannot be converted, once these are printed."""
    defects, halves = list(labels.defects), {}
    for half, paths in labels.halves.items():
        images: dict[Path, LabelledImage] = {}
        for path in progress_bar(paths, desc=f"reading {half}", unit="image", leave=False):
            try:
                image = labels.read(path, notes)
                if image.path in images:
                    defects.append(f"{path}: {image.path.name} is the image of another file, too")
                images[image.path] = image
            except DatasetError as error:
                defects.append(str(error))
        halves[half] = list(images.values())
    if defects:
        print("\n".join(map(printable, defects)))
        number = counted(len(defects), "defect", "defects")
        raise DatasetError(f"{source}: {number}, listed above; nothing was written")
    return halves


def _found_classes(halves: Mapping[str, Sequence[LabelledImage]]) -> dict[int, str]:
    """Return the names of all classes that have objects, in alphabetical order, by ids from 1."""
    names = {thing.class_name for images in halves.values() for image in images for thing in image.objects}
    return dict(enumerate(sorted(names), start=1))


def write_coco(
    halves: Mapping[str, Sequence[LabelledImage]], categories: Mapping[int, str], root: Path
) -> dict[str, SplitConfig]:
    """Write root/annotations/instances_{}.json for each half.

    Returns where each half is. Raises DatasetError, with nothing written, if there is nothing to learn, or there are
    annotations that another program wrote."""
    images_to_train_on = next(iter(halves.values()))
    if not any(not thing.is_crowd for image in images_to_train_on for thing in image.objects):
        raise DatasetError(f"{root}: no objects to train on; nothing was written")
    splits, contents = {}, {}
    for half, images in halves.items():
        folder = Path(os.path.commonpath([image.path.parent for image in images]))
        splits[half] = SplitConfig(images=below(folder, root), annotations=f"annotations/instances_{half}.json")
        contents[splits[half]] = _coco(categories, images, folder)
    write_annotations("convert", root, contents)
    return splits


def _coco(categories: Mapping[int, str], images: Sequence[LabelledImage], images_dir: Path) -> dict[str, Any]:
    """Return the lists of an annotation file (cocodataset.org/#format-data)."""
    id_of = {name: category_id for category_id, name in categories.items()}
    records, annotations = [], []
    for image_id, image in enumerate(images, start=1):
        width, height = image.size
        file_name = image.path.relative_to(images_dir).as_posix()
        records.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for thing in image.objects:
            left, top, right, bottom = thing.box_xyxy
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": id_of[thing.class_name],
                    "bbox": [round(number, DIGITS) for number in (left, top, right - left, bottom - top)],
                    "area": round((right - left) * (bottom - top), DIGITS),
                    "iscrowd": int(thing.is_crowd),
                    "segmentation": [[round(number, DIGITS) for number in thing.outline]] if thing.outline else [],
                }
            )
    return {
        "images": records,
        "annotations": annotations,
        "categories": [{"id": category_id, "name": name} for category_id, name in categories.items()],
    }
