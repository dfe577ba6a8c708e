"""Convert annotations in Pascal VOC or YOLO format (voc.py, yolo.py) to COCO's format.

Writes annotations/instances_{train,val}.json, or instances_all.json if the data set has no splits. The images stay
where they are. All files are read before anything is written. If any files cannot be converted, all defects are listed
and nothing is written. Changes, such as boxes clipped at the edge of their image, are counted and printed.

(The library supervision also reads both formats, but it ignores `difficult`, image lists and outlines, and stops at
the first broken file.)
"""

import argparse
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data import DatasetError
from detection.coco.annotations import SplitConfig, describe, read_coco, survey_coco
from detection.coco.defects import printable_path
from detection.prepare.labels import SPLITS, UNSPLIT, LabelledImage, Labels
from detection.prepare.layouts import Layout, UnsplitDataset, config_path, split_advice, summary, write_annotations
from detection.prepare.voc import find_voc
from detection.prepare.yolo import find_yolo
from engine.logbook import progress_bar
from engine.terminal import counted, printable

DIGITS = 3  # decimal places of a coordinate in pixels


def main(arguments: argparse.Namespace) -> None:
    """Run the `convert` command; print what was converted and the command to run next.

    Raises DatasetError, without writing anything, if a file cannot be converted."""
    source, notes = arguments.source, Counter()
    names = {"train": arguments.train, "val": arguments.val}
    if not (source.exists() if arguments.format == "yolo" else source.is_dir()):
        raise DatasetError(f"{source}: no such folder")
    labels = find_voc(source, names, arguments.zero_based) if arguments.format == "voc" else find_yolo(source, names)
    images_by_split = read_splits(labels, notes, source)
    root = arguments.to or (source if source.is_dir() else source.parent)
    configs = write_coco(images_by_split, labels.categories or _number_classes(images_by_split), root)
    for what, count in notes.items():
        if count:
            print(f"{what}: {count:,}")
    if UNSPLIT in configs:
        unsplit = UnsplitDataset(root / configs[UNSPLIT].annotations, root / configs[UNSPLIT].images)
        print(f"{printable_path(unsplit.annotations_path)}: {describe(read_coco(*unsplit))}; {split_advice(unsplit)}")
    else:
        layout = Layout("converted", root, **configs)
        print(summary(layout, [survey_coco(*layout.paths(split)) for split in SPLITS]))


def read_splits(labels: Labels, notes: Counter[str], source: Path) -> dict[str, list[LabelledImage]]:
    """Read all files; return the images of each split. If there are defects, print them all and raise DatasetError."""
    defects, images_by_split = list(labels.defects), {}
    for split, paths in labels.splits.items():
        images: dict[Path, LabelledImage] = {}
        for path in progress_bar(paths, desc=f"reading {split}", unit="image", leave=False):
            try:
                image = labels.read(path, notes)
                if image.path in images:
                    defects.append(f"{path}: image {image.path.name} already has a different annotation file")
                images[image.path] = image
            except DatasetError as error:
                defects.append(str(error))
        images_by_split[split] = list(images.values())
    if defects:
        print("\n".join(map(printable, defects)))
        number = counted(len(defects), "defect", "defects")
        raise DatasetError(f"{source}: {number}, listed above; nothing was written")
    return images_by_split


def _number_classes(images_by_split: Mapping[str, Sequence[LabelledImage]]) -> dict[int, str]:
    """Return a dict from category id to name for all classes with objects. Ids start at 1, in alphabetical order."""
    names = {thing.class_name for images in images_by_split.values() for image in images for thing in image.objects}
    return dict(enumerate(sorted(names), start=1))


def write_coco(
    images_by_split: Mapping[str, Sequence[LabelledImage]], categories: Mapping[int, str], root: Path
) -> dict[str, SplitConfig]:
    """Write root/annotations/instances_SPLIT.json for each split; return a dict from split to its config.

    Raises DatasetError, and writes nothing, if there are no objects to train on, or if an annotation file exists that
    the `convert` command did not write."""
    training_images = next(iter(images_by_split.values()))
    if not any(not thing.is_crowd for image in training_images for thing in image.objects):
        raise DatasetError(f"{root}: no objects to train on; nothing was written")
    configs, contents = {}, {}
    for split, images in images_by_split.items():
        base = Path(os.path.commonpath([image.path.parent for image in images]))
        configs[split] = SplitConfig(images=config_path(base, root), annotations=f"annotations/instances_{split}.json")
        contents[configs[split]] = _to_coco(categories, images, base)
    write_annotations("convert", root, contents)
    return configs


def _to_coco(categories: Mapping[int, str], images: Sequence[LabelledImage], images_dir: Path) -> dict[str, Any]:
    """Return the content of a COCO annotation file (cocodataset.org/#format-data)."""
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
