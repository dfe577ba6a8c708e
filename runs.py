"""The training command of all tasks: read and check the config, train, and write the record.

The training module of a task passes its `TrainCommand` to `train`. engine/arguments.py parses the command line.
"""

import argparse
import json
import platform
import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from data import EpochBatchSampler
from engine import distributed
from engine.checkpoint import check_disk_space, delete_temporary_files, list_checkpoints, newest_checkpoint
from engine.command import RunError
from engine.compute.cost import peak_memory_mib
from engine.compute.machine import memory_limit
from engine.compute.placement import BATCH_NORMS, set_train_mode
from engine.compute.precision import describe_device, is_in_hardware, resolve_precision
from engine.config import Config, changed_fields, dump_config, load_config
from engine.files import write_text
from engine.logbook import logger, start_logging
from engine.optim import STATES_PER_WEIGHT, scaled_learning_rate, schedule_warnings
from engine.signals import Stopped
from engine.strict_yaml import ConfigError
from records.experiment import (
    AUTO_FIELDS,
    FREE_FIELDS,
    append_environment,
    describe_environment,
    format_score,
    new_experiment,
    read_environments,
    read_experiment_config,
    requeued_experiment,
)
from records.metrics import write_metrics
from records.record import TaskRecord, write_record
from records.status import begin_status, mark_running
from records.trackers import Trackers, check_installed
from training import Evaluation, Task, Trainer, fit

MAX_MEMORY_FRACTION = 0.9  # above this, a dry run warns: batches with more objects may need more memory
EDITED_CONFIG = "config_edited.yaml"  # copy of a config.yaml that was edited during training


@dataclass(frozen=True)
class TrainCommand:
    """The task-specific parts of a training command."""

    config_class: type[Config]  # with sections `train` and `optim`
    # Called with (config, from_checkpoint), see training.Task. Raises ValueError if data or weights are invalid.
    build_task: Callable[[Any, bool], Task]
    announce: Callable[[Task], None]  # log the model and the data
    # Called on rank 0 after training: writes the task's files, and returns the task's part of the record.
    record: Callable[[Path, Task, Evaluation], TaskRecord]
    # Overrides that start a new run from the weights of {experiment}; empty if the task does not support this.
    start_from: str = ""


def train(command: TrainCommand, arguments: argparse.Namespace, device: torch.device) -> None:
    """Run a training command with the arguments of engine.arguments.parse_training."""
    if arguments.dry_run:
        dry_run(command, arguments, device)
        return
    resolve_resume(arguments)
    with ExitStack() as stack:
        if arguments.experiment:  # the directory exists already, so errors in the config are logged there, too
            start_logging(arguments.experiment if distributed.is_main() else None, verbose=distributed.is_main())
            if distributed.is_main():
                stack.enter_context(mark_running(arguments.experiment))
                begin_status(arguments.experiment)
        folder = arguments.resume or arguments.experiment
        task = prepare(command, arguments, device, folder or arguments.experiments)
        experiment = folder or distributed.broadcast(distributed.is_main() and new_experiment(arguments.experiments))
        if distributed.is_main() and not arguments.experiment:
            stack.enter_context(mark_running(experiment))
        train_and_record(command, task, experiment, device, arguments.resume is not None)


def prepare(command: TrainCommand, arguments: argparse.Namespace, device: torch.device, folder: Path) -> Task:
    """Return the task to train. Raises ValueError if config, data or weights are invalid. Writes nothing.

    folder: directory on the disk that checkpoints will be written to."""
    config = with_resolved_precision(read_config(arguments, command), device)
    if arguments.resume:
        newest_checkpoint(arguments.resume / "checkpoints")  # raises CheckpointError if there is none
    task = command.build_task(config, arguments.resume is not None)
    check_installed(config.train.trackers)
    check_feasible(task, folder, device)
    return task


