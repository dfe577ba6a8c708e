"""detection.evaluate in this process, on detectors with softmax and with sigmoid scores."""

import json
import shutil

import pytest

from detection import evaluate


@pytest.mark.parametrize(("name", "kind"), [("finished_detector", "softmax"), ("modern_detector", "sigmoid")])
def test_thresholds_are_swept_and_the_kind_of_score_is_reported(name, kind, request, tmp_path, run_in_process):
    experiment = shutil.copytree(request.getfixturevalue(name), tmp_path / "experiment_1")
    thresholds = "eval.score_threshold=0.01,0.3,0.999"
    code, output, _ = run_in_process(evaluate, experiment, thresholds, "train.precision=fp32")
    assert code == 0
    assert f"{kind} scores" in output
    test = json.loads((experiment / "test.json").read_text())
    assert test["score_function"] == kind
    low, same, high = test["settings"]
    assert [row["score_threshold"] for row in test["settings"]] == [0.01, 0.3, 0.999]
    assert low["AR_100"] >= same["AR_100"] > high["AR_100"]
    scores = json.loads((experiment / "results.json").read_text())["scores"]
    assert same["mAP"] == pytest.approx(scores["mAP"], abs=1e-3)
