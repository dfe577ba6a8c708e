"""The detection task: an SSD of any backbone and neck, trained on COCO-format data and scored with COCO mAP.

python -m detection.training configs/quickstart.yaml
python -m detection.training configs/detection_ssd_SwinT.yaml model.neck=fpn data.root=/datasets/coco
torchrun --standalone --nproc_per_node=4 -m detection.training configs/detection_ssd_resnet50.yaml
python -m detection.training --resume experiments/experiment_3
"""

import argparse
from itertools import chain
from operator import itemgetter
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from data import build_loader, eval_batches, normalize_images
from detection.data import CocoDetection, CocoFile, DataConfig, DatasetError, collate, read_split
from detection.evaluation import METRICS, coco_scores, detect
from detection.loss import LossConfig, constant_predictor_loss, multibox_loss
from detection.matching import match_anchors
from detection.postprocess import PostprocessConfig
from detection.record import write_record
from detection.ssd import ModelConfig, build_ssd
from detection.transforms import AugmentConfig, eval_transform, train_transform
from engine import distributed
from engine.checkpoint import CheckpointError
from engine.command import run_command
from engine.config import Config, changed_fields, dump_config, load_config
from engine.experiment import append_environment, describe_environment, new_experiment, shown_score, write_text
from engine.logbook import logger, start_logging
from engine.optim import OptimConfig
from engine.strict_yaml import ConfigError
from engine.weights import load_exactly
from training import TrainConfig, epoch_batches, fit

# What may differ when a run is resumed: where the data lies, how it is fed and what is kept; not what is learned.
FREE_ON_RESUME = {
    "data.root",
    "data.workers",
    "data.cache_images",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
}


class DetectionConfig(Config):
    """One row of a results table."""

    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    loss: LossConfig = Field(default_factory=LossConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig
    eval: PostprocessConfig = Field(default_factory=PostprocessConfig)


class DetectionTask:
    """What `training.fit` asks of a task, for an SSD."""

    metric = "mAP"
    collate = staticmethod(collate)

    def __init__(self, config: DetectionConfig, val: CocoFile, train: CocoFile | None = None) -> None:
        """val, train: checked annotations; `train` only where it is to be trained on.

        Raises DatasetError if their classes differ, ValueError if `model.weights` cannot be used."""
        self.config, self.val, self.train = config, val, train
        self.workers = config.data.workers
        self.reference_losses: dict[str, float] = {}
        torch.manual_seed(config.train.seed)  # initial weights
        self.model = build_ssd(config.model, len(val.class_names))
        self.val_loader = None
        if train:
            if train.category_ids != val.category_ids:
                raise DatasetError(
                    f"{val.annotations_path}: category ids {val.category_ids} differ from {train.category_ids} in "
                    f"{train.annotations_path}; both files must list the same classes"
                )
            if not train.class_counts.any():
                raise DatasetError(f"{train.annotations_path}: no objects in it, so there is nothing to learn")
            transform = train_transform(config.augment, self.model.input_size)
            self.train_set = CocoDetection(train, transform, config.train.seed, config.data.cache_images)
            plateau = constant_predictor_loss(train.class_counts, config.loss.negatives_per_positive)
            self.reference_losses = {"classification": plateau}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """MultiBox losses of this rank's share of the global batch, per positive box of the whole of it."""
        config, anchors = self.config, self.model.anchors_cxcywh
        boxes_xyxy, labels = batch["boxes_xyxy"], batch["labels"]
        box_deltas, class_logits = model(normalize_images(batch["images"], config.train.channels_last))
        matched = match_anchors(boxes_xyxy, labels, anchors, config.loss.match_iou)
        sums = multibox_loss(
            box_deltas, class_logits, matched, boxes_xyxy, labels, anchors, config.loss.negatives_per_positive
        )
        # The ranks' gradients are averaged, so each divides by its even share of all ranks' positives.
        positives = distributed.sum_over_ranks(sums["num_positives"]).clamp(min=1) / distributed.world_size()
        return {
            "classification": sums["classification"] / positives,
            "box": config.loss.box_weight * sums["box"] / positives,
        }

    def load_weights(self, weights: dict[str, Tensor], path: Path) -> None:
        """Put trained weights into the model. Raises CheckpointError, listing what differs, if they are another's."""
        try:
            load_exactly(self.model, weights)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float | None]:
        """The twelve COCO scores of `model` over every validation image, the same on every rank."""
        results = self.detect_all(model, device, [self.config.eval])
        scores = distributed.broadcast(results and coco_scores(self.val.annotations_path, results[0]))
        return {name: scores[name] for name in METRICS}

    def detect_all(
        self, model: nn.Module, device: torch.device, settings: list[PostprocessConfig]
    ) -> list[list[dict]] | None:
        """COCO results over every validation image, a list for each post-processing setting; None but on rank 0.

        Neither the batches nor the order of the results depend on the number of ranks."""
        if self.val_loader is None:
            batch_size, rank, world_size = self.config.train.batch_size, distributed.rank(), distributed.world_size()
            transform = eval_transform(self.model.input_size)
            dataset = CocoDetection(self.val, transform, self.config.train.seed, self.config.data.cache_images)
            batches = eval_batches(len(dataset), batch_size, rank, world_size)
            self.val_loader = build_loader(dataset, batches, collate, self.workers, device)
        precision = self.config.train.precision
        parts = distributed.gather(
            detect(model, self.val_loader, self.val, device=device, precision=precision, settings=settings)
        )
        if parts is None:
            return None
        return [
            sorted(chain.from_iterable(results), key=itemgetter("image_id")) for results in zip(*parts, strict=True)
        ]


