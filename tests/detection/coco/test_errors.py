"""detection/coco/errors.py: error counts and their cost in AP50 (TIDE, arXiv 2008.08115), computed by hand.

AP50 of a class is the mean over recalls 0, 0.01, ..., 1 of the best precision at that recall or higher. If all
detections up to recall r are correct and there are none after it, AP50 is (floor(100 r) + 1) / 101."""

import json

import numpy as np
import pytest

from detection.coco.errors import KINDS, confusion_matrix, error_breakdown
from detection.coco.evaluation import evaluate_coco, image_statistics, summarise_evaluation

CAT, DOG = 1, 7  # category ids
BOX, OTHER_BOX = [10, 10, 40, 40], [200, 200, 40, 40]
HALF_OFF = [10, 30, 40, 40]  # IoU of 1/3 with BOX
FAR_OFF = [400, 400, 40, 40]
HALF = 51 / 101  # AP if one of two objects is detected and there are no other detections


def annotate(path, objects, categories):
    """Write an annotation file of images 5 and 9. objects: (category_id, bbox[, other fields]), all in image 5."""
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in (5, 9)],
        "categories": [{"id": i, "name": f"class {i}"} for i in categories],
        "annotations": [
            {"image_id": 5, "category_id": category_id, "bbox": box} | dict(*further)
            for category_id, box, *further in objects
        ],
    }
    path.write_text(json.dumps(content))
    return path


def evaluation(tmp_path, objects, detections, categories=(CAT, DOG), image_id=5):
    """Evaluate detections (category_id, bbox, score) of one image."""
    results = [{"image_id": image_id, "category_id": c, "bbox": box, "score": score} for c, box, score in detections]
    return evaluate_coco(annotate(tmp_path / "annotations.json", objects, categories), results)


