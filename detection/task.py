"""The detection task: an SSD, its losses, its COCO scores, and loading trained weights."""

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

from data import IMAGENET_MEAN, IMAGENET_STD, build_loader, eval_batches, to_layout
from detection.anchor_fit import AnchorFit, fit_anchors
from detection.coco.annotations import CocoFile, DataConfig, dataset_error, pair_defects
from detection.coco.dataset import CocoDetection, collate
from detection.coco.evaluation import GroundTruth, detect, quick_scores, sort_by_image
from detection.coco.transforms import AugmentConfig, distort_colours, eval_transform, train_transform
from detection.network.anchor_scales import fit_scales
from detection.network.anchors import ANCHOR_SCALES, AUTO
from detection.network.backbones import backbone_spec, load_backbone_weights
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
from records.results import InitialWeights
from training import Evaluation, TrainConfig
from weights.registry import FoundWeights, find_weights, initial_weights, read_weights
from weights.release import SUFFIX, read_safetensors, weights_in
from weights.timm_weights import PREFIX, normalization

LISTED_CLASSES = 8  # in log lines
TRUNK = "backbone.trunk."  # prefix of the trunk's weights in a detector


class DetectionConfig(Config):
    """Config of a detection experiment, which is one row of a results table."""

    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig
    eval: PostprocessConfig = Field(default_factory=PostprocessConfig)


class TrainedDetector(NamedTuple):
    """Content of a file of trained weights."""

    weights: dict[str, Tensor]
    step: int  # optimizer steps taken
    class_names: list[str] | None  # None if the file does not list them
    facts: dict[str, str] | None = None  # verified metadata of released weights


def read_detector(path: Path) -> TrainedDetector:
    """Read the scored weights from a checkpoint or a release: the moving average, if there is one.

    path: a weights file, a published folder or an experiment (see weights_in).
    Raises CheckpointError if the file is missing, corrupt or not a detector, or if a weight is not finite."""
    path = weights_in(path)
    if path.suffix == SUFFIX:
        weights, facts = read_safetensors(path)
        if not facts or not {"step", "classes"} <= facts.keys():
            raise CheckpointError(f"{path}: not a detector: step or classes are missing in its metadata")
        detector = TrainedDetector(weights, int(facts["step"]), json.loads(facts["classes"]), facts)
    else:
        state = load_checkpoint(path)
        if not isinstance(state, dict) or not {"model", "ema", "step"} <= state.keys():
            raise CheckpointError(
                f"{path}: not a detector checkpoint; expected an experiment's checkpoints/*.pt or released weights "
                f"(*{SUFFIX}); for a public checkpoint of a classifier, use model.weights"
            )
        detector = TrainedDetector(trained_weights(state), state["step"], state.get("data", {}).get("classes"))
    if non_finite := [name for name, weight in detector.weights.items() if not weight.isfinite().all()]:
        raise CheckpointError(f"{path}: weights are not finite: {listed(non_finite)}; use an earlier checkpoint")
    return detector


def load_detector(model: SSD, weights: dict[str, Tensor], path: Path) -> None:
    """Load weights, read from `path`, into a detector. Raises CheckpointError listing the names that differ."""
    try:
        load_exactly(model, weights)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def load_initial_weights(model: SSD, config: ModelConfig) -> InitialWeights:
    """Load the weights that `config.weights` names into the trunk (the classification network in the backbone).

    Of a detector, only the trunk is loaded. The model then normalises images as in the training of these weights.
    Returns the record of the weights.
    Raises ValueError if the weights are missing or unreadable or do not fit the trunk."""
    trunk = backbone_spec(config.backbone).trunk
    try:
        found = find_weights(config.weights, trunk)
        weights = read_weights(found.path, config.average_weights)
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if trunk.startswith(PREFIX):
            mean, std = normalization(trunk.removeprefix(PREFIX), (found.name or "").partition(".")[2])
        if "class_head.0.weight" in weights:
            mean, std = (weights.get(name, values) for name, values in SSD.optional_weights.items())
            weights = {name.removeprefix(TRUNK): weights[name] for name in weights if name.startswith(TRUNK)}
        resized = load_backbone_weights(model.backbone, weights)
        model.set_normalization(mean, std)
    except ValueError as error:
        raise ValueError(f"model.weights '{config.weights}': {error}") from error
    note = f"{len(resized)} position tables resized, such as {resized[0]}" if resized else ""
    return initial_weights("trunk", config.weights, found, note)


