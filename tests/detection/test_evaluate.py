"""detection.evaluate in this process, on detectors with softmax and with sigmoid scores."""

import json
import shutil

import pytest

from detection import evaluate


@pytest.mark.parametrize(("name", "kind"), [("finished_detector", "softmax"), ("modern_detector", "sigmoid")])
def test_thresholds_are_swept_and_the_kind_of_score_is_reported(name, kind, request, tmp_path, run_in_process):
    experiment = shutil.copytree(request.getfixturevalue(name), tmp_path / "experiment_1")
    words = ("eval.score_threshold=0.01,0.3,0.999", "eval.max_detections=50,1000", "train.precision=fp32")
    code, output, _ = run_in_process(evaluate, experiment, *words)
    assert code == 0
    assert f"{kind} scores" in output
    test = json.loads((experiment / "test.json").read_text())
    assert test["score_function"] == kind
    settings = {(row["score_threshold"], row["max_detections"]): row for row in test["settings"]}
    assert list(settings) == [(0.01, 50), (0.01, 1000), (0.3, 50), (0.3, 1000), (0.999, 50), (0.999, 1000)]
    low, same, high = (settings[threshold, 1000]["AR_100"] for threshold in (0.01, 0.3, 0.999))
    assert low >= same > high
    scores = json.loads((experiment / "results.json").read_text())["scores"]
    assert settings[0.3, 50]["mAP"] == pytest.approx(scores["mAP"], abs=1e-3)
