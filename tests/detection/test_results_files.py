"""detection/results_files.py: scores, matches and errors of results files equal those of pycocotools."""

import json
from dataclasses import fields

import numpy as np
import pytest

from data import DatasetError
from detection.coco.errors import error_breakdown
from detection.coco.evaluation import METRICS, GroundTruth, coco_scores, evaluate_coco, image_statistics
from detection.results_files import match, score_files, with_all_detections
from records.results import read_run
from tests.conftest import ROOT


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def random_truth(path, seed):
    """Write an annotation file of six images and three categories, with crowds; most images lack some category."""
    rng = np.random.default_rng(seed)
    images = [{"id": k, "file_name": f"{k}.jpg", "width": 200, "height": 150} for k in (9, 2, 30, 4, 7, 11)]
    annotations = [
        {
            "id": number,
            "image_id": int(rng.choice([9, 2, 30, 4])),
            "category_id": int(rng.choice([1, 5])),
            "bbox": rng.uniform((0, 0, 10, 10), (100, 80, 90, 70)).round(1).tolist(),
            "iscrowd": int(rng.random() < 0.15),
        }
        for number in range(25)
    ]
    categories = [{"id": k, "name": f"class {k}"} for k in (5, 1, 3)]
    return write(path, {"images": images, "categories": categories, "annotations": annotations})


def random_results(path, seed, number):
    """Return detections, about half of them near an object, with many tied scores. Unlike files, boxes may be huge."""
    rng = np.random.default_rng([seed, 1])
    annotations = json.loads(path.read_text())["annotations"]
    results = []
    for _ in range(number):
        near = annotations[rng.integers(len(annotations))]
        box = (np.array(near["bbox"]) + rng.normal(0, 5, 4)).clip(1).round(2).tolist()
        ids = {"image_id": near["image_id"], "category_id": near["category_id"]}
        if rng.random() < 0.5:
            ids = {"image_id": int(rng.choice([9, 2, 30, 4, 7, 11])), "category_id": int(rng.choice([1, 3, 5]))}
        if rng.random() < 0.03:
            box = [0.0, 0.0, 2e5, 1e5]  # beyond COCO's range of areas
        results.append(ids | {"bbox": box, "score": round(float(rng.random()), 1)})
    return results


def as_array(results):
    rows = [[each["image_id"], *each["bbox"], each["score"], each["category_id"]] for each in results]
    return np.array(rows, np.float64).reshape(-1, 7)


@pytest.mark.parametrize(
    ("seed", "number"), [(0, 0), (1, 1), (2, 40), (3, 40), (4, 400), (5, 4000)], ids=lambda value: str(value)
)
def test_matches_and_errors_equal_those_of_pycocotools(tmp_path, seed, number):
    path = random_truth(tmp_path / "val.json", seed)
    results = random_results(path, seed, number)
    theirs = evaluate_coco(path, results)
    ours, evaluation, unmatched = match(GroundTruth(path), as_array(results))
    expected = image_statistics(theirs)
    for name in (field.name for field in fields(expected)):
        one, other = getattr(ours, name), getattr(expected, name)
        assert one.dtype == other.dtype, name
        assert np.array_equal(one, other), name
    errors = error_breakdown(with_all_detections(evaluation, unmatched, as_array(results)))
    assert errors == error_breakdown(theirs)


def test_pairs_of_image_and_class_without_objects_keep_at_most_100_detections(tmp_path):
    path = random_truth(tmp_path / "val.json", 0)
    results = [{"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": k / 150} for k in range(150)]
    matches, _, unmatched = match(GroundTruth(path), as_array(results))
    assert unmatched.tolist() == list(range(149, 49, -1))
    assert matches.scores.tolist() == [k / 150 for k in range(149, 49, -1)]


def test_scores_of_a_file_equal_those_of_pycocotools_and_unknown_facts_stay_empty(tmp_path):
    path = random_truth(tmp_path / "val.json", 3)
    results = [each for each in random_results(path, 3, 60) if each["bbox"][2] < 1000]
    runs, warnings = score_files(path, {"yolo": [write(tmp_path / "a.json", results)]}, with_errors=True)
    (run,) = runs["yolo"]
    expected = coco_scores(path, results)
    for name in METRICS:
        assert run.results.scores[name] == pytest.approx(expected[name], abs=1e-12), name
    for name, scores in expected["per_class"].items():
        assert run.results.per_class[name] == {
            key: value if value is None else pytest.approx(value, abs=1e-12) for key, value in scores.items()
        }
    assert run.results.errors.counts == error_breakdown(evaluate_coco(path, results))["counts"]
    assert (run.config, run.curve, run.starts, run.results.cost.parameters) == ({}, [], [], None)
    assert not run.is_experiment
    assert run.path == tmp_path / "a.json"
    assert warnings == []


def test_no_detections_score_zero(tmp_path):
    path = random_truth(tmp_path / "val.json", 3)
    runs, (warning,) = score_files(path, {"nothing": [write(tmp_path / "a.json", [])]}, with_errors=True)
    (run,) = runs["nothing"]
    assert run.score == 0
    assert run.results.errors.delta_AP50["background"] == 0
    assert "no detections" in warning


def test_no_two_files_have_the_same_seed(tmp_path):
    path = random_truth(tmp_path / "val.json", 3)
    files = {
        name: [write(tmp_path / f"{name}{k}.json", random_results(path, [len(name), k], 5)[:3]) for k in range(2)]
        for name in ("a", "bc")
    }
    runs, _ = score_files(path, files, with_errors=False)
    seeds = [run.seed for each in runs.values() for run in each]
    assert len(set(seeds)) == 4
    assert max(seeds) < 0
    assert all(run.results.errors is None for each in runs.values() for run in each)