def load_initial_detector(model: SSD, start_from: str, class_names: Sequence[str]) -> InitialWeights:
    """Load a trained detector. Its class heads are loaded only if it has the same classes in the same order.

    start_from: an experiment, a published folder or a weights file. Returns the record of the weights.
    Raises CheckpointError listing the differences if the rest of the model differs."""
    path = weights_in(user_path(start_from, "file"))
    detector = read_detector(path)
    class_heads = {key: value for key, value in model.state_dict().items() if key.startswith("class_head.")}
    has_same_classes = detector.class_names == list(class_names)
    load_detector(model, detector.weights if has_same_classes else detector.weights | class_heads, path)
    if has_same_classes:
        note = f"all {len(detector.weights)} weights loaded, including the class heads"
    else:
        classes = listed(detector.class_names or ["unknown"], LISTED_CLASSES)
        note = (
            f"{len(detector.weights) - len(class_heads)} weights loaded; {len(class_heads)} class-head weights start "
            f"at random, because the checkpoint has different classes or a different order: {classes}"
        )
    return initial_weights("detector", start_from, FoundWeights(path), f"step {detector.step}: {note}")


def with_fitted_scales(config: DetectionConfig, train: CocoFile) -> DetectionConfig:
    """Return the config; if `model.anchor_scales` is auto, replace it by the scales that fit the objects of `train`.

    The scales depend only on the objects, the sizes of the feature maps and `loss.match_iou`. Rank 0 computes them."""
    if config.model.anchor_scales != AUTO:
        return config
    scales = None
    if distributed.is_main():
        any_scales = config.model.model_copy(update={"anchor_scales": next(iter(ANCHOR_SCALES))})
        model = build_ssd(any_scales, num_classes=1)  # to find the sizes of its feature maps
        boxes_xyxy = torch.from_numpy(train.fractions_xyxy)
        scales = fit_scales(boxes_xyxy, model.grid_sizes(model.input_size), config.loss.match_iou)
    scales = distributed.broadcast(scales)
    return config.model_copy(update={"model": config.model.model_copy(update={"anchor_scales": scales})})


