"""A trained detector in Python: load it, give it images, get typed detections.

    from detection import load

    detector = load("experiments/experiment_3")
    found = detector("photo.jpg")  # or a PIL image, an array, a tensor, or a list of any of these
    for box_xyxy, name, score in zip(found.boxes_xyxy, found.class_names, found.scores):
        print(name, score, box_xyxy)

Images are prepared, and outputs post-processed, as when the experiment was scored: upright 8-bit RGB, the whole picture
resized to the model's square, ImageNet's statistics, the experiment's own thresholds.
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

from data import IMAGENET_MEAN, IMAGENET_STD, DatasetError, as_rgb, normalize_images, read_image
from detection.coco.detections import Detections
from detection.coco.transforms import eval_transform
from detection.network.postprocess import postprocess
from detection.network.ssd import SSD, build_ssd
from detection.task import DetectionConfig, load_detector, read_detector
from engine.checkpoint import CheckpointError
from engine.compute.precision import autocast, inference_precision
from engine.logbook import logger
from records.experiment import read_experiment_config
from records.results import read_results
from weights.release import PUBLISHED_WEIGHTS, SUFFIX, released_config, weights_in

ImageLike = str | Path | Image.Image | np.ndarray | Tensor  # a single one, see `rgb_pixels`

BATCH_SIZE = 8  # images at once; decoded, those of a good camera take 100 MB each
WEIGHT_NAMES = (".pt", ".pth", SUFFIX)
EXPECTED = (
    f"name an experiment directory, experiments/experiment_N, a checkpoint in one, released weights, *{SUFFIX}, or a "
    "published folder; images come after it"
)


@dataclass(frozen=True, eq=False)
class Detector:
    """A trained detector with all that is needed to use it elsewhere; `load` makes one.

    path: the file of its weights. model: in evaluation mode, see SSD. config: of its training; `config.eval` has the
    thresholds. class_names, category_ids: of label k at k - 1. step: optimizer steps behind the weights."""

    path: Path
    model: SSD = field(repr=False)
    config: DetectionConfig = field(repr=False)
    class_names: list[str]
    category_ids: list[int]
    step: int

    @property
    def device(self) -> torch.device:
        """The device of the model, to which images are moved."""
        return self.model.anchors_cxcywh.device

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How to make the model's input from a picture, for other programs: plain data, in the order of the steps."""
        return {
            "colour": "RGB, 8 bits, upright",
            "resize": "bilinear, antialiased, the whole picture to a square whatever its shape",
            "input_size": self.model.input_size,
            "scale": 1 / 255,
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            "layout": "NCHW",
        }

    @overload
    def __call__(self, images: ImageLike, score_threshold: float | None = None) -> Detections: ...
    @overload
    def __call__(self, images: Sequence[ImageLike], score_threshold: float | None = None) -> list[Detections]: ...
    def __call__(
        self, images: ImageLike | Sequence[ImageLike], score_threshold: float | None = None
    ) -> Detections | list[Detections]:
        """Find the objects in an image, or in each of several.

        images: see `rgb_pixels`, of any size. score_threshold: smallest score reported; None: the experiment's.
        Raises DatasetError, naming the file or position, if an image cannot be read; TypeError if it is not one."""
        if isinstance(images, ImageLike) or not isinstance(images, Sequence) or isinstance(images, bytes):
            return self.detect([rgb_pixels(images)], score_threshold)[0]
        found = []
        for start in range(0, len(images), BATCH_SIZE):
            batch = []
            for position, image in enumerate(images[start : start + BATCH_SIZE], start=start):
                try:
                    batch.append(rgb_pixels(image))
                except (DatasetError, TypeError) as error:
                    raise type(error)(f"image {position + 1} of {len(images)}: {error}") from None
            found += self.detect(batch, score_threshold)
        return found

    @torch.inference_mode()
    def detect(self, pictures: Sequence[np.ndarray], score_threshold: float | None = None) -> list[Detections]:
        """Find the objects in one batch of pictures (H, W, 3) uint8 RGB, at least one; sizes may differ."""
        images = torch.stack([model_input(pixels, self.model.input_size) for pixels in pictures])
        images = normalize_images(images.to(self.device), self.config.train.channels_last)
        with autocast(self.device, inference_precision(self.config.train.precision, self.device)):
            outputs = self.model(images)
        settings = self.config.eval.model_dump()
        if score_threshold is not None:
            settings["score_threshold"] = score_threshold
        results = []
        for pixels, found in zip(pictures, postprocess(*outputs, self.model.anchors_cxcywh, **settings), strict=True):
            height, width, _ = pixels.shape
            boxes_xyxy = found.boxes_xyxy.double().cpu().numpy() * (width, height, width, height)
            labels = found.labels.cpu().numpy()
            names = [self.class_names[label - 1] for label in labels]
            category_ids = np.array(self.category_ids, np.int64)[labels - 1]
            results.append(Detections(boxes_xyxy, found.scores.double().cpu().numpy(), labels, names, category_ids))
        return results


