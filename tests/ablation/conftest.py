"""Made-up experiments and comparisons of them."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ablation.comparison import Cell, Comparison, Difference
from records.results import Run, read_run
from stats.bootstrap import Interval
from stats.image_statistics import Hits

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
ANIMALS = ("ant", "bee", "cat", "dog", "elk", "fox")


def write_experiment(
    path: Path,
    row: str = "ResNet50Backbone_B",
    column: str = "none",
    seed: int = 0,
    score: float = 0.25,
    classes: Sequence[str] = ("Platelets", "RBC", "WBC"),
    epochs: int = 12,
    gflops: float = 4.5,
) -> Run:
    """A finished experiment whose numbers follow from the arguments."""
    path.mkdir(parents=True)
    scores = {"mAP": score, "AP50": 1.6 * score, "AP75": 0.9 * score}
    scores |= {"AP_small": 0.5 * score, "AP_medium": 0.9 * score, "AP_large": 1.2 * score}
    spread = [1 + 0.6 * math.sin(3 * place + 40 * score) for place in range(len(classes))]
    results = {
        "task": "detection",
        "metric": "mAP",
        "variant": {"backbone": row, "neck": column},
        "seed": seed,
        "scores": scores,
        "per_class": {name: {"AP": score * by, "AP50": score} for name, by in zip(classes, spread, strict=True)},
        "errors": {
            "AP50": 1.6 * score,
            "delta_AP50": {kind: 0.02 * place + 0.1 * score for place, kind in enumerate(KINDS)},
            "counts": {kind: 40 * place + int(100 * score) for place, kind in enumerate(KINDS)},
        },
        "epochs": epochs,
        "inputs": {},
        "protocol": {
            "annotations": "instances_val.json",
            "annotations_sha256": "a899906f7a105f3a4b3cb33b961d853d79ea9f5fa06205cb4b37b27983f3d5ef",
            "images": 72,
            "classes": list(classes),
            "nms_iou": 0.45,
        },
        "cost": cost(gflops),
    }
    (path / "results.json").write_text(json.dumps(results))
    (path / "config.yaml").write_text(f"train:\n  seed: {seed}\n")
    command = f"python -m detection.training configs/bccd.yaml model.neck={column} train.seed={seed}"
    write_course(path, command, "mAP", score, seed, epochs)
    (path / "examples").mkdir()
    for name in ("7", "12"):
        for suffix in ("", "_truth"):
            colour = (int(255 * score), 90, 180 if suffix else 60)
            Image.new("RGB", (32, 24), colour).save(path / "examples" / f"{name}{suffix}.jpg")
    return read_run(path)


def write_classification(
    path: Path,
    row: str = "swin_slim",
    column: str = "rel",
    seed: int = 0,
    top1: float = 0.6,
    classes: Sequence[str] = ANIMALS,
    images: int = 120,
    gflops: float = 0.3,
) -> Run:
    """A finished experiment of a classifier that is right on about the share `top1` of the images, and its guesses:
    the images that one finds easy are often easy for others too."""
    path.mkdir(parents=True)
    labels = (np.arange(images) * len(classes) // images).astype(np.int16)
    ease, draw = np.random.default_rng(0).random(images), np.random.default_rng([seed, *f"{row} {column}".encode()])
    hits = np.where(draw.random(images) < 0.6, ease, draw.random(images)) < top1
    in_top5 = hits | (draw.random(images) < 0.8) | (len(classes) <= 5)
    Hits(
        image_ids=np.array([f"{classes[label]}/{number}.jpg" for number, label in enumerate(labels)]),
        class_names=np.array(classes),
        labels=labels,
        hits=hits,
        in_top5=in_top5,
    ).save(path)
    by_class = {name: hits[labels == label] for label, name in enumerate(classes)}
    results = {
        "task": "classification",
        "metric": "top1",
        "variant": {"model": row, "position": column},
        "seed": seed,
        "scores": {"top1": float(hits.mean()), "top5": float(in_top5.mean()) if len(classes) > 5 else None},
        "per_class": {name: {"top1": float(each.mean()), "images": len(each)} for name, each in by_class.items()},
        "protocol": {"data": "animals/val", "images": images, "classes": list(classes), "input_size": 64},
        "inputs": {"animals/train": "c" * 8},
        "cost": cost(gflops),
    }
    (path / "results.json").write_text(json.dumps(results))
    (path / "config.yaml").write_text(f"model: {{name: {row}, position: {column}}}\ntrain: {{seed: {seed}}}\n")
    command = f"python train_clf_imagenet.py configs/{row}.yaml model.position={column} train.seed={seed}"
    write_course(path, command, "top1", top1, seed, epochs=12)
    Image.new("RGB", (40, 40), (int(255 * top1), 90, 60)).save(path / "confusion.png")
    return read_run(path)


def cost(gflops: float) -> dict:
    """What results.json says that a run has cost, for a model of this size."""
    return {
        "parameters": int(2e6 * gflops),
        "gflops": gflops,
        "train_seconds": 900 * gflops,
        "images_per_second": 150 / gflops,
        "peak_memory_mib": 600 + 100 * gflops,
        "processes": 1,
        "device": "cpu",
    }


def write_course(path: Path, command: str, metric: str, score: float, seed: int, epochs: int) -> None:
    """environment.json and metrics.jsonl of a run that ends near `score`."""
    start = {
        "started": "2026-11-20T10:15:00+00:00",
        "command": command,
        "commit": "c87c5e7aa7e6a7bb3e1b6f8d0c94f9a4b6c5d201",
        "uncommitted_changes": seed == 1,
        "processes": 1,
        "device": "cpu",
        "cpu": "AMD EPYC",
    }
    (path / "environment.json").write_text(json.dumps([start]))
    lines = []
    for epoch in range(1, epochs + 1):
        lines.append({"epoch": epoch, "step": 18 * epoch, "train_loss_total": 1 + 6 / epoch - score + 0.02 * seed})
        if epoch % 2 == 0:
            lines[-1][metric] = score * (1 - 0.8**epoch) + 0.01 * math.sin(epoch + seed)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_comparison(
    root: Path,
    rows: Sequence[str] = ("ResNet50Backbone_B", "SwinTBackbone_B"),
    columns: Sequence[str] = ("none", "fpn"),
    seeds: Sequence[int] = (0, 1, 2),
    classes: Sequence[str] = ("Platelets", "RBC", "WBC"),
) -> Comparison:
    """A comparison of experiments that it writes under `root`, with invented intervals; of each family of differences
    the second is significant."""
    cells, number = {}, 0
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            cells[row, column] = Cell(row, column)
            for seed in seeds:
                number += 1
                score = 0.25 + 0.02 * j - 0.013 * i + 0.015 * ((i * j) % 3) + 0.004 * math.sin(5 * number)
                run = write_experiment(
                    root / f"experiment_{number}", row, column, seed, score, classes, gflops=4 + 1.3 * i + 0.7 * j
                )
                cells[row, column].runs.append(run)
    baseline = next(iter(cells))

    def intervals(place: tuple[str, str], zero: float) -> dict[str, Interval]:
        scores, base = (cells[p].runs[0].results.per_class for p in (place, baseline))
        return {
            name: made_up(each["AP"] - zero * base[name]["AP"], 0.02 + 0.03 * abs(math.sin(k)))
            for k, (name, each) in enumerate(scores.items())
        }

    base, contrasts = cells[baseline], [cell for place, cell in cells.items() if place != baseline]
    differences = family({f"{cell.name} - {base.name}": cell.mean - base.mean for cell in contrasts})
    full = len(rows) > 1 and len(columns) > 1
    return Comparison(
        title="Grid bccd",
        metric="mAP",
        row_name="backbone",
        column_name="neck",
        rows=list(rows),
        columns=list(columns),
        cells=cells,
        baseline=baseline,
        replicates=1000,
        differences=differences,
        row_effects=family({f"{row} - {rows[0]}": -0.01 for row in rows[1:]}) if full else [],
        column_effects=family({f"{column} - {columns[0]}": 0.015 for column in columns[1:]}) if full else [],
        interactions=family(
            {f"({c} - {columns[0]}) on {r} - on {rows[0]}": 0.004 for r in rows[1:] for c in columns[1:]}
        )
        if full
        else [],
        per_class={place: intervals(place, 0) for place in cells},
        per_class_change={place: intervals(place, 1) for place in cells},
        warnings=["one seed per cell: the intervals hold for these very weights"] if len(seeds) == 1 else [],
    )


def family(estimates: dict[str, float]) -> list[Difference]:
    return [
        Difference(label, made_up(estimate, 0.01), 0.012 if place == 1 else 0.4, 3)
        for place, (label, estimate) in enumerate(estimates.items())
    ]


def made_up(estimate: float, error: float) -> Interval:
    return Interval(estimate, estimate - 1.96 * error, estimate + 1.96 * error, 0.2, error)


@pytest.fixture
def experiment_writer() -> Callable[..., Run]:
    """write_experiment, for tests that need experiments of their own."""
    return write_experiment


@pytest.fixture(scope="session")
def classification_writer() -> Callable[..., Run]:
    """write_classification, for tests that need experiments of a classifier."""
    return write_classification


@pytest.fixture(scope="session")
def comparison_maker(tmp_path_factory) -> Callable[..., Comparison]:
    """make_comparison in a new folder."""
    return lambda **options: make_comparison(tmp_path_factory.mktemp("experiments"), **options)


@pytest.fixture
def comparison(comparison_maker) -> Comparison:
    """2 x 2 cells of 3 seeds, 3 classes; a test may change it."""
    return comparison_maker()
