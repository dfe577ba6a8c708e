"""A run from its command line to its record: what the training commands of all tasks share besides the loop.

    python -m detection.training CONFIG [section.field=value ...]   a new experiments/experiment_N
    ... CONFIG --experiment DIRECTORY                               in that one; goes on there if it has a checkpoint
    ... --resume EXPERIMENT                                         goes on after its newest checkpoint
    ... CONFIG --dry-run                                            two steps, to see whether it can; no experiment

A task brings a `TrainCommand`; its training module hands it to `train`. engine/arguments.py reads the command line.
"""

import argparse
import json
import platform
import shlex
import statistics
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from engine import distributed
from engine.checkpoint import list_checkpoints, newest_checkpoint, sweep_temporaries
from engine.compute.cost import FLOPS_COUNTER, peak_memory_mib
from engine.compute.machine import memory_limit
from engine.compute.precision import describe_device, is_in_hardware, resolve_precision
from engine.config import Config, changed_fields, dump_config, load_config
from engine.files import write_text
from engine.logbook import logger, start_logging
from engine.optim import scaled_learning_rate
from engine.signals import Stopped
from engine.strict_yaml import ConfigError
from records.experiment import (
    FREE_FIELDS,
    append_environment,
    commit_of,
    describe_environment,
    new_experiment,
    read_environments,
    read_experiment_config,
    requeued_experiment,
    shown_score,
)
from records.metrics import read_metrics, write_metrics
from records.status import at_work
from records.trackers import Trackers, check_installed
from training import Task, check_feasible, emulation_factor, fit, rehearse

MOST_OF_MEMORY = 0.9  # more is too close, because some batches have more objects than others
EDITED = "config_edited.yaml"  # what somebody made of config.yaml while the run trained


@dataclass(frozen=True)
class TrainCommand:
    """What a task brings to its training command."""

    config_class: type[Config]  # with the sections `train` and `optim`
    # The task of a config; the flag says that a checkpoint will fill the model. Bad data or weights: a ValueError.
    # Besides what `fit` asks of it the task has `config`; `inputs`, the data it read; `started_from`, a line on weights
    # that it started from, or None; and `results`, None until it was evaluated, on rank 0.
    build_task: Callable[[Any, bool], Task]
    announce: Callable[[Task], None]  # log what is trained on what
    # After `environment.json` and `metrics.jsonl` are complete, on rank 0; returns what results.json holds.
    write_record: Callable[[Path, Task], dict]
    # Overrides with which a new run starts from the weights of {experiment}; empty where a task cannot.
    start_from: str = ""


def train(command: TrainCommand, arguments: argparse.Namespace, device: torch.device) -> None:
    """Train as the command line says (engine.arguments.parse_training), then score and record."""
    if arguments.dry_run:
        dry_run(command, arguments, device)
        return
    find_begun(arguments)
    with ExitStack() as stack:
        if arguments.experiment:  # made for this run: even what is wrong with its config is written there
            start_logging(arguments.experiment if distributed.is_main() else None, verbose=distributed.is_main())
            if distributed.is_main():
                stack.enter_context(at_work(arguments.experiment))
        config = with_precision(read_config(arguments, command), device)
        resume = arguments.resume is not None
        if resume:
            newest_checkpoint(arguments.resume / "checkpoints")  # there must be one, before anything is written
        task = command.build_task(config, resume)
        folder = arguments.resume or arguments.experiment
        check_installed(config.train.trackers)
        check_feasible(task, config.train, config.optim, folder or arguments.experiments, device)
        experiment = folder or distributed.broadcast(distributed.is_main() and new_experiment(arguments.experiments))
        if distributed.is_main() and not arguments.experiment:
            stack.enter_context(at_work(experiment))
        train_and_record(command, task, experiment, device, resume)


