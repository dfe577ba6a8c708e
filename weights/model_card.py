"""A finished experiment as others need it: weights, intervals of its scores, and a model card (model_card.md.jinja).

All facts come from results.json, config.yaml, environment.json and image_statistics.npz; `python -m weights.publish`
writes them to a folder.
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
from records.experiment import shown_score
from records.results import Results, read_results
from stats.bootstrap import (
    Interval,
    average_precision,
    image_weights,
    interval,
    mean_average_precision,
    resampled_scores,
)
from stats.image_statistics import Matches, Statistics, load_statistics
from weights.release import PUBLISHED_WEIGHTS, release_facts, without_local_paths

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
PIPELINES = {"detection": "object-detection", "classification": "image-classification"}  # huggingface.co/tasks
SUMS = "SHA256SUMS"
MOST_CLASSES, LISTED_CLASSES = 100, 20  # in the table, in a sentence
RESAMPLES, SEED = 1000, 0  # as in ablation.compare
FEWEST_IMAGES = 10  # resamples of fewer repeat the same few images


@dataclass(frozen=True)
class Published:
    """All that is published of an experiment."""

    weights: dict[str, Tensor]  # that were scored
    config: dict[str, Any]  # without paths of this machine
    results: Results
    intervals: dict[str, Interval]  # of some of the scores
    release: dict[str, str]  # metadata of the weights


def read(experiment: Path) -> Published:
    """Return all that is published of an experiment. Raises ValueError if it is not finished, or its files disagree."""
    path = experiment / "results.json"
    if not path.is_file():
        problem = "no results.json in it, so it is not finished (--resume)" if experiment.is_dir() else "no such folder"
        raise ValueError(f"{experiment}: {problem}; name a finished experiment, experiments/experiment_N")
    results = read_results(path)
    if results.task not in PIPELINES:
        raise ValueError(f"{experiment}: its task is {results.task}; expected one of {', '.join(PIPELINES)}")
    path = newest_checkpoint(experiment / "checkpoints")
    state = load_checkpoint(path)
    if state["step"] != results.steps:
        raise CheckpointError(
            f"{path}: of step {state['step']}, but results.json scored step {results.steps}; end the run (--resume)"
        )
    config = without_local_paths(read_overridden(experiment / "config.yaml", ()))
    release = release_facts(
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
    """Return 95% intervals, over the choice of validation images, of scores that the statistics determine.

    They are of a bootstrap over images (stats/bootstrap.py); there are none for fewer than FEWEST_IMAGES."""
    if len(statistics.image_ids) < FEWEST_IMAGES:
        return {}
    logger.info("resampling %d images %d times", len(statistics.image_ids), RESAMPLES)
    weights = image_weights(len(statistics.image_ids), RESAMPLES, SEED)
    replicates, _ = resampled_scores(statistics, weights)
    if isinstance(statistics, Matches):
        for name, iou in (("AP50", 0.5), ("AP75", 0.75)):
            one = np.isclose(statistics.iou_thresholds, iou)
            at_iou = replace(
                statistics,
                iou_thresholds=statistics.iou_thresholds[one],
                true_positives=statistics.true_positives[:, one],
                ignored=statistics.ignored[:, one],
            )
            replicates[name] = mean_average_precision(average_precision(at_iou, weights))
    return {name: interval(scores[name], values) for name, values in replicates.items() if scores.get(name) is not None}


def card(folder: str, published: Published, license_name: str) -> str:
    """Return the model card (huggingface.co/docs/hub/model-cards): metadata for the hub, then text for people.

    folder: name of the folder that it is for. Raises ValueError if huggingface_hub is not installed."""
    try:
        from huggingface_hub import EvalResult, ModelCard, ModelCardData
    except ImportError:
        raise ValueError("huggingface_hub is not installed: pip install -e '.[publish]'") from None
    results, config = published.results, published.config
    protocol, inputs = results.protocol, results.inputs
    dataset, pipeline = Path(config["data"]["root"]).name or "data", PIPELINES[results.task]
    variant = [str(value) for value in results.variant.values()]
    evaluated = [
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
        eval_results=evaluated or None,
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
        trained_on_them=len(inputs) > 1 and len(set(inputs.values())) == 1,
        fewest_images=FEWEST_IMAGES,
        resamples=RESAMPLES,
        most_classes=MOST_CLASSES,
        listed_classes=listed([*map(plain, protocol.classes)], LISTED_CLASSES),
        weights_file=PUBLISHED_WEIGHTS,
        sums_file=SUMS,
        shown_score=shown_score,
        shown_interval=shown_interval,
        plain=plain,
    )
    return f"{content}\n"


def shown_interval(interval: Interval | None) -> str:
    """Return '0.5210 to 0.5831', or nothing if it is unknown."""
    return "" if interval is None or np.isnan(interval.low) else f"{interval.low:.4f} to {interval.high:.4f}"


def plain(name: str) -> str:
    """Return a class name as text for Markdown and its tables, on one line."""
    return html.escape(printable(" ".join(name.split())), quote=False).replace("|", "\\|")
