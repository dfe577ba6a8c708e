"""detection/latency.py: detectors are measured in turns, and each experiment gets its record."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import detection.latency
from detection import load
from detection.deployment import session, timing
from detection.deployment.programs import Runner, Times, build
from engine.command import RunError
from engine.compute.precision import inference_precision
from records.latency import read_latency
from stats.latency import ratio_interval


@pytest.fixture
def latency(run_in_process):
    """Run `python -m detection.latency ... --device cpu`; return its exit code, output and errors."""
    return partial(run_in_process, detection.latency, "--device", "cpu")


@pytest.fixture
def two(finished_detector, tmp_path) -> list[Path]:
    """Return two copies of a finished experiment."""
    return [Path(shutil.copytree(finished_detector, tmp_path / name)) for name in ("one", "two")]


@pytest.fixture
def runner(finished_detector) -> Runner:
    return build(load(finished_detector, "cpu"), "eager", "fp32")


@pytest.fixture
def files(finished_detector) -> list[Path]:
    return session.common_images([finished_detector], [], 0)


@pytest.fixture
def few_rounds(monkeypatch):
    """Measure only a few rounds, and no memory, which needs new processes."""
    monkeypatch.setattr(timing, "MOST_BLOCKS", 1)
    monkeypatch.setattr(timing, "WARM_UP", 1)
    monkeypatch.setattr(timing, "LARGEST_BATCH", 2)
    monkeypatch.setattr(timing, "peak_memory", lambda *words: [None] * len(words[-1]))


def steps_of(milliseconds: dict[str, float], calls: list[str]) -> dict:
    """Return programs that record their names and claim to take these times."""

    def step(name, _):
        calls.append(name)
        return Times(milliseconds[name], 0.0, milliseconds[name])

    return {name: partial(step, name) for name in milliseconds}


def test_experiments_that_are_measured_together_share_a_session_and_its_rounds(latency, two, few_rounds):
    code, output, errors = latency(*two, "--programs", "eager", "--precision", "fp32", "--runs", 20)
    assert code == 0, errors
    one, other = map(read_latency, two)
    assert one.session == other.session
    assert (one.device, one.threads, one.precision) == (other.device, torch.get_num_threads(), "fp32")
    for found in (one, other):
        single = found.timing("eager", 1)
        assert len(single.rounds_ms) == 20
        assert single.end_to_end.p50 == pytest.approx(np.median(single.rounds_ms), abs=1e-3)
        assert single.end_to_end.p50_low <= single.end_to_end.p50 <= single.end_to_end.p50_high
        assert single.end_to_end.p50 <= single.end_to_end.p95 <= single.end_to_end.p99
        assert 0 < single.network.p50 + single.postprocess.p50 < single.end_to_end.p99
        assert single.images_per_second == pytest.approx(1000 / single.end_to_end.p50)
    ratio = ratio_interval(other.timing("eager", 1).rounds_ms, one.timing("eager", 1).rounds_ms)
    assert f"{ratio.estimate:.3f}" in output


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--programs", "eager,tensorrt"], ["tensorrt", "onnxruntime"]),
        (["model.neck=fpn"], ["model.neck=fpn", "data.root"]),
        (["experiments/nowhere"], ["experiments/nowhere"]),
        (["--runs", "0"], ["--runs", "0"]),
    ],
)
def test_errors_name_the_word_and_what_is_expected(latency, finished_detector, words, named):
    code, _, errors = latency(finished_detector, *words)
    assert code == 2
    (line,) = errors
    assert all(name in line for name in named)


def test_an_experiment_that_is_named_twice_is_refused(latency, finished_detector):
    code, _, errors = latency(finished_detector, finished_detector)
    assert code == 2
    assert "twice" in errors[0]


def test_a_precision_that_the_device_lacks_is_refused(finished_detector):
    detectors = {finished_detector: load(finished_detector, "cpu")}
    with pytest.raises(ValueError, match=r"--precision fp16.*fp32"):
        session.common_precision(detectors, "fp16", torch.device("cpu"))


def test_a_program_is_left_out_if_it_cannot_run_and_refused_if_it_was_asked_for(monkeypatch):
    monkeypatch.setattr("detection.deployment.programs.can_compile", lambda device: False)
    found = session.available(None, torch.device("cpu"), "bf16")
    assert found == ["eager"]  # an export computes in fp32
    with pytest.raises(RunError, match="onnxruntime"):
        session.available(["onnxruntime"], torch.device("cpu"), "bf16")


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


def test_every_program_runs_once_in_every_round_in_random_order():
    calls = []
    steps = steps_of({"a": 1.0, "b": 1.0, "c": 1.0}, calls)
    stream = iter(lambda: [], None)
    times = timing.take_turns(steps, [("b", "a")], stream, 200, np.random.default_rng(0), timing.Load())
    rounds = [tuple(calls[start : start + 3]) for start in range(0, len(calls), 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) == 6  # all orders occur
    assert {len(series) for series in times.values()} == {len(rounds)}


def test_programs_are_warmed_up_in_turns_and_the_time_of_a_round_is_returned():
    calls = []
    steps = steps_of({"a": 1000.0, "b": 2000.0}, calls)
    assert timing.warm_up(steps, iter(lambda: [], None), np.random.default_rng(0)) == 3
    rounds = {tuple(calls[start : start + 2]) for start in range(0, len(calls), 2)}
    assert (len(calls), rounds) == (2 * timing.WARM_UP, {("a", "b"), ("b", "a")})


def test_rounds_are_added_until_the_ratio_is_precise_and_no_longer():
    generator = np.random.default_rng(0)

    def rounds(spread: float) -> int:
        steps = {name: lambda _: Times(1.0, 0.0, float(np.exp(generator.normal(0, spread)))) for name in ("a", "b")}
        stream = iter(lambda: [], None)
        found = timing.take_turns(steps, [("b", "a")], stream, 50, np.random.default_rng(0), timing.Load())
        return len(found["a"])

    assert rounds(0.001) == 50
    assert 50 < rounds(0.05) < 500
    assert rounds(10) == 50 * timing.MOST_BLOCKS


def test_the_batch_is_doubled_as_long_as_it_pays():
    per_image = {1: 10.0, 2: 8.0, 4: 7.0, 8: 6.9}

    def step(batch):
        return Times(0.0, 0.0, per_image.get(len(batch), 6.9) * len(batch))

    assert timing.largest_batch([step], [Path("a")], torch.device("cpu")) == 4


def test_a_batch_of_one_is_measured_even_if_memory_is_short(monkeypatch):
    monkeypatch.setattr(timing, "memory_limit", lambda: 1)
    assert timing.largest_batch([], [Path("a")], torch.device("cpu")) == 1