CASES = {
    "perfect": ([(CAT, BOX), (DOG, OTHER_BOX)], [(CAT, BOX, 0.9), (DOG, OTHER_BOX, 0.8)], 1.0, {}, {}),
    # The dog is detected as a cat with a higher score than the cat: precision 1/2 for cats, 0 for dogs. The correction
    # makes AP50 1 and matches the dog, so the dog is not missed.
    "right box, wrong class": (
        [(CAT, BOX), (DOG, OTHER_BOX)], [(CAT, OTHER_BOX, 0.9), (CAT, BOX, 0.8)],
        0.25, {"classification": 0.75}, {"classification": 1},
    ),
    # One cat has a poor box with the highest score, the second cat is detected: precision 1/2 up to recall 1/2.
    "poor box, right class": (
        [(CAT, BOX), (CAT, OTHER_BOX)], [(CAT, HALF_OFF, 0.9), (CAT, OTHER_BOX, 0.8)],
        HALF / 2, {"localisation": 1 - HALF / 2}, {"localisation": 1},
    ),
    # The correction removes the first box and does not match the cat, so the cat is missed. It raises the precision
    # for dogs from 1/2 to 1; cats remain in the mean with AP 0.
    "poor box, wrong class": (
        [(CAT, BOX), (DOG, OTHER_BOX)], [(DOG, HALF_OFF, 0.9), (DOG, OTHER_BOX, 0.8)],
        0.25, {"both": 0.25}, {"both": 1, "missed": 1},
    ),
    # Correct, wrong, correct: precision 1 up to recall 1/2, then 2/3.
    "second box on a found object": (
        [(CAT, BOX), (CAT, OTHER_BOX)], [(CAT, BOX, 0.9), (CAT, [10, 10, 40, 38], 0.8), (CAT, OTHER_BOX, 0.7)],
        (51 + 50 * 2 / 3) / 101, {"duplicate": 1 - (51 + 50 * 2 / 3) / 101}, {"duplicate": 1},
    ),
    "box on nothing": (
        [(CAT, BOX)], [(CAT, FAR_OFF, 0.9), (CAT, BOX, 0.8)], 0.5, {"background": 0.5}, {"background": 1}
    ),
    "object without detection": (
        [(CAT, BOX), (CAT, OTHER_BOX)], [(CAT, BOX, 0.9)], HALF, {"missed": 1 - HALF}, {"missed": 1}
    ),
    # The correction moves the box with the higher score to the cat and removes the second box: AP 1.
    "two detections to be corrected to one object": (
        [(CAT, BOX)], [(CAT, HALF_OFF, 0.9), (CAT, [30, 10, 40, 40], 0.8)],
        0.0, {"localisation": 1.0}, {"localisation": 2},
    ),
    "detection in a crowd": (
        [(CAT, BOX), (CAT, [200, 200, 200, 200], {"iscrowd": 1})], [(CAT, [210, 210, 40, 40], 0.9), (CAT, BOX, 0.8)],
        1.0, {}, {},
    ),
    # The IoU of the first detection with the crowd is below 1/2, and less than half of it is inside the crowd.
    "detection at the edge of a crowd": (
        [(CAT, BOX), (CAT, [200, 200, 100, 100], {"iscrowd": 1})],
        [(CAT, [255, 200, 100, 100], 0.9), (CAT, BOX, 0.8)],
        0.5, {"background": 0.5}, {"background": 1},
    ),
    "repeated annotation ids": (
        [(CAT, BOX, {"id": 3}), (CAT, OTHER_BOX, {"id": 3})], [(CAT, BOX, 0.9)],
        HALF, {"missed": 1 - HALF}, {"missed": 1},
    ),
    "no detections": ([(CAT, BOX), (DOG, OTHER_BOX)], [], 0.0, {"missed": None}, {"missed": 2}),
    "no objects": ([], [(CAT, BOX, 0.9)], None, dict.fromkeys(KINDS), {"background": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_counts_and_costs_of_errors_are_as_computed_by_hand(tmp_path, case):
    objects, detections, ap50, delta, counts = CASES[case]
    errors = error_breakdown(evaluation(tmp_path, objects, detections))
    assert errors["AP50"] == (ap50 if ap50 is None else pytest.approx(ap50))
    assert errors["counts"] == dict.fromkeys(KINDS, 0) | counts
    expected = dict.fromkeys(KINDS, 0.0) | delta
    for kind, value in errors["delta_AP50"].items():
        assert value == (None if expected[kind] is None else pytest.approx(expected[kind]))
    assert json.loads(json.dumps(errors)) == errors


@pytest.fixture
def sample(shared_data):
    """Evaluate the sample results of pycocotools."""
    folder = shared_data / "cocoeval100"
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    return evaluate_coco(folder / "instances_val2014_100.json", results)


def test_ap50_of_the_coco_sample_equals_that_of_pycocotools(sample):
    assert error_breakdown(sample)["AP50"] == pytest.approx(summarise_evaluation(sample)["AP50"], abs=1e-12)


# ---- confusion matrix: rows cat, dog, no object; columns cat, dog, missed -----------------------------------

LOW = [10, 20, 40, 40]  # IoU of 0.6 with BOX
CROWD = (CAT, [200, 200, 200, 200], {"iscrowd": 1})
CONFUSIONS = {
    "a correct cat, a dog detected as a cat, a missed dog, a dog without an object": (
        [(CAT, BOX), (DOG, OTHER_BOX), (DOG, [300, 10, 40, 40])],
        [(CAT, BOX, 0.9), (CAT, OTHER_BOX, 0.8), (DOG, FAR_OFF, 0.7)],
        [[1, 0, 0], [1, 0, 1], [0, 1, 0]],
    ),
    "an object is matched only once": (
        [(CAT, BOX)], [(CAT, BOX, 0.9), (CAT, BOX, 0.8), (DOG, BOX, 0.95)], [[1, 0, 0], [0, 0, 0], [1, 1, 0]]
    ),
    "a match within the class comes before a higher IoU with a different class": (
        [(CAT, BOX), (DOG, LOW)], [(CAT, [10, 19, 40, 40], 0.9), (DOG, LOW, 0.8)], [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    ),
    "below the score threshold": ([(CAT, BOX)], [(CAT, BOX, 0.29), (DOG, BOX, 0.3)], [[0, 1, 0], [0, 0, 0], [0, 0, 0]]),
    "in a crowd": ([CROWD], [(CAT, [210, 210, 40, 40], 0.9)], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFUSIONS)
def test_the_confusion_matrix_counts_predicted_classes(tmp_path, case):
    objects, detections, expected = CONFUSIONS[case]
    assert confusion_matrix(evaluation(tmp_path, objects, detections), 0.3).tolist() == expected


def test_a_wrong_class_is_matched_to_the_object_with_the_highest_iou(tmp_path):
    found = evaluation(tmp_path, [(CAT, BOX), (DOG, LOW)], [(9, [10, 19, 40, 40], 0.9)], categories=(CAT, DOG, 9))
    assert confusion_matrix(found, 0.3).tolist() == [[0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("score_threshold", [0.0, 0.5])
def test_the_diagonal_has_the_true_positives_of_ap50_and_each_row_has_all_objects_of_a_class(sample, score_threshold):
    matches, found = image_statistics(sample), confusion_matrix(sample, score_threshold)
    is_sure = matches.scores >= score_threshold
    right = matches.detection_classes[is_sure & matches.true_positives[:, 0]]
    assert found.diagonal()[:-1].tolist() == np.bincount(right, minlength=80).tolist()
    assert found[:-1].sum(axis=1).tolist() == np.bincount(matches.object_classes, minlength=80).tolist()
    assert found[:, :-1].sum() == np.count_nonzero(is_sure & ~matches.ignored[:, 0])