class DetectionTask:
    """An SSD, its losses and its COCO scores (see training.Task)."""

    metrics = ("mAP", "AP50")
    lower_is_better = False
    collate = staticmethod(collate)
    match_anchors = staticmethod(match_anchors)
    multibox_loss = staticmethod(multibox_loss)

    def __init__(
        self, config: DetectionConfig, train: CocoFile | None, val: CocoFile, *, from_checkpoint: bool = False
    ) -> None:
        """Build the model. Load the weights that the config names, unless a checkpoint will replace them.

        If the config has `model.anchor_scales: auto`, self.config has the fitted scales instead.
        train, val: validated annotations. train is None if the task only scores. Raises DatasetError if train and
        val do not match, ValueError if model.weights or model.start_from cannot be used."""
        if train:
            if defects := list(pair_defects(train, val)):
                raise dataset_error(defects)
            config = with_fitted_scales(config, train)
        self.config, self.train, self.val = config, train, val
        self.workers = config.data.workers
        self.reference_losses: dict[str, float] = {}
        torch.manual_seed(config.train.seed)  # initial weights
        self.model = build_ssd(config.model, len(val.class_names))
        self.trunk = self.model.backbone.trunk
        self.initial_weights: InitialWeights | None = None
        if config.model.weights is not None and not from_checkpoint:
            self.initial_weights = load_initial_weights(self.model, config.model)
        if config.model.start_from is not None and not from_checkpoint:
            try:
                start_from = config.model.start_from
                self.initial_weights = load_initial_detector(self.model, start_from, val.class_names)
            except (ValueError, OSError) as error:
                raise CheckpointError(f"model.start_from: {error}") from error
        self.val_loader: DataLoader | None = None
        # The ground truth is kept in memory, because the file may be replaced during training.
        self.truth = GroundTruth(val.annotations_path, val.sha256) if distributed.is_main() else None
        if train:
            self.inputs = identify_inputs(config.data, train, val)
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
            constant_loss = constant_predictor_loss(train.class_counts, config.loss.negatives_per_positive)
            self.reference_losses = {"classification": constant_loss}

    @cached_property
    def anchor_fit(self) -> AnchorFit:
        """Fit of the default boxes to the training objects. Requires `train`."""
        return fit_anchors(self.train, self.model, self.config.loss.match_iou)

    def compile(self) -> None:
        """Compile matching and loss. Shapes are dynamic because batches are padded to different numbers of objects."""
        self.match_anchors = torch.compile(match_anchors, dynamic=True)
        self.multibox_loss = torch.compile(multibox_loss, dynamic=True)

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the MultiBox losses summed over a batch, and the number of positive default boxes."""
        config, anchors = self.config, self.model.anchors_cxcywh
        images, boxes_xyxy, labels = batch["images"], batch["boxes_xyxy"], batch["labels"]
        if "colours" in batch:
            images = distort_colours(images, batch["colours"])
        box_deltas, class_logits = model(to_layout(images, config.train.channels_last))
        matched = self.match_anchors(boxes_xyxy, labels, anchors, config.loss.match_iou)
        sums = self.multibox_loss(
            box_deltas, class_logits, matched, boxes_xyxy, labels, anchors, config.loss.negatives_per_positive
        )
        losses = {"classification": sums["classification"], "box": config.loss.box_weight * sums["box"]}
        return losses, sums["num_positives"]

    def evaluate(
        self, model: nn.Module, device: torch.device, stop_if_requested: Callable[[], None] = lambda: None
    ) -> Evaluation:
        """Compute the twelve COCO scores on all validation images. Returns scores and detections (N, 7)."""
        results = self.detect_all(model, device, [self.config.eval], stop_if_requested)
        scores = results and quick_scores(self.truth, results[0])
        return Evaluation(distributed.broadcast(scores), results and results[0])

    def draw(self, experiment: Path, epoch: int, evaluation: Evaluation) -> None:
        """Draw detections.png if there are trackers. After training, detection.record draws the final detections."""
        if self.config.train.trackers:
            from detection.drawing.pictures import draw_detections, examples  # imports matplotlib

            pictures = examples(self.val, evaluation.predictions)
            draw_detections(experiment / "detections.png", list(pictures.values()))

    def detect_all(
        self,
        model: nn.Module,
        device: torch.device,
        settings: list[PostprocessConfig],
        stop_if_requested: Callable[[], None] = lambda: None,
    ) -> list[np.ndarray] | None:
        """Detect objects in all validation images. Returns an array (N, 7) per setting on rank 0, None on other ranks.

        Batches and the order of results do not depend on the number of ranks."""
        if self.val_loader is None:
            batch_size, rank, world_size = self.config.train.batch_size, distributed.rank(), distributed.world_size()
            transform = eval_transform(self.model.input_size)
            dataset = CocoDetection(self.val, transform, self.config.train.seed, self.config.data.cache_mib)
            batches = eval_batches(len(dataset), batch_size, rank, world_size)
            self.val_loader = build_loader(dataset, batches, collate, self.workers, device)
        train = self.config.train
        per_rank = distributed.gather(
            detect(
                model,
                self.val_loader,
                self.val,
                device=device,
                settings=settings,
                precision=train.precision,
                channels_last=train.channels_last,
                stop_if_requested=stop_if_requested,
            )
        )
        return per_rank and [sort_by_image(results) for results in zip(*per_rank, strict=True)]


def identify_inputs(config: DataConfig, train: CocoFile, val: CocoFile) -> Inputs:
    """Return the inputs of a run: both annotation files and all images that the files list."""
    files = {str(coco.annotations_path): coco.sha256 for coco in (train, val)}
    images = {
        split: identify_images(coco.images_dir, [image.file_name for image in coco.images])
        for split, coco in (("train", train), ("val", val))
    }
    return Inputs(config.root, files, images)
