"""Errors are counted and priced by the definitions of TIDE (Bolya et al. 2020); every number is worked out by hand.

AP50 of a class is the mean, over recalls 0, 0.01, ..., 1, of the best precision at that recall or a higher one. With
n objects and every detection right up to recall r it is (floor(100 r) + 1) / 101."""

import json

import numpy as np
import pytest

from detection.coco.errors import KINDS, confusion_matrix, error_breakdown
from detection.coco.evaluation import coco_scores, evaluate_coco, image_statistics

CAT, DOG = 1, 7  # category ids
BOX, OTHER_BOX = [10, 10, 40, 40], [200, 200, 40, 40]
HALF_OFF = [10, 30, 40, 40]  # IoU of 1/3 with BOX
FAR_OFF = [400, 400, 40, 40]
HALF = 51 / 101  # AP where one of two objects is found and nothing else


def annotate(path, objects, categories=(CAT, DOG)):
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


def breakdown(tmp_path, objects, detections, **further):
    """Of detections (category_id, bbox, score) in image 5."""
    results = [{"image_id": 5, "category_id": c, "bbox": box, "score": score} for c, box, score in detections]
    return error_breakdown(evaluate_coco(annotate(tmp_path / "annotations.json", objects, **further), results))


def assert_only(errors, delta, **counts):
    """The counts are these, the rest is 0, and so are the deltas of what does not occur."""
    assert errors["counts"] == dict.fromkeys(KINDS, 0) | counts
    assert errors["delta_AP50"] == pytest.approx(dict.fromkeys(KINDS, 0.0) | delta)


def test_a_right_box_of_the_wrong_class_is_a_classification_error(tmp_path):
    """The dog is called a cat, surer than the cat: cats have precision 1/2, dogs nothing. Mended, all is right, and
    so the dog is not missed."""
    errors = breakdown(tmp_path, [(CAT, BOX), (DOG, OTHER_BOX)], [(CAT, OTHER_BOX, 0.9), (CAT, BOX, 0.8)])
    assert errors["AP50"] == pytest.approx(0.25)
    assert_only(errors, {"classification": 0.75}, classification=1)


def test_a_poor_box_of_the_right_class_is_a_localisation_error(tmp_path):
    """One of two cats is found, the other box, surer, lies half beside it: precision 1/2 up to recall 1/2."""
    errors = breakdown(tmp_path, [(CAT, BOX), (CAT, OTHER_BOX)], [(CAT, HALF_OFF, 0.9), (CAT, OTHER_BOX, 0.8)])
    assert errors["AP50"] == pytest.approx(HALF / 2)
    assert_only(errors, {"localisation": 1 - HALF / 2}, localisation=1)


def test_a_poor_box_of_the_wrong_class_is_both(tmp_path):
    """It does not lead to the cat, which is missed. Without it the dog is found with precision 1 rather than 1/2;
    without the cat no class but dogs has objects, but the class of cats, at 0, stays in the mean."""
    errors = breakdown(tmp_path, [(CAT, BOX), (DOG, OTHER_BOX)], [(DOG, HALF_OFF, 0.9), (DOG, OTHER_BOX, 0.8)])
    assert errors["AP50"] == pytest.approx(0.25)
    assert_only(errors, {"both": 0.25}, both=1, missed=1)


