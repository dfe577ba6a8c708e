"""Draw and measure the images and boxes that a detector is trained on, for `python -m detection.show`."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from data import DatasetError, Key
from detection.anchor_fit import best_boxes
from detection.coco.annotations import CocoFile, describe, read_split
from detection.coco.dataset import CocoDetection, collate, read_image
from detection.coco.transforms import distort_colours, eval_transform
from detection.drawing.boxes import UNMATCHED, Mark, level_colour
from detection.drawing.pictures import Panel, draw_panels, object_marks, small_first, spread
from detection.network.anchors import BOXES_PER_CELL
from detection.network.assignment.matching import NO_OBJECT
from detection.network.ssd import SSD, build_ssd
from detection.task import DetectionConfig, DetectionTask, with_fitted_scales
from engine.charts import is_ours
from engine.config import load_config
from engine.logbook import progress_bar
from records.experiment import table

EPOCHS = 7  # augmented views drawn per image
LARGEST_SIDE = 1200  # pixels; larger images are scaled down before they are drawn
WHITE = (1.0, 1.0, 1.0)

Sample = tuple[np.ndarray, Tensor, Tensor]  # image (S, S, 3) uint8, boxes_xyxy (n, 4) fractions, labels (n,)


def show(arguments: argparse.Namespace) -> None:
    """Draw the requested pictures. Raises FileExistsError if a file of a different program would be overwritten."""
    draw, names = DRAW_FUNCTIONS[arguments.what]
    paths = [arguments.output / name for name in names]
    for path in paths:
        if path.exists() and not is_ours(path):
            raise FileExistsError(f"{path}: not made by detection.show; choose a different folder with --output")
    draw(load_config(arguments.config, arguments.overrides, DetectionConfig), arguments, *paths)
    print(f"wrote {', '.join(str(path) for path in paths if path.exists())}")


# ---- one function for each --what -----------------------------------------------------------------------------


def show_data(config: DetectionConfig, options: argparse.Namespace, *paths: Path) -> None:
    """Draw images of train and val with the objects that training reads."""
    cocos = [read_split(config.data, split) for split in ("train", "val")]
    for path, coco, indices in zip(paths, cocos, choose_images(cocos, options), strict=True):
        if indices:
            draw_panels(path, [truth_panel(coco, index) for index in indices], columns=3, side=600)


def show_augment(config: DetectionConfig, options: argparse.Namespace, path: Path) -> None:
    """Draw training images, and their augmented versions in the first epochs."""
    task = build_task(config)
    panels = []
    for index in choose_images([task.train], options)[0]:
        panels.append(truth_panel(task.train, index))
        samples = load_samples(task.train_set, [(epoch, index) for epoch in range(EPOCHS)])
        for epoch, (image, boxes_xyxy, labels) in enumerate(samples, start=1):
            boxes_xyxy = boxes_xyxy.numpy() * len(image)
            marks = object_marks(task.train.class_names, boxes_xyxy, labels, [False] * len(labels))
            panels.append(make_panel(image, f"epoch {epoch}", marks))
    draw_panels(path, panels, columns=4, side=450)


def show_anchors(config: DetectionConfig, options: argparse.Namespace, path: Path) -> None:
    """Draw the default boxes of the middle grid cell of each level, and the centres of all grid cells."""
    train = read_split(config.data, "train")
    model = build_ssd(with_fitted_scales(config, train).model, num_classes=1)
    side = model.input_size
    keys = [(0, index) for index in choose_images([train], options)[0]]
    panels = []
    for image, _, _ in load_samples(CocoDetection(train, eval_transform(side)), keys):
        for number, (rows, columns, boxes_xyxy) in enumerate(find_levels(model)):
            cell_xyxy = boxes_xyxy[rows // 2, columns // 2]
            caption = f"level {number + 1}: {columns} x {rows} cells, {len(cell_xyxy)} boxes each"
            centres = [(np.arange(cells) + 0.5) / cells * side for cells in (columns, rows)]
            dots_xy = np.stack(np.meshgrid(*centres), axis=-1).reshape(-1, 2)
            marks = [Mark(box_xyxy, level_colour(number)) for box_xyxy in cell_xyxy]
            panels.append(Panel(dimmed(image), caption, marks, dots_xy))
    draw_panels(path, panels, columns=3, side=500)


def show_matches(config: DetectionConfig, options: argparse.Namespace, path: Path) -> None:
    """Draw the default boxes that match objects in some images; print statistics of all training images."""
    task = build_task(config)
    train, side, iou_threshold = task.train, task.model.input_size, config.loss.match_iou
    levels = find_levels(task.model)
    anchor_levels = level_of_anchor(levels)
    datasets = {"unaugmented": CocoDetection(train, eval_transform(side)), "epoch 1": task.train_set}
    panels = [
        match_panel(task, sample, anchor_levels, f"id {train.images[index].id}, {title}")
        for index in choose_images([train], options)[0]
        for title, dataset in datasets.items()
        for sample in load_samples(dataset, [(0, index)])
    ]
    key = {f"boxes of level {number + 1}": level_colour(number) for number in range(len(levels))}
    key |= {"object x matched boxes": WHITE, f"object x matched boxes, best IoU below {iou_threshold:g}": UNMATCHED}
    draw_panels(path, panels, columns=4, side=450, key=key)

    level_rows = []
    for number, (rows, columns, boxes_xyxy) in enumerate(levels, start=1):
        cell_xyxy = boxes_xyxy[rows // 2, columns // 2]
        sizes = np.sqrt(np.prod(cell_xyxy[:, 2:] - cell_xyxy[:, :2], axis=1))
        row = {"level": number, "cells": f"{columns} x {rows}", "boxes": rows * columns * len(cell_xyxy)}
        level_rows.append(row | {"square root of area, pixels": f"{sizes.min():.0f} to {sizes.max():.0f}"})
    class_rows = [{"class": name} for name in [*train.class_names, "(all)"]]
    for title, dataset in datasets.items():
        labels, best_iou, best_level = fit_objects(dataset, task.model.anchors_cxcywh, anchor_levels)
        for number, row in enumerate(level_rows):
            row[f"objects with best box, {title}"] = int((best_level == number).sum())
        parts = [best_iou[labels == label] for label in range(1, len(train.class_names) + 1)]
        for row, part in zip(class_rows, [*parts, best_iou], strict=True):
            recall = float((part >= iou_threshold).mean()) if len(part) else None
            row |= {f"objects, {title}": len(part), f"recall, {title}": recall}
    print(f"{train.annotations_path}: {describe(train)}\n\n{table(level_rows)}\n\n{table(class_rows)}\n")


DRAW_FUNCTIONS = {  # value of --what: function that draws, names of its files
    "data": (show_data, ("data_train.png", "data_val.png")),
    "augment": (show_augment, ("augment.png",)),
    "anchors": (show_anchors, ("anchors.png",)),
    "matches": (show_matches, ("matches.png",)),
}


# ---- helpers --------------------------------------------------------------------------------------------------


def choose_images(cocos: Sequence[CocoFile], options: argparse.Namespace) -> list[list[int]]:
    """Return the indices of the images to draw in each annotation file. Without --ids, they are evenly spaced.

    Raises DatasetError if none of the files contains an id of --ids."""
    if not options.ids:
        return [spread(len(coco.images), options.images) for coco in cocos]
    index_of = [{record.id: index for index, record in enumerate(coco.images)} for coco in cocos]
    if unknown := set(options.ids).difference(*index_of):
        files = " or ".join(str(coco.annotations_path) for coco in cocos)
        raise DatasetError(f"--ids {min(unknown)}: no image in {files} has this id")
    return [[known[image_id] for image_id in options.ids if image_id in known] for known in index_of]


def build_task(config: DetectionConfig) -> DetectionTask:
    """Build the task as in training, but with random weights and without a cache of decoded images."""
    config = config.model_copy(update={"data": config.data.model_copy(update={"cache_images": False})})
    train, val = read_split(config.data, "train"), read_split(config.data, "val")
    return DetectionTask(config, train, val, from_checkpoint=True)


def load_samples(dataset: CocoDetection, keys: Sequence[Key]) -> Iterator[Sample]:
    """Yield the network's input images before normalisation, with their objects."""
    batch = collate(dataset.__getitems__(keys))
    images = distort_colours(batch["images"], batch["colours"]) if "colours" in batch else batch["images"]
    for image, boxes_xyxy, labels in zip(images, batch["boxes_xyxy"], batch["labels"], strict=True):
        yield image.permute(1, 2, 0).numpy(), boxes_xyxy[labels > 0], labels[labels > 0]


