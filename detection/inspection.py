"""What `python -m detection.show` does: measure and draw what a detector is trained on."""

import argparse
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

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
from detection.drawing.charts import draw_classes, draw_sizes
from detection.drawing.pictures import Panel, class_colours, draw_panels, object_marks, small_first
from detection.network.anchors import BOXES_PER_CELL
from detection.network.matching import NO_OBJECT
from detection.network.ssd import SSD, build_ssd
from detection.task import DetectionConfig, DetectionTask
from engine.charts import is_ours
from engine.config import load_config
from engine.logbook import logger, progress_bar
from records.experiment import table

EPOCHS = 7  # that show an image augmented
LARGEST_SIDE = 1200  # pixels of an image that is kept to be drawn
GREY, WHITE = (128, 128, 128), (1.0, 1.0, 1.0)


# ---- what is measured -----------------------------------------------------------------------------------------


class Level(NamedTuple):
    """One of the feature maps and its default boxes. The size of a box is the square root of its area."""

    rows: int
    columns: int
    cell_xyxy: np.ndarray  # (K, 4) default boxes of the cell in the middle, pixels of the input
    box_sizes: tuple[float, float]  # the smallest and the largest of them, pixels
    object_sizes: tuple[float, float]  # of objects that they can match, pixels


class Fit(NamedTuple):
    """How the default boxes fit n objects, as the network sees these."""

    sizes: np.ndarray  # (n,) pixels of the input
    labels: np.ndarray  # (n,) int64, from 1
    best_iou: np.ndarray  # (n,) with any default box
    best_level: np.ndarray  # (n,) int64, of that box, from 0

    def of_class(self, label: int) -> "Fit":
        """Return the part of the objects that has this label."""
        return Fit(*(values[self.labels == label] for values in self))

    def recall(self, iou_threshold: float) -> float | None:
        """Return the share of objects that a default box overlaps with at least that IoU; None without objects."""
        return float((self.best_iou >= iou_threshold).mean()) if len(self.best_iou) else None


