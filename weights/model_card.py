"""Collect the published parts of a finished experiment: weights, confidence intervals and a model card.

All facts come from results.json, config.yaml, environment.json and image_statistics.npz. model_card.md.jinja is the
template of the card. `python -m weights.publish` writes everything to a folder.
"""

import html
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from engine.checkpoint import CheckpointError, load_checkpoint, newest_checkpoint, trained_weights
from engine.config import read_overridden
from engine.logbook import logger
from engine.terminal import printable
from engine.text import listed
from records.experiment import format_score
from records.results import Results, read_results
from stats.bootstrap import average_precision, image_weights, mean_average_precision, resampled_scores
from stats.contrasts import Interval, interval
from stats.image_statistics import Matches, Statistics, load_statistics
from weights.release import PUBLISHED_WEIGHTS, release_metadata, strip_local_paths

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
PIPELINES = {"detection": "object-detection", "classification": "image-classification"}  # huggingface.co/tasks
CHECKSUMS = "SHA256SUMS"
MAX_TABLE_CLASSES, MAX_LISTED_CLASSES = 100, 20  # limits of the table of scores by class, and of the list of classes
RESAMPLES, SEED = 1000, 0  # as in ablation.compare
MIN_IMAGES = 10  # with fewer, bootstrap resamples repeat the same few images


@dataclass(frozen=True)
class Published:
    """The published parts of an experiment."""

    weights: dict[str, Tensor]  # the scored weights
    config: dict[str, Any]  # with local paths shortened
    results: Results
    intervals: dict[str, Interval]  # of scores that can be bootstrapped
    release: dict[str, str]  # metadata of the weights file


def read_published(experiment: Path) -> Published:
    """Read the published parts of an experiment. Raises ValueError if it is unfinished or inconsistent."""
    path = experiment / "results.json"
    if not path.is_file():
        problem = "no results.json: the run is not finished (see --resume)" if experiment.is_dir() else "no such folder"
        raise ValueError(f"{experiment}: {problem}; name a finished experiment, such as experiments/experiment_N")
    results = read_results(path)
    if results.task not in PIPELINES:
        raise ValueError(f"{experiment}: its task is {results.task}; expected one of {', '.join(PIPELINES)}")
    path = newest_checkpoint(experiment / "checkpoints")
    state = load_checkpoint(path)
    if state["step"] != results.steps:
        raise CheckpointError(
            f"{path}: has step {state['step']}, but results.json has step {results.steps}; finish the run with --resume"
        )
    config = strip_local_paths(read_overridden(experiment / "config.yaml", ()))
    release = release_metadata(
        experiment,
        config,
        task=results.task,
        classes=state["data"]["classes"],
        category_ids=results.category_ids,
        scores=results.scores,
        step=results.steps,
    )
    return Published(
        trained_weights(state), config, results, intervals(load_statistics(experiment), results.scores), release
    )


def intervals(statistics: Statistics, scores: dict[str, float | None]) -> dict[str, Interval]:
    """Return a dict from score name to its 95% confidence interval, for scores that can be bootstrapped.

    The bootstrap resamples the validation images (stats/bootstrap.py). Fewer than MIN_IMAGES images: an empty dict."""
    if len(statistics.image_ids) < MIN_IMAGES:
        return {}
    logger.info("resampling %d images %d times", len(statistics.image_ids), RESAMPLES)
    weights = image_weights(len(statistics.image_ids), RESAMPLES, SEED)
    replicates, _ = resampled_scores(statistics, weights)
    if isinstance(statistics, Matches):
        for name, iou in (("AP50", 0.5), ("AP75", 0.75)):
            is_iou = np.isclose(statistics.iou_thresholds, iou)
            at_iou = replace(
                statistics,
                iou_thresholds=statistics.iou_thresholds[is_iou],
                true_positives=statistics.true_positives[:, is_iou],
                ignored=statistics.ignored[:, is_iou],
            )
            replicates[name] = mean_average_precision(average_precision(at_iou, weights))
    return {name: interval(scores[name], values) for name, values in replicates.items() if scores.get(name) is not None}


def card(folder: str, published: Published, license_name: str) -> str:
    """Return the model card (huggingface.co/docs/hub/model-cards): metadata for the Hub, then text.

    folder: name of the published folder. Raises ValueError if huggingface_hub is not installed."""
    try:
        from huggingface_hub import EvalResult, ModelCard, ModelCardData
    except ImportError:
        raise ValueError("huggingface_hub is not installed: pip install -e '.[publish]'") from None
    results, config = published.results, published.config
    protocol, inputs = results.protocol, results.inputs
    dataset, pipeline = Path(config["data"]["root"]).name or "data", PIPELINES[results.task]
    variant = [str(value) for value in results.variant.values()]
    eval_results = [
        EvalResult(
            task_type=pipeline, dataset_type=dataset, dataset_name=dataset, dataset_split="validation",
            metric_type=name.lower(), metric_name=name, metric_value=round(value, 4),
        )
        for name, value in results.scores.items()
        if value is not None
    ]  # fmt: skip
    data = ModelCardData(
        license=license_name,
        library_name="ssd-workbench",
        pipeline_tag=pipeline,
        tags=["pytorch", *variant],
        model_name=folder,
        eval_results=eval_results or None,
    )
    content = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        **vars(published),
        folder=folder,
        variant=variant,
        dataset=dataset,
        batch=config["train"]["batch_size"] * config["train"]["accumulation_steps"] * results.cost.processes,
        settings=[f"{k} {v}" for k, v in protocol if isinstance(v, float | int) and k != "images"],
        protocol=protocol,
        scored_on_training_images=len(inputs) > 1 and len(set(inputs.values())) == 1,
        min_images=MIN_IMAGES,
        resamples=RESAMPLES,
        max_table_classes=MAX_TABLE_CLASSES,
        listed_classes=listed([*map(plain, protocol.classes)], MAX_LISTED_CLASSES),
        weights_file=PUBLISHED_WEIGHTS,
        checksums_file=CHECKSUMS,
        format_score=format_score,
        format_interval=format_interval,
        plain=plain,
    )
    return f"{content}\n"


def format_interval(interval: Interval | None) -> str:
    """Return an interval as '0.5210 to 0.5831', or an empty string if it is unknown."""
    return "" if interval is None or np.isnan(interval.low) else f"{interval.low:.4f} to {interval.high:.4f}"


def plain(name: str) -> str:
    """Return a class name on one line, escaped for tables in Markdown."""
    return html.escape(printable(" ".join(name.split())), quote=False).replace("|", "\\|")
