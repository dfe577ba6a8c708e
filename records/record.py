"""The record of a finished run: README.md and results.json, the parts that all tasks share and what a task adds."""

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
from training import Task


class TaskRecord(NamedTuple):
    """What a task adds to the record of a run."""

    module: str  # that trained, such as detection.training
    results: dict[str, Any]  # of results.json: task, variant, scores, per_class, protocol, ...
    gflops: float  # of one forward pass over one image
    title: str  # of README.md, as is all that follows
    model: str  # name and sizes
    data: str  # how much to train on and to validate
    scored: str  # how the scores were taken
    facts: dict[str, str]  # further ones, label to sentence
    pictures: dict[str, str]  # file name to caption


def write_record(experiment: Path, task: Task, own: TaskRecord) -> dict:
    """Write README.md, then results.json, which marks the experiment as finished; return what results.json holds.

    Called on rank 0, when metrics.jsonl, environment.json and the task's own files are complete. Logs a warning for
    data that have changed since the run read them."""
    lines, starts = read_metrics(experiment), read_environments(experiment)
    record = own.results | _common_results(task, own.gflops, lines, starts[-1])
    record["facts"] = _facts(experiment, task.config, own, record, lines, starts)
    pictures = own.pictures | {"curves.png": "Training loss, validation scores and learning rate by epoch"}
    write_readme(experiment, own.title, record["facts"], record["scores"], pictures)
    write_text(experiment / "results.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return record


def _common_results(task: Task, gflops: float, lines: list[dict], start: dict) -> dict:
    """Return what results.json holds for every task: seed, data, length and cost of the training.

    lines: of metrics.jsonl. start: the last one of environment.json."""
    for change in task.inputs.changes():
        logger.warning("%s since the run started; the record is of the data that the run read", change)
    config, parameters = task.config, list(task.model.parameters())
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


def _facts(
    experiment: Path, config: Config, own: TaskRecord, record: dict, lines: list[dict], starts: list[dict]
) -> dict[str, str]:
    """Return what README.md says of the run, label to sentence."""
    start, cost, train, optim = starts[-1], record["cost"], config.train, config.optim
    batch = train.batch_size * train.accumulation_steps * start["processes"]
    machine = start["cpu"] if start["device"] == "cpu" else start["device"]
    versions = ", ".join(f"{name} {start['versions'][name]}" for name in ("torch", "torchvision", "python"))
    # The first start says what it found; a resumed run does not look for the weights again.
    found = [each["started_from"] for each in starts if each.get("started_from")]
    started_from = found[0] if found else f"from {config.model.weights or 'random weights'}"
    return {
        "Model": f"{own.model}, {cost['parameters'] / 1e6:.2f} M parameters; {started_from}",
        "Data": f"`{config.data.root}`: {own.data}",
        **own.facts,
        "Recipe": f"{train.epochs} epochs, batch {batch}, {optim.optimizer} at "
        f"{scaled_learning_rate(optim, batch):.3g}, {optim.schedule}, {train.precision}, seed {train.seed}",
        "Scored": f"weights: {record['weights']}; {own.scored}",
        "Time": f"{cost['train_seconds'] / 60:.1f} minutes of training, {cost['images_per_second']:.0f} images/s, "
        f"on {start['processes']} x {machine}, in {counted(len(starts), 'start', 'starts')}",
        "Best epoch": best_epoch(lines, record["metric"], record["lower_is_better"]),
        "Code": f"commit {', then '.join(dict.fromkeys(map(commit_of, starts)))}; {versions}",
        "Again": f"`python -m {own.module} {experiment}/config.yaml`",
    }


def best_epoch(lines: list[dict], metric: str, lower_is_better: bool) -> str:
    """Return the epoch of the best score, with a warning if it is not the last. lines: of metrics.jsonl."""
    scored = [line for line in lines if line.get(metric) is not None]
    if not scored:
        return "none scored"
    best = (min if lower_is_better else max)(scored, key=itemgetter(metric))
    score = f"{best['epoch']} at {metric} {best[metric]:.4f}"
    if best["epoch"] == lines[-1]["epoch"]:
        return f"{score}, the last"
    return f"{score}; do not quote it, because it was chosen on the images it is scored on"
