import contextlib
import io
import json

import numpy as np

from detection.coco.evaluation import evaluate_coco, image_statistics
from stats.bootstrap import resampled_scores
from stats.precision_recall import image_average_precision, precision_by_recall


def test_precision_is_bitwise_equal_to_pycocotools(shared_data):
    folder = shared_data / "cocoeval100"
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    path = folder / "instances_val2014_100.json"
    evaluation = evaluate_coco(path, results)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    theirs = evaluation.eval["precision"][:, :, :, 0, -1]
    assert np.array_equal(precision_by_recall(image_statistics(evaluation)), np.where(theirs < 0, np.nan, theirs), True)


def test_the_ap_of_an_image_is_that_of_pycocotools_for_the_image_alone(shared_data):
    folder = shared_data / "cocoeval100"
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    content = json.loads((folder / "instances_val2014_100.json").read_text())
    evaluation = evaluate_coco(folder / "instances_val2014_100.json", results)
    matches = image_statistics(evaluation)
    found = image_average_precision(matches)
    for place in (0, 17, 58, 99):
        evaluation.params.imgIds = [matches.image_ids[place]]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
            evaluation.accumulate()
        theirs = evaluation.eval["precision"][:, :, :, 0, -1]
        expected = theirs[theirs > -1].mean() if (theirs > -1).any() else np.nan
        np.testing.assert_allclose(found[place], expected, rtol=1e-12)
    has_objects = np.isin(
        matches.image_ids, [each["image_id"] for each in content["annotations"] if not each["iscrowd"]]
    )
    assert np.array_equal(~np.isnan(found), has_objects)


def test_the_ap_of_an_image_is_the_score_of_a_resample_with_only_this_image(shared_data):
    folder = shared_data / "cocoeval100"
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    matches = image_statistics(evaluate_coco(folder / "instances_val2014_100.json", results))
    alone, _ = resampled_scores(matches, np.eye(len(matches.image_ids), dtype=int))
    np.testing.assert_allclose(image_average_precision(matches), alone["mAP"], rtol=1e-12)
