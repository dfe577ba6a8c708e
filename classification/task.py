"""The classification task: a Swin, its loss and its accuracy; and reading trained classifiers."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import DataLoader

from classification.data import DataConfig, check_pair, imagenet_classes
from classification.transforms import AugmentConfig, BatchAugment, eval_transform, train_transform
from data import LabelledImages, LabelledSamples, LabelledTask, batch_to, eval_loader, in_order, normalize_images
from engine import distributed
from engine.checkpoint import is_checkpoint, load_checkpoint, trained_weights
from engine.compute.inference import evaluation_mode
from engine.compute.precision import Precision, autocast
from engine.config import Config
from engine.logbook import progress_bar
from engine.optim import OptimConfig
from model import POSITIONS, SWIN_VARIANTS, SwinTransformer, load_swin_weights, swin_state_dict
from training import Evaluation, TrainConfig
from weights.registry import find_weights, identified, read_weights
from weights.release import SUFFIX, read_safetensors

GUESSES = 5  # kept of each image, best first


class ModelConfig(Config):
    """Which Swin to build."""

    name: Literal[*SWIN_VARIANTS] = Field("swin_t", description="variant, see model.SWIN_VARIANTS")
    input_size: int = Field(224, ge=1, description="side in pixels of the square input")
    patch_size: int = Field(4, ge=1, description="side of a patch in pixels")
    window_size: int | None = Field(None, ge=1, description="side of a window in patches; null takes the variant's")
    shift: bool = Field(True, description="shift the windows of every second block")
    position: Literal[*POSITIONS] = Field("rel", description="position embedding")
    drop_path_rate: float = Field(0.2, ge=0, lt=1, description="stochastic depth of the last block")
    weights: str | None = Field(
        None,
        description="to start from: imagenet1k, imagenet22k, a name of saved_weights/registry.yaml, a file, or an "
        "experiment; null: random weights. A head of other classes is left out",
    )
    average_weights: bool = Field(True, description="of an experiment, its moving average if it kept one")


class LossConfig(Config):
    """Cross-entropy."""

    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of each target spread over all classes")


class EvalConfig(Config):
    """How validation images are seen."""

    crop_fraction: float = Field(0.875, gt=0, le=1, description="share of the resized shorter side that is seen")


class ClassificationConfig(Config):
    """One row of a results table."""

    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig
    eval: EvalConfig = Field(default_factory=EvalConfig)

    @property
    def resize_size(self) -> int:
        """To what the shorter side of a validation image is resized, in pixels."""
        return round(self.model.input_size / self.eval.crop_fraction)


def build_swin(config: ModelConfig, num_classes: int) -> SwinTransformer:
    """Return the classifier that a config names, with random weights."""
    sizes = SWIN_VARIANTS[config.name] | ({"window_size": config.window_size} if config.window_size else {})
    return SwinTransformer(
        **sizes,
        num_classes=num_classes,
        patch_size=config.patch_size,
        image_size=config.input_size,
        drop_path_rate=config.drop_path_rate,
        shift=config.shift,
        position=config.position,
    )


class TrainedClassifier(NamedTuple):
    """What a file of weights holds."""

    weights: dict[str, Tensor]  # under Microsoft's names
    classes: list[str] | None  # of their outputs; None where the file does not say


def read_classifier(path: Path, average: bool = True) -> TrainedClassifier:
    """Read a classifier's weights and classes from a file.

    average: take the moving average of a run that kept one. Raises ValueError if the file holds no classifier."""
    classes = None
    if is_checkpoint(path):
        state = load_checkpoint(path)
        weights, classes = trained_weights(state, average), state["data"]["classes"]
    else:
        weights = swin_state_dict(read_weights(path))
        if path.suffix == SUFFIX and (facts := read_safetensors(path)[1]):
            classes = json.loads(facts["classes"])
    if "head.weight" not in weights:
        raise ValueError(
            f"{path}: not a classifier, it has no head; expected an experiment of classification or a Swin"
        )
    if classes is None and len(weights["head.weight"]) == len(imagenet_classes()):
        classes = list(imagenet_classes())
    return TrainedClassifier(weights, classes)


def start_from(model: SwinTransformer, config: ModelConfig, class_ids: list[str]) -> str:
    """Load the weights that a config names, without the head if its classes differ. Return a line that says so.

    Raises ValueError, naming the field, if they are missing or do not fit."""
    try:
        path = find_weights(config.weights, config.name)
        weights, classes = read_classifier(path, config.average_weights)
        is_same = classes == class_ids or (classes is None and len(weights["head.weight"]) == len(class_ids))
        if not is_same:
            weights |= {f"head.{name}": own for name, own in model.head.state_dict().items()}
        resized, _ = load_swin_weights(model, weights)
    except ValueError as error:
        raise ValueError(f"model.weights '{config.weights}': {error}") from error
    parts = [f"started from {identified(path)}"]
    if resized:
        parts.append(f"{len(resized)} position tables resized, such as {resized[0]}")
    parts.append("with its head" if is_same else "the head from random weights, because its classes differ")
    return "; ".join(parts)


class Guesses(NamedTuple):
    """The best min(5, C) classes of each of N images, best first."""

    image_ids: np.ndarray  # (N,) int64
    classes: np.ndarray  # (N, K) int64
    probabilities: np.ndarray  # (N, K) float32


@torch.inference_mode()
def guess(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best min(5, C) classes of each image and their probabilities, best first.

    images: (B, 3, S, S) normalised. Returns (B, K) int64 and (B, K) float32."""
    probabilities = model(images).float().softmax(dim=1)
    found, classes = probabilities.topk(min(GUESSES, probabilities.shape[1]), dim=1)
    return classes, found