def train_and_record(command: TrainCommand, task: Task, experiment: Path, device: torch.device, resume: bool) -> None:
    """Train `task` in its experiment directory, then write the record."""
    config = task.config
    hosts = distributed.gather(platform.node())
    start_logging(experiment if distributed.is_main() else None, verbose=distributed.is_main())
    trackers = Trackers(config.train.trackers if distributed.is_main() else (), experiment)

    def on_start() -> None:
        if distributed.is_main():
            delete_temporary_files(experiment)
            begin_status(experiment)
            write_text(experiment / "config.yaml", dump_config(config))
            task.inputs.write(experiment)
            weights = task.initial_weights and task.initial_weights.model_dump()
            start = {"initial_weights": weights, "config": config.model_dump(mode="json")}
            append_environment(experiment, describe_environment(hosts, device) | start)
            if not resume:
                write_metrics(experiment, [])  # an earlier start may have written metrics, but no checkpoint
            trackers.start()

    logger.info("experiment: %s", experiment)
    announce(command, task, device)
    for rank, host in enumerate(hosts or ()):
        logger.info("rank %d on %s, %s", rank, host, device.type)
    with trackers:
        try:
            _, evaluation = fit(task, experiment, device, resume, on_start, trackers.log)
        except (KeyboardInterrupt, Stopped) as stop:
            if distributed.is_main() and (saved := list_checkpoints(experiment / "checkpoints")):
                why = str(stop) if isinstance(stop, Stopped) else "interrupted from the keyboard"
                cure = f"to continue, pass --resume {experiment} instead of CONFIG"
                logger.warning("stopped: %s; %s is saved; %s", why, saved[-1].name, cure)
            raise
        if distributed.is_main():
            logger.info("writing the record")
            restore_config(experiment, config)
            scores = write_record(experiment, task, command.record(experiment, task, evaluation))["scores"]
            trackers.finish()
            logger.info("  ".join(f"{name} {format_score(value)}" for name, value in scores.items()))
            logger.info("full record with pictures: %s", experiment / "README.md")


def restore_config(experiment: Path, config: Config) -> None:
    """Restore config.yaml if it was edited or removed during training; keep the edited version."""
    path, text = experiment / "config.yaml", dump_config(config)
    current = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if current != text:
        logger.warning(
            "%s was edited or removed during training; it is restored, the edited version is in %s", path, EDITED_CONFIG
        )
        write_text(experiment / EDITED_CONFIG, current)
        write_text(path, text)


def dry_run(command: TrainCommand, arguments: argparse.Namespace, device: torch.device) -> None:
    """Build everything that training needs, and take two training steps on real images. Writes no files."""
    task = prepare(command, arguments, device, arguments.experiments)
    announce(command, task, device)
    first, second = rehearse(task, device)
    usages = distributed.gather(memory_usage(device))
    if usages:
        used, total = max(usages, key=lambda usage: usage[0] / usage[1])  # the process closest to its limit
        if used > MAX_MEMORY_FRACTION * total:
            logger.warning("memory is almost full: lower train.batch_size and raise train.accumulation_steps")
        logger.info(
            "dry run: a step takes %.2f s (the first one %.2f s); memory %s of %s MiB%s; no experiment was created",
            second, first, f"{used:,.0f}", f"{total:,.0f}", "" if device.type == "cuda" else " of this machine",
        )  # fmt: skip


def rehearse(task: Task, device: torch.device) -> list[float]:
    """Take two training steps on the first batches; return the time of each step in seconds. Writes no files.

    The second step needs the most memory, because the optimizer allocates its state at the end of the first step.
    Raises RunError if the batch does not fit in memory, or if loss or gradient is not finite."""
    config, seconds = task.config.train, []
    try:
        trainer = Trainer(task, Path(), device)
        set_train_mode(trainer.parallel_model, config.batch_norm)
        batches = list(islice(trainer.loader, config.accumulation_steps))
        for _ in range(2):
            started = time.perf_counter()
            trainer.train_step(batches)
            trainer.finite.check()  # waits for the device
            seconds.append(time.perf_counter() - started)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise RunError(
            f"train.batch_size {config.batch_size} does not fit in memory: lower it, and raise "
            f"train.accumulation_steps to keep the global batch size ({str(error).splitlines()[0]})"
        ) from error
    return seconds