def train_and_record(command: TrainCommand, task: Task, experiment: Path, device: torch.device, resume: bool) -> None:
    """Train `task` in its experiment directory, then write what came out."""
    config = task.config
    hosts = distributed.gather(platform.node())
    start_logging(experiment if distributed.is_main() else None, verbose=distributed.is_main())
    trackers = Trackers(config.train.trackers if distributed.is_main() else (), experiment)

    def begin() -> None:
        if distributed.is_main():
            sweep_temporaries(experiment)
            write_text(experiment / "config.yaml", dump_config(config))
            task.inputs.write(experiment)
            start = {"started_from": task.started_from, "config": config.model_dump(mode="json")}
            append_environment(experiment, describe_environment(hosts, device) | start)
            if not resume:
                write_metrics(experiment, [])  # of a start that left no checkpoint
            trackers.start()

    logger.info("experiment: %s", experiment)
    command.announce(task)
    for rank, host in enumerate(hosts or ()):
        logger.info("rank %d on %s, %s", rank, host, device.type)
    warn_if_emulated(task, device)
    with trackers:
        try:
            model = fit(task, config.train, config.optim, experiment, device, resume, begin, trackers.log)
        except (KeyboardInterrupt, Stopped) as stop:
            if distributed.is_main() and (saved := list_checkpoints(experiment / "checkpoints")):
                why = str(stop) if isinstance(stop, Stopped) else "interrupted from the keyboard"
                cure = f"to go on: --resume {experiment} in place of CONFIG"
                logger.warning("stopped: %s; %s is saved; %s", why, saved[-1].name, cure)
            raise
        if distributed.broadcast(task.results is None):
            logger.info("all %d epochs were trained before; scoring their weights for the record", config.train.epochs)
            task.evaluate(model, device, lambda: None)
        if distributed.is_main():
            logger.info("writing the record")
            restore_config(experiment, config)
            scores = command.write_record(experiment, task)["scores"]
            trackers.finish()
            logger.info("  ".join(f"{name} {shown_score(value)}" for name, value in scores.items()))
            logger.info("the whole record, with pictures: %s", experiment / "README.md")


def restore_config(experiment: Path, config: Config) -> None:
    """Make config.yaml say again what was trained, if it was edited meanwhile; what was edited is kept beside it."""
    path, text = experiment / "config.yaml", dump_config(config)
    found = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    if found == text:
        return
    if found is not None:
        write_text(experiment / EDITED, found)
    what = "removed" if found is None else f"edited (now in {EDITED})"
    logger.warning("%s was %s while the run trained; restored: it says what was trained", path, what)
    write_text(path, text)


def dry_run(command: TrainCommand, arguments: argparse.Namespace, device: torch.device) -> None:
    """Build all that training needs and take two steps on real images, to see whether they can be; leave nothing."""
    config = with_precision(read_config(arguments, command), device)
    task = command.build_task(config, False)
    check_installed(config.train.trackers)
    check_feasible(task, config.train, config.optim, arguments.experiments, device)
    command.announce(task)
    warn_if_emulated(task, device)
    first, second = rehearse(task, config.train, config.optim, device)
    needs = distributed.gather(memory_need(device))  # of several processes, the one that is shortest of it
    if needs:
        used, total = max(needs, key=lambda need: need[0] / need[1])
        if used > MOST_OF_MEMORY * total:
            logger.warning("nearly all memory is used: lower train.batch_size, raise train.accumulation_steps")
        logger.info(
            "dry run: a step takes %.2f s, the first %.2f s; memory %s of %s MiB%s; no experiment was made",
            second, first, f"{used:,.0f}", f"{total:,.0f}", "" if device.type == "cuda" else " of this machine",
        )  # fmt: skip


def with_precision(config: Config, device: torch.device) -> Config:
    """Return the config with `train.precision` resolved, by rank 0 for all, and log the choice."""
    precision = distributed.broadcast(resolve_precision(config.train.precision, device))
    requested = f" (train.precision auto, on {describe_device(device)})" if config.train.precision == "auto" else ""
    logger.info("precision: %s%s", precision, requested)
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})


