"""Precision by recall is pycocotools' own; the counts by score are worked out by hand."""

import contextlib
import io
import json

import numpy as np

from detection.coco.evaluation import evaluate_coco, image_statistics
from stats.image_statistics import Matches
from stats.precision_recall import precision_by_recall

# Class 0: right, wrong, right, and one in a crowd, of four objects. Class 1 has no object.
MATCHES = Matches(
    image_ids=np.array([5]),
    class_names=np.array(["cat", "dog"]),
    iou_thresholds=np.array([0.5]),
    detection_images=np.zeros(5, np.int32),
    detection_classes=np.array([0, 0, 0, 0, 1], np.int16),
    scores=np.array([0.9, 0.7, 0.5, 0.8, 0.6]),
    true_positives=np.array([[True], [False], [True], [False], [False]]),
    ignored=np.array([[False], [False], [False], [True], [False]]),
    object_images=np.zeros(4, np.int32),
    object_classes=np.zeros(4, np.int16),
)


def test_precision_is_that_of_pycocotools_to_the_last_digit(shared_data):
    folder = shared_data / "cocoeval100"
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    path = folder / "instances_val2014_100.json"
    evaluation = evaluate_coco(path, results)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    theirs = evaluation.eval["precision"][:, :, :, 0, -1]
    assert np.array_equal(precision_by_recall(image_statistics(evaluation)), np.where(theirs < 0, np.nan, theirs), True)


def test_precision_is_1_up_to_the_first_miss_and_0_where_recall_is_never_reached():
    cat = precision_by_recall(MATCHES)[0, :, 0]
    assert np.allclose(cat[:26], 1)  # one of four
    assert np.allclose(cat[26:51], 2 / 3)  # two of four, by three detections
    assert not cat[51:].any()


def test_a_class_without_objects_has_no_precision():
    assert np.isnan(precision_by_recall(MATCHES)[:, :, 1]).all()