def model_input(pixels: np.ndarray, input_size: int) -> Tensor:
    """Resize a picture (H, W, 3) uint8 as for scoring, to (3, input_size, input_size) uint8, not yet normalised."""
    height, width, _ = pixels.shape
    view = eval_transform(input_size)((width, height), np.empty((0, 4)), np.random.default_rng(0))
    return view.render(pixels)


def rgb_pixels(image: ImageLike) -> np.ndarray:
    """Return any picture as (H, W, 3) uint8 RGB, upright; it may be grey, 16-bit, palette, CMYK or transparent.

    image: a path; a PIL image; an array (H, W, 3), (H, W, 4) or (H, W) uint8, or (H, W) uint16; a tensor (3, H, W),
    uint8 or float from 0 to 1.
    Raises DatasetError, naming the file or the shape, if it cannot be read; TypeError if it is none of these."""
    if isinstance(image, str | Path):
        return np.array(read_image(Path(image)))
    if isinstance(image, Image.Image):
        try:
            return np.array(as_rgb(ImageOps.exif_transpose(image)))
        except Exception as error:  # Pillow reads a file when it is asked for its pixels
            raise DatasetError(f"{image.__class__.__name__}: cannot be decoded: {error}") from None
    if not isinstance(image, np.ndarray | Tensor):
        kind = type(image).__name__
        raise TypeError(f"got {kind}, expected a path, a PIL image, an array, a tensor, or a list of such")
    what = f"{type(image).__name__} of shape {tuple(image.shape)} and type {image.dtype}"
    if isinstance(image, Tensor):
        wanted = "expected (3, height, width), RGB, uint8 or float from 0 to 1, not normalised; of a batch, list(batch)"
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise DatasetError(f"{what}: {wanted}")
        if image.is_floating_point() and 0 <= image.min() <= image.max() <= 1:
            image = (image * 255).round().byte()
        if image.dtype != torch.uint8:
            raise DatasetError(f"{what}, from {image.min():g} to {image.max():g}: {wanted}")
        return image.permute(1, 2, 0).contiguous().cpu().numpy()
    kinds = {(2, "uint8"), (2, "uint16"), (3, "uint8")}
    channels = image.shape[2] if image.ndim == 3 else 3
    if (image.ndim, image.dtype.name) not in kinds or channels not in (3, 4) or 0 in image.shape:
        raise DatasetError(f"{what}: expected (height, width, 3) uint8, RGB")
    return np.array(as_rgb(Image.fromarray(np.ascontiguousarray(image))))


# ---- loading -------------------------------------------------------------------------------------------------


def load(named: str | Path, device: str | torch.device | None = None) -> Detector:
    """Load the detector that a user names, with the weights that were scored.

    named: an experiment directory (its newest checkpoint), a checkpoint in one, released weights (*.safetensors), or a
    folder made by weights.publish. device: None for a GPU if there is one, else the CPU. The network computes in the
    precision of its training, or in fp32 if the device lacks that in hardware.
    Raises ValueError, in one line, if it is missing, corrupt, or not a detector."""
    path = weights_file(Path(named))
    trained = read_detector(path)
    if not trained.class_names:
        raise CheckpointError(f"{path}: does not say its classes, so an older version wrote it; train again")
    if trained.facts is not None:
        config = released_config(path, trained.facts, DetectionConfig)
        category_ids = json.loads(trained.facts.get("category_ids", "null"))
    else:
        experiment = path.parent.parent
        if not (experiment / "config.yaml").is_file():
            raise CheckpointError(
                f"{path}: no {experiment / 'config.yaml'}, which describes its model; to pass weights on, "
                "python -m weights.publish EXPERIMENT"
            )
        config = read_experiment_config(experiment, DetectionConfig)
        category_ids = _category_ids(experiment, config, trained.class_names)
    model = build_ssd(config.model, len(trained.class_names))
    load_detector(model, trained.weights, path)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    layout = torch.channels_last if config.train.channels_last else torch.preserve_format
    model = model.eval().requires_grad_(False).to(device, memory_format=layout)
    if category_ids is None:
        category_ids = list(range(1, len(trained.class_names) + 1))
        logger.warning(
            "%s: the annotation file it was trained with is not at hand, so category ids are 1 to %d; data.root was %s",
            path, len(category_ids), config.data.root,
        )  # fmt: skip
    return Detector(path, model, config, trained.class_names, category_ids, trained.step)


def weights_file(path: Path) -> Path:
    """Return the file of weights of what a user names, see `load`. Raises CheckpointError if there is none."""
    if path.is_dir() and not (path / PUBLISHED_WEIGHTS).is_file():
        if not (path / "config.yaml").is_file():
            raise CheckpointError(f"{path}: neither config.yaml nor {PUBLISHED_WEIGHTS} in it; {EXPECTED}")
        read_experiment_config(path, DetectionConfig)  # raises if it is of another task
    file = weights_in(path)
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file or folder; {EXPECTED}")
    if file.suffix not in WEIGHT_NAMES:
        raise CheckpointError(f"{file}: its name is not that of weights; {EXPECTED}")
    return file


def _category_ids(experiment: Path, config: DetectionConfig, class_names: Sequence[str]) -> list[int] | None:
    """Return the ids, by label, of the annotation file that an experiment was trained with.

    From its results.json, else from the file itself; None if neither is there, or has different classes by now."""
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
