"""Annotations of other formats into COCO's.

    python -m detection.data convert voc VOCdevkit/VOC2007 --train trainval --val test
    python -m detection.data convert yolo my_project.v3i.yolov8

Writes annotations/instances_{train,val}.json, or instances_all.json if the data set has no halves; the images stay
where they are. Everything is read before anything is written: what cannot be converted is listed all at once, with
file, place and reason, and then nothing is written. What is converted with a change, such as a box cut at the edge of
its image, is counted.

voc.py and yolo.py define how each format is read. (supervision reads both, but drops `difficult`, lists of images and
outlines, stops at the first broken file, and decodes every image of a VOC data set.)
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data import DatasetError
from detection.coco.annotations import SplitConfig, describe, read_coco, survey_coco
from detection.coco.defects import shown_path
from detection.prepare.labels import HALVES, WHOLE, Findings, LabelledImage, Labels, full_path
from detection.prepare.layouts import MADE_BY, Layout, Whole, mark_of, not_split, summary
from detection.prepare.voc import read_voc
from detection.prepare.yolo import read_yolo
from engine.files import write_text
from engine.terminal import counted
from records.experiment import table

FORMATS = {"voc": "Pascal VOC", "yolo": "YOLO"}
DIGITS = 3  # of a pixel


def main(arguments: argparse.Namespace) -> None:
    """Convert as the command line after `convert` says; print what was found, and how to continue.

    Raises DatasetError, with nothing written, if anything cannot be converted."""
    source, findings = arguments.source, Findings()
    given = {"train": arguments.train, "val": arguments.val}
    if not (source.exists() if arguments.format == "yolo" else source.is_dir()):
        raise DatasetError(f"{source}: no such folder")
    if arguments.format == "voc":
        labels = read_voc(source, given, arguments.zero_based, findings)
    else:
        labels = read_yolo(source, given, findings)
    if findings.defects:
        print(table([{"file": shown_path(d.file), "record": d.record, "defect": d.what} for d in findings.defects]))
        number = counted(len(findings.defects), "defect", "defects")
        raise DatasetError(f"{source}: {number}, listed above; nothing was written")
    root = arguments.to or (source if source.is_dir() else source.parent)
    splits = write_coco(labels, root, FORMATS[arguments.format])
    for what, count in findings.notes.items():
        if count:
            print(f"{what}: {count:,}")
    if WHOLE in splits:
        whole = Whole(root / splits[WHOLE].annotations, root / splits[WHOLE].images)
        print(f"{shown_path(whole.annotations_path)}: {describe(read_coco(*whole))}; {not_split(whole)}")
    else:
        layout = Layout(f"converted from {FORMATS[arguments.format]}", root, **splits)
        print(summary(layout, [survey_coco(*layout.paths(half)) for half in HALVES]))


# ---- writing ----------------------------------------------------------------------------------------------------


def write_coco(labels: Labels, root: Path, format_name: str) -> dict[str, SplitConfig]:
    """Write root/annotations/instances_{}.json for each half.

    Returns where each half is. Raises DatasetError, with nothing written, if there is nothing to learn, or there are
    annotations that another program wrote."""
    images_to_train_on = next(iter(labels.halves.values()))
    if not any(not thing.is_crowd for image in images_to_train_on for thing in image.objects):
        raise DatasetError(f"{root}: no objects to train on; nothing was written")
    splits, texts = {}, {}
    for half, images in labels.halves.items():
        folder = Path(os.path.commonpath([image.path.parent for image in images]))
        splits[half] = SplitConfig(images=below(folder, root), annotations=f"annotations/instances_{half}.json")
        path = root / splits[half].annotations
        if path.exists() and not (mark_of(path) or {}).get("description", "").endswith(MADE_BY):
            raise DatasetError(f"{path}: not made {MADE_BY}; choose another folder by --to")
        # First, where `mark_of` looks for it.
        info = {"description": f"converted from {format_name} {MADE_BY}", "image_folder": splits[half].images}
        texts[path] = json.dumps({"info": info} | _coco(labels.categories, images, folder), ensure_ascii=False)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        write_text(path, text)
    return splits


def below(folder: Path, root: Path) -> str:
    """Return a folder as a config names it: relative to the root, or in full if it is not below it."""
    root = full_path(root)
    return str(folder.relative_to(root) if folder.is_relative_to(root) else folder)


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
