"""Load a trained detector in Python and run it on images.

    from detection import load

    detector = load("experiments/experiment_3")
    detections = detector("photo.jpg")  # or a PIL image, an array, a tensor, or a list of any of these
    for box_xyxy, name, score in zip(detections.boxes_xyxy, detections.class_names, detections.scores):
        print(name, score, box_xyxy)

Pre- and post-processing are the same as in the experiment's evaluation. An image is converted to upright 8-bit RGB,
resized to the model's square input without keeping its aspect ratio. The model normalises it.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from data import DatasetError, as_rgb, read_image, to_layout
from detection.coco.detections import Detections
from detection.coco.transforms import eval_transform, render
from detection.network.postprocess import RawDetections, postprocess
from detection.network.ssd import SSD, build_ssd
from detection.task import DetectionConfig, load_detector, read_detector
from engine.checkpoint import CheckpointError
from engine.compute.precision import autocast, inference_precision
from engine.logbook import logger
from records.experiment import read_experiment_config
from records.results import read_results
from weights.release import PUBLISHED_WEIGHTS, SUFFIX, released_config, weights_in

ImageLike = str | Path | Image.Image | np.ndarray | Tensor  # one image, see `rgb_pixels`

BATCH_SIZE = 8  # images per forward pass; one decoded camera photo can take 100 MB
WEIGHT_SUFFIXES = (".pt", ".pth", SUFFIX)
EXPECTED = (
    "expected an experiment directory (experiments/experiment_N), one of its checkpoints, released weights "
    f"(*{SUFFIX}) or a published folder; list images after it"
)


@dataclass(frozen=True, eq=False)
class Detector:
    """A trained detector with its config and classes. Use `load` to create one.

    path: weights file. model: SSD in evaluation mode. config: training config; `config.eval` holds the thresholds.
    class_names, category_ids: entry k - 1 belongs to label k. step: number of optimizer steps in training."""

    path: Path
    model: SSD = field(repr=False)
    config: DetectionConfig = field(repr=False)
    class_names: list[str]
    category_ids: list[int]
    step: int

    @property
    def device(self) -> torch.device:
        """Device of the model. Images are moved to it."""
        return self.model.anchors_cxcywh.device

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Steps that turn a picture into the model's input, in order, as plain data for other programs.

        The model itself does the rest: it multiplies by `scale`, subtracts `mean` and divides by `std`."""
        return {
            "colour": "RGB, 8 bits, upright",
            "resize": "bilinear, antialiased, to a square without keeping the aspect ratio",
            "input_size": self.model.input_size,
            "values": "0 to 255, not scaled and not normalised",
            "layout": "NCHW",
            "done_by_the_model": {"scale": 1 / 255, **pixel_statistics(self.model)},
        }

    @overload
    def __call__(self, images: ImageLike, score_threshold: float | None = None) -> Detections: ...
    @overload
    def __call__(self, images: Sequence[ImageLike], score_threshold: float | None = None) -> list[Detections]: ...
    def __call__(
        self, images: ImageLike | Sequence[ImageLike], score_threshold: float | None = None
    ) -> Detections | list[Detections]:
        """Detect objects in one image, or in each image of a sequence.

        images: of any size and of any type that `rgb_pixels` accepts. score_threshold: None uses `config.eval`.
        Raises DatasetError naming the file or position of an unreadable image, TypeError for other types."""
        if isinstance(images, ImageLike) or not isinstance(images, Sequence) or isinstance(images, bytes):
            return self.detect([rgb_pixels(images)], score_threshold)[0]
        detections = []
        for start in range(0, len(images), BATCH_SIZE):
            batch = []
            for position, image in enumerate(images[start : start + BATCH_SIZE], start=start):
                try:
                    batch.append(rgb_pixels(image))
                except (DatasetError, TypeError) as error:
                    raise type(error)(f"image {position + 1} of {len(images)}: {error}") from None
            detections += self.detect(batch, score_threshold)
        return detections

    @torch.inference_mode()
    def detect(self, pictures: Sequence[np.ndarray], score_threshold: float | None = None) -> list[Detections]:
        """Detect objects in a non-empty batch of pictures, each (H, W, 3) uint8 RGB. Their sizes may differ."""
        images = self.batch(pictures, self.config.train.channels_last)
        with autocast(self.device, inference_precision(self.config.train.precision, self.device)):
            outputs = self.model(images)
        results = self.postprocess(outputs, score_threshold)
        return [self.in_pixels(raw, pixels.shape) for pixels, raw in zip(pictures, results, strict=True)]

    def batch(self, pictures: Sequence[np.ndarray], channels_last: bool) -> Tensor:
        """Return the model's input for pictures, each (H, W, 3) uint8, on its device: (B, 3, S, S) uint8."""
        images = torch.stack([model_input(pixels, self.model.input_size) for pixels in pictures])
        return to_layout(images.to(self.device), channels_last)

    def postprocess(self, outputs: Sequence[Tensor], score_threshold: float | None = None) -> list[RawDetections]:
        """Return the detections of each image from the model's outputs, with the thresholds of `config.eval`."""
        settings = self.config.eval.model_dump()
        if score_threshold is not None:
            settings["score_threshold"] = score_threshold
        settings["score_function"] = self.model.score_function
        return postprocess(*outputs, self.model.anchors_cxcywh, **settings)

    def in_pixels(self, raw: RawDetections, shape: Sequence[int]) -> Detections:
        """Return the detections of a picture of shape (H, W, 3) with boxes in pixels, on the CPU."""
        height, width, _ = shape
        boxes_xyxy = raw.boxes_xyxy.double().cpu().numpy() * (width, height, width, height)
        labels = raw.labels.cpu().numpy()
        names = [self.class_names[label - 1] for label in labels]
        category_ids = np.array(self.category_ids, np.int64)[labels - 1]
        return Detections(boxes_xyxy, raw.scores.double().cpu().numpy(), labels, names, category_ids)