def scores_of(guesses: Guesses, labels: np.ndarray, num_classes: int) -> dict[str, float | None]:
    """Return the share of images whose class is the first guess, and is among the first five.

    labels: (N,) of the images in their order. With five classes or fewer the latter means nothing: None."""
    right = guesses.classes == labels[:, None]
    top5 = float(right.any(axis=1).mean()) if num_classes > GUESSES else None
    return {"top1": float(right[:, 0].mean()), "top5": top5}


def constant_predictor_loss(labels: np.ndarray, num_classes: int, label_smoothing: float) -> float:
    """Return the mean loss of the best constant predictor: the entropy of the targets' mean, in nats."""
    shares = np.bincount(labels, minlength=num_classes) / len(labels)
    shares = (1 - label_smoothing) * shares + label_smoothing / num_classes
    return -sum(share * math.log(share) for share in shares.tolist() if share > 0)


class ClassificationTask(LabelledTask):
    """A Swin, its cross-entropy and its accuracy; see training.Task."""

    metrics = ("top1", "top5")
    lower_is_better = False

    def __init__(
        self, config: ClassificationConfig, train: LabelledImages, val: LabelledImages, *, from_checkpoint: bool = False
    ) -> None:
        """Raises DatasetError if train and val do not fit together, ValueError if model.weights cannot be used."""
        check_pair(train, val)
        super().__init__(config, train, val)
        num_classes = len(train.class_ids)
        self.reference_losses = {
            "classification": constant_predictor_loss(train.labels, num_classes, config.loss.label_smoothing)
        }
        torch.manual_seed(config.train.seed)  # initial weights
        self.model = build_swin(config.model, num_classes)
        if config.model.weights is not None and not from_checkpoint:
            self.started_from = start_from(self.model, config.model, train.class_ids)
        self.train_set = LabelledSamples(
            train, train_transform(config.augment, config.model.input_size), config.train.seed
        )
        self.batch_augment = BatchAugment(config.augment, num_classes)

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the cross-entropy summed over the images of a batch, and their number."""
        config = self.config
        images = normalize_images(batch["images"], config.train.channels_last)
        images, targets = self.batch_augment(images, batch["labels"])
        logits = model(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=config.loss.label_smoothing, reduction="sum")
        return {"classification": loss}, torch.full((), len(images), device=images.device)

    def evaluate(
        self, model: nn.Module, device: torch.device, stop_if_asked: Callable[[], None] = lambda: None
    ) -> Evaluation:
        """Return top-1 and top-5 over every validation image, each counted once, and the Guesses behind them."""
        train = self.config.train
        if self.val_loader is None:
            transform = eval_transform(self.config.model.input_size, self.config.resize_size)
            self.val_loader = eval_loader(self.val, transform, train.batch_size, self.workers, device)
        guesses = guess_all(model, self.val_loader, device, train.precision, train.channels_last, stop_if_asked)
        scores = guesses and scores_of(guesses, self.val.labels, len(self.val.class_ids))
        return Evaluation(distributed.broadcast(scores), guesses)

    def draw(self, experiment: Path, epoch: int, evaluation: Evaluation) -> None:
        """Draw nothing."""


def guess_all(
    model: nn.Module,
    loader: DataLoader,
    device: torch.device,
    precision: Precision = "fp32",
    channels_last: bool = False,
    stop_if_asked: Callable[[], None] = lambda: None,
) -> Guesses | None:
    """Guess the classes of every image that the loaders of all ranks yield, by image; None except on rank 0.

    precision, channels_last: arithmetic and memory layout. stop_if_asked: called between batches."""
    found = []
    with evaluation_mode(model):
        for batch in progress_bar(loader, desc="scoring", unit="batch", leave=False):
            stop_if_asked()
            images = normalize_images(batch_to(batch, device)["images"], channels_last)
            with autocast(device, precision):
                classes, probabilities = guess(model, images)
            found.append(Guesses(batch["image_ids"].numpy(), classes.cpu().numpy(), probabilities.cpu().numpy()))
    together = in_order(found)
    return together and Guesses(*together)