def warn_if_emulated(task: Task, device: torch.device) -> None:
    """Log, with the measured factor, that the device emulates the precision that the config asks for."""
    config = task.config.train
    if distributed.is_main() and not is_in_hardware(config.precision, device):
        logger.warning(
            "train.precision %s: %s emulates it, a step takes %.1f times as long as in fp32; use auto or fp32",
            config.precision, describe_device(device), emulation_factor(task, config, device),
        )  # fmt: skip


def memory_need(device: torch.device) -> tuple[float, float]:
    """The memory that is taken by now, and all that there is, in MiB: of a GPU, or of what this process may have."""
    if device.type == "cuda":  # PyTorch keeps what it once had, so this is the most, with the context and the reserve
        free, total = torch.cuda.mem_get_info(device)
        return (total - free) / 2**20, total / 2**20
    return peak_memory_mib(device), memory_limit() / 2**20


# ---- which run it is -----------------------------------------------------------------------------------------


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


def read_config(arguments: argparse.Namespace, command: TrainCommand) -> Config:
    """The config to train with. Raises ConfigError where a resumed run would learn something else."""
    config_class = command.config_class
    if not arguments.resume:
        return load_config(arguments.config, arguments.overrides, config_class)
    stored = read_started_config(arguments.resume, config_class)
    config = load_config(arguments.config or arguments.resume / "config.yaml", arguments.overrides, config_class)
    if config.train.precision == "auto":  # it was resolved when the experiment started
        config = config.model_copy(
            update={"train": config.train.model_copy(update={"precision": stored.train.precision})}
        )
    changed = {name: text for name, text in changed_fields(stored, config).items() if name not in FREE_FIELDS}
    if changed:
        edited = "" if arguments.config or arguments.overrides else " (its config.yaml was edited: undo that)"
        raise ConfigError(
            f"{arguments.resume} was trained with another config: {'; '.join(changed.values())}. "
            f"Resume with its own: --resume {arguments.resume}; or start a new run, {_new_run(arguments, command)}"
            + edited
        )
    return config


def _new_run(arguments: argparse.Namespace, command: TrainCommand) -> str:
    """The command of a run with the config that an experiment refuses, from the experiment's weights if it can be."""
    config = arguments.config or str(arguments.resume / "config.yaml")
    start = command.start_from.format(experiment=arguments.resume).split()
    words = ["python", "-m", arguments.module, config, *arguments.overrides, *start]
    return f"{'from its weights and ' if start else ''}with a schedule of its own: `{shlex.join(words)}`"


def read_started_config(experiment: Path, config_class: type[Config]) -> Config:
    """The config that a run was last started with, whatever has become of its config.yaml since."""
    starts = [start for start in read_environments(experiment) if "config" in start]
    if not starts:  # of an earlier version
        return read_experiment_config(experiment, config_class)
    try:
        return config_class.model_validate_json(json.dumps(starts[-1]["config"]))
    except ValueError:  # of another version, or edited
        return read_experiment_config(experiment, config_class)


# ---- what every record holds ---------------------------------------------------------------------------------