# ---- before the first step -----------------------------------------------------------------------------------


def check_feasible(task: Task, folder: Path, device: torch.device) -> None:
    """Raise ValueError, naming the field or folder, if the task cannot be trained. Writes no files.

    folder: directory on the disk that checkpoints will be written to; need not exist yet."""
    config, ratio = task.config.train, task.config.optim.backbone_lr_ratio
    if ratio != 1 and task.trunk is None:
        raise ValueError(f"optim.backbone_lr_ratio {ratio:g}: this task has no separate trunk; set it to 1")
    weights = sum(tensor.nbytes for tensor in task.model.state_dict().values())
    copies = 1 + STATES_PER_WEIGHT[task.config.optim.optimizer] + (config.ema_decay is not None)
    check_disk_space(folder, weights * copies)
    batches = len(EpochBatchSampler(len(task.train_set), config.batch_size, 0, distributed.world_size(), config.seed))
    if batches < config.accumulation_steps:
        raise ValueError(
            f"train.accumulation_steps {config.accumulation_steps}: an epoch has only {batches} batches of "
            f"{config.batch_size} images x {distributed.world_size()} processes; lower this field or train.batch_size"
        )
    if config.batch_norm == "sync" and device.type != "cuda":
        raise ValueError("train.batch_norm sync: works on GPUs only; use local or frozen on the CPU")
    # In a new model, only frozen layers are not in training mode.
    has_batch_norm = any(isinstance(module, BATCH_NORMS) and module.training for module in task.model.modules())
    if config.batch_norm == "local" and config.batch_size == 1 and has_batch_norm:
        raise ValueError("train.batch_size 1: BatchNorm needs at least 2 images; raise it or set batch_norm=frozen")


def announce(command: TrainCommand, task: Task, device: torch.device) -> None:
    """Log the model, the data, and the values that are derived from the config."""
    config, optim, world_size = task.config.train, task.config.optim, distributed.world_size()
    command.announce(task)
    if not distributed.is_main():
        return
    if task.initial_weights:
        logger.info(task.initial_weights.describe())
    global_batch_size = config.batch_size * world_size * config.accumulation_steps
    steps = len(task.train_set) // (config.batch_size * world_size) // config.accumulation_steps
    learning_rate = scaled_learning_rate(optim, global_batch_size)
    logger.info(
        "%d images, %d steps per epoch, global batch %d (%d images x %d processes x %d accumulated), "
        "peak learning rate %.3g",
        len(task.train_set), steps, global_batch_size, config.batch_size,
        world_size, config.accumulation_steps, learning_rate,
    )  # fmt: skip
    if optim.backbone_lr_ratio != 1:
        ratio = optim.backbone_lr_ratio
        logger.info("peak learning rate of the trunk %.3g (optim.backbone_lr_ratio %g)", ratio * learning_rate, ratio)
        if not any(parameter.requires_grad for parameter in task.trunk.parameters()):
            logger.warning("optim.backbone_lr_ratio %g has no effect, because the trunk is frozen; set it to 1", ratio)
    for name, value in task.reference_losses.items():
        logger.info("the best constant predictor has a %s loss of %.3f", name, value)
    for warning in schedule_warnings(optim, config.epochs):
        logger.warning(warning)
    if not is_in_hardware(config.precision, device):
        logger.warning(
            "train.precision %s: %s only emulates it, many times slower than fp32; use auto or fp32",
            config.precision, describe_device(device),
        )  # fmt: skip


