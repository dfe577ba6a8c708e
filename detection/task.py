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
from detection.coco.transforms import AugmentConfig, distort_colours, eval_transform, plan_mosaic, train_transform
from detection.network.anchor_scales import fit_scales
from detection.network.anchors import ANCHOR_SCALES, AUTO
from detection.network.backbones import backbone_spec, load_backbone_weights
from detection.network.heads import tower_depth
from detection.network.loss import Criterion, LossConfig, constant_predictor_loss
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
CLASS_HEAD = "class_head.0.weight"  # a weight of every detector, but of no trunk


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
    wanted, found = tower_depth(model.state_dict()), tower_depth(weights)
    if found != wanted and CLASS_HEAD in weights:
        raise CheckpointError(
            f"{path}: model.head_tower is {wanted}, but this detector was trained with {found}; "
            f"set model.head_tower={found}"
        )
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
        if CLASS_HEAD in weights:
            mean = weights.get("pixel_mean", IMAGENET_MEAN)
            std = weights.get("pixel_std", IMAGENET_STD)
            weights = {name.removeprefix(TRUNK): weights[name] for name in weights if name.startswith(TRUNK)}
        resized = load_backbone_weights(model.backbone, weights)
        model.set_normalization(mean, std)
    except ValueError as error:
        raise ValueError(f"model.weights '{config.weights}': {error}") from error
    note = f"{len(resized)} position tables resized, such as {resized[0]}" if resized else ""
    return initial_weights("trunk", config.weights, found, note)


def load_initial_detector(model: SSD, start_from: str, class_names: Sequence[str]) -> InitialWeights:
    """Load a trained detector, without its class heads if its classes, their order or its score function differ.

    A class head is the last convolution of a level that predicts classes. The towers before it are always loaded.
    start_from: an experiment, a published folder or a weights file. Returns the record of the weights.
    Raises CheckpointError listing the differences if the rest of the model differs."""
    path = weights_in(user_path(start_from, "file"))
    detector = read_detector(path)
    class_heads = {key: value for key, value in model.state_dict().items() if key.startswith("class_head.")}
    difference = class_head_difference(model, detector, class_names)
    load_detector(model, detector.weights | class_heads if difference else detector.weights, path)
    if difference:
        note = (
            f"{len(detector.weights) - len(class_heads)} weights loaded; {len(class_heads)} class-head weights start "
            f"at random, because the checkpoint has {difference}"
        )
    else:
        note = f"all {len(detector.weights)} weights loaded, including the class heads"
    return initial_weights("detector", start_from, FoundWeights(path), f"step {detector.step}: {note}")


def class_head_difference(model: SSD, detector: TrainedDetector, class_names: Sequence[str]) -> str:
    """Return what prevents the class heads of a detector from being used in the model, or "" if nothing does."""
    if detector.class_names != list(class_names):
        classes = listed(detector.class_names or ["unknown"], LISTED_CLASSES)
        return f"different classes or a different order: {classes}"
    outputs, expected = (len(weights.get(CLASS_HEAD, ())) for weights in (detector.weights, model.state_dict()))
    if outputs != expected:  # the classes are equal, so only one of the two has outputs for background
        return f"a different score function than {model.score_function}, the one of loss.classification"
    return ""


def with_fitted_scales(config: DetectionConfig, train: CocoFile) -> DetectionConfig:
    """Return the config; if `model.anchor_scales` is auto, with scales that are fitted to the objects of `train`.

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

    def __init__(
        self, config: DetectionConfig, train: CocoFile | None, val: CocoFile, *, from_checkpoint: bool = False
    ) -> None:
        """Build the model. Load the weights that the config names, unless a checkpoint will replace them.

        If `model.anchor_scales` is auto in the config, self.config contains the fitted scales instead.
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
        self.model = build_ssd(config.model, len(val.class_names), config.loss.score_function)
        self.trunk = self.model.backbone.trunk
        self.criterion = Criterion(self.model.cells_per_level, **config.loss.model_dump())
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
        image_ids = {image.id for image in val.images} if config.data.holdout else None
        self.truth = GroundTruth(val.annotations_path, val.sha256, image_ids) if distributed.is_main() else None
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
            mosaic = plan_mosaic(config.augment, self.model.input_size, config.train.epochs)
            self.train_set = CocoDetection(train, transform, config.train.seed, config.data.cache_mib, mosaic)
            if config.loss.classification == "multibox":
                constant_loss = constant_predictor_loss(train.class_counts, config.loss.negatives_per_positive)
                self.reference_losses = {"classification": constant_loss}

    @cached_property
    def anchor_fit(self) -> AnchorFit:
        """Fit of the default boxes to the training objects. Requires `train`."""
        return fit_anchors(self.train, self.model, self.config.loss.match_iou)

    def compile(self) -> None:
        """Compile assignment and losses. Shapes are dynamic because the padded number of objects varies."""
        self.criterion = torch.compile(self.criterion, dynamic=True)

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the losses summed over a batch, and the count to divide them by (`Criterion`)."""
        images = batch["images"]
        if "colours" in batch:
            images = distort_colours(images, batch["colours"])
        outputs = model(to_layout(images, self.config.train.channels_last))
        return self.criterion(*outputs, batch["boxes_xyxy"], batch["labels"], self.model.anchors_cxcywh)

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
