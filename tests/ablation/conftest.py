"""Fake finished experiments of every task, and comparisons of them."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ablation.cells import compare
from ablation.comparison import Comparison
from records.latency import Latency, Percentiles, Timing, write_latency
from stats.bootstrap import average_precision, mean_average_precision
from stats.image_statistics import Hits, Losses, Matches

IMAGES, THRESHOLDS = 60, 10
ANIMALS = ("ant", "bee", "cat", "dog", "elk", "fox")
KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")


class Experiments:
    """A folder of fake finished experiments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def compare(self, **options: object) -> Comparison:
        """Compare all experiments in the folder."""
        arguments = {"baseline": None, "pairs": False, "replicates": 200, "force": False} | options
        return compare(sorted(self.folder.iterdir()), self.folder, **arguments)

    def add(
        self,
        row: str,
        column: str = "none",
        seed: int = 0,
        quality: float = 0.6,
        classes: Sequence[str] = ("cat", "dog"),
        **changes: object,
    ) -> Path:
        """Add a detector that finds the fraction `quality` of the objects. changes: see `_add`."""
        matches = fake_matches(quality, self._next, classes)
        per_class = average_precision(matches, np.ones((1, IMAGES), int))
        score = float(mean_average_precision(per_class)[0])
        results = {
            "task": "detection", "metric": "mAP", "variant": {"backbone": row, "neck": column},
            "scores": {"mAP": score, "AP50": 0.75, "AP_small": score / 2, "AP_medium": score, "AP_large": score},
            "per_class": {name: {"AP": float(ap), "AP50": 0.5} for name, ap in zip(classes, per_class[0], strict=True)},
            "errors": {"AP50": 0.7, "delta_AP50": dict.fromkeys(KINDS, 0.1 * quality),
                       "counts": dict.fromkeys(KINDS, 9)},
            "protocol": {"annotations": "val.json", "annotations_sha256": "a" * 8, "images": IMAGES,
                         "classes": list(classes), "nms_iou": 0.45},
        }  # fmt: skip
        path = self._add(results, {"backbone": row, "neck": column}, seed, score, changes)
        matches.save(path)
        (path / "examples").mkdir()
        for name in ("7", "7_truth", "12", "12_truth"):
            Image.new("RGB", (32, 24), (int(255 * quality), 90, 60)).save(path / f"examples/{name}.jpg")
        return path

    def add_classifier(
        self, row: str, column: str = "rel", seed: int = 0, top1: float = 0.6, classes: Sequence[str] = ANIMALS
    ) -> Path:
        """Add a classifier that is correct on about `top1` of 120 images; classifiers are correct on similar images."""
        labels = (np.arange(120) * len(classes) // 120).astype(np.int16)
        ease, draw = np.random.default_rng(0).random(120), np.random.default_rng([seed, *f"{row} {column}".encode()])
        hits = np.where(draw.random(120) < 0.6, ease, draw.random(120)) < top1
        in_top5 = hits | (draw.random(120) < 0.8) | (len(classes) <= 5)
        names = [f"{classes[label]}/{number}.jpg" for number, label in enumerate(labels)]
        by_class = {name: hits[labels == label] for label, name in enumerate(classes)}
        results = {
            "task": "classification",
            "metric": "top1",
            "variant": {"model": row, "position": column},
            "scores": {"top1": float(hits.mean()), "top5": float(in_top5.mean()) if len(classes) > 5 else None},
            "per_class": {name: {"top1": float(each.mean()), "images": len(each)} for name, each in by_class.items()},
            "protocol": {"images_sha256": "e" * 8, "images": 120, "classes": list(classes)},
        }
        path = self._add(results, {"name": row, "position": column}, seed, top1, {})
        Hits(np.array(names), np.array(classes), labels, hits, in_top5).save(path)
        Image.new("RGB", (40, 40), (int(255 * top1), 90, 60)).save(path / "confusion.png")
        return path

    def add_generator(self, model: str, loss: float, gflops: float) -> Path:
        """Add a diffusion model with a loss of about `loss` on each of 120 images."""
        ease = np.random.default_rng(0).normal(0, 0.05, 120)
        losses = loss + ease + np.random.default_rng([1, *model.encode()]).normal(0, 0.01, 120)
        labels = (np.arange(120) // 60).astype(np.int16)
        results = {
            "task": "diffusion", "metric": "val_loss", "lower_is_better": True,
            "variant": {"model": model, "encoder from": "random weights"}, "scores": {"val_loss": float(losses.mean())},
            "per_class": {name: {"val_loss": float(losses[labels == k].mean())} for k, name in enumerate(ANIMALS[:2])},
            "protocol": {"images": 120, "classes": list(ANIMALS[:2])},
        }  # fmt: skip
        path = self._add(results, {"name": model}, 0, loss, {"cost": {"gflops": gflops}})
        Losses(np.array("val_loss"), np.arange(120).astype(str), np.array(ANIMALS[:2]), labels, losses).save(path)
        Image.new("L", (40, 40), 128).save(path / "samples.png")
        return path

    def measure(
        self, path: Path, p50: float, width: float = 0.02, batches: Sequence[int] = (1, 8), **changes: object
    ) -> None:
        """Write latency.json of an experiment: a p50 in ms per image, and its interval of relative half width `width`.

        All rounds take p50, as do all images of a batch. changes: of the record."""

        def timing(batch: int) -> Timing:
            shape = {"p50": 1, "p50_low": 1 - width, "p50_high": 1 + width, "p95": 1.5, "p99": 2}
            times = Percentiles(**{name: factor * batch * p50 for name, factor in shape.items()})
            parts = dict.fromkeys(("network", "postprocess", "end_to_end"), times)
            return Timing(
                program="eager", batch_size=batch, images_per_second=1000 / p50, rounds_ms=[batch * p50] * 100, **parts
            )

        record = {"session": "one", "measured": "2026-11-30T10:00:00", "device": "cpu", "threads": 2,
                  "precision": "fp32", "versions": {"torch": "2.14"}, "checkpoint": "step_36.pt", "step": 36,
                  "images": IMAGES, "annotations_sha256": "a" * 8} | changes  # fmt: skip
        write_latency(path, Latency(timings=[timing(batch) for batch in batches], **record))

    @property
    def _next(self) -> int:
        return sum(1 for _ in self.folder.iterdir()) + 1

    def _add(self, results: dict, model: dict, seed: int, score: float, changes: dict) -> Path:
        """Write the records of an experiment. changes: of results.json; "config" and "data" change config.yaml."""
        path = self.folder / f"experiment_{self._next}"
        path.mkdir()
        config = {"model": model, "train": {"seed": seed, "epochs": 3} | changes.pop("config", {})}
        if "data" in changes:
            config["data"] = changes.pop("data")
        (path / "config.yaml").write_text(json.dumps(config))
        cost = {"parameters": 2_000_000, "gflops": 1.5, "train_seconds": 1800.0, "images_per_second": 60.0,
                "peak_memory_mib": 900.0, "processes": 4, "device": "cpu"}  # fmt: skip
        results = {"seed": seed, "inputs": {"train.json": "c" * 8}, "cost": cost} | results
        for name, value in changes.items():
            results[name] = results.get(name, {}) | value if isinstance(value, dict) else value
        (path / "results.json").write_text(json.dumps(results))
        start = {"started": "2026-11-20T10:15:00+00:00", "command": f"python -m task my.yaml train.seed={seed}",
                 "commit": "c87c5e7aa7e6a7bb", "uncommitted_changes": seed == 1, "processes": 1, "device": "cpu",
                 "cpu": "AMD EPYC"}  # fmt: skip
        (path / "environment.json").write_text(json.dumps([start]))
        lines = [
            {"epoch": epoch, "step": 18 * epoch, "train_loss_total": 1 + 6 / epoch + 0.02 * seed}
            | ({results["metric"]: score * (1 - 0.8**epoch) + 0.01 * math.sin(epoch + seed)} if epoch % 2 == 0 else {})
            for epoch in range(1, 13)
        ]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path


def fake_matches(quality: float, seed: int, classes: Sequence[str] = ("cat", "dog")) -> Matches:
    """Return detections of one object per class and image; the fraction `quality` is correct at every threshold."""
    draw, number = np.random.default_rng(seed), len(classes) * IMAGES
    images, labels = np.tile(np.arange(IMAGES), len(classes)), np.repeat(np.arange(len(classes)), IMAGES)
    right = draw.random(number) < quality
    return Matches(
        image_ids=np.arange(IMAGES),
        class_names=np.array(classes),
        iou_thresholds=np.linspace(0.5, 0.95, THRESHOLDS),
        detection_images=images.astype(np.int32),
        detection_classes=labels.astype(np.int16),
        scores=draw.random(number),
        true_positives=np.repeat(right[:, None], THRESHOLDS, axis=1),
        ignored=np.zeros((number, THRESHOLDS), bool),
        object_images=images.astype(np.int32),
        object_classes=labels.astype(np.int16),
    )


@pytest.fixture(scope="session")
def new_experiments(tmp_path_factory) -> Callable[[], Experiments]:
    """Return a function that makes an empty folder of experiments."""
    return lambda: Experiments(tmp_path_factory.mktemp("experiments"))


@pytest.fixture
def experiments(new_experiments) -> Experiments:
    return new_experiments()


@pytest.fixture
def grid(experiments) -> Experiments:
    """Return experiments with two rows, two columns and two seeds; only the row affects the score."""
    for row, quality in (("weak", 0.3), ("strong", 0.9)):
        for column in ("none", "fpn"):
            for seed in (0, 1):
                experiments.add(row, column, seed, quality)
    return experiments