def find_levels(model: SSD, iou_threshold: float) -> tuple[list[Level], Tensor]:
    """Return the levels of a detector, and the level of each of its default boxes, (A,) int64 from 0.

    Boxes of areas a < b have at most an IoU of a / b, so matching sizes differ by the root of the threshold."""
    side = model.input_size
    grid_sizes = model.grid_sizes(side)
    counts = [rows * columns * boxes for (rows, columns), boxes in zip(grid_sizes, BOXES_PER_CELL, strict=True)]
    anchors_xyxy = (box_convert(model.anchors_cxcywh, "cxcywh", "xyxy") * side).split(counts)
    levels = []
    for (rows, columns), level_xyxy in zip(grid_sizes, anchors_xyxy, strict=True):
        cell_xyxy = level_xyxy.view(rows, columns, -1, 4)[rows // 2, columns // 2].numpy()
        sizes = np.sqrt(np.prod(cell_xyxy[:, 2:] - cell_xyxy[:, :2], axis=1))
        smallest, largest = float(sizes.min()), float(sizes.max())
        object_sizes = (smallest * iou_threshold**0.5, min(largest / iou_threshold**0.5, float(side)))
        levels.append(Level(rows, columns, cell_xyxy, (smallest, largest), object_sizes))
    return levels, torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def fit_objects(dataset: CocoDetection, anchors_cxcywh: Tensor, level_of_anchor: Tensor, side: int) -> Fit:
    """Return how the default boxes fit every object of the first epoch. side: of the network's input, pixels."""
    bar = progress_bar(range(len(dataset)), desc="placing objects", unit="image", leave=False)
    plans = [dataset.plan((0, index)) for index in bar]
    boxes_xyxy = torch.from_numpy(np.concatenate([view.boxes_xyxy for view, _ in plans]))
    sizes = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(dim=1).sqrt() * side
    best_iou, best_anchor = best_boxes(boxes_xyxy, anchors_cxcywh)
    labels = np.concatenate([labels for _, labels in plans])
    return Fit(sizes.numpy(), labels, best_iou.numpy(), level_of_anchor[best_anchor].numpy())


def level_rows(levels: Sequence[Level], fits: dict[str, Fit]) -> list[dict]:
    """Return a table of the levels: their boxes, what these can match, and how many objects fit them best."""
    return [
        {
            "level": number + 1,
            "cells": f"{level.columns} x {level.rows}",
            "boxes": level.rows * level.columns * len(level.cell_xyxy),
            "pixels": "{:.0f} to {:.0f}".format(*level.box_sizes),
            "can match": "{:.0f} to {:.0f}".format(*level.object_sizes),
            **{f"best for, {title}": int((fit.best_level == number).sum()) for title, fit in fits.items()},
        }
        for number, level in enumerate(levels)
    ]


def class_rows(names: Sequence[str], fits: dict[str, Fit], iou_threshold: float) -> list[dict]:
    """Return a table of the classes and of all together: how many objects, and the recall of the default boxes."""
    rows = [{"class": name} for name in [*names, "(all)"]]
    for title, fit in fits.items():
        parts = [*(fit.of_class(label) for label in range(1, len(names) + 1)), fit]
        for row, part in zip(rows, parts, strict=True):
            row |= {f"objects, {title}": len(part.labels), f"recall, {title}": part.recall(iou_threshold)}
    return rows


# ---- what is shown --------------------------------------------------------------------------------------------


def show_data(config: DetectionConfig, options: argparse.Namespace) -> list[Path]:
    """Draw images of both splits with their objects, as training reads them."""
    cocos = [read_split(config.data, split) for split in ("train", "val")]
    drawn = []
    for name, coco, indices in zip(DRAWN["data"][1], cocos, choose(cocos, options), strict=True):
        if indices:
            drawn.append(options.output / name)
            draw_panels(drawn[-1], [truth_panel(coco, index) for index in indices], columns=3, side=600)
    return drawn


def show_augment(config: DetectionConfig, options: argparse.Namespace) -> list[Path]:
    """Draw training images as they are, and as they are in the first epochs."""
    task = build_task(config)
    panels = []
    for index in choose([task.train], options)[0]:
        panels.append(truth_panel(task.train, index))
        samples = load_samples(task.train_set, [(epoch, index) for epoch in range(EPOCHS)])
        for epoch, (image, boxes_xyxy, labels) in enumerate(samples, start=1):
            boxes_xyxy = boxes_xyxy.numpy() * len(image)
            panels.append(object_panel(task.train, image, f"epoch {epoch}", boxes_xyxy, labels))
    path = options.output / "augment.png"
    draw_panels(path, panels, columns=4, side=450)
    return [path]


def show_anchors(config: DetectionConfig, options: argparse.Namespace) -> list[Path]:
    """Draw the default boxes of one cell of each level, and the centres of all cells."""
    model = build_ssd(config.model, num_classes=1)
    side = model.input_size
    if options.blank:
        images = [np.full((side, side, 3), GREY, np.uint8)]
    else:
        train = read_split(config.data, "train")
        keys = [(0, index) for index in choose([train], options)[0]]
        images = [image for image, _, _ in load_samples(CocoDetection(train, eval_transform(side)), keys)]
    panels = []
    for image in images:
        for number, level in enumerate(find_levels(model, config.loss.match_iou)[0]):
            caption = (
                f"level {number + 1}: {level.columns} x {level.rows} cells, {len(level.cell_xyxy)} boxes each; "
                "{:.0f} to {:.0f} pixels, can match {:.0f} to {:.0f}".format(*level.box_sizes, *level.object_sizes)
            )
            centres = [(np.arange(cells) + 0.5) / cells * side for cells in (level.columns, level.rows)]
            dots_xy = np.stack(np.meshgrid(*centres), axis=-1).reshape(-1, 2)
            marks = [Mark(box_xyxy, level_colour(number)) for box_xyxy in level.cell_xyxy]
            panels.append(Panel(dimmed(image), caption, marks, dots_xy))
    path = options.output / "anchors.png"
    draw_panels(path, panels, columns=3, side=500)
    return [path]


def show_matches(config: DetectionConfig, options: argparse.Namespace) -> list[Path]:
    """Draw which default boxes match which objects of some images, and print how they fit those of all."""
    task = build_task(config)
    train, side, iou_threshold = task.train, task.model.input_size, config.loss.match_iou
    levels, level_of_anchor = find_levels(task.model, iou_threshold)
    datasets = {"unaugmented": CocoDetection(train, eval_transform(side)), "epoch 1": task.train_set}
    panels = [
        match_panel(task, sample, level_of_anchor, f"id {train.images[index].id}, {title}")
        for index in choose([train], options)[0]
        for title, dataset in datasets.items()
        for sample in load_samples(dataset, [(0, index)])
    ]
    key = {f"boxes of level {number + 1}": level_colour(number) for number in range(len(levels))}
    key |= {"object x its boxes": WHITE, f"object x its box, best IoU below {iou_threshold:g}": UNMATCHED}
    paths = [options.output / name for name in DRAWN["matches"][1]]
    draw_panels(paths[0], panels, columns=4, side=450, key=key)

    fits = {
        title: fit_objects(dataset, task.model.anchors_cxcywh, level_of_anchor, side)
        for title, dataset in datasets.items()
    }
    classes = class_rows(train.class_names, fits, iou_threshold)
    objects, recalls = ([row[f"{column}, unaugmented"] for row in classes[:-1]] for column in ("objects", "recall"))
    draw_classes(paths[1], train.class_names, objects, recalls)
    fitted = {title: (fit.sizes, fit.best_iou >= iou_threshold) for title, fit in fits.items()}
    draw_sizes(paths[2], fitted, [level.object_sizes for level in levels])
    print(f"{train.annotations_path}: {describe(train)}")
    print(f"\n{table(level_rows(levels, fits))}\n\n{table(classes)}\n")
    return paths


def choose(cocos: Sequence[CocoFile], options: argparse.Namespace) -> list[list[int]]:
    """Return indices of the images to show of each annotation file: those of --ids, or some spread evenly over it.

    Raises DatasetError for an id that is in none."""
    if not options.ids:
        counts = [len(coco.images) for coco in cocos]
        return [np.linspace(0, n - 1, min(options.images, n)).round().astype(int).tolist() for n in counts]
    index_of = [{record.id: index for index, record in enumerate(coco.images)} for coco in cocos]
    if unknown := set(options.ids).difference(*index_of):
        files = " or ".join(str(coco.annotations_path) for coco in cocos)
        raise DatasetError(f"--ids {min(unknown)}: no image in {files} has this id")
    return [[known[image_id] for image_id in options.ids if image_id in known] for known in index_of]


def build_task(config: DetectionConfig) -> DetectionTask:
    """Build the task as training does, but with random weights, and without decoding all images now."""
    config = config.model_copy(update={"data": config.data.model_copy(update={"cache_images": False})})
    train, val = read_split(config.data, "train"), read_split(config.data, "val")
    return DetectionTask(config, train, val, from_checkpoint=True)


Sample = tuple[np.ndarray, Tensor, Tensor]  # image (S, S, 3) uint8, boxes_xyxy (n, 4) fractions, labels (n,)


def load_samples(dataset: CocoDetection, keys: Sequence[Key]) -> Iterator[Sample]:
    """Yield images as the network sees them, except for the normalisation, with their objects."""
    batch = collate(dataset.__getitems__(keys))
    images = distort_colours(batch["images"], batch["colours"]) if "colours" in batch else batch["images"]
    for image, boxes_xyxy, labels in zip(images, batch["boxes_xyxy"], batch["labels"], strict=True):
        yield image.permute(1, 2, 0).numpy(), boxes_xyxy[labels > 0], labels[labels > 0]


def panel(image: np.ndarray, caption: str, marks: Sequence[Mark]) -> Panel:
    """Return a panel whose caption says if there is nothing to mark."""
    return Panel(image, caption + ", no objects" * (not marks), small_first(marks))


def object_panel(
    coco: CocoFile,
    image: np.ndarray,
    caption: str,
    boxes_xyxy: np.ndarray,
    labels: Sequence[int],
    is_crowd: np.ndarray | None = None,
) -> Panel:
    """Return an image with its objects. boxes_xyxy: (n, 4) pixels. is_crowd: n, of no object if None."""
    names = [coco.class_names[label - 1] for label in labels]
    crowds = [False] * len(names) if is_crowd is None else is_crowd
    return panel(image, caption, object_marks(boxes_xyxy, names, crowds, class_colours(coco.class_names)))


def truth_panel(coco: CocoFile, index: int) -> Panel:
    """Return an image as it is, with its objects and crowds."""
    record = coco.images[index]
    image = Image.fromarray(read_image(coco, index))
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    boxes_xyxy, labels, is_crowd = coco.objects(index)
    boxes_xyxy = boxes_xyxy * (image.width / record.width)
    caption = f"id {record.id}: {record.file_name[-40:]}"  # its end, because long names begin with folders
    return object_panel(coco, np.asarray(image), caption, boxes_xyxy, labels, is_crowd)


def match_panel(task: DetectionTask, sample: Sample, level_of_anchor: Tensor, caption: str) -> Panel:
    """Return an image with its objects, red where no default box fits, and with the boxes that match them."""
    image, boxes_xyxy, labels = sample
    side, anchors_cxcywh, iou_threshold = len(image), task.model.anchors_cxcywh, task.config.loss.match_iou
    best_iou = best_boxes(boxes_xyxy, anchors_cxcywh)[0].tolist()
    matched = torch.full((len(anchors_cxcywh),), NO_OBJECT)
    if len(labels):
        matched = task.match_anchors(boxes_xyxy[None], labels[None], anchors_cxcywh, iou_threshold)[0]
    is_matched = matched != NO_OBJECT
    anchors_xyxy = box_convert(anchors_cxcywh[is_matched], "cxcywh", "xyxy").numpy() * side
    marks = list(map(Mark, anchors_xyxy, map(level_colour, level_of_anchor[is_matched].tolist())))
    for index, (box_xyxy, label) in enumerate(zip(boxes_xyxy.numpy() * side, labels.tolist(), strict=True)):
        name = f"{task.train.class_names[label - 1]} x{int((matched == index).sum())}"
        fits = best_iou[index] >= iou_threshold
        marks.append(Mark(box_xyxy, WHITE if fits else UNMATCHED, name if fits else f"{name}, {best_iou[index]:.2f}"))
    return panel(dimmed(image), caption, marks)


def dimmed(image: np.ndarray) -> np.ndarray:
    """Return a darker image, on which thin lines show."""
    return (0.6 * image).astype(np.uint8)


# ---- the command ----------------------------------------------------------------------------------------------


DRAWN = {  # a function that draws and returns the files, and the names of the files
    "data": (show_data, ("data_train.png", "data_val.png")),
    "augment": (show_augment, ("augment.png",)),
    "anchors": (show_anchors, ("anchors.png",)),
    "matches": (show_matches, ("matches.png", "classes.png", "sizes.png")),
}


def show(arguments: argparse.Namespace) -> None:
    """Draw what the command line asks for. Raises OSError if another program's file would be overwritten."""
    draw, names = DRAWN[arguments.what]
    for path in (arguments.output / name for name in names):
        if path.exists() and not is_ours(path):
            raise FileExistsError(f"{path}: not made by detection.show; give another folder by --output")
    config = load_config(arguments.config, arguments.overrides, DetectionConfig)
    paths = draw(config, arguments)
    print(f"written to {', '.join(map(str, paths))}")
    if arguments.open and not all(webbrowser.open(path.absolute().as_uri()) for path in paths):
        logger.warning("no program found that opens pictures; look at the files")
