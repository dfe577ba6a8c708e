"""detection/deployment/programs.py: all programs of a detector find the same boxes; those that cannot run say why."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from detection import load
from detection.deployment.programs import SCHEDULE, available, build, waited
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
    assert 0 < times.undelayed <= times.end_to_end


@pytest.mark.skipif(not SCHEDULE.exists(), reason="this system does not report how long threads wait for a core")
def test_the_wait_of_a_thread_for_a_core_is_measured():
    def spin(seconds: float) -> float:
        started, waiting = time.perf_counter(), waited(torch.device("cpu"))
        while time.perf_counter() < started + seconds:
            pass
        return waited(torch.device("cpu")) - waiting

    core = min(os.sched_getaffinity(0))
    allowed = os.sched_getaffinity(0)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            os.sched_setaffinity(other.pid, {core})
            os.sched_setaffinity(0, {core})
            assert spin(1.0) > 0.2  # the other process has the core for half of the time
        finally:
            os.sched_setaffinity(0, allowed)
            other.kill()


def test_systems_that_do_not_report_waiting_count_none(monkeypatch, tmp_path):
    monkeypatch.setattr("detection.deployment.programs.SCHEDULE", tmp_path / "missing")
    assert waited(torch.device("cpu")) == 0


def test_the_exported_network_finds_the_same_boxes(finished_detector, files, runner):
    exported = build(load(finished_detector, "cpu"), "onnxruntime", "fp32")
    (found,), _ = exported.run(files[:1])
    (expected,), _ = runner.run(files[:1])
    np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=0.01)


def test_waiting_is_not_subtracted_on_a_gpu_because_it_computes_meanwhile(monkeypatch, tmp_path):
    (tmp_path / "schedstat").write_text("1000 5000000000 3")
    monkeypatch.setattr("detection.deployment.programs.SCHEDULE", tmp_path / "schedstat")
    assert (waited(torch.device("cpu")), waited(torch.device("cuda"))) == (5.0, 0.0)
