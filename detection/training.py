"""Train a detector, score it and record the experiment.

python -m detection.training configs/quickstart.yaml
python -m detection.training configs/detection_ssd_SwinT.yaml model.neck=fpn data.root=/datasets/coco
python -m engine.launch --standalone --nproc_per_node=4 -m detection.training configs/detection_ssd_resnet50.yaml
python -m detection.training --resume experiments/experiment_3
python -m detection.training configs/bccd.yaml --experiment experiments/bccd  # starts there, or goes on there
"""

import argparse
import platform
from contextlib import nullcontext
from pathlib import Path

import torch

from detection.annotations import read_split
from detection.check import check_images
from detection.record import write_record
from detection.task import DetectionConfig, DetectionTask, read_experiment_config
from engine import distributed
from engine.checkpoint import list_checkpoints, newest_checkpoint, sweep_temporaries
from engine.command import run_command, said_once
from engine.config import changed_fields, dump_config, load_config
from engine.experiment import (
    FREE_FIELDS,
    append_environment,
    describe_environment,
    new_experiment,
    occupied,
    requeued_experiment,
    shown_score,
)
from engine.files import write_text
from engine.logbook import STOPPED, logger, rewind_metrics, start_logging
from engine.signals import Stopped
from engine.strict_yaml import ConfigError
from training import check_feasible, fit


def main(device: torch.device) -> None:
    """Train as the command line says, then score and record."""
    arguments = said_once(parse_arguments)
    find_begun(arguments)
    if arguments.experiment:  # made for this run: even what is wrong with its config is written there
        start_logging(arguments.experiment if distributed.is_main() else None, verbose=distributed.is_main())
    config = read_config(arguments)
    if arguments.resume:
        newest_checkpoint(arguments.resume / "checkpoints")  # there must be one, before anything is written
    train, val = read_split(config.data, "train"), read_split(config.data, "val")
    if config.data.check_images:
        check_images([train, val], max(1, config.data.workers))
    task = DetectionTask(config, val, train, from_checkpoint=arguments.resume is not None)
    check_feasible(
        task, config.train, config.optim, arguments.resume or arguments.experiment or arguments.experiments, device
    )
    experiment = (
        arguments.resume
        or arguments.experiment
        or distributed.broadcast(distributed.is_main() and new_experiment(arguments.experiments))
    )
    with occupied(experiment) if distributed.is_main() else nullcontext():
        train_and_record(task, experiment, device, resume=arguments.resume is not None)


def train_and_record(task: DetectionTask, experiment: Path, device: torch.device, resume: bool) -> None:
    """Train `task` in its experiment directory, then write what came out."""
    config, train, val = task.config, task.train, task.val
    hosts = distributed.gather(platform.node())
    start_logging(experiment if distributed.is_main() else None, verbose=distributed.is_main())

    def begin() -> None:
        if distributed.is_main():
            sweep_temporaries(experiment)
            write_text(experiment / "config.yaml", dump_config(config))
            append_environment(experiment, describe_environment(hosts, device))
            if not resume:
                rewind_metrics(experiment, step=0)  # of a start that left no checkpoint

    if distributed.is_main():
        logger.info("%s: %s with neck %s", experiment, config.model.backbone, config.model.neck)
        if task.started_from:
            logger.info(task.started_from)
        for rank, host in enumerate(hosts):
            logger.info("rank %d on %s, %s", rank, host, device.type)
    for coco in (train, val):
        logger.info(
            "%s: %d images, %d objects; %d boxes cut at the edge of their image, %d without area left out",
            coco.annotations_path, len(coco.images), len(coco.labels), coco.num_cut, coco.num_left_out,
        )  # fmt: skip
    if train.annotations_path == val.annotations_path:
        logger.warning("trained and scored on the same images: the score says nothing about others")
    if not val.class_counts.any():
        logger.warning("%s: no objects in it, so every score will be undefined", val.annotations_path)
    try:
        model = fit(task, config.train, config.optim, experiment, device, resume, begin)
    except (KeyboardInterrupt, Stopped) as stop:
        if distributed.is_main() and (saved := list_checkpoints(experiment / "checkpoints")):
            why = str(stop) if isinstance(stop, Stopped) else "interrupted from the keyboard"
            logger.warning("%s%s; %s is saved; to go on: --resume %s", STOPPED, why, saved[-1].name, experiment)
        raise
    if distributed.broadcast(task.results is None):  # a finished run was resumed
        task.evaluate(model, device)
    if distributed.is_main():
        scores = write_record(experiment, task)["scores"]
        logger.info("  ".join(f"{name} {shown_score(value)}" for name, value in scores.items()))
        logger.info("ground truth beside detections: %s", experiment / "detections.png")
        logger.info("the whole record: %s", experiment / "README.md")