def pixel_statistics(model: SSD) -> dict[str, list[float]]:
    """Return mean and std that a detector normalises images with: red, green, blue, for pixel values from 0 to 1."""
    statistics = {"mean": model.pixel_mean, "std": model.pixel_std}
    return {name: [round(value, 6) for value in values.tolist()] for name, values in statistics.items()}


def model_input(pixels: np.ndarray, input_size: int) -> Tensor:
    """Resize a picture (H, W, 3) uint8 as in evaluation. Returns (3, input_size, input_size) uint8, not normalised."""
    height, width, _ = pixels.shape
    view = eval_transform(input_size)((width, height), np.empty((0, 4)), np.random.default_rng(0))
    return render([view], [pixels])


def rgb_pixels(image: ImageLike) -> np.ndarray:
    """Convert a colour, grey, 16-bit, palette, CMYK or transparent image to upright (H, W, 3) uint8 RGB.

    image: a path, a PIL image, an array or a tensor. Arrays: uint8 (H, W, 3), (H, W, 4) or (H, W); uint16 (H, W).
    Tensors: (3, H, W), uint8 or float in [0, 1].
    Raises DatasetError naming the file or shape if the image cannot be read, TypeError for other types."""
    if isinstance(image, str | Path):
        return np.array(read_image(Path(image)))
    if isinstance(image, Image.Image):
        try:
            return np.array(as_rgb(ImageOps.exif_transpose(image)))
        except Exception as error:  # Pillow decodes a file only when its pixels are accessed
            raise DatasetError(f"{image.__class__.__name__}: cannot be decoded: {error}") from None
    if not isinstance(image, np.ndarray | Tensor):
        kind = type(image).__name__
        raise TypeError(f"got {kind}, expected a path, a PIL image, an array, a tensor, or a list of these")
    what = f"{type(image).__name__} of shape {tuple(image.shape)} and type {image.dtype}"
    if isinstance(image, Tensor):
        expected = (
            "expected (3, height, width) RGB, uint8 or float in [0, 1], not normalised; to pass a batch, convert it to "
            "a list: list(batch)"
        )
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise DatasetError(f"{what}: {expected}")
        if image.is_floating_point() and 0 <= image.min() <= image.max() <= 1:
            image = (image * 255).round().byte()
        if image.dtype != torch.uint8:
            raise DatasetError(f"{what}, from {image.min():g} to {image.max():g}: {expected}")
        return image.permute(1, 2, 0).contiguous().cpu().numpy()
    kinds = {(2, "uint8"), (2, "uint16"), (3, "uint8")}
    channels = image.shape[2] if image.ndim == 3 else 3
    if (image.ndim, image.dtype.name) not in kinds or channels not in (3, 4) or 0 in image.shape:
        raise DatasetError(f"{what}: expected (height, width, 3) uint8, RGB")
    return np.array(as_rgb(Image.fromarray(np.ascontiguousarray(image))))


