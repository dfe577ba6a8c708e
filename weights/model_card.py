"""What `python -m weights.publish` does: read a finished experiment, and write its weights and their model card."""

import argparse
import hashlib
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from engine.checkpoint import CheckpointError, load_checkpoint, newest_checkpoint, trained_weights
from engine.config import read_overridden
from engine.files import file_sha256, write_text, writing
from engine.logbook import logger
from engine.strict_yaml import ConfigError, dump_yaml
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
from weights.release import PUBLISHED_WEIGHTS, local_paths, release_facts, renamed, save_release

UNKNOWN = "unknown"  # licence; the hub's word for it
CARD, CONFIG, SUMS = "README.md", "config.yaml", "SHA256SUMS"
FACTS = ("Model", "Data", "Recipe", "Scored", "Time", "Code")  # of the experiment's README that belong on the card
MOST_CLASSES, LISTED_CLASSES = 100, 20  # in a table, in a sentence
RESAMPLES, SEED = 1000, 0  # those of ablation.compare
FEWEST_IMAGES = 10  # resamples of fewer hold the same few images over and over


@dataclass(frozen=True)
class Kind:
    """What a card says of a task. usage: Markdown; {folder} is the folder's name."""

    pipeline: str  # of huggingface.co/tasks
    usage: str
    limits: tuple[str, ...]


KINDS = {
    "detection": Kind(
        "object-detection",
        "In a clone of SSD workbench, with this folder in it:\n\n"
        "```python\nfrom detection import load\n\n"
        'detector = load("{folder}")\nfound = detector("photo.jpg")\n'
        "print(found.class_names, found.scores, found.boxes_xyxy)  # pixels\n```\n\n"
        "or `python -m detection.predict {folder} photo.jpg`; to fine-tune it on other classes,\n"
        "`python -m detection.training my.yaml model.weights=null model.start_from={folder}/"
        + f"{PUBLISHED_WEIGHTS}`.",
        (
            "Every picture is resized to one square, whatever its shape: what is small in a large picture is lost.",
            "Scores are no calibrated probabilities; choose a threshold on images of your own.",
        ),
    ),
    "classification": Kind(
        "image-classification",
        "In a clone of SSD workbench, with this folder in it, ask\n\n"
        "```\npython train_clf_imagenet.py predict {folder} photo.jpg\n```\n\n"
        "A classifier or the trunk of a detector starts from these weights by\n\n"
        "```\npython train_clf_imagenet.py my.yaml model.weights={folder}/" + PUBLISHED_WEIGHTS + "\n"
        "python -m detection.training my.yaml model.weights={folder}/" + PUBLISHED_WEIGHTS + "\n```",
        ("An image without any of the classes gets one of them all the same.",),
    ),
}


@dataclass(frozen=True)
class Published:
    """All that goes into the folder."""

    weights: dict[str, Tensor]
    config: dict[str, Any]  # without paths of this machine
    results: Results
    facts: dict[str, str]  # lines of the experiment's README, label to sentence
    intervals: dict[str, Interval]  # of some of the scores
    release: dict[str, str]  # metadata of the weights

    @property
    def dataset(self) -> str:
        return Path(self.config["data"]["root"]).name or "data"

    def interval(self, score: str) -> str:
        """'0.5210 to 0.5831', or nothing where it is not known."""
        found = self.intervals.get(score)
        return "" if found is None or np.isnan(found.low) else f"{found.low:.4f} to {found.high:.4f}"


# ---- the command ----------------------------------------------------------------------------------------------


def publish(arguments: argparse.Namespace) -> None:
    """Publish as the command line says."""
    experiment = arguments.experiment
    folder = arguments.output or Path("saved_weights") / experiment.resolve().name
    if folder.exists() and not (folder / SUMS).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists, and this command did not make it; name another by --output")
    if edited := find_edited(folder):
        raise ConfigError(
            f"{folder}: {listed(edited)} edited by hand, so nothing is written; name another folder by --output, or "
            "move it away"
        )
    published = read(experiment)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write(folder, published, arguments.license)
    results = published.results
    known = published.interval(results.metric) or "unknown"
    print(f"{results.metric} {shown_score(results.score)} (95%: {known})")
    print(f"written to {folder}/; {CARD} is the model card")


# ---- what an experiment left ----------------------------------------------------------------------------------


