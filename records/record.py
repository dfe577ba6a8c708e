"""Write README.md and results.json of a finished run: entries that all tasks share, and entries of the task."""

import json
import statistics
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from engine.compute.cost import FLOPS_COUNTER, peak_memory_mib
from engine.config import Config
from engine.files import write_text
from engine.logbook import logger
from engine.optim import scaled_learning_rate
from engine.terminal import counted
from records.experiment import commit_of, read_environments, write_readme
from records.metrics import read_metrics
from records.results import InitialWeights
from training import Task


class TaskRecord(NamedTuple):
    """Facts that a task adds to results.json and README.md."""

    module: str  # training module, such as detection.training
    results: dict[str, Any]  # entries of results.json: task, variant, scores, per_class, protocol, ...
    gflops: float  # GFLOPs of one forward pass of one image
    title: str  # this and all fields below are for README.md
    model: str  # name and size
    data: str  # size of the training and validation sets
    scored: str  # evaluation protocol
    facts: dict[str, str]  # further facts, label to text
    pictures: dict[str, str]  # file name to caption


def write_record(experiment: Path, task: Task, task_record: TaskRecord) -> dict:
    """Write README.md, then results.json. Returns the content of results.json.

    An experiment with results.json is finished. Call this function on rank 0, when metrics.jsonl, environment.json and
    the task's own files are complete. Logs a warning if the data have changed since the run read them."""
    lines, starts = read_metrics(experiment), read_environments(experiment)
    record = task_record.results | _common_results(task, task_record.gflops, lines, starts)
    record["facts"] = _facts(experiment, task.config, task_record, record, lines, starts)
    pictures = task_record.pictures | {"curves.png": "Training loss, validation scores and learning rate by epoch"}
    write_readme(experiment, task_record.title, record["facts"], record["scores"], pictures)
    write_text(experiment / "results.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return record


def _common_results(task: Task, gflops: float, lines: list[dict], starts: list[dict]) -> dict:
    """Return the entries of results.json that all tasks share: seed, data, length and cost of the training.

    lines: content of metrics.jsonl. starts: content of environment.json."""
    for change in task.inputs.changes():
        logger.warning("%s since the run started; the record describes the data that the run read", change)
    config, parameters, start = task.config, list(task.model.parameters()), starts[-1]
    # A start that resumes from a checkpoint loads no initial weights.
    loaded = [each["initial_weights"] for each in starts if each.get("initial_weights")]
    return {
        "metric": task.metrics[0],
        "lower_is_better": task.lower_is_better,
        "seed": config.train.seed,
        "epochs": lines[-1]["epoch"],
        "steps": lines[-1]["step"],
        "precision": config.train.precision,
        "weights": "moving average" if config.train.ema_decay else "after the last step",
        "initial_weights": loaded[-1] if loaded else None,
        "inputs": task.inputs.files,
        "image_sets": {split: images.sha256 for split, images in task.inputs.images.items()},
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


def _facts(
    experiment: Path, config: Config, task_record: TaskRecord, record: dict, lines: list[dict], starts: list[dict]
) -> dict[str, str]:
    """Return the facts of README.md as a dict from label to text."""
    start, cost, train, optim = starts[-1], record["cost"], config.train, config.optim
    batch = train.batch_size * train.accumulation_steps * start["processes"]
    machine = start["cpu"] if start["device"] == "cpu" else start["device"]
    versions = ", ".join(f"{name} {start['versions'][name]}" for name in ("torch", "torchvision", "python"))
    if record["initial_weights"]:
        origin = InitialWeights.model_validate(record["initial_weights"]).describe()
    else:  # runs that an older version started recorded a text
        texts = [each["started_from"] for each in starts if each.get("started_from")]
        origin = texts[0] if texts else f"from {config.model.weights or 'random weights'}"
    for_trunk = "" if optim.backbone_lr_ratio == 1 else f" (trunk: {optim.backbone_lr_ratio:g} times as much)"
    return {
        "Model": f"{task_record.model}, {cost['parameters'] / 1e6:.2f} M parameters; {origin}",
        "Data": f"`{config.data.root}`: {task_record.data}",
        **task_record.facts,
        "Recipe": f"{train.epochs} epochs, batch {batch}, {optim.optimizer} with learning rate "
        f"{scaled_learning_rate(optim, batch):.3g}{for_trunk}, {optim.schedule} schedule, {train.precision}, "
        f"seed {train.seed}",
        "Scored": f"weights: {record['weights']}; {task_record.scored}",
        "Time": f"{cost['train_seconds'] / 60:.1f} minutes of training at {cost['images_per_second']:.0f} images/s "
        f"on {start['processes']} x {machine}, in {counted(len(starts), 'start', 'starts')}",
        "Best epoch": best_epoch(lines, record["metric"], record["lower_is_better"]),
        "Code": f"commit {', then '.join(dict.fromkeys(map(commit_of, starts)))}; {versions}",
        "Again": f"`python -m {task_record.module} {experiment}/config.yaml`",
    }


def best_epoch(lines: list[dict], metric: str, lower_is_better: bool) -> str:
    """Describe the epoch with the best score, with a warning if the epoch is not the last."""
    scored = [line for line in lines if line.get(metric) is not None]
    if not scored:
        return "none scored"
    best = (min if lower_is_better else max)(scored, key=itemgetter(metric))
    score = f"{best['epoch']} with {metric} {best[metric]:.4f}"
    if best["epoch"] == lines[-1]["epoch"]:
        return f"{score}, the last"
    return f"{score}; do not report this score, because the epoch was selected on the validation images"
