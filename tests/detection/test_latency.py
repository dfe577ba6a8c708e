"""detection/latency.py: detectors are measured in turns, and each experiment gets its record."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import detection.latency
from detection.deployment import timing
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
def few_rounds(monkeypatch):
    """Measure only a few rounds, and no memory, which needs new processes."""
    monkeypatch.setattr(timing, "MOST_BLOCKS", 1)
    monkeypatch.setattr(timing, "WARM_UP", 1)
    monkeypatch.setattr(timing, "LARGEST_BATCH", 2)
    monkeypatch.setattr(timing, "peak_memory", lambda *words: [None] * len(words[-1]))


def test_options_may_stand_between_experiments_and_fields(tmp_path):
    words = [str(tmp_path), "--precision", "fp32", "data.root=photos"]
    arguments = detection.latency.parse_arguments(words)
    assert (arguments.experiments, arguments.overrides) == ([tmp_path], ["data.root=photos"])


def test_experiments_that_are_measured_together_share_a_session_and_its_rounds(latency, two, few_rounds):
    code, output, errors = latency(*two, "--programs", "eager", "--precision", "fp32", "--runs", 20)
    assert code == 0, errors
    one, other = map(read_latency, two)
    assert one.session == other.session
    assert (one.device, one.threads, one.precision) == (other.device, torch.get_num_threads(), "fp32")
    for found in (one, other):
        single = found.timing("eager", 1)
        assert len(single.rounds_ms) == 20
        assert single.end_to_end.p50 >= np.median(single.rounds_ms) - 1e-3  # with waiting for a core
        assert single.end_to_end.p50_low <= single.end_to_end.p50 <= single.end_to_end.p50_high
        assert single.end_to_end.p50 <= single.end_to_end.p95 <= single.end_to_end.p99
        assert 0 < single.network.p50 + single.postprocess.p50 < single.end_to_end.p99
        assert single.images_per_second == pytest.approx(1000 / single.end_to_end.p50)
    ratio = ratio_interval(other.timing("eager", 1).rounds_ms, one.timing("eager", 1).rounds_ms)
    assert f"{ratio.estimate:.3f}" in output
    assert all(part in output for part in ("fp32", "processes per core", "by more than 1%"))
    assert (one.step, one.images, len(one.annotations_sha256)) == (3, 12, 64)


@pytest.mark.parametrize("error", [RuntimeError("a process was killed"), KeyboardInterrupt()])
def test_times_are_written_even_if_measuring_memory_fails(latency, two, few_rounds, monkeypatch, error):
    def peak_memory(*_):
        raise error

    monkeypatch.setattr(timing, "peak_memory", peak_memory)
    code, _, _ = latency(two[0], "--programs", "eager", "--runs", 5)
    assert (code == 0) == isinstance(error, RuntimeError)
    single = read_latency(two[0]).timing("eager", 1)
    assert (len(single.rounds_ms), single.peak_memory_mib) == (5, None)


def test_times_of_single_images_are_kept_if_larger_batches_fail(latency, two, few_rounds, monkeypatch):
    def largest_batch(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(timing, "largest_batch", largest_batch)
    code, _, _ = latency(two[0], "--programs", "eager", "--runs", 5)
    assert code
    assert len(read_latency(two[0]).timing("eager", 1).rounds_ms) == 5


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