# ---- loading -------------------------------------------------------------------------------------------------


def load(source: str | Path, device: str | torch.device | None = None) -> Detector:
    """Load a trained detector with the weights that were scored.

    source: an experiment directory (its newest checkpoint is loaded), one of its checkpoints, released weights
    (*.safetensors), or a folder made by weights.publish. device: None selects a GPU if there is one, else the CPU. The
    network computes in its training precision, or in fp32 if the device does not support that precision in hardware.
    Raises ValueError with a one-line message if the source is missing, corrupt, or not a detector."""
    path = weights_file(Path(source))
    trained = read_detector(path)
    if not trained.class_names:
        raise CheckpointError(f"{path}: has no class names, because an older version wrote it; train again")
    if trained.facts is not None:
        config = released_config(path, trained.facts, DetectionConfig)
        category_ids = json.loads(trained.facts.get("category_ids", "null"))
    else:
        experiment = path.parent.parent
        if not (experiment / "config.yaml").is_file():
            raise CheckpointError(
                f"{path}: its model is unknown, because {experiment / 'config.yaml'} is missing; to share weights, use "
                "python -m weights.publish EXPERIMENT"
            )
        config = read_experiment_config(experiment, DetectionConfig)
        category_ids = _category_ids(experiment, config, trained.class_names)
    model = build_ssd(config.model, len(trained.class_names), config.loss.score_function)
    load_detector(model, trained.weights, path)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    layout = torch.channels_last if config.train.channels_last else torch.preserve_format
    model = model.eval().requires_grad_(False).to(device, memory_format=layout)
    if category_ids is None:
        category_ids = list(range(1, len(trained.class_names) + 1))
        logger.warning(
            "%s: its annotation file is missing or has changed, so category ids are 1 to %d; data.root was %s",
            path, len(category_ids), config.data.root,
        )  # fmt: skip
    return Detector(path, model, config, trained.class_names, category_ids, trained.step)


def weights_file(path: Path) -> Path:
    """Return the weights file for a path that `load` accepts. Raises CheckpointError if there is none."""
    if path.is_dir() and not (path / PUBLISHED_WEIGHTS).is_file():
        if not (path / "config.yaml").is_file():
            raise CheckpointError(f"{path}: contains neither config.yaml nor {PUBLISHED_WEIGHTS}; {EXPECTED}")
        read_experiment_config(path, DetectionConfig)  # raises if the config belongs to a different task
    file = weights_in(path)
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file or folder; {EXPECTED}")
    if file.suffix not in WEIGHT_SUFFIXES:
        raise CheckpointError(f"{file}: its suffix does not belong to a weights file; {EXPECTED}")
    return file


def _category_ids(experiment: Path, config: DetectionConfig, class_names: Sequence[str]) -> list[int] | None:
    """Return the category ids, by label, of the annotation file that an experiment was trained with.

    The ids are in results.json, or else in the annotation file. Returns None if neither file has these classes."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        results = read_results(experiment / "results.json")
        if results.protocol.classes == class_names and results.category_ids is not None:
            return results.category_ids
    with suppress(OSError, ValueError, LookupError, TypeError):
        annotations = json.loads(config.data.paths("val")[0].read_bytes())
        categories = sorted(annotations["categories"], key=lambda category: category["id"])
        if [category["name"] for category in categories] == class_names:
            return [category["id"] for category in categories]
    return None
