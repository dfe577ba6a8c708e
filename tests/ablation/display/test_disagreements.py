"""ablation/display/disagreements.py: which images are shown, with which scores, and what is said without pictures."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ablation.display import disagreements
from ablation.display.disagreements import find_disagreements, largest
from ablation.display.report import write_report
from engine.inputs import Inputs, content_sha256, identify_images
from stats.bootstrap import resampled_scores
from stats.image_statistics import load_statistics
from tests.ablation.conftest import IMAGES


@pytest.fixture
def add(experiments, tmp_path):
    """Return a function that adds a detector with recorded detections and images."""
    images = tmp_path / "data/images"
    images.mkdir(parents=True)
    for number in range(IMAGES):
        Image.new("RGB", (64, 48), (number, 90, 60)).save(images / f"{number}.png")
    records = [{"id": k, "file_name": f"{k}.png", "width": 64, "height": 48} for k in range(IMAGES)]
    objects = [
        {"id": 2 * k + label, "image_id": k, "category_id": label + 1, "bbox": [4, 4, 20, 20]}
        for k in range(IMAGES)
        for label in (0, 1)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    annotations = tmp_path / "data/val.json"
    annotations.write_text(json.dumps({"images": records, "annotations": objects, "categories": categories}))
    sha256, image_set = content_sha256(annotations), identify_images(images, [each["file_name"] for each in records])

    def add(row: str, quality: float, seed: int = 0) -> Path:
        protocol = {"annotations_sha256": sha256}
        path = experiments.add(row, seed=seed, quality=quality, protocol=protocol, inputs={str(annotations): sha256})
        Inputs(str(annotations.parent), {str(annotations): sha256}, {"val": image_set}).write(path)
        found = [
            {"image_id": k, "category_id": 1, "bbox": [4, 4, 20, 20], "score": 0.9 - 0.1 * number}
            for k in range(IMAGES)
            for number in range(4)
        ]
        (path / "detections.json").write_text(json.dumps(found))
        return path

    return add


@pytest.fixture
def comparison(add, experiments):
    """Return a comparison of a weak and a strong detector, two seeds each."""
    for row, quality in (("weak", 0.3), ("strong", 0.8)):
        for seed in (0, 1):
            add(row, quality, seed)
    return experiments.compare()


def scores_of(cell) -> np.ndarray:
    """Return the scores of single images, (n, I), computed as resamples with one image."""
    alone = np.eye(IMAGES, dtype=int)
    return np.array([resampled_scores(load_statistics(run.path), alone)[0]["mAP"] for run in cell.scored_runs])


def test_images_with_the_largest_difference_in_ap_are_first_with_both_scores_in_the_captions(comparison):
    found = find_disagreements(comparison)
    assert (found.first.name, found.second.name, found.problem) == ("strong x none", "weak x none", "")
    strong, weak = (scores_of(cell) for cell in (found.first, found.second))
    change = strong.mean(axis=0) - weak.mean(axis=0)
    counts = [(change > 0).sum(), (change < 0).sum(), (change == 0).sum()]
    assert [found.num_higher, found.num_lower, found.num_equal] == counts
    order = sorted(range(IMAGES), key=lambda k: -abs(change[k]))[: disagreements.NUM_IMAGES]
    assert [name.partition(".png")[0] for name in found.images] == list(map(str, order))
    for k, panels in zip(order, found.images.values(), strict=True):
        assert panels[0].caption == "ground truth: 2 objects"
        for panel, cell, scores in zip(panels[1:], (found.first, found.second), (strong, weak), strict=True):
            assert panel.caption.startswith(f"{cell.name}: AP {scores[:, k].mean():.3f} (mean of 2 runs)")
            assert panel.caption.endswith(f"seed 0, AP {scores[0, k]:.3f}")
        assert Image.open(io.BytesIO(panels[0].jpeg)).format == "JPEG"


def test_the_second_best_cell_is_shown_if_the_baseline_is_the_best(add, experiments):
    for row, quality in (("weak", 0.2), ("medium", 0.5), ("strong", 0.9)):
        add(row, quality)
    found = find_disagreements(experiments.compare(baseline="strong x none"))
    assert (found.first.name, found.second.name) == ("medium x none", "strong x none")


def test_the_first_run_with_detections_is_shown(comparison):
    (comparison.best.scored_runs[0].path / "detections.json").unlink()
    found = find_disagreements(comparison)
    assert all("seed 1" in panels[1].caption and "seed 0" in panels[2].caption for panels in found.images.values())


def remove_detections(comparison, data):
    for run in comparison.best.scored_runs:
        (run.path / "detections.json").unlink()
    return "detections.json not found"


def remove_images(comparison, data):
    (data / "images/7.png").unlink()
    return "7.png not found"


def change_images(comparison, data):
    Image.new("RGB", (64, 48)).save(data / "images/7.png")
    return "images have changed since the run"


def remove_annotations(comparison, data):
    (data / "val.json").unlink()
    return "val.json not found"


def forget_images(comparison, data):
    for cell in comparison.scored_cells:
        for run in cell.runs:
            (run.path / "inputs.json").unlink()
    return "does not record where its images are"


@pytest.mark.parametrize("damage", [remove_detections, remove_images, change_images, remove_annotations, forget_images])
def test_without_a_file_there_are_counts_and_a_reason_but_no_pictures(comparison, tmp_path, damage):
    reason = damage(comparison, tmp_path / "data").replace("images have", f"{tmp_path}/data/images have")
    found = find_disagreements(comparison)
    assert found.images == {}
    assert reason in found.problem
    assert found.num_higher > found.num_lower
    write_report(tmp_path / "page.html", comparison)
    assert found.problem in (tmp_path / "page.html").read_text()


def test_pictures_stay_within_their_budget(comparison, monkeypatch):
    every = [sum(len(panel.jpeg) for panel in panels) for panels in find_disagreements(comparison).images.values()]
    monkeypatch.setattr(disagreements, "MAX_BYTES", sum(every[:3]) + 1)
    assert len(find_disagreements(comparison).images) == 3


def test_the_page_shows_the_pictures_side_by_side(comparison, tmp_path):
    write_report(tmp_path / "page.html", comparison)
    section = (
        (tmp_path / "page.html").read_text().partition('<section id="disagreements">')[2].partition("</section>")[0]
    )
    assert section.count("data:image/jpeg;base64,") == 3 * disagreements.NUM_IMAGES


def test_classifiers_have_no_such_images(experiments):
    for model in ("a", "b"):
        experiments.add_classifier(model)
    assert find_disagreements(experiments.compare()) is None


def test_undefined_and_equal_scores_are_never_the_largest_difference():
    assert largest(np.array([0.1, np.nan, -0.3, 0, 0.2]), 4) == [2, 4, 0]