def read(experiment: Path) -> Published:
    """All that is published of an experiment. Raises ValueError, in one line, if it is not finished or not whole."""
    results = _read_results(experiment)
    path = newest_checkpoint(experiment / "checkpoints")
    state = load_checkpoint(path)
    if state["step"] != results.steps:
        raise CheckpointError(
            f"{path}: of step {state['step']}, but results.json scored step {results.steps}; end the run (--resume)"
        )
    weights = trained_weights(state)
    if broken := [name for name, weight in weights.items() if not weight.isfinite().all()]:
        raise CheckpointError(f"{path}: weights that are not finite: {listed(broken)}; not fit to be published")
    config = read_overridden(experiment / "config.yaml", ())
    local = local_paths(config)
    facts = _read_facts(experiment / "README.md")
    for text, name in sorted(local.items(), key=lambda pair: -len(pair[0])):
        facts = {label: sentence.replace(text, name) for label, sentence in facts.items()}
    release = release_facts(
        experiment,
        config,
        task=results.task,
        classes=state["data"]["classes"],
        category_ids=results.category_ids,
        scores=results.scores,
        step=results.steps,
    )
    found = intervals(load_statistics(experiment), results.scores)
    return Published(weights, renamed(config, local), results, facts, found, release)


def _read_results(experiment: Path) -> Results:
    """results.json of a finished experiment of a task that can be published."""
    path = experiment / "results.json"
    if not path.is_file():
        what = "no results.json in it, so it is not finished (--resume)" if experiment.is_dir() else "no such folder"
        raise ValueError(f"{experiment}: {what}; name a finished experiment, experiments/experiment_N")
    results = read_results(path)
    if results.task not in KINDS:
        raise ValueError(f"{experiment}: its task is {results.task}; expected one of {', '.join(KINDS)}")
    return results


