"""Annotations of other formats into COCO's.

    python -m detection.data convert voc VOCdevkit/VOC2007 --train trainval --val test
    python -m detection.data convert yolo my_project.v3i.yolov8

Writes annotations/instances_{train,val}.json; the images stay where they are. Everything is read before anything is
written: what cannot be converted is listed all at once, with file, line and reason, and then nothing is written. What
is converted, but not as it stands there, such as a box cut at the edge of its image, is counted.

voc.py and yolo.py say what the formats mean, and what becomes of it.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data import DatasetError
from detection.coco.annotations import SplitConfig, shown_path, survey_coco
from detection.prepare.labels import Findings, LabelledImage, Labels, full_path
from detection.prepare.layouts import HALVES, MADE_BY, Layout, summary
from detection.prepare.voc import read_voc
from detection.prepare.yolo import read_yolo
from engine.files import write_text
from records.experiment import table

FORMATS = {"voc": "Pascal VOC", "yolo": "YOLO"}
DIGITS = 3  # of a pixel


def main(arguments: argparse.Namespace) -> None:
    """Convert as the command line after `convert` says; print what was found, and how to train on it.

    Raises DatasetError, with nothing written, if anything cannot be converted."""
    findings, given = Findings(), {"train": arguments.train, "val": arguments.val}
    if not (arguments.source.exists() if arguments.format == "yolo" else arguments.source.is_dir()):
        raise DatasetError(f"{arguments.source}: no such folder")
    if arguments.format == "voc":
        labels = read_voc(arguments.source, given, arguments.zero_based, findings)
    else:
        labels = read_yolo(arguments.source, given, findings)
    if findings.defects:
        print(table([{"file": shown_path(d.file), "record": d.record, "defect": d.what} for d in findings.defects]))
        number = f"{len(findings.defects)} defect{'s' * (len(findings.defects) > 1)}"
        raise DatasetError(f"{arguments.source}: {number}, listed above; nothing was written")
    source_dir = arguments.source if arguments.source.is_dir() else arguments.source.parent
    layout = write_coco(labels, arguments.to or source_dir, FORMATS[arguments.format])
    for what, count in findings.notes.items():
        if count:
            print(f"{what}: {count:,}")
    print(summary(layout, [survey_coco(*layout.paths(half)) for half in HALVES]))


# ---- writing ----------------------------------------------------------------------------------------------------


def write_coco(labels: Labels, root: Path, format_name: str) -> Layout:
    """Write root/annotations/instances_{train,val}.json.

    Returns where everything lies. Raises DatasetError, with nothing written, if there is nothing to learn, or other
    annotations are there."""
    if not any(not thing.is_crowd for image in labels.halves["train"] for thing in image.objects):
        raise DatasetError(f"{root}: no objects in the half to train on; nothing was written")
    paths = {half: root / "annotations" / f"instances_{half}.json" for half in HALVES}
    for path in paths.values():
        if path.exists() and not _is_ours(path):
            raise DatasetError(f"{path}: not made {MADE_BY}; choose another folder by --to")
    folders = {half: Path(os.path.commonpath([image.path.parent for image in labels.halves[half]])) for half in HALVES}
    splits = {
        half: SplitConfig(images=below(folders[half], root), annotations=str(paths[half].relative_to(root)))
        for half in HALVES
    }
    texts = {}
    for half in HALVES:
        # First, where `layouts` looks for it. An annotation file of ours may be written again.
        info = {"description": f"converted from {format_name} {MADE_BY}", "image_folder": splits[half].images}
        content = {"info": info} | _coco(labels.categories, labels.halves[half], folders[half])
        texts[half] = json.dumps(content, ensure_ascii=False)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for half in HALVES:
        write_text(paths[half], texts[half])
    return Layout(f"converted from {format_name}", root, **splits)


def below(folder: Path, root: Path) -> str:
    """A folder as a config names it: relative to the root, or in full if it is not below it."""
    root = full_path(root)
    return str(folder.relative_to(root) if folder.is_relative_to(root) else folder)


def _is_ours(path: Path) -> bool:
    try:
        return json.loads(path.read_bytes())["info"]["description"].endswith(MADE_BY)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _coco(categories: Mapping[int, str], images: Sequence[LabelledImage], images_dir: Path) -> dict[str, Any]:
    """The lists of an annotation file (cocodataset.org/#format-data)."""
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