def parse_arguments() -> argparse.Namespace:
    """The command line; `config` is None when an experiment is resumed with its own."""
    parser = argparse.ArgumentParser(
        prog="python -m detection.training",
        description="Train an SSD detector and score it with COCO mAP. Each run becomes experiments/experiment_N.",
        epilog="example: python -m detection.training configs/bccd.yaml model.neck=fpn train.batch_size=8\n"
        "several GPUs: python -m engine.launch --standalone --nproc_per_node=4 -m detection.training CONFIG ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", help="YAML file, see configs/; with --resume the experiment's own")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="replaces a value of the config")
    parser.add_argument("--resume", type=Path, metavar="EXPERIMENT", help="go on after its newest checkpoint")
    parser.add_argument(
        "--experiment", type=Path, metavar="DIRECTORY",
        help="an existing directory to train in, instead of the next free number; goes on if it has a checkpoint",
    )  # fmt: skip
    parser.add_argument("--experiments", type=Path, default=Path("experiments"), help="where runs are kept")
    arguments = parser.parse_intermixed_args()
    if arguments.config and "=" in arguments.config:  # with --resume, overrides may come without a config
        arguments.overrides.insert(0, arguments.config)
        arguments.config = None
    if arguments.experiment and arguments.resume:
        parser.error("--experiment goes on by itself where it can; leave out --resume")
    if arguments.experiment and not arguments.experiment.is_dir():
        parser.error(f"--experiment {arguments.experiment}: no such directory")
    if not arguments.config and not arguments.resume:
        parser.error("name a CONFIG, or an experiment to --resume")
    return arguments


def find_begun(arguments: argparse.Namespace) -> None:
    """Go on where this run has been before: in its --experiment, or where its Slurm job trained until it was requeued.

    Rank 0 looks: other machines may see a shared folder as it was seconds ago."""
    anew = distributed.is_main() and not (arguments.experiment or arguments.resume)
    if requeued := distributed.broadcast(anew and requeued_experiment(arguments.experiments)):
        arguments.experiment = requeued
        arguments.config, arguments.overrides = str(requeued / "config.yaml"), []  # the other may have been edited
    if arguments.experiment and distributed.broadcast(
        distributed.is_main() and list_checkpoints(arguments.experiment / "checkpoints")
    ):
        arguments.resume = arguments.experiment


def read_config(arguments: argparse.Namespace) -> DetectionConfig:
    """The config to train with. Raises ConfigError where a resumed run would learn something else."""
    if not arguments.resume:
        return load_config(arguments.config, arguments.overrides, DetectionConfig)
    stored = read_experiment_config(arguments.resume)
    config = load_config(arguments.config or arguments.resume / "config.yaml", arguments.overrides, DetectionConfig)
    changed = [text for name, text in changed_fields(stored, config).items() if name not in FREE_FIELDS]
    if changed:
        raise ConfigError(
            f"{arguments.resume} was trained with another config: {'; '.join(changed)}. "
            "Resume with the experiment's own config, or start a new run"
        )
    return config


if __name__ == "__main__":
    run_command(main)