def find_levels(model: SSD) -> list[tuple[int, int, np.ndarray]]:
    """Return (rows, columns, boxes_xyxy) of each level. boxes_xyxy: (rows, columns, K, 4), in input pixels."""
    grid_sizes = model.grid_sizes(model.input_size)
    counts = [rows * columns * boxes for (rows, columns), boxes in zip(grid_sizes, BOXES_PER_CELL, strict=True)]
    anchors_xyxy = box_convert(model.anchors_cxcywh, "cxcywh", "xyxy") * model.input_size
    return [
        (rows, columns, level_xyxy.view(rows, columns, -1, 4).numpy())
        for (rows, columns), level_xyxy in zip(grid_sizes, anchors_xyxy.split(counts), strict=True)
    ]


def level_of_anchor(levels: Sequence[tuple[int, int, np.ndarray]]) -> Tensor:
    """Return the level of each default box: (A,) int64, from 0."""
    counts = torch.tensor([boxes_xyxy.size // 4 for _, _, boxes_xyxy in levels])
    return torch.repeat_interleave(torch.arange(len(counts)), counts)


def fit_objects(
    dataset: CocoDetection, anchors_cxcywh: Tensor, anchor_levels: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the default box with the highest IoU for each object of the first epoch.

    Returns labels (n,) int64, from 1; the highest IoU (n,) float32; the level of its default box (n,) int64, from 0."""
    bar = progress_bar(range(len(dataset)), desc="matching objects", unit="image", leave=False)
    plans = [dataset.plan((0, index)) for index in bar]
    boxes_xyxy = torch.from_numpy(np.concatenate([plan.boxes_xyxy for plan in plans]))
    best_iou, best_anchor = best_boxes(boxes_xyxy, anchors_cxcywh)
    labels = np.concatenate([plan.labels for plan in plans])
    return labels, best_iou.numpy(), anchor_levels[best_anchor].numpy()


def make_panel(image: np.ndarray, caption: str, marks: Sequence[Mark]) -> Panel:
    """Return a panel of an image with marks. If there are no marks, the caption says so."""
    return Panel(image, caption if marks else f"{caption}, no objects", small_first(marks))


def truth_panel(coco: CocoFile, index: int) -> Panel:
    """Return a panel of an original image with its objects and crowds."""
    record = coco.images[index]
    image = Image.fromarray(read_image(coco, index))
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    boxes_xyxy, labels, is_crowd = coco.objects(index)
    marks = object_marks(coco.class_names, boxes_xyxy * (image.width / record.width), labels, is_crowd)
    caption = f"id {record.id}: {record.file_name[-40:]}"  # a long name begins with folders
    return make_panel(np.asarray(image), caption, marks)


def match_panel(task: DetectionTask, sample: Sample, anchor_levels: Tensor, caption: str) -> Panel:
    """Return a panel of an image with its objects and matching boxes. Objects without a fitting box are red.

    The assignment task_aligned depends on predictions. For the drawing, every default box predicts itself."""
    image, boxes_xyxy, labels = sample
    side, anchors_cxcywh, iou_threshold = len(image), task.model.anchors_cxcywh, task.config.loss.match_iou
    best_iou = best_boxes(boxes_xyxy, anchors_cxcywh)[0].tolist()
    matched = torch.full((len(anchors_cxcywh),), NO_OBJECT)
    if len(labels):
        deltas, logits = torch.zeros(1, len(matched), 4), torch.zeros(1, len(matched), task.model.logits_per_box)
        matched = task.criterion.assign(deltas, logits, boxes_xyxy[None], labels[None], anchors_cxcywh)[0][0]
    is_matched = matched != NO_OBJECT
    anchors_xyxy = box_convert(anchors_cxcywh[is_matched], "cxcywh", "xyxy").numpy() * side
    marks = list(map(Mark, anchors_xyxy, map(level_colour, anchor_levels[is_matched].tolist())))
    for index, (box_xyxy, label) in enumerate(zip(boxes_xyxy.numpy() * side, labels.tolist(), strict=True)):
        name = f"{task.train.class_names[label - 1]} x{int((matched == index).sum())}"
        fits = best_iou[index] >= iou_threshold
        marks.append(Mark(box_xyxy, WHITE if fits else UNMATCHED, name if fits else f"{name}, {best_iou[index]:.2f}"))
    return make_panel(dimmed(image), caption, marks)


def dimmed(image: np.ndarray) -> np.ndarray:
    """Return a darker copy of an image, on which thin lines are visible."""
    return (0.6 * image).astype(np.uint8)