def main(device: torch.device) -> None:
    """Train as the command line says, then score and record."""
    arguments = parse_arguments()
    config = read_config(arguments)
    train, val = read_split(config.data, "train"), read_split(config.data, "val")
    task = DetectionTask(config, val, train)
    epoch_batches(len(task.train_set), config.train)  # refuses too few images, before anything is written
    experiment = arguments.resume or Path(
        distributed.broadcast(distributed.is_main() and str(new_experiment(arguments.experiments)))
    )
    start_logging(experiment if distributed.is_main() else None, verbose=distributed.is_main())
    if distributed.is_main():
        write_text(experiment / "config.yaml", dump_config(config))
        append_environment(experiment, describe_environment(distributed.world_size(), device))
    logger.info("%s: %s with neck %s", experiment, config.model.backbone, config.model.neck)
    for coco in (train, val):
        logger.info(
            "%s: %d images, %d objects; %d boxes cut at the edge of their image, %d without area left out",
            coco.annotations_path, len(coco.images), len(coco.labels), coco.num_cut, coco.num_left_out,
        )  # fmt: skip
    model = fit(task, config.train, config.optim, experiment, device, resume=arguments.resume is not None)
    results = task.detect_all(model, device, [config.eval])
    if results:
        scores = write_record(experiment, task, results[0])["scores"]
        logger.info("  ".join(f"{name} {shown_score(value)}" for name, value in scores.items()))
        logger.info("ground truth beside detections: %s", experiment / "detections.png")
        logger.info("the whole record: %s", experiment / "README.md")


def parse_arguments() -> argparse.Namespace:
    """The command line; `config` is None when an experiment is resumed with its own."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.training",
        description="Train an SSD detector and score it with COCO mAP. Each run becomes experiments/experiment_N.",
        epilog="example: python -m detection.training configs/bccd.yaml model.neck=fpn train.batch_size=8\n"
        "several GPUs: torchrun --standalone --nproc_per_node=4 -m detection.training CONFIG ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", help="YAML file, see configs/; with --resume the experiment's own")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="replaces a value of the config")
    parser.add_argument("--resume", type=Path, metavar="EXPERIMENT", help="go on after its newest checkpoint")
    parser.add_argument("--experiments", type=Path, default=Path("experiments"), help="where runs are kept")
    arguments = parser.parse_intermixed_args()
    if arguments.config and "=" in arguments.config:  # with --resume, overrides may come without a config
        arguments.overrides.insert(0, arguments.config)
        arguments.config = None
    if not arguments.config and not arguments.resume:
        parser.error("name a CONFIG, or an experiment to --resume")
    return arguments


def read_config(arguments: argparse.Namespace) -> DetectionConfig:
    """The config to train with. Raises ConfigError where a resumed run would learn something else."""
    if not arguments.resume:
        return load_config(arguments.config, arguments.overrides, DetectionConfig)
    stored = load_config(arguments.resume / "config.yaml", [], DetectionConfig)
    config = load_config(arguments.config or arguments.resume / "config.yaml", arguments.overrides, DetectionConfig)
    changed = [text for name, text in changed_fields(stored, config).items() if name not in FREE_ON_RESUME]
    if changed:
        raise ConfigError(
            f"{arguments.resume} was trained with another config: {'; '.join(changed)}. "
            "Resume with the experiment's own config, or start a new run"
        )
    return config


if __name__ == "__main__":
    run_command(main)
