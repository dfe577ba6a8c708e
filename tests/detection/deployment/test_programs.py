"""detection/deployment/programs.py: all programs of a detector find the same boxes; those that cannot run say why."""

import numpy as np
import pytest
import torch

from detection import load
from detection.deployment.programs import available, build
from engine.command import RunError
from engine.compute.precision import inference_precision


def test_a_program_is_left_out_if_it_cannot_run_and_refused_if_it_was_asked_for(monkeypatch):
    monkeypatch.setattr("detection.deployment.programs.compile_obstacle", lambda device: "no g++")
    found = available(None, torch.device("cpu"), "bf16")
    assert found == ["eager"]  # an export computes in fp32
    with pytest.raises(RunError, match="onnxruntime"):
        available(["onnxruntime"], torch.device("cpu"), "bf16")


def test_the_reason_and_the_cure_are_logged_in_one_line_per_program(monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr("detection.deployment.programs.compile_obstacle", lambda device: "no g++")
    monkeypatch.setattr("detection.deployment.programs.find_spec", lambda name: None if name == "onnx" else name)
    available(None, torch.device("cpu"), "fp32")
    compiled, exported = [record.getMessage() for record in caplog.records]
    assert all(part in compiled for part in ("compiled", "no g++", "install"))
    assert all(part in exported for part in ("onnxruntime", "onnx;", "pip install -e '.[export]'"))


def test_a_runner_finds_the_same_boxes_as_the_detector_and_its_stages_take_part_of_the_time(finished_detector, files):
    detector = load(finished_detector, "cpu")
    precision = inference_precision(detector.config.train.precision, torch.device("cpu"))
    (found,), times = build(detector, "eager", precision).run(files[:1])
    expected = detector(files[0])
    np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy)
    np.testing.assert_allclose(found.scores, expected.scores)
    assert 0 < times.network + times.postprocess < times.end_to_end


def test_the_exported_network_finds_the_same_boxes(finished_detector, files, runner):
    exported = build(load(finished_detector, "cpu"), "onnxruntime", "fp32")
    (found,), _ = exported.run(files[:1])
    (expected,), _ = runner.run(files[:1])
    np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=0.01)
