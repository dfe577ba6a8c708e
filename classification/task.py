"""The classification task: Swin classifier, loss and accuracy; and loading trained classifiers."""

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

from classification.data import DataConfig, check_same_classes, imagenet_classes
from classification.transforms import AugmentConfig, BatchAugment, eval_transform, train_transform
from data import LabelledImages, LabelledSamples, LabelledTask, batch_to, eval_loader, gather_in_order, normalize_images
from engine import distributed
from engine.checkpoint import is_checkpoint, load_checkpoint, trained_weights
from engine.compute.inference import evaluation_mode
from engine.compute.precision import Precision, autocast
from engine.config import Config
from engine.logbook import progress_bar
from engine.optim import OptimConfig
from model import POSITIONS, SWIN_VARIANTS, SwinTransformer, load_swin_weights, swin_state_dict
from records.results import InitialWeights
from training import Evaluation, TrainConfig
from weights.registry import find_weights, initial_weights, read_weights
from weights.release import SUFFIX, read_safetensors

TOP_K = 5  # most likely classes kept per image


class ModelConfig(Config):
    """The Swin to build."""

    name: Literal[*SWIN_VARIANTS] = Field("swin_t", description="variant, see model.SWIN_VARIANTS")
    input_size: int = Field(224, ge=1, description="side in pixels of the square input")
    patch_size: int = Field(4, ge=1, description="side of a patch in pixels")
    window_size: int | None = Field(None, ge=1, description="side of a window in patches; null: the variant's default")
    shift: bool = Field(True, description="shift the windows of every second block")
    position: Literal[*POSITIONS] = Field("rel", description="position encoding")
    drop_path_rate: float = Field(0.2, ge=0, lt=1, description="stochastic depth rate of the last block")
    weights: str | None = Field(
        None,
        description="initial weights: imagenet1k, imagenet22k, a name in saved_weights/registry.yaml, a file, or an "
        "experiment; null: random weights. The head is loaded only if the classes are the same",
    )
    average_weights: bool = Field(True, description="load an experiment's moving average of weights, if it has one")


class LossConfig(Config):
    """The cross-entropy loss."""

    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of each target spread evenly over all classes")


class EvalConfig(Config):
    """How to crop validation images."""

    crop_fraction: float = Field(
        0.875, gt=0, le=1, description="side of the center crop / shorter side of the resized image"
    )


class ClassificationConfig(Config):
    """Config of a classification run: one row of a results table."""

    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig
    eval: EvalConfig = Field(default_factory=EvalConfig)

    @property
    def resize_size(self) -> int:
        """Shorter side of a validation image before the center crop, in pixels."""
        return round(self.model.input_size / self.eval.crop_fraction)


def build_swin(config: ModelConfig, num_classes: int) -> SwinTransformer:
    """Return the classifier that a config describes, with random weights."""
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
    """The weights and classes in a file."""

    weights: dict[str, Tensor]  # by parameter name, as in Microsoft's Swin
    classes: list[str] | None  # class of each output; None if the file does not list them


def read_classifier(path: Path, average: bool = True) -> TrainedClassifier:
    """Read a classifier's weights and classes from a file.

    average: prefer a run's moving average of the weights. Raises ValueError if the file is not a classifier."""
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
            f"{path}: not a classifier (no head.weight); expected a classification experiment or a Swin classifier"
        )
    if classes is None and len(weights["head.weight"]) == len(imagenet_classes()):
        classes = list(imagenet_classes())
    return TrainedClassifier(weights, classes)


def load_initial_weights(model: SwinTransformer, config: ModelConfig, class_ids: list[str]) -> InitialWeights:
    """Initialize the model with the weights given in the config. Return the record of the weights.

    The head is loaded only for the same classes. Raises ValueError if the weights are missing or do not fit."""
    try:
        found = find_weights(config.weights, config.name)
        weights, classes = read_classifier(found.path, config.average_weights)
        is_same = classes == class_ids or (classes is None and len(weights["head.weight"]) == len(class_ids))
        if not is_same:
            weights |= {f"head.{name}": value for name, value in model.head.state_dict().items()}
        resized, _ = load_swin_weights(model, weights)
    except ValueError as error:
        raise ValueError(f"model.weights '{config.weights}': {error}") from error
    note = "head loaded" if is_same else "head started from random weights, because the classes differ"
    if resized:
        note = f"{len(resized)} position tables resized, such as {resized[0]}; {note}"
    return initial_weights("classifier", config.weights, found, note)


class Predictions(NamedTuple):
    """The K = min(5, C) most likely classes of each of N images, best first. C: number of classes."""

    image_ids: np.ndarray  # (N,) int64
    classes: np.ndarray  # (N, K) int64
    probabilities: np.ndarray  # (N, K) float32


