"""Comparisons of real detections: 100 COCO images with pycocotools' own example results, and perturbed copies."""

import json
from pathlib import Path

import numpy as np
import pytest

from ablation.cells import compare
from detection.coco.errors import error_breakdown
from detection.coco.evaluation import coco_scores, evaluate_coco, image_statistics
from engine.files import file_sha256


@pytest.fixture(scope="module")
def annotations(shared_data) -> Path:
    return shared_data / "cocoeval100/instances_val2014_100.json"


@pytest.fixture(scope="module")
def published(annotations) -> list[dict]:
    return json.loads((annotations.parent / "instances_val2014_fakebbox100_results.json").read_text())


def perturbed(results: list[dict], shift: float) -> list[dict]:
    """Every box moved by normal noise of `shift` times its size."""
    draw = np.random.default_rng(0)
    moved = []
    for result in results:
        x, y, width, height = result["bbox"]
        dx, dy = draw.normal(0, shift, 2) * (width, height)
        moved.append(result | {"bbox": [x + dx, y + dy, width, height]})
    return moved


def rescored(results: list[dict]) -> list[dict]:
    """The same boxes with a little noise on their scores, which makes them neither better nor worse."""
    noise = np.random.default_rng(1).normal(0, 0.01, len(results))
    return [result | {"score": result["score"] + change} for result, change in zip(results, noise, strict=True)]


def record(experiment: Path, annotations: Path, results: list[dict], variant: str) -> Path:
    """What a finished run with these detections would leave."""
    experiment.mkdir()
    scores = coco_scores(annotations, results)
    per_class = scores.pop("per_class")
    evaluation = evaluate_coco(annotations, results)
    image_statistics(evaluation).save(experiment)
    (experiment / "config.yaml").write_text(f"model: {{backbone: {variant}}}\ntrain: {{seed: 0}}\n")
    (experiment / "environment.json").write_text("[]")
    content = {
        "task": "detection", "metric": "mAP", "variant": {"backbone": variant, "neck": "none"}, "seed": 0,
        "scores": scores, "per_class": per_class, "errors": error_breakdown(evaluation),
        "protocol": {"annotations": annotations.name, "annotations_sha256": file_sha256(annotations), "images": 100,
                     "classes": list(per_class)},
        "cost": {}, "inputs": {},
    }  # fmt: skip
    (experiment / "results.json").write_text(json.dumps(content))
    return experiment


def compared(*paths: Path, force: bool = False):
    return compare(paths, paths[0].parent, None, pairs=False, replicates=300, force=force)


def test_moved_boxes_are_shown_to_be_worse_and_noise_on_scores_is_not(tmp_path, annotations, published):
    variants = {"published": published, "rescored": rescored(published), "moved": perturbed(published, 0.02)}
    comparison = compared(*(record(tmp_path / name, annotations, found, name) for name, found in variants.items()))
    noise, moved = comparison.differences
    assert 0 < abs(noise.interval.estimate) < 0.01
    assert not noise.significant
    assert moved.significant
    assert moved.interval.high < 0