def with_resolved_precision(config: Config, device: torch.device) -> Config:
    """Return the config; if `train.precision` is auto, use the precision that rank 0 chooses. Log the precision."""
    precision = distributed.broadcast(resolve_precision(config.train.precision, device))
    requested = f" (train.precision auto, on {describe_device(device)})" if config.train.precision == "auto" else ""
    logger.info("precision: %s%s", precision, requested)
    return with_value(config, "train", "precision", precision)


def memory_usage(device: torch.device) -> tuple[float, float]:
    """Return peak memory use and memory limit in MiB, of the GPU or, if `device` is the CPU, of this process."""
    if device.type == "cuda":  # PyTorch does not return memory to the GPU, so this is the peak
        free, total = torch.cuda.mem_get_info(device)
        return (total - free) / 2**20, total / 2**20
    return peak_memory_mib(device), memory_limit() / 2**20


# ---- resuming ------------------------------------------------------------------------------------------------


def resolve_resume(arguments: argparse.Namespace) -> None:
    """Set `arguments.resume` if the directory of --experiment or of a requeued Slurm job has a checkpoint."""
    requeued = resume = None
    # Only rank 0 checks, because other machines may see an outdated version of a shared folder.
    if distributed.is_main() and not arguments.resume:
        requeued = None if arguments.experiment else requeued_experiment(arguments.experiments)
        folder = arguments.experiment or requeued
        resume = folder if folder and list_checkpoints(folder / "checkpoints") else None
    requeued, resume = distributed.broadcast((requeued, resume))
    if requeued:
        arguments.experiment = requeued
        arguments.config, arguments.overrides = str(requeued / "config.yaml"), []  # CONFIG may have changed since
    arguments.resume = arguments.resume or resume


def read_config(arguments: argparse.Namespace, command: TrainCommand) -> Config:
    """Return the config to train with. Raises ConfigError if a resumed run would train with different settings."""
    config_class, resume = command.config_class, arguments.resume
    path = arguments.config or str(resume / "config.yaml")
    # Before load_config, because this error explains how to restore a missing config.yaml.
    stored = resume and read_recorded_config(resume, config_class)
    config = load_config(path, arguments.overrides, config_class)
    if not resume:
        return config
    config = with_stored_choices(config, stored)
    changed = [text for name, text in changed_fields(stored, config).items() if name not in FREE_FIELDS]
    if changed:
        start = command.start_from.format(experiment=resume).split()
        new_run = shlex.join(["python", "-m", arguments.module, path, *arguments.overrides, *start])
        edited = "" if arguments.config or arguments.overrides else " (first undo the edit of its config.yaml)"
        raise ConfigError(
            f"{resume} was trained with a different config: {'; '.join(changed)}. To resume with the original "
            f"config: --resume {resume}{edited}; to start a new run{' from its weights' if start else ''}: `{new_run}`"
        )
    return config


def read_recorded_config(experiment: Path, config_class: type[Config]) -> Config:
    """Return the config that a run was last started with, even if its config.yaml has been edited since."""
    try:
        started = [start["config"] for start in read_environments(experiment) if "config" in start][-1]
        return config_class.model_validate_json(json.dumps(started))
    except (IndexError, ValueError):  # missing, corrupt, or from a different version of the program
        return read_experiment_config(experiment, config_class)


def with_stored_choices(config: Config, stored: Config) -> Config:
    """Return the config of a resumed run: fields that are `auto` get the value that was chosen when the run started."""
    for name, chosen_type in AUTO_FIELDS.items():
        section, _, field = name.partition(".")
        given, chosen = (getattr(getattr(each, section), field, None) for each in (config, stored))
        if given == "auto" and isinstance(chosen, chosen_type):
            config = with_value(config, section, field, chosen)
    return config


def with_value(config: Config, section: str, field: str, value: Any) -> Config:
    """Return a copy of the config with a different value of one field."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update={field: value})})
