"""Detection data in COCO's format (cocodataset.org/#format-data): read and checked as a whole, then image by image.

`read_coco` is the door: it finds every defect of an annotation file, and every image that is not there, before
anything is trained. What it lets through follows these rules:

- A box that reaches over the edge of its image is cut to it; a box without area (COCO's train2017 has two) is left
  out. Both concern training only and are counted; scores are taken against the untouched file.
- Crowds (`iscrowd` 1) are never training targets. `iscrowd`, `area`, `segmentation` and `info` may be missing.
- Category ids may have gaps. Labels inside the network are 1 to num_classes, in the order of the ids; 0 is background.
- An image is turned as its EXIF orientation says, unless only the unturned one has the width and height that the
  file gives.

`CocoDetection` decodes and augments; `collate` makes the batch.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from data import Key
from engine.config import Config
from engine.logbook import progress_bar


class SplitConfig(Config):
    """Where one half of a data set lies."""

    images: str = Field(description="folder that file_name in the annotations is relative to; relative to root")
    annotations: str = Field(description="COCO instances JSON; relative to root")


class DataConfig(Config):
    """Which images to train and score on, and how they are loaded."""

    root: str = Field(description="folder of the data set")
    train: SplitConfig = Field(description="images to train on")
    val: SplitConfig = Field(description="images to score")
    workers: int = Field(4, ge=0, description="loader processes per training process; 0: load in the same one")
    cache_images: bool = Field(
        False,
        description="keep decoded images in memory: 3 bytes a pixel, 0.9 MB for 640 x 480, per training process",
    )


class DatasetError(ValueError):
    """A data set that cannot be used; the message names the file and what is wrong with it."""


class ImageRecord(NamedTuple):
    """One image as the annotation file describes it."""

    id: int
    file_name: str  # relative to the image folder
    width: int  # pixels, of the image as its boxes see it
    height: int


@dataclass(frozen=True, eq=False)
class CocoFile:
    """A checked annotation file.

    The objects of all images lie in a few arrays, image after image: loader processes can share these, whereas
    a million small objects would be copied into each as soon as it looks at them."""

    annotations_path: Path
    images_dir: Path
    images: list[ImageRecord]
    class_names: list[str]  # of label k at k - 1
    category_ids: list[int]  # of label k at k - 1
    boxes_xyxy: np.ndarray  # (objects, 4) float32 pixels, within their image
    labels: np.ndarray  # (objects,) int64, 1 to len(class_names)
    is_crowd: np.ndarray  # (objects,) bool
    first_object: np.ndarray  # (images + 1,) int64: image i has objects first_object[i] to first_object[i + 1] - 1
    num_cut: int  # boxes that reached over the edge of their image by a pixel or more
    num_left_out: int  # boxes without area

    def objects(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """boxes_xyxy, labels and is_crowd of the objects in images[index]."""
        span = slice(self.first_object[index], self.first_object[index + 1])
        return self.boxes_xyxy[span], self.labels[span], self.is_crowd[span]

    @property
    def classes(self) -> dict[int, str]:
        """Category id to name, in the order of the labels."""
        return dict(zip(self.category_ids, self.class_names, strict=True))

    @property
    def class_counts(self) -> np.ndarray:
        """(classes,) int64: how many objects to train on each class has, crowds aside; label k at k - 1."""
        return np.bincount(self.labels[~self.is_crowd], minlength=len(self.class_names) + 1)[1:]


# ---- reading and checking an annotation file ----------------------------------------------------------


def read_coco(annotations_path: str | Path, images_dir: str | Path) -> CocoFile:
    """Read an annotation file and check all of it, and that every image is there (but not what is in it).

    Raises DatasetError if anything is wrong: its first line names the file, the first defect and how many there are;
    up to nine more defects follow, a line each."""
    annotations_path, images_dir = Path(annotations_path), Path(images_dir)
    content = _read_json(annotations_path)
    defects = _defects(content, images_dir)
    if defects:
        if len(defects) > 1:
            defects[0] += f" (the first of {len(defects)} defects)"
        if len(defects) > 10:
            defects[10:] = [f"... and {len(defects) - 10} more"]
        raise DatasetError(f"{annotations_path}: " + "\n  ".join(defects))

    images = [ImageRecord(r["id"], r["file_name"], r["width"], r["height"]) for r in content["images"]]
    categories = sorted(content["categories"], key=lambda category: category["id"])
    index_of_image = {image.id: index for index, image in enumerate(images)}
    label_of_category = {category["id"]: label for label, category in enumerate(categories, start=1)}

    annotations = content["annotations"]
    image_indices = np.array([index_of_image[a["image_id"]] for a in annotations], np.int64)
    labels = np.array([label_of_category[a["category_id"]] for a in annotations], np.int64)
    is_crowd = np.array([a.get("iscrowd", 0) for a in annotations], bool)
    boxes_xywh = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)

    sizes = np.array([(image.width, image.height) for image in images], np.float64).reshape(-1, 2)[image_indices]
    corners = np.stack([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)  # (objects, 2, 2)
    cut = corners.clip(0, sizes[:, None])
    num_cut = int(np.any(np.abs(cut - corners) >= 1, axis=(1, 2)).sum())
    has_area = np.all(cut[:, 1] > cut[:, 0], axis=1)

    order = np.argsort(image_indices, kind="stable")
    order = order[has_area[order]]
    return CocoFile(
        annotations_path,
        images_dir,
        images,
        class_names=[category["name"] for category in categories],
        category_ids=[category["id"] for category in categories],
        boxes_xyxy=cut.reshape(-1, 4)[order].astype(np.float32),
        labels=labels[order],
        is_crowd=is_crowd[order],
        first_object=np.searchsorted(image_indices[order], np.arange(len(images) + 1)),
        num_cut=num_cut,
        num_left_out=int((~has_area).sum()),
    )


def read_split(config: DataConfig, split: Literal["train", "val"]) -> CocoFile:
    """`read_coco` of one half of a configured data set."""
    root, paths = Path(config.root).expanduser(), getattr(config, split)
    return read_coco(root / paths.annotations, root / paths.images)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read: {error.strerror}; is data.root the folder of the data set?"
        ) from None
    except (ValueError, RecursionError) as error:  # ValueError: of json, and of bytes that are no UTF-8
        raise DatasetError(f"{path}: not JSON: {error}") from None


_KEYS = {
    "categories": ("id", "name"),
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}


def _defects(content: Any, images_dir: Path) -> list[str]:
    """Everything that is wrong with the content of an annotation file, a line each."""
    if not isinstance(content, dict):
        return [f"holds a {type(content).__name__}, expected an object with the lists {', '.join(_KEYS)}"]
    no_list = [name for name in _KEYS if not isinstance(content.get(name), list)]
    if no_list:
        return [f"no list {name!r}, expected the lists {', '.join(_KEYS)}" for name in no_list]

    if not images_dir.is_dir():
        return [f"its image folder {images_dir}: no such folder"]

    images, categories = _by_id(content["images"]), _by_id(content["categories"])
    id_of_name: dict[str, int] = {}
    listings: dict[Path, set[str]] = {}
    return [
        *(f"{name!r} is empty" for name in ("categories", "images") if not content[name]),
        *_record_defects(content, "categories", lambda record: _category_defect(record, id_of_name)),
        *_record_defects(content, "images", lambda record: _image_defect(record, images_dir, listings)),
        *_record_defects(content, "annotations", lambda record: _annotation_defect(record, images, categories)),
    ]


def _record_defects(content: dict, name: str, find_defect: Callable[[dict], str | None]) -> Iterator[str]:
    """What is wrong in one of the lists: at most one thing per record, by find_defect where it is all there."""
    taken = set()
    for position, record in enumerate(content[name]):
        if not isinstance(record, dict):
            yield f"{name}[{position}]: expected an object, got {record!r:.50}"
            continue
        missing = [key for key in _KEYS[name] if key not in record]
        if missing:
            defect = f"no {missing[0]!r}"
        elif not _is_id(record["id"]):
            defect = "expected a whole number as id"
        elif record["id"] in taken:
            defect = "an earlier one has this id"
        else:
            taken.add(record["id"])
            defect = find_defect(record)
        if defect:
            yield f"{name}[{position}] (id {record.get('id')!r:.50}): {defect}"


def _category_defect(category: dict, id_of_name: dict[str, int]) -> str | None:
    name = category["name"]
    if not isinstance(name, str) or not name:
        return f"name {name!r:.50}, expected text"
    first_id = id_of_name.setdefault(name, category["id"])
    return f"name {name!r} is that of category {first_id}, too" if first_id != category["id"] else None


def _image_defect(image: dict, images_dir: Path, listings: dict[Path, set[str]]) -> str | None:
    """listings: the names in folders, kept: to list a folder once beats asking for each of 100,000 files in it."""
    file_name = image["file_name"]
    if not _has_size(image):
        return f"width {image['width']!r:.50}, height {image['height']!r:.50}, expected whole numbers above 0"
    if not isinstance(file_name, str):
        return f"file_name {file_name!r:.50}, expected text"
    path = PurePath(file_name)
    if path.is_absolute() or ".." in path.parts:
        return f"file_name {file_name!r} leads out of the image folder {images_dir}"
    folder = images_dir / path.parent
    if folder not in listings:
        listings[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
    return None if path.name in listings[folder] else f"file_name {file_name!r}: no such file in {images_dir}"


def _annotation_defect(annotation: dict, images: dict[int, dict], categories: dict[int, dict]) -> str | None:
    image_id, category_id, bbox = annotation["image_id"], annotation["category_id"], annotation["bbox"]
    if not _is_id(image_id) or image_id not in images:
        return f"image_id {image_id!r:.50}: no such image"
    if not _is_id(category_id) or category_id not in categories:
        return f"category_id {category_id!r:.50}: no such category"
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox)) and min(bbox[2:]) >= 0):
        return f"bbox {bbox!r:.100}, expected [x, y, width, height] in pixels, the last two not negative"
    if _has_size(images[image_id]) and _is_outside(bbox, images[image_id]):
        size = "{width} x {height}".format(**images[image_id])
        return f"bbox {bbox} lies outside image {image_id} of {size} pixels"
    if annotation.get("iscrowd", 0) not in (0, 1):
        return f"iscrowd {annotation['iscrowd']!r:.50}, expected 0 or 1"
    if not _is_number(annotation.get("area", 0)):
        return f"area {annotation['area']!r:.50}, expected a number"
    return None


def _is_outside(bbox: list[float], image: dict) -> bool:
    """Whether a box that has an area shares none with its image."""
    x, y, width, height = bbox
    misses = x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0
    return width > 0 and height > 0 and misses


def _by_id(records: list) -> dict[int, dict]:
    return {record["id"]: record for record in records if isinstance(record, dict) and _is_id(record.get("id"))}


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63  # bool is an int, too


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e12  # false for NaN


def _has_size(image: dict) -> bool:
    return all(type(side) is int and 0 < side < 2**31 for side in (image.get("width"), image.get("height")))


# ---- images and batches -------------------------------------------------------------------------------


def read_image(coco: CocoFile, index: int) -> np.ndarray:
    """Decode coco.images[index] to (height, width, 3) uint8 RGB, turned the way its boxes see it.

    By Pillow: torchvision's decoder can take the process down with a broken PNG.
    Raises DatasetError if it cannot be decoded or is not of the recorded size; a size that is wrong is found
    before any pixel is decoded."""
    record = coco.images[index]
    path = coco.images_dir / record.file_name
    place = f"{path} (image id {record.id})"
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            upright_size = image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
            size = record.width, record.height
            if size not in (upright_size, image.size):
                (width, height), recorded = upright_size, f"{record.width} x {record.height}"
                raise DatasetError(f"{place}: {width} x {height} pixels, the annotation file says {recorded}")
            if orientation != 1 and size == upright_size:
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits, which convert() would saturate
                image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
            return np.array(image.convert("RGB"))
    except DatasetError:
        raise
    except Exception as error:  # Pillow's decoders raise all sorts on broken files
        raise DatasetError(f"{place}: cannot be decoded: {error}") from None


class CocoDetection(Dataset):
    """Images and their objects, by (epoch, index): the same pair always gives the same sample."""

    def __init__(self, coco: CocoFile, transform: v2.Transform, seed: int = 0, cache_images: bool = False) -> None:
        """transform: see detection/transforms.py. seed: of the augmentation, 0 or more.

        cache_images: decode all images now and keep them; forked loader processes share them."""
        self.coco, self.transform, self.seed = coco, transform, seed
        self.cached: list[np.ndarray] = []
        if cache_images:
            bar = progress_bar(range(len(self)), desc="decoding images", unit="image", leave=False)
            self.cached = [read_image(coco, index) for index in bar]

    def __len__(self) -> int:
        return len(self.coco.images)

    def __getitem__(self, key: Key) -> dict[str, Tensor | int]:
        """One sample, with crowds left out:
        image (3, S, S) uint8, boxes_xyxy (n, 4) float32 fractions, labels (n,) int64, image_id int."""
        epoch, index = key
        record = self.coco.images[index]
        pixels = self.cached[index] if self.cached else read_image(self.coco, index)
        boxes, labels, is_crowd = self.coco.objects(index)
        sample = {
            "image": tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1)),
            "boxes": tv_tensors.BoundingBoxes(
                torch.from_numpy(boxes[~is_crowd]), format="XYXY", canvas_size=(record.height, record.width)
            ),
            "labels": torch.from_numpy(labels[~is_crowd]),
        }
        # Augmentation draws from torch's global generator, on the CPU. Seeded here and restored after, it depends
        # neither on the process that loads nor on what it loaded before. torch.manual_seed would reseed GPUs, too.
        with torch.random.fork_rng(devices=[]):
            entropy = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1, np.uint64)
            torch.default_generator.manual_seed(int(entropy[0]))
            sample = self.transform(sample)
        image = sample["image"].as_subclass(Tensor)
        height, width = image.shape[1:]
        boxes_xyxy = sample["boxes"].as_subclass(Tensor) / torch.tensor([width, height, width, height])
        return {
            "image": image,
            "boxes_xyxy": boxes_xyxy.clamp(0, 1),  # rounding
            "labels": sample["labels"],
            "image_id": record.id,
        }


def collate(samples: list[dict]) -> dict[str, Tensor]:
    """Stack samples of CocoDetection; those with fewer objects than others are filled up with zeros.

    Returns images (B, 3, S, S) uint8, boxes_xyxy (B, M, 4) float32 fractions, labels (B, M) int64, 0 where there
    is no object, and image_ids (B,) int64; M is the largest number of objects, at least 1."""
    max_objects = max(1, *(len(sample["labels"]) for sample in samples))
    boxes_xyxy = torch.zeros(len(samples), max_objects, 4)
    labels = torch.zeros(len(samples), max_objects, dtype=torch.int64)
    for row, sample in enumerate(samples):
        boxes_xyxy[row, : len(sample["labels"])] = sample["boxes_xyxy"]
        labels[row, : len(sample["labels"])] = sample["labels"]
    return {
        "images": torch.stack([sample["image"] for sample in samples]),
        "boxes_xyxy": boxes_xyxy,
        "labels": labels,
        "image_ids": torch.tensor([sample["image_id"] for sample in samples]),
    }