def _read_facts(readme: Path) -> dict[str, str]:
    """The bullet list of an experiment's front page, as records.experiment.write_readme wrote it."""
    lines = re.findall(r"^- \*\*(\w+)\*\*: (.+)$", readme.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {label: sentence for label, sentence in lines if label in FACTS}


def intervals(statistics: Statistics, scores: dict[str, float | None]) -> dict[str, Interval]:
    """95% intervals, over the choice of validation images, of the scores that the statistics hold
    (stats/bootstrap.py).

    Raises ValueError if these give other scores on the images as they are, and so are of another run."""
    if len(statistics.image_ids) < FEWEST_IMAGES:
        return {}
    logger.info("resampling %d images %d times", len(statistics.image_ids), RESAMPLES)
    drawn = image_weights(len(statistics.image_ids), RESAMPLES, SEED)
    weights = np.concatenate([np.ones_like(drawn[:1]), drawn])  # first of all, the images as they are
    replicates, _ = resampled_scores(statistics, weights)
    if isinstance(statistics, Matches):
        for name, iou in (("AP50", 0.5), ("AP75", 0.75)):
            replicates[name] = mean_average_precision(average_precision(_at(statistics, iou), weights))
    found = {}
    for name, values in replicates.items():
        if scores.get(name) is None:
            continue
        if abs(values[0] - scores[name]) > 1e-6:
            raise ValueError(
                f"image_statistics.npz gives {name} {values[0]:.6f}, results.json says {scores[name]:.6f}; they are "
                "not of the same run"
            )
        found[name] = interval(values[0], values[1:])
    return found


def _at(matches: Matches, iou: float) -> Matches:
    """The same at one IoU only."""
    one = np.isclose(matches.iou_thresholds, iou)
    return replace(
        matches,
        iou_thresholds=matches.iou_thresholds[one],
        true_positives=matches.true_positives[:, one],
        ignored=matches.ignored[:, one],
    )


# ---- the folder -----------------------------------------------------------------------------------------------


def find_edited(folder: Path) -> list[str]:
    """Card and config, where they are not as an earlier start wrote them, by its sums."""
    if not (folder / SUMS).is_file():
        return []
    sums = (folder / SUMS).read_text().splitlines()
    paths = [path for name in (CARD, CONFIG) if (path := folder / name).is_file()]
    return [path.name for path in paths if f"{file_sha256(path)}  {path.name}" not in sums]


def write(folder: Path, published: Published, license_name: str) -> None:
    """Fill the folder. Raises OSError where it cannot be."""
    texts = {CARD: card(folder.resolve().name, published, license_name), CONFIG: published.release["config"]}
    if published.results.task == "detection" and "category_ids" not in published.release:
        logger.warning("results.json of an older version lacks the classes' category_ids: they will be 1, 2, ...")
    sums = "".join(f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n" for name, text in texts.items())
    earlier = (folder / SUMS).read_text() if (folder / SUMS).is_file() else ""
    write_text(folder / SUMS, earlier + sums)  # before what they are of: after a kill nothing looks edited
    save_release(folder / PUBLISHED_WEIGHTS, published.weights, published.release)
    for name, text in texts.items():
        write_text(folder / name, text)
    write_text(folder / SUMS, f"{sums}{file_sha256(folder / PUBLISHED_WEIGHTS)}  {PUBLISHED_WEIGHTS}\n")


def card(name: str, published: Published, license_name: str) -> str:
    """The model card: front matter for the hub, then what a person wants to know."""
    results, kind = published.results, KINDS[published.results.task]
    sections = {
        "How to use it": kind.usage.format(folder=name),
        "What it was trained on, and how": "\n".join(
            f"- **{label}**: {sentence}" for label, sentence in published.facts.items()
        ),
        "How good it is": f"{score_table(published)}\n\n{caveat(published)}",
        "By class": class_table(results.per_class),
        "Limits": "\n".join(f"- {limit}" for limit in limits(results)),
        "Licence": f"{licence(license_name)} The images they were learned from have licences of their own, which this "
        "page does not know; ask where they came from before you build on it.",
        "Files": f"`{PUBLISHED_WEIGHTS}` has config, classes and scores in its metadata, too. Training with "
        "`config.yaml` repeats the experiment, given the data at `data.root`. "
        f"`sha256sum --check {SUMS}` verifies all.",
    }
    title = f"{' + '.join(map(str, results.variant.values()))} on {published.dataset}"
    text = "\n\n".join(f"## {heading}\n\n{content}" for heading, content in sections.items() if content)
    return f"---\n{dump_yaml(front_matter(name, published, license_name))}---\n\n# {title}\n\n{text}\n"


def licence(name: str) -> str:
    """What the card says of it."""
    if name == UNKNOWN:
        return "No licence was named when the weights were published: ask their owner what you may do with them."
    return f"The weights are published under `{name}`."


def front_matter(name: str, published: Published, license_name: str) -> dict[str, Any]:
    """Metadata as the hub reads them (huggingface.co/docs/hub/model-cards#model-card-metadata)."""
    results, kind = published.results, KINDS[published.results.task]
    metrics = [
        {"type": metric.lower(), "name": metric, "value": round(value, 4)}
        for metric, value in results.scores.items()
        if value is not None
    ]
    evaluated = {
        "task": {"type": kind.pipeline},
        "dataset": {"name": published.dataset, "type": published.dataset, "split": "validation"},
        "metrics": metrics,
    }
    return {
        "license": license_name,
        "library_name": "ssd-workbench",
        "pipeline_tag": kind.pipeline,
        "tags": ["pytorch", *map(str, results.variant.values())],
        "model-index": [{"name": name, "results": [evaluated]}],
    }


def score_table(published: Published) -> str:
    """Every score, with its interval where there is one."""
    lines = ["| score | value | 95% interval |", "|---|---|---|"]
    for name, value in published.results.scores.items():
        lines.append(f"| {name} | {shown_score(value)} | {published.interval(name)} |")
    return "\n".join(lines)


def caveat(published: Published) -> str:
    """What the scores and their intervals hold for."""
    images, inputs = published.results.protocol.images, published.results.inputs
    sentences = [f"On {images:,} validation image{'s' * (images != 1)}."]
    if inputs and len(set(inputs.values())) == 1:
        sentences.append("It was trained on these, too: expect less on any others.")
    if images < FEWEST_IMAGES:
        sentences.append("They are too few to say how far these figures hold for others.")
    if published.intervals:
        sentences.append(
            f"The intervals come from a bootstrap over these images ({RESAMPLES:,} resamples): so far would the scores "
            "of these weights move on other images of the same kind. What another training would give is not in them."
        )
    return " ".join(sentences)


def class_table(per_class: dict[str, dict]) -> str:
    """The scores of each class; empty where there are too many, or only one."""
    if not 1 < len(per_class) <= MOST_CLASSES:
        return ""
    columns = list(next(iter(per_class.values())))
    lines = [f"| class | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name, values in per_class.items():
        cells = [str(value) if isinstance(value, int) else shown_score(value) for value in values.values()]
        lines.append("| " + " | ".join([plain(name), *cells]) + " |")
    return "\n".join(lines)


def plain(name: str) -> str:
    """A class name as text in Markdown and its tables, on one line, whatever is in it."""
    return html.escape(printable(" ".join(name.split())), quote=False).replace("|", "\\|")


def limits(results: Results) -> Iterator[str]:
    """What not to expect, a sentence each."""
    classes = results.protocol.classes
    number = f"{len(classes)} class{'es' * (len(classes) != 1)}"
    yield f"It knows {number} and nothing else: {listed([*map(plain, classes)], LISTED_CLASSES)}."
    scores = {name: next(iter(values.values())) for name, values in results.per_class.items()}
    defined = [name for name, value in scores.items() if value is not None]
    if len(defined) > 1:
        worst = min(defined, key=scores.__getitem__)
        yield f"It is weakest at {plain(worst)}, {scores[worst]:.3f}."
    yield from KINDS[results.task].limits
    yield "Images from elsewhere, of another camera, place or season, were not tested; expect less on them."
    yield f"One training, with seed {results.seed}: another gives other scores."
