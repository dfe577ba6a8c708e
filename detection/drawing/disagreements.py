"""Draw images with the detections of several detectors side by side, for the HTML page of a comparison.

ablation/display/disagreements.py chooses the images and calls `draw_side_by_side`.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detection.coco.annotations import CocoFile, survey_coco
from detection.coco.dataset import read_image
from detection.coco.defects import dataset_error
from detection.drawing.boxes import Mark, draw_marks, palette_colour
from detection.drawing.pictures import object_marks

SIDE = 400  # pixels, longer side of a picture
QUALITY = 75  # of the JPEGs


class SideBySide(NamedTuple):
    """An image as JPEGs: with the ground truth, and with the detections of each detector."""

    file_name: str
    num_objects: int  # without crowds; as many detections of each detector are drawn
    truth: bytes
    detected: list[bytes]


def draw_side_by_side(
    annotations: Path, images_dir: Path, image_ids: Sequence[int], detections: Sequence[Path]
) -> list[SideBySide]:
    """Draw the images with these ids, with the detections in COCO's results files.

    Draws as many of a detector's best detections as the image has objects. A fixed score threshold would be unfair,
    because detectors with different losses have scores of different size.
    Raises DatasetError if the annotation file is invalid, or if an image cannot be read."""
    survey = survey_coco(annotations, images_dir)
    if not survey.is_complete:
        raise dataset_error(survey.defects[:1])
    coco = survey.coco
    index_of = {image.id: index for index, image in enumerate(coco.images)}
    by_file = [_read_best_first(path, set(image_ids)) for path in detections]
    pictures = []
    for image_id in image_ids:
        index = index_of[image_id]
        boxes_xyxy, labels, is_crowd = coco.objects(index)
        pixels, num_objects = read_image(coco, index), int((~is_crowd).sum())
        truth = _jpeg(pixels, object_marks(coco.class_names, boxes_xyxy, labels, is_crowd))
        detected = [_jpeg(pixels, _marks(found.get(image_id, [])[:num_objects], coco)) for found in by_file]
        pictures.append(SideBySide(coco.images[index].file_name, num_objects, truth, detected))
    return pictures


def _read_best_first(path: Path, image_ids: set[int]) -> dict[int, list[dict]]:
    """Return the detections of some images in a results file, as {image id: records}, best first."""
    found: dict[int, list[dict]] = {}
    for record in json.loads(path.read_bytes()):
        if record["image_id"] in image_ids:
            found.setdefault(record["image_id"], []).append(record)
    return {image: sorted(records, key=lambda record: -record["score"]) for image, records in found.items()}


def _marks(records: Sequence[dict], coco: CocoFile) -> list[Mark]:
    """Return a mark for each detection, in the colour of its class."""
    marks = []
    for record in records:
        x, y, width, height = record["bbox"]
        index = coco.category_ids.index(record["category_id"])
        label = f"{coco.class_names[index]} {record['score']:.2f}"
        marks.append(Mark(np.array([x, y, x + width, y + height]), palette_colour(index), label))
    return marks


def _jpeg(pixels: np.ndarray, marks: Sequence[Mark]) -> bytes:
    """Return a small JPEG of an image with marks. Chroma subsampling is off, because it would blur coloured lines."""
    file = io.BytesIO()
    draw_marks(pixels, marks, SIDE).save(file, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return file.getvalue()
