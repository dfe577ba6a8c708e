"""Train from the command line to the record: what the training commands of all tasks share besides the loop.

A task brings a `TrainCommand`; its training module passes it to `train`. engine/arguments.py reads the command line.
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
from engine.checkpoint import check_room, list_checkpoints, newest_checkpoint, sweep_temporaries
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
    FREE_FIELDS,
    append_environment,
    describe_environment,
    new_experiment,
    read_environments,
    read_experiment_config,
    requeued_experiment,
    shown_score,
)
from records.metrics import write_metrics
from records.record import TaskRecord, write_record
from records.status import at_work, begin_status
from records.trackers import Trackers, check_installed
from training import Evaluation, Task, Trainer, fit

MOST_OF_MEMORY = 0.9  # more is too close, because some batches have more objects than others
EDITED = "config_edited.yaml"  # a config.yaml that was edited while the run trained


@dataclass(frozen=True)
class TrainCommand:
    """What a task brings to its training command."""

    config_class: type[Config]  # with the sections `train` and `optim`
    # The task of a config; the flag says that a checkpoint will fill the model. Bad data or weights: a ValueError.
    build_task: Callable[[Any, bool], Task]
    announce: Callable[[Task], None]  # log what is trained on what
    # Write the task's own files of a finished run, on rank 0; return what it adds to the record.
    record: Callable[[Path, Task, Evaluation], TaskRecord]
    # Overrides with which a new run starts from the weights of {experiment}; empty if the task cannot.
    start_from: str = ""


def train(command: TrainCommand, arguments: argparse.Namespace, device: torch.device) -> None:
    """Train as the command line says (engine.arguments.parse_training), then score and record."""
    if arguments.dry_run:
        dry_run(command, arguments, device)
        return
    resolve_resume(arguments)
    with ExitStack() as stack:
        if arguments.experiment:  # made for this run: even what is wrong with its config is written there
            start_logging(arguments.experiment if distributed.is_main() else None, verbose=distributed.is_main())
            if distributed.is_main():
                stack.enter_context(at_work(arguments.experiment))
                begin_status(arguments.experiment)
        folder = arguments.resume or arguments.experiment
        task = prepare(command, arguments, device, folder or arguments.experiments)
        experiment = folder or distributed.broadcast(distributed.is_main() and new_experiment(arguments.experiments))
        if distributed.is_main() and not arguments.experiment:
            stack.enter_context(at_work(experiment))
        train_and_record(command, task, experiment, device, arguments.resume is not None)


def prepare(command: TrainCommand, arguments: argparse.Namespace, device: torch.device, folder: Path) -> Task:
    """Return the task to train. Raises ValueError for what can be known to be wrong before anything is written.

    folder: where checkpoints are to be kept."""
    config = with_precision(read_config(arguments, command), device)
    if arguments.resume:
        newest_checkpoint(arguments.resume / "checkpoints")  # there must be one
    task = command.build_task(config, arguments.resume is not None)
    check_installed(config.train.trackers)
    check_feasible(task, folder, device)
    return task


def train_and_record(command: TrainCommand, task: Task, experiment: Path, device: torch.device, resume: bool) -> None:
    """Train `task` in its experiment directory, then write what came out."""
    config = task.config
    hosts = distributed.gather(platform.node())
    start_logging(experiment if distributed.is_main() else None, verbose=distributed.is_main())
    trackers = Trackers(config.train.trackers if distributed.is_main() else (), experiment)

    def begin() -> None:
        if distributed.is_main():
            sweep_temporaries(experiment)
            begin_status(experiment)
            write_text(experiment / "config.yaml", dump_config(config))
            task.inputs.write(experiment)
            start = {"started_from": task.started_from, "config": config.model_dump(mode="json")}
            append_environment(experiment, describe_environment(hosts, device) | start)
            if not resume:
                write_metrics(experiment, [])  # of a start that left no checkpoint
            trackers.start()

    logger.info("experiment: %s", experiment)
    announce(command, task, device)
    for rank, host in enumerate(hosts or ()):
        logger.info("rank %d on %s, %s", rank, host, device.type)
    with trackers:
        try:
            _, evaluation = fit(task, experiment, device, resume, begin, trackers.log)
        except (KeyboardInterrupt, Stopped) as stop:
            if distributed.is_main() and (saved := list_checkpoints(experiment / "checkpoints")):
                why = str(stop) if isinstance(stop, Stopped) else "interrupted from the keyboard"
                cure = f"to continue: --resume {experiment} in place of CONFIG"
                logger.warning("stopped: %s; %s is saved; %s", why, saved[-1].name, cure)
            raise
        if distributed.is_main():
            logger.info("writing the record")
            restore_config(experiment, config)
            scores = write_record(experiment, task, command.record(experiment, task, evaluation))["scores"]
            trackers.finish()
            logger.info("  ".join(f"{name} {shown_score(value)}" for name, value in scores.items()))
            logger.info("the whole record, with pictures: %s", experiment / "README.md")


def restore_config(experiment: Path, config: Config) -> None:
    """Restore config.yaml to what was trained; keep one that was edited meanwhile as config_edited.yaml."""
    path, text = experiment / "config.yaml", dump_config(config)
    found = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if found != text:
        logger.warning(
            "%s was edited or removed while the run trained: restored, the edited one is in %s", path, EDITED
        )
        write_text(experiment / EDITED, found)
        write_text(path, text)


def dry_run(command: TrainCommand, arguments: argparse.Namespace, device: torch.device) -> None:
    """Build all that training needs and take two steps on real images; leave nothing."""
    task = prepare(command, arguments, device, arguments.experiments)
    announce(command, task, device)
    first, second = rehearse(task, device)
    needs = distributed.gather(memory_need(device))
    if needs:
        used, total = max(needs, key=lambda need: need[0] / need[1])  # of the process that has the least to spare
        if used > MOST_OF_MEMORY * total:
            logger.warning("nearly all memory is used: lower train.batch_size, raise train.accumulation_steps")
        logger.info(
            "dry run: a step takes %.2f s, the first %.2f s; memory %s of %s MiB%s; no experiment was made",
            second, first, f"{used:,.0f}", f"{total:,.0f}", "" if device.type == "cuda" else " of this machine",
        )  # fmt: skip


def rehearse(task: Task, device: torch.device) -> list[float]:
    """Take two steps as `fit` would on its first batch; return the seconds of each. Write nothing.

    The second needs the most memory, because the optimizer allocates its state at the end of the first.
    Raises RunError if there is not enough memory, or as `fit` does."""
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
            f"train.batch_size {config.batch_size} does not fit the memory: lower it, and raise "
            f"train.accumulation_steps to keep the global batch ({str(error).splitlines()[0]})"
        ) from error
    return seconds


# ---- before the first step -----------------------------------------------------------------------------------


def check_feasible(task: Task, folder: Path, device: torch.device) -> None:
    """Refuse what cannot be trained, before anything is written. Raises ValueError that names the field or file.

    folder: where checkpoints are to be kept; it need not exist yet."""
    config = task.config.train
    weights = sum(tensor.nbytes for tensor in task.model.state_dict().values())
    copies = 1 + STATES_PER_WEIGHT[task.config.optim.optimizer] + (config.ema_decay is not None)
    check_room(folder, weights * copies)
    batches = len(EpochBatchSampler(len(task.train_set), config.batch_size, 0, distributed.world_size(), config.seed))
    if batches < config.accumulation_steps:
        raise ValueError(
            f"train.accumulation_steps {config.accumulation_steps}: an epoch has only {batches} batches of "
            f"{config.batch_size} x {distributed.world_size()} images; lower it or train.batch_size"
        )
    if config.batch_norm == "sync" and device.type != "cuda":
        raise ValueError("train.batch_norm sync: works on GPUs only; on the CPU take local or frozen")
    has_batch_norm = any(isinstance(module, BATCH_NORMS) for module in task.model.modules())
    if config.batch_norm == "local" and config.batch_size == 1 and has_batch_norm:
        raise ValueError("train.batch_size 1: BatchNorm needs 2 images or more, or train.batch_norm frozen")


def announce(command: TrainCommand, task: Task, device: torch.device) -> None:
    """Log what is trained on what, and what was derived from the config."""
    config, optim, world_size = task.config.train, task.config.optim, distributed.world_size()
    command.announce(task)
    if not distributed.is_main():
        return
    if task.started_from:
        logger.info(task.started_from)
    global_batch_size = config.batch_size * world_size * config.accumulation_steps
    steps = len(task.train_set) // (config.batch_size * world_size) // config.accumulation_steps
    logger.info(
        "%d images, %d steps per epoch, global batch %d (%d images x %d processes x %d accumulated), "
        "peak learning rate %.3g",
        len(task.train_set), steps, global_batch_size, config.batch_size,
        world_size, config.accumulation_steps, scaled_learning_rate(optim, global_batch_size),
    )  # fmt: skip
    for name, value in task.reference_losses.items():
        logger.info("a model that learned nothing has a %s loss of %.3f", name, value)
    for warning in schedule_warnings(optim, config.epochs):
        logger.warning(warning)
    if not is_in_hardware(config.precision, device):
        logger.warning(
            "train.precision %s: %s emulates it, a step takes many times as long as in fp32; use auto or fp32",
            config.precision, describe_device(device),
        )  # fmt: skip


def with_precision(config: Config, device: torch.device) -> Config:
    """Return the config with `train.precision` resolved, by rank 0 for all, and log the choice."""
    precision = distributed.broadcast(resolve_precision(config.train.precision, device))
    requested = f" (train.precision auto, on {describe_device(device)})" if config.train.precision == "auto" else ""
    logger.info("precision: %s%s", precision, requested)
    return set_precision(config, precision)


def memory_need(device: torch.device) -> tuple[float, float]:
    """Return the memory that is taken by now and the total, in MiB: of a GPU, or of what this process may have."""
    if device.type == "cuda":  # PyTorch keeps what it once had, so this is the peak
        free, total = torch.cuda.mem_get_info(device)
        return (total - free) / 2**20, total / 2**20
    return peak_memory_mib(device), memory_limit() / 2**20


# ---- which run it is -----------------------------------------------------------------------------------------


def resolve_resume(arguments: argparse.Namespace) -> None:
    """Resume in --experiment if it has a checkpoint, or where this Slurm job trained before it was requeued."""
    requeued = resume = None
    # Rank 0 looks: other machines may see a shared folder as it was seconds ago.
    if distributed.is_main() and not arguments.resume:
        requeued = None if arguments.experiment else requeued_experiment(arguments.experiments)
        folder = arguments.experiment or requeued
        resume = folder if folder and list_checkpoints(folder / "checkpoints") else None
    requeued, resume = distributed.broadcast((requeued, resume))
    if requeued:
        arguments.experiment = requeued
        arguments.config, arguments.overrides = str(requeued / "config.yaml"), []  # the other may have been edited
    arguments.resume = arguments.resume or resume


def read_config(arguments: argparse.Namespace, command: TrainCommand) -> Config:
    """Return the config to train with. Raises ConfigError if a resumed run would learn something else."""
    config_class, resume = command.config_class, arguments.resume
    path = arguments.config or str(resume / "config.yaml")
    stored = resume and read_started_config(resume, config_class)  # first, because its error says what to do
    config = load_config(path, arguments.overrides, config_class)
    if not resume:
        return config
    if config.train.precision == "auto":  # it was resolved when the experiment started
        config = set_precision(config, stored.train.precision)
    changed = [text for name, text in changed_fields(stored, config).items() if name not in FREE_FIELDS]
    if changed:
        start = command.start_from.format(experiment=resume).split()
        new_run = shlex.join(["python", "-m", arguments.module, path, *arguments.overrides, *start])
        edited = "" if arguments.config or arguments.overrides else " (its config.yaml was edited: undo that)"
        raise ConfigError(
            f"{resume} was trained with another config: {'; '.join(changed)}. Resume with its own: --resume {resume}; "
            f"or start a new run{', from its weights' if start else ''}: `{new_run}`{edited}"
        )
    return config


def read_started_config(experiment: Path, config_class: type[Config]) -> Config:
    """Return the config that a run was last started with, even if its config.yaml was changed since."""
    try:
        started = [start["config"] for start in read_environments(experiment) if "config" in start][-1]
        return config_class.model_validate_json(json.dumps(started))
    except (IndexError, ValueError):  # not recorded, damaged, or of another version
        return read_experiment_config(experiment, config_class)


def set_precision(config: Config, precision: str) -> Config:
    """Return the config with another `train.precision`."""
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})
