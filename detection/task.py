"""The detection task: an SSD, its losses and its COCO scores; and starting it from trained weights."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data import build_loader, eval_batches, normalize_images
from detection.anchor_fit import AnchorFit, fit_anchors
from detection.coco.annotations import CocoFile, DataConfig, dataset_error, pair_defects
from detection.coco.dataset import CocoDetection, collate
from detection.coco.evaluation import GroundTruth, by_image, detect, quick_scores
from detection.coco.transforms import AugmentConfig, distort_colours, eval_transform, train_transform
from detection.network.backbones import BACKBONES, load_backbone_weights
from detection.network.loss import LossConfig, constant_predictor_loss, multibox_loss
from detection.network.matching import match_anchors
from detection.network.postprocess import PostprocessConfig
from detection.network.ssd import SSD, ModelConfig, build_ssd
from engine import distributed
from engine.checkpoint import CheckpointError, load_checkpoint, trained_weights
from engine.config import Config
from engine.files import user_path
from engine.inputs import Inputs, identify_images
from engine.loading import load_exactly
from engine.optim import OptimConfig
from engine.text import listed
from training import Evaluation, TrainConfig
from weights.registry import find_weights, identified, read_weights
from weights.release import SUFFIX, read_safetensors, weights_in

LISTED_CLASSES = 8  # in a log


class DetectionConfig(Config):
    """One row of a results table."""

    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig
    eval: PostprocessConfig = Field(default_factory=PostprocessConfig)


class TrainedDetector(NamedTuple):
    """What a file of trained weights holds."""

    weights: dict[str, Tensor]
    step: int  # optimizer steps
    class_names: list[str] | None  # None if the file does not say
    facts: dict[str, str] | None = None  # metadata of released weights, verified


def read_detector(path: Path) -> TrainedDetector:
    """Read the weights that were scored (the moving average if there is one) from a checkpoint or a release.

    path: see weights_in.
    Raises CheckpointError if the file is missing, damaged, or something else, or if a weight is not finite."""
    path = weights_in(path)
    if path.suffix == SUFFIX:
        weights, facts = read_safetensors(path)
        if not facts or not {"step", "classes"} <= facts.keys():
            raise CheckpointError(f"{path}: not a detector; its metadata lack the step or the classes")
        detector = TrainedDetector(weights, int(facts["step"]), json.loads(facts["classes"]), facts)
    else:
        state = load_checkpoint(path)
        if not isinstance(state, dict) or not {"model", "ema", "step"} <= state.keys():
            raise CheckpointError(
                f"{path}: not a checkpoint of a detector; expected an experiment's checkpoints/*.pt or released "
                f"weights, *{SUFFIX} (a public checkpoint of a trunk belongs into model.weights)"
            )
        detector = TrainedDetector(trained_weights(state), state["step"], state.get("data", {}).get("classes"))
    if broken := [name for name, weight in detector.weights.items() if not weight.isfinite().all()]:
        raise CheckpointError(f"{path}: weights that are not finite: {listed(broken)}; use an earlier checkpoint")
    return detector


def load_detector(model: SSD, weights: dict[str, Tensor], path: Path) -> None:
    """Load the weights read from `path` into a detector. Raises CheckpointError, listing what differs."""
    try:
        load_exactly(model, weights)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def start_trunk(model: SSD, config: ModelConfig) -> str:
    """Load the weights that `config.weights` names into the trunk of the detector.

    Returns a line on what was loaded. Raises ValueError if they are missing, cannot be read or do not fit the trunk."""
    try:
        path = find_weights(config.weights, BACKBONES[config.backbone].trunk)
        weights = read_weights(path, config.average_weights)
        if "class_head.0.weight" in weights:
            raise ValueError(f"{path}: a whole detector, not a trunk; it belongs into model.start_from")
        resized = load_backbone_weights(model.backbone, weights)
    except ValueError as error:
        raise ValueError(f"model.weights '{config.weights}': {error}") from error
    line = f"trunk from {identified(path)}"
    return line + f", {len(resized)} tables of positions resized, as {resized[0]}" if resized else line


def start_from(model: SSD, path: Path, class_names: Sequence[str]) -> str:
    """Load a trained detector; its class heads only if it has the same classes in the same order.

    Returns a line on what was loaded. Raises CheckpointError, listing what differs, if anything else does."""
    detector = read_detector(path)
    heads = {key: own for key, own in model.state_dict().items() if key.startswith("class_head.")}
    is_same = detector.class_names == list(class_names)
    load_detector(model, detector.weights if is_same else detector.weights | heads, path)
    origin = f"started from {path}, step {detector.step}"
    if is_same:
        return f"{origin}: all {len(detector.weights)} weights loaded, with the class heads"
    classes = listed(detector.class_names or ["unknown"], LISTED_CLASSES)
    return (
        f"{origin}: {len(detector.weights) - len(heads)} weights loaded; the {len(heads)} of the class heads start at "
        f"random, because its classes differ or have a different order: {classes}"
    )


class DetectionTask:
    """An SSD, its losses and its COCO scores; see training.Task."""

    metrics = ("mAP", "AP50")
    lower_is_better = False
    collate = staticmethod(collate)
    match_anchors = staticmethod(match_anchors)
    multibox_loss = staticmethod(multibox_loss)

    def __init__(
        self, config: DetectionConfig, train: CocoFile | None, val: CocoFile, *, from_checkpoint: bool = False
    ) -> None:
        """train, val: checked annotations; train is None for a task that only scores.

        Raises DatasetError if train and val do not fit together, ValueError if model.weights or model.start_from
        cannot be used."""
        self.config, self.train, self.val = config, train, val
        self.workers = config.data.workers
        self.reference_losses: dict[str, float] = {}
        torch.manual_seed(config.train.seed)  # initial weights
        self.model = build_ssd(config.model, len(val.class_names))
        self.started_from: str | None = None
        if config.model.weights is not None and not from_checkpoint:
            self.started_from = start_trunk(self.model, config.model)
        if config.model.start_from is not None and not from_checkpoint:
            try:
                path = user_path(config.model.start_from, "file")
                self.started_from = start_from(self.model, path, val.class_names)
            except (ValueError, OSError) as error:
                raise CheckpointError(f"model.start_from: {error}") from error
        self.val_loader: DataLoader | None = None
        # In memory, because the file may be replaced while the run trains.
        self.truth = GroundTruth(val.annotations_path, val.sha256) if distributed.is_main() else None
        if train:
            if defects := list(pair_defects(train, val)):
                raise dataset_error(defects)
            self.inputs = inputs_of(config.data, train, val)
            self.data = {
                "classes": train.class_names,
                "training annotations": train.sha256,
                "validation annotations": val.sha256,
                "training images": self.inputs.images["train"].sha256,
                "validation images": self.inputs.images["val"].sha256,
                "short sides of shrunken images": [train.short_side, val.short_side],
            }
            transform = train_transform(config.augment, self.model.input_size)
            self.train_set = CocoDetection(train, transform, config.train.seed, config.data.cache_mib)
            plateau = constant_predictor_loss(train.class_counts, config.loss.negatives_per_positive)
            self.reference_losses = {"classification": plateau}

    @cached_property
    def anchor_fit(self) -> AnchorFit:
        """How the default boxes fit the training objects; for a task that trains."""
        return fit_anchors(self.train, self.model, self.config.loss.match_iou)

    def compile(self) -> None:
        """Compile matching and loss; `dynamic`, because the largest number of objects differs from batch to batch."""
        self.match_anchors = torch.compile(match_anchors, dynamic=True)
        self.multibox_loss = torch.compile(multibox_loss, dynamic=True)

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return MultiBox losses summed over the positive boxes of a batch, and the number of these."""
        config, anchors = self.config, self.model.anchors_cxcywh
        images, boxes_xyxy, labels = batch["images"], batch["boxes_xyxy"], batch["labels"]
        if "colours" in batch:
            images = distort_colours(images, batch["colours"])
        box_deltas, class_logits = model(normalize_images(images, config.train.channels_last))
        matched = self.match_anchors(boxes_xyxy, labels, anchors, config.loss.match_iou)
        sums = self.multibox_loss(
            box_deltas, class_logits, matched, boxes_xyxy, labels, anchors, config.loss.negatives_per_positive
        )
        losses = {"classification": sums["classification"], "box": config.loss.box_weight * sums["box"]}
        return losses, sums["num_positives"]

    def evaluate(
        self, model: nn.Module, device: torch.device, stop_if_asked: Callable[[], None] = lambda: None
    ) -> Evaluation:
        """Return the twelve COCO scores over every validation image, and the detections behind them, (N, 7)."""
        results = self.detect_all(model, device, [self.config.eval], stop_if_asked)
        scores = results and quick_scores(self.truth, results[0])
        return Evaluation(distributed.broadcast(scores), results and results[0])

    def draw(self, experiment: Path, epoch: int, evaluation: Evaluation) -> None:
        """Draw detections.png if a tracker shows it epoch by epoch; the record shows those of the final weights."""
        if self.config.train.trackers:
            from detection.drawing.pictures import draw_detections, examples  # imports matplotlib

            pictures = examples(self.val, evaluation.predictions)
            draw_detections(experiment / "detections.png", list(pictures.values()))

    def detect_all(
        self,
        model: nn.Module,
        device: torch.device,
        settings: list[PostprocessConfig],
        stop_if_asked: Callable[[], None] = lambda: None,
    ) -> list[np.ndarray] | None:
        """Return detections (N, 7) on every validation image, for each post-processing setting; None except on rank 0.

        Neither the batches nor the order of the results depend on the number of ranks."""
        if self.val_loader is None:
            batch_size, rank, world_size = self.config.train.batch_size, distributed.rank(), distributed.world_size()
            transform = eval_transform(self.model.input_size)
            dataset = CocoDetection(self.val, transform, self.config.train.seed, self.config.data.cache_mib)
            batches = eval_batches(len(dataset), batch_size, rank, world_size)
            self.val_loader = build_loader(dataset, batches, collate, self.workers, device)
        train = self.config.train
        parts = distributed.gather(
            detect(
                model,
                self.val_loader,
                self.val,
                device=device,
                settings=settings,
                precision=train.precision,
                channels_last=train.channels_last,
                stop_if_asked=stop_if_asked,
            )
        )
        return parts and [by_image(results) for results in zip(*parts, strict=True)]


def inputs_of(config: DataConfig, train: CocoFile, val: CocoFile) -> Inputs:
    """Return what a run reads: both annotation files and all images that they list."""
    files = {str(coco.annotations_path): coco.sha256 for coco in (train, val)}
    images = {
        half: identify_images(coco.images_dir, [image.file_name for image in coco.images])
        for half, coco in (("train", train), ("val", val))
    }
    return Inputs(config.root, files, images)