@torch.inference_mode()
def predict_batch(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the K = min(5, C) most likely classes of each image and their probabilities, best first.

    images: (B, 3, S, S) float, normalized. Returns (B, K) int64 and (B, K) float32."""
    probabilities = model(images).float().softmax(dim=1)
    top_probabilities, classes = probabilities.topk(min(TOP_K, probabilities.shape[1]), dim=1)
    return classes, top_probabilities


def compute_scores(predictions: Predictions, labels: np.ndarray, num_classes: int) -> dict[str, float | None]:
    """Return the top-1 and top-5 accuracy, from 0 to 1; top-5 is None if there are at most five classes.

    labels: (N,) int, true class of each image, in the order of the predictions."""
    is_correct = predictions.classes == labels[:, None]  # (N, K)
    top5 = float(is_correct.any(axis=1).mean()) if num_classes > TOP_K else None
    return {"top1": float(is_correct[:, 0].mean()), "top5": top5}


def constant_predictor_loss(labels: np.ndarray, num_classes: int, label_smoothing: float) -> float:
    """Return the loss of the best constant predictor, in nats: the entropy of the mean target."""
    shares = np.bincount(labels, minlength=num_classes) / len(labels)
    shares = (1 - label_smoothing) * shares + label_smoothing / num_classes
    return -sum(share * math.log(share) for share in shares.tolist() if share > 0)


class ClassificationTask(LabelledTask):
    """Classify images with a Swin, trained with cross-entropy and scored by accuracy; see training.Task."""

    metrics = ("top1", "top5")
    lower_is_better = False
    trunk = None  # weights of a classifier initialize the complete model

    def __init__(
        self, config: ClassificationConfig, train: LabelledImages, val: LabelledImages, *, from_checkpoint: bool = False
    ) -> None:
        """Raise DatasetError if train and val have different classes, ValueError if model.weights cannot be loaded."""
        check_same_classes(train, val)
        super().__init__(config, train, val)
        num_classes = len(train.class_ids)
        self.reference_losses = {
            "classification": constant_predictor_loss(train.labels, num_classes, config.loss.label_smoothing)
        }
        torch.manual_seed(config.train.seed)  # initial weights
        self.model = build_swin(config.model, num_classes)
        self.initial_weights: InitialWeights | None = None
        if config.model.weights is not None and not from_checkpoint:
            self.initial_weights = load_initial_weights(self.model, config.model, train.class_ids)
        self.train_set = LabelledSamples(
            train, train_transform(config.augment, config.model.input_size), config.train.seed
        )
        self.batch_augment = BatchAugment(config.augment, num_classes)

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the cross-entropy summed over the images of a batch, and the number of images."""
        config = self.config
        images = normalize_images(batch["images"], config.train.channels_last)
        images, targets = self.batch_augment(images, batch["labels"])
        logits = model(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=config.loss.label_smoothing, reduction="sum")
        return {"classification": loss}, torch.full((), len(images), device=images.device)

    def evaluate(
        self, model: nn.Module, device: torch.device, stop_if_requested: Callable[[], None] = lambda: None
    ) -> Evaluation:
        """Score every validation image once. Return top-1 and top-5 accuracy, and on rank 0 the Predictions."""
        train = self.config.train
        if self.val_loader is None:
            transform = eval_transform(self.config.model.input_size, self.config.resize_size)
            self.val_loader = eval_loader(self.val, transform, train.batch_size, self.workers, device)
        predictions = predict_all(
            model, self.val_loader, device, train.precision, train.channels_last, stop_if_requested
        )
        scores = predictions and compute_scores(predictions, self.val.labels, len(self.val.class_ids))
        return Evaluation(distributed.broadcast(scores), predictions)

    def draw(self, experiment: Path, epoch: int, evaluation: Evaluation) -> None:
        """Do nothing: this task draws no pictures during training."""


def predict_all(
    model: nn.Module,
    loader: DataLoader,
    device: torch.device,
    precision: Precision = "fp32",
    channels_last: bool = False,
    stop_if_requested: Callable[[], None] = lambda: None,
) -> Predictions | None:
    """Predict the classes of all ranks' images. Return predictions in image order on rank 0, None on other ranks.

    loader: this rank's batches. stop_if_requested: called between batches."""
    batches = []
    with evaluation_mode(model):
        for batch in progress_bar(loader, desc="scoring", unit="batch", leave=False):
            stop_if_requested()
            images = normalize_images(batch_to(batch, device)["images"], channels_last)
            with autocast(device, precision):
                classes, probabilities = predict_batch(model, images)
            batches.append(Predictions(batch["image_ids"].numpy(), classes.cpu().numpy(), probabilities.cpu().numpy()))
    gathered = gather_in_order(batches)
    return gathered and Predictions(*gathered)
