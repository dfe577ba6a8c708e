"""Errors are counted and priced by the definitions of TIDE (Bolya et al. 2020); every number is worked out by hand.

AP50 of a class is the mean, over recalls 0, 0.01, ..., 1, of the best precision at that recall or a higher one. With
n objects and every detection right up to recall r it is (floor(100 r) + 1) / 101."""

import json

import numpy as np
import pytest

from detection.coco.errors import KINDS, confusion_matrix, error_breakdown
from detection.coco.evaluation import evaluate_coco, image_statistics, summary_of

CAT, DOG = 1, 7  # category ids
BOX, OTHER_BOX = [10, 10, 40, 40], [200, 200, 40, 40]
HALF_OFF = [10, 30, 40, 40]  # IoU of 1/3 with BOX
FAR_OFF = [400, 400, 40, 40]
HALF = 51 / 101  # AP where one of two objects is found and nothing else


def annotate(path, objects, categories):
    """An annotation file of the images 5 and 9; objects: (category_id, bbox) or with further fields, in image 5."""
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
    """Of detections (category_id, bbox, score) in image 5."""
    results = [{"image_id": image_id, "category_id": c, "bbox": box, "score": score} for c, box, score in detections]
    return evaluate_coco(annotate(tmp_path / "annotations.json", objects, categories), results)


CASES = {
    "perfect": ([(CAT, BOX), (DOG, OTHER_BOX)], [(CAT, BOX, 0.9), (DOG, OTHER_BOX, 0.8)], 1.0, {}, {}),
    # The dog is called a cat, surer than the cat: cats have precision 1/2, dogs nothing. Corrected, all is right, and
    # so the dog is not missed.
    "right box, wrong class": (
        [(CAT, BOX), (DOG, OTHER_BOX)], [(CAT, OTHER_BOX, 0.9), (CAT, BOX, 0.8)],
        0.25, {"classification": 0.75}, {"classification": 1},
    ),
    # One of two cats is found, the other box, surer, is half beside it: precision 1/2 up to recall 1/2.
    "poor box, right class": (
        [(CAT, BOX), (CAT, OTHER_BOX)], [(CAT, HALF_OFF, 0.9), (CAT, OTHER_BOX, 0.8)],
        HALF / 2, {"localisation": 1 - HALF / 2}, {"localisation": 1},
    ),
    # It does not lead to the cat, which is missed. Without it the dog is found with precision 1 rather than 1/2; the
    # class of cats, at 0, stays in the mean.
    "poor box, wrong class": (
        [(CAT, BOX), (DOG, OTHER_BOX)], [(DOG, HALF_OFF, 0.9), (DOG, OTHER_BOX, 0.8)],
        0.25, {"both": 0.25}, {"both": 1, "missed": 1},
    ),
    # Right, wrong, right makes precision 1 up to recall 1/2, and 2/3 after it.
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
    # Both boxes are half beside the cat. Corrected, the surer one is right and the other gone: AP 1.
    "two detections to be corrected to one object": (
        [(CAT, BOX)], [(CAT, HALF_OFF, 0.9), (CAT, [30, 10, 40, 40], 0.8)],
        0.0, {"localisation": 1.0}, {"localisation": 2},
    ),
    "found in a crowd": (
        [(CAT, BOX), (CAT, [200, 200, 200, 200], {"iscrowd": 1})], [(CAT, [210, 210, 40, 40], 0.9), (CAT, BOX, 0.8)],
        1.0, {}, {},
    ),
    # Its IoU with the crowd is 1/3, and less than half of it is inside.
    "found at the edge of a crowd": (
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
def test_errors_are_counted_and_priced(tmp_path, case):
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
    """pycocotools' evaluation of its own sample of results."""
    folder = shared_data / "cocoeval100"
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    return evaluate_coco(folder / "instances_val2014_100.json", results)


def test_ap50_of_the_coco_sample_is_that_of_pycocotools(sample):
    assert error_breakdown(sample)["AP50"] == pytest.approx(summary_of(sample)["AP50"], abs=1e-12)


# ---- which class is taken for which: rows cat, dog, nothing; columns cat, dog, not found ---------------------

LOW = [10, 20, 40, 40]  # IoU of 0.6 with BOX
CROWD = (CAT, [200, 200, 200, 200], {"iscrowd": 1})
CONFUSIONS = {
    "a cat found, a dog taken for a cat, a dog missed, a dog found where nothing is": (
        [(CAT, BOX), (DOG, OTHER_BOX), (DOG, [300, 10, 40, 40])],
        [(CAT, BOX, 0.9), (CAT, OTHER_BOX, 0.8), (DOG, FAR_OFF, 0.7)],
        [[1, 0, 0], [1, 0, 1], [0, 1, 0]],
    ),
    "an object is found once": (
        [(CAT, BOX)], [(CAT, BOX, 0.9), (CAT, BOX, 0.8), (DOG, BOX, 0.95)], [[1, 0, 0], [0, 0, 0], [1, 1, 0]]
    ),
    "a detection goes to its own class, though another is nearer": (
        [(CAT, BOX), (DOG, LOW)], [(CAT, [10, 19, 40, 40], 0.9), (DOG, LOW, 0.8)], [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    ),
    "below the score": ([(CAT, BOX)], [(CAT, BOX, 0.29), (DOG, BOX, 0.3)], [[0, 1, 0], [0, 0, 0], [0, 0, 0]]),
    "in a crowd": ([CROWD], [(CAT, [210, 210, 40, 40], 0.9)], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFUSIONS)
def test_objects_are_counted_by_what_they_are_taken_for(tmp_path, case):
    objects, detections, expected = CONFUSIONS[case]
    assert confusion_matrix(evaluation(tmp_path, objects, detections), 0.3).tolist() == expected


def test_of_two_objects_of_other_classes_the_nearer_is_the_one_that_is_confused(tmp_path):
    found = evaluation(tmp_path, [(CAT, BOX), (DOG, LOW)], [(9, [10, 19, 40, 40], 0.9)], categories=(CAT, DOG, 9))
    assert confusion_matrix(found, 0.3).tolist() == [[0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("score_threshold", [0.0, 0.5])
def test_the_diagonal_is_what_ap50_counts_as_right_and_every_object_is_in_its_row(sample, score_threshold):
    matches, found = image_statistics(sample), confusion_matrix(sample, score_threshold)
    is_sure = matches.scores >= score_threshold
    right = matches.detection_classes[is_sure & matches.true_positives[:, 0]]
    assert found.diagonal()[:-1].tolist() == np.bincount(right, minlength=80).tolist()
    assert found[:-1].sum(axis=1).tolist() == np.bincount(matches.object_classes, minlength=80).tolist()
    assert found[:, :-1].sum() == np.count_nonzero(is_sure & ~matches.ignored[:, 0])