def test_the_same_content_is_refused_as_two_seeds_and_warned_about_under_two_names(tmp_path):
    path = random_truth(tmp_path / "val.json", 3)
    results = random_results(path, 3, 1) * 2
    results[0] = results[0] | {"score": 0.05, "image_id": 2}
    one, two = (write(tmp_path / name, results) for name in ("one.json", "two.json"))
    with pytest.raises(DatasetError, match=r"one\.json.*two\.json.*not two seeds"):
        score_files(path, {"a": [one, two]}, with_errors=False)
    with pytest.raises(DatasetError, match="not two seeds"):
        score_files(path, {"a": [one, one]}, with_errors=False)
    runs, warnings = score_files(path, {"a": [one], "b": [two]}, with_errors=False)
    assert runs["a"][0].score == runs["b"][0].score
    assert [line for line in warnings if "one.json" in line and "two.json" in line and "same content" in line]


def test_a_ceiling_of_the_score_is_warned_about(tmp_path):
    path = random_truth(tmp_path / "val.json", 3)
    content = json.loads(path.read_text())
    content["annotations"][0] |= {"bbox": [5, 5, 0, 0], "iscrowd": 0}
    write(path, content)
    _, warnings = score_files(path, {"a": [write(tmp_path / "a.json", [])]}, with_errors=False)
    assert "mAP cannot exceed" in warnings[0]


# ---- real detections ---------------------------------------------------------------------------------------


def test_scores_on_coco_equal_the_published_ones(shared_data):
    folder = shared_data / "cocoeval100"
    results = folder / "instances_val2014_fakebbox100_results.json"
    runs, warnings = score_files(folder / "instances_val2014_100.json", {"fake": [results]}, with_errors=False)
    scores = list(runs["fake"][0].results.scores.values())
    published = json.loads((folder / "expected_bbox.json").read_text())
    assert [round(score, 3) for score in scores] == list(published.values())
    exact = coco_scores(folder / "instances_val2014_100.json", json.loads(results.read_text()))
    assert scores == pytest.approx([exact[name] for name in METRICS], abs=1e-12)
    assert not [line for line in warnings if "fakebbox100" in line]


def test_the_detections_of_a_published_run_score_as_recorded(shared_data):
    experiment = ROOT / "experiments/published/experiment_1"
    recorded = read_run(experiment).results
    annotations = shared_data / "bccd/annotations/instances_val.json"
    runs, _ = score_files(annotations, {"own": [experiment / "detections.json"]}, with_errors=True)
    found = runs["own"][0].results
    assert found.scores == {name: pytest.approx(score, abs=1e-12) for name, score in recorded.scores.items()}
    assert found.errors.counts == recorded.errors.counts
    assert found.protocol.annotations_sha256 == recorded.protocol.annotations_sha256


# ---- permuted category ids ---------------------------------------------------------------------------------


@pytest.fixture
def street(tmp_path):
    """Return an annotation file of 40 images with two persons, a car and a dog each; the objects do not overlap."""
    boxes = {1: [[5, 5, 20, 40], [35, 5, 22, 42]], 3: [[70, 10, 60, 30]], 18: [[10, 80, 30, 25]]}
    content = {
        "images": [{"id": k, "file_name": f"{k}.jpg", "width": 200, "height": 150} for k in range(40)],
        "categories": [{"id": k, "name": name} for k, name in ((3, "car"), (1, "person"), (18, "dog"), (40, "cat"))],
        "annotations": [
            {"image_id": k, "category_id": category, "bbox": box} for k in range(40) for category, each in boxes.items()
            for box in each
        ],
    }  # fmt: skip
    for number, each in enumerate(content["annotations"], start=1):
        each["id"] = number
    return write(tmp_path / "val.json", content)


def permutation_warnings(path, category_of, shift=0.0):
    """Return the warnings for detections on all objects. category_of: from the true category to the detected one.

    shift: pixels that boxes are moved by. Every object has a second, worse detection of its true category."""
    draw, results = np.random.default_rng(0), []
    for each in json.loads(path.read_text())["annotations"]:
        x, y, width, height = each["bbox"]
        for category, score in ((category_of(each["category_id"]), draw.uniform(0.5, 1)), (each["category_id"], 0.01)):
            box = [x + shift, y + shift, width, height] if score > 0.1 else [x, y + height / 2, width, height]
            results.append({"image_id": each["image_id"], "category_id": category, "bbox": box, "score": score})
    _, warnings = score_files(path, {"yolo": [write(path.parent / "a.json", results)]}, with_errors=False)
    return warnings


def test_permuted_category_ids_are_warned_about_with_the_most_frequent_confusion(street):
    (warning,) = permutation_warnings(street, {1: 3, 3: 18, 18: 1}.get)
    assert "a.json: category 3 (car) mostly covers objects of category 1 (person)" in warning
    assert "val.json" in warning


@pytest.mark.parametrize("shift", [0.0, 25.0], ids=["good", "no box is right"])
def test_right_category_ids_are_not_called_permuted_whatever_the_boxes(street, shift):
    assert permutation_warnings(street, lambda category: category, shift) == []


def test_a_detector_that_guesses_classes_or_always_says_the_same_is_not_called_permuted(street):
    draw = np.random.default_rng(0)
    for shift in (0.0, 4.0):  # 4: with an IoU of 0.55 to 0.7, so that AP is as low as with permuted ids
        assert permutation_warnings(street, lambda category: int(draw.choice([1, 3, 18])), shift) == []
    assert permutation_warnings(street, lambda category: 18) == []
    assert permutation_warnings(street, lambda category: 40) == []  # no object of this category exists