def common_record(experiment: Path, task: Task, gflops: float) -> dict:
    """What results.json holds whatever the task: which seed, how long, on which data, at what cost.

    gflops: of one forward pass over one image. Warns of data that have changed since the run read them.
    Raises ValueError if metrics.jsonl lacks epochs."""
    config, lines = task.config, read_metrics(experiment)
    if len(lines) < config.train.epochs:
        raise ValueError(
            f"{experiment}/metrics.jsonl: {len(lines)} of {config.train.epochs} epochs in it, and its checkpoints are "
            "of a version that does not keep the others, so there is no record. The weights are whole: score them by "
            "the task's own command, or train again from the experiment's config.yaml"
        )
    for change in task.inputs.changes():
        logger.warning("%s since the run started; the record is of the data that the run read", change)
    start = read_environments(experiment)[-1]
    parameters = list(task.model.parameters())
    return {
        "metric": task.metrics[0],
        "lower_is_better": task.lower_is_better,
        "seed": config.train.seed,
        "epochs": lines[-1]["epoch"],
        "steps": lines[-1]["step"],
        "precision": config.train.precision,
        "weights": "moving average" if config.train.ema_decay else "as after the last step",
        "inputs": task.inputs.files,
        "image_sets": {half: images.sha256 for half, images in task.inputs.images.items()},
        "cost": {
            "parameters": sum(parameter.numel() for parameter in parameters),
            "gflops": round(gflops, 3),
            "flops_counter": FLOPS_COUNTER,
            "train_seconds": round(sum(line["epoch_seconds"] for line in lines), 1),
            "images_per_second": statistics.median(line["images_per_second"] for line in lines),
            "peak_memory_mib": round(peak_memory_mib(parameters[0].device), 1),
            "processes": start["processes"],
            "device": start["device"],
        },
    }


def recipe_fact(experiment: Path, config: Config) -> str:
    """'100 epochs, batch 16, adamw at 0.001, cosine, bf16, seed 0', for the experiment's README."""
    train, optim = config.train, config.optim
    batch = train.batch_size * train.accumulation_steps * read_environments(experiment)[-1]["processes"]
    return (
        f"{train.epochs} epoch{'s' * (train.epochs > 1)}, batch {batch}, {optim.optimizer} at "
        f"{scaled_learning_rate(optim, batch):.3g}, {optim.schedule}, {train.precision}, seed {train.seed}"
    )


def started_fact(experiment: Path, weights: str | None) -> str:
    """What the run started from, as its first start found it: when it is resumed, nothing is looked up again."""
    found = [start["started_from"] for start in read_environments(experiment) if start.get("started_from")]
    return found[0] if found else f"from {weights or 'random weights'}"


def best_fact(best: dict | None, metric: str, last_epoch: int) -> str:
    """Which epoch had the best score, and what that is worth. best: its line of metrics.jsonl."""
    if best is None:
        return "none scored"
    score = f"{best['epoch']} at {metric} {best[metric]:.4f}"
    if best["epoch"] == last_epoch:
        return f"{score}, the last"
    return f"{score}; not the figure to quote, for it was chosen on the images it is scored on"


def commits_fact(starts: list[dict]) -> str:
    """'commit 1a2b3c', or several, in the order in which a run was started with them."""
    names = list(dict.fromkeys(map(commit_of, starts)))
    return f"commit {names[0]}" if len(names) == 1 else f"commits {', then '.join(names)}"


def common_facts(experiment: Path, record: dict, module: str) -> dict[str, str]:
    """How long it took, on what, and how to do it again: lines of the experiment's README, label to sentence."""
    lines, starts = read_metrics(experiment), read_environments(experiment)
    start, cost, metric = starts[-1], record["cost"], record["metric"]
    counts = Counter(start["slurm"]["job"] for start in starts if start.get("slurm"))
    jobs = [f"{job} ({count} starts)" if count > 1 else job for job, count in counts.items()]
    machine = start["cpu"] if start["device"] == "cpu" else start["device"]
    best_of = min if record["lower_is_better"] else max
    best = best_of((line for line in lines if line.get(metric) is not None), key=itemgetter(metric), default=None)
    return {
        "Time": f"{cost['train_seconds'] / 60:.1f} minutes of training, {cost['images_per_second']:.0f} images/s, "
        f"on {start['processes']} x {machine}" + (f", in {len(starts)} starts" if len(starts) > 1 else ""),
        **({"Slurm jobs": ", ".join(jobs)} if jobs else {}),
        "Best epoch": best_fact(best, metric, lines[-1]["epoch"]),
        "Code": f"{commits_fact(starts)}; "
        f"torch {start['versions']['torch']}, torchvision {start['versions']['torchvision']}, "
        f"Python {start['versions']['python']}",
        "Again": f"`python -m {module} {experiment}/config.yaml`",
    }
