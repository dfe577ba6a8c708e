import contextlib
import io
import json

import numpy as np

from detection.coco.evaluation import evaluate_coco, image_statistics
from stats.precision_recall import precision_by_recall


def test_precision_is_bitwise_equal_to_pycocotools(shared_data):
    folder = shared_data / "cocoeval100"
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    path = folder / "instances_val2014_100.json"
    evaluation = evaluate_coco(path, results)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    theirs = evaluation.eval["precision"][:, :, :, 0, -1]
    assert np.array_equal(precision_by_recall(image_statistics(evaluation)), np.where(theirs < 0, np.nan, theirs), True)