def test_a_second_box_on_a_found_object_is_a_duplicate(tmp_path):
    """Cats: right, wrong, right makes precision 1 up to recall 1/2, and 2/3 after it."""
    errors = breakdown(
        tmp_path, [(CAT, BOX), (CAT, OTHER_BOX)], [(CAT, BOX, 0.9), (CAT, [10, 10, 40, 38], 0.8), (CAT, OTHER_BOX, 0.7)]
    )
    assert errors["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert_only(errors, {"duplicate": 1 - (51 + 50 * 2 / 3) / 101}, duplicate=1)


def test_a_box_on_nothing_is_background(tmp_path):
    errors = breakdown(tmp_path, [(CAT, BOX)], [(CAT, FAR_OFF, 0.9), (CAT, BOX, 0.8)])
    assert errors["AP50"] == pytest.approx(0.5)
    assert_only(errors, {"background": 0.5}, background=1)


def test_an_object_without_any_detection_is_missed(tmp_path):
    errors = breakdown(tmp_path, [(CAT, BOX), (CAT, OTHER_BOX)], [(CAT, BOX, 0.9)])
    assert errors["AP50"] == pytest.approx(HALF)
    assert_only(errors, {"missed": 1 - HALF}, missed=1)


def test_of_two_detections_to_be_mended_to_one_object_the_surest_is(tmp_path):
    """Both boxes lie half beside the cat. Mended, the surer one is right and the other gone: AP 1, not 1 after a
    duplicate."""
    errors = breakdown(tmp_path, [(CAT, BOX)], [(CAT, HALF_OFF, 0.9), (CAT, [30, 10, 40, 40], 0.8)])
    assert errors["AP50"] == 0.0
    assert_only(errors, {"localisation": 1.0}, localisation=2)


def test_what_is_found_in_a_crowd_is_no_error(tmp_path):
    crowd = (CAT, [200, 200, 200, 200], {"iscrowd": 1})
    errors = breakdown(tmp_path, [(CAT, BOX), crowd], [(CAT, [210, 210, 40, 40], 0.9), (CAT, BOX, 0.8)])
    assert errors["AP50"] == pytest.approx(1.0)
    assert_only(errors, {})


def test_without_detections_everything_is_missed_and_not_asking_leaves_nothing_to_score(tmp_path):
    errors = breakdown(tmp_path, [(CAT, BOX), (DOG, OTHER_BOX)], [])
    assert errors["AP50"] == 0.0
    assert_only(errors, {"missed": None}, missed=2)


def test_without_objects_nothing_but_the_counts_is_defined(tmp_path):
    errors = breakdown(tmp_path, [], [(CAT, BOX, 0.9)])
    assert errors["AP50"] is None
    assert errors["delta_AP50"] == dict.fromkeys(KINDS)
    assert errors["counts"] == dict.fromkeys(KINDS, 0) | {"background": 1}


def test_ap50_of_the_coco_sample_is_that_of_pycocotools(shared_data):
    folder = shared_data / "cocoeval100"
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    path = folder / "instances_val2014_100.json"
    found = error_breakdown(evaluate_coco(path, results))
    assert found["AP50"] == pytest.approx(coco_scores(path, results)["AP50"], abs=1e-12)


# ---- which class is taken for which: rows cat, dog, nothing; columns cat, dog, not found ---------------------


def confusions(tmp_path, objects, detections, score_threshold=0.3, **further):
    """Of detections (category_id, bbox, score) in image 5."""
    results = [{"image_id": 5, "category_id": c, "bbox": box, "score": score} for c, box, score in detections]
    evaluation = evaluate_coco(annotate(tmp_path / "a.json", objects, **further), results)
    return confusion_matrix(evaluation, score_threshold).tolist()


def test_what_is_found_missed_confused_and_made_up_each_has_its_place(tmp_path):
    """A cat is found, a dog taken for a cat, another dog missed, and a dog found where nothing is."""
    objects = [(CAT, BOX), (DOG, OTHER_BOX), (DOG, [300, 10, 40, 40])]
    found = confusions(tmp_path, objects, [(CAT, BOX, 0.9), (CAT, OTHER_BOX, 0.8), (DOG, FAR_OFF, 0.7)])
    assert found == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]


def test_an_object_is_found_once(tmp_path):
    """The second cat on it, and the dog, lie on nothing."""
    found = confusions(tmp_path, [(CAT, BOX)], [(CAT, BOX, 0.9), (CAT, BOX, 0.8), (DOG, BOX, 0.95)])
    assert found == [[1, 0, 0], [0, 0, 0], [1, 1, 0]]


def test_a_detection_goes_to_its_own_class_even_where_another_lies_nearer(tmp_path):
    """The cat's detection overlaps the dog more, by far; both are right, as they are for AP50."""
    low = [10, 20, 40, 40]  # IoU of 0.6 with BOX
    found = confusions(tmp_path, [(CAT, BOX), (DOG, low)], [(CAT, [10, 19, 40, 40], 0.9), (DOG, low, 0.8)])
    assert found == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_of_two_objects_of_other_classes_the_nearer_is_the_one_that_is_confused(tmp_path):
    objects = [(CAT, BOX), (7, [10, 20, 40, 40])]
    results = [{"image_id": 5, "category_id": 9, "bbox": [10, 19, 40, 40], "score": 0.9}]
    found = confusion_matrix(
        evaluate_coco(annotate(tmp_path / "a.json", objects, categories=(CAT, 7, 9)), results), 0.3
    )
    assert found.tolist() == [[0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("score_threshold", [0.0, 0.5])
def test_the_diagonal_is_what_ap50_counts_as_right_and_every_object_is_in_its_row(shared_data, score_threshold):
    folder = shared_data / "cocoeval100"
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    path = folder / "instances_val2014_100.json"
    evaluation = evaluate_coco(path, results)
    matches, found = image_statistics(evaluation), confusion_matrix(evaluation, score_threshold)
    is_sure = matches.scores >= score_threshold
    right = matches.detection_classes[is_sure & matches.true_positives[:, 0]]
    assert found.diagonal()[:-1].tolist() == np.bincount(right, minlength=80).tolist()
    assert found[:-1].sum(axis=1).tolist() == np.bincount(matches.object_classes, minlength=80).tolist()
    assert found[:, :-1].sum() == np.count_nonzero(is_sure & ~matches.ignored[:, 0])
