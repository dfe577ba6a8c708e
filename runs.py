"""A run from its command line to its record: what the training commands of all tasks share besides the loop.

    python -m detection.training CONFIG [section.field=value ...]   a new experiments/experiment_N
    ... CONFIG --experiment DIRECTORY                               in that one; goes on there if it has a checkpoint
    ... --resume EXPERIMENT                                         goes on after its newest checkpoint
    ... CONFIG --dry-run                                            two steps, to see whether it can; no experiment

A task brings a `TrainCommand`; its training module hands it to `train`. engine/arguments.py reads the command line.
"""

import argparse
import platform
import statistics
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from engine import distributed
from engine.checkpoint import list_checkpoints, newest_checkpoint, sweep_temporaries
from engine.compute.cost import peak_memory_mib
from engine.compute.machine import memory_limit
from engine.config import Config, changed_fields, dump_config, load_config
from engine.experiment import (
    FREE_FIELDS,
    append_environment,
    describe_environment,
    new_experiment,
    occupied,
    read_environments,
    read_experiment_config,
    requeued_experiment,
    shown_score,
)
from engine.logbook import STOPPED, logger, read_metrics, rewind_metrics, start_logging
from engine.optim import scaled_learning_rate
from engine.signals import Stopped
from engine.storage.files import file_sha256, write_text
from engine.storage.release import commit_of
from engine.storage.strict_yaml import ConfigError
from engine.trackers import Trackers, check_installed
from training import Task, check_feasible, fit, rehearse


@dataclass(frozen=True)
class TrainCommand:
    """What a task brings to its training command."""

    config_class: type[Config]  # with the sections `train` and `optim`
    # The task of a config; the flag says that a checkpoint will fill the model. Bad data or weights: a ValueError.
    # Besides what `fit` asks of it the task has `config`; `started_from`, a line on weights that it started from, or
    # None; and `results`, None until it was evaluated, on rank 0.
    build_task: Callable[[Any, bool], Task]
    announce: Callable[[Task], None]  # log what is trained on what
    # After `environment.json` and `metrics.jsonl` are complete, on rank 0; returns what results.json holds.
    write_record: Callable[[Path, Task], dict]


def train(command: TrainCommand, arguments: argparse.Namespace, device: torch.device) -> None:
    """Train as the command line says (engine.arguments.parse_training), then score and record."""
    if arguments.dry_run:
        dry_run(command, arguments, device)
        return
    find_begun(arguments)
    if arguments.experiment:  # made for this run: even what is wrong with its config is written there
        start_logging(arguments.experiment if distributed.is_main() else None, verbose=distributed.is_main())
    config = read_config(arguments, command.config_class)
    resume = arguments.resume is not None
    if resume:
        newest_checkpoint(arguments.resume / "checkpoints")  # there must be one, before anything is written
    task = command.build_task(config, resume)
    folder = arguments.resume or arguments.experiment
    check_installed(config.train.trackers)
    check_feasible(task, config.train, config.optim, folder or arguments.experiments, device)
    experiment = folder or distributed.broadcast(distributed.is_main() and new_experiment(arguments.experiments))
    with occupied(experiment) if distributed.is_main() else nullcontext():
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
            append_environment(experiment, describe_environment(hosts, device) | {"started_from": task.started_from})
            if not resume:
                rewind_metrics(experiment, step=0)  # of a start that left no checkpoint
            trackers.start()

    logger.info("experiment: %s", experiment)
    command.announce(task)
    for rank, host in enumerate(hosts or ()):
        logger.info("rank %d on %s, %s", rank, host, device.type)
    with trackers:
        try:
            model = fit(task, config.train, config.optim, experiment, device, resume, begin, trackers.log)
        except (KeyboardInterrupt, Stopped) as stop:
            if distributed.is_main() and (saved := list_checkpoints(experiment / "checkpoints")):
                why = str(stop) if isinstance(stop, Stopped) else "interrupted from the keyboard"
                cure = f"to go on: --resume {experiment} in place of CONFIG"
                logger.warning("%s%s; %s is saved; %s", STOPPED, why, saved[-1].name, cure)
            raise
        if distributed.broadcast(task.results is None):
            logger.info("all %d epochs were trained before; scoring their weights for the record", config.train.epochs)
            task.evaluate(model, device, lambda: None)
        if distributed.is_main():
            logger.info("writing the record")
            scores = command.write_record(experiment, task)["scores"]
            trackers.finish()
            logger.info("  ".join(f"{name} {shown_score(value)}" for name, value in scores.items()))
            logger.info("the whole record, with pictures: %s", experiment / "README.md")


def dry_run(command: TrainCommand, arguments: argparse.Namespace, device: torch.device) -> None:
    """Build all that training needs and take two steps on real images, to see whether they can be; leave nothing.

    The last line that it prints is for engine.doctor, too."""
    config = read_config(arguments, command.config_class)
    task = command.build_task(config, False)
    check_installed(config.train.trackers)
    check_feasible(task, config.train, config.optim, arguments.experiments, device)
    command.announce(task)
    first, second = rehearse(task, config.train, config.optim, device)
    needs = distributed.gather(memory_need(device))  # of several processes, the one that is shortest of it
    if needs:
        used, total = max(needs, key=lambda need: need[0] / need[1])
        logger.info(
            "dry run: a step takes %.2f s, the first %.2f s; memory %s of %s MiB%s; no experiment was made",
            second, first, f"{used:,.0f}", f"{total:,.0f}", "" if device.type == "cuda" else " of this machine",
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


def read_config(arguments: argparse.Namespace, config_class: type[Config]) -> Config:
    """The config to train with. Raises ConfigError where a resumed run would learn something else."""
    if not arguments.resume:
        return load_config(arguments.config, arguments.overrides, config_class)
    stored = read_experiment_config(arguments.resume, config_class)
    config = load_config(arguments.config or arguments.resume / "config.yaml", arguments.overrides, config_class)
    changed = [text for name, text in changed_fields(stored, config).items() if name not in FREE_FIELDS]
    if changed:
        raise ConfigError(
            f"{arguments.resume} was trained with another config: {'; '.join(changed)}. "
            "Resume with the experiment's own config, or start a new run"
        )
    return config


# ---- what every record holds ---------------------------------------------------------------------------------


def common_record(experiment: Path, task: Task, gflops: float, inputs: list[Path]) -> dict:
    """What results.json holds whatever the task: which seed, how long, on which files, at what cost.

    gflops: of one forward pass over one image. inputs: the files that decide what is learned and scored.
    Raises ValueError if metrics.jsonl lacks epochs."""
    config, lines = task.config, read_metrics(experiment)
    if len(lines) < config.train.epochs:
        raise ValueError(
            f"{experiment}/metrics.jsonl: {len(lines)} of {config.train.epochs} epochs in it; was it edited?"
        )
    start = read_environments(experiment)[-1]
    parameters = list(task.model.parameters())
    return {
        "metric": task.metrics[0],
        "lower_is_better": task.lower_is_better,
        "seed": config.train.seed,
        "epochs": lines[-1]["epoch"],
        "steps": lines[-1]["step"],
        "weights": "moving average" if config.train.ema_decay else "as after the last step",
        "inputs": {str(path): file_sha256(path) for path in inputs},
        "cost": {
            "parameters": sum(parameter.numel() for parameter in parameters),
            "gflops": round(gflops, 3),
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
