"""detection/deployment/session.py: what is measured together, and what is measured if memory is short."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data import DatasetError
from detection.deployment import session, timing
from detection.deployment.programs import Times
from engine.strict_yaml import ConfigError

CPU = torch.device("cpu")
ONE, TWO = Path("one"), Path("two")


# ---- what is measured ------------------------------------------------------------------------------------------------


def trained_in(*precisions: str) -> dict:
    """Return detectors in folders a, b, ... that were trained in these precisions."""
    train = [SimpleNamespace(precision=precision) for precision in precisions]
    configs = [SimpleNamespace(train=each) for each in train]
    return {Path(name): SimpleNamespace(config=config) for name, config in zip("abc", configs, strict=False)}


@pytest.fixture
def only_fp32_and_bf16(monkeypatch):
    for module in ("detection.deployment.session", "engine.compute.precision"):
        monkeypatch.setattr(f"{module}.is_in_hardware", lambda name, device: name != "fp16")


def test_a_precision_that_the_device_lacks_is_refused_with_those_it_has(only_fp32_and_bf16):
    with pytest.raises(ConfigError, match=r"--precision fp16.*fp32 or bf16"):
        session.common_precision(trained_in("fp32"), "fp16", CPU)


def test_precisions_of_training_that_this_device_runs_in_the_same_precision_are_accepted(only_fp32_and_bf16):
    assert session.common_precision(trained_in("fp32", "fp16"), None, CPU) == "fp32"
    assert session.common_precision(trained_in("auto", "bf16"), None, CPU) == "bf16"


def test_precisions_that_differ_on_this_device_need_a_choice(only_fp32_and_bf16):
    with pytest.raises(ConfigError) as error:
        session.common_precision(trained_in("fp32", "bf16"), None, CPU)
    assert all(part in str(error.value) for part in ("a in fp32", "b in bf16", "--precision fp32 or bf16"))
    assert session.common_precision(trained_in("fp32", "bf16"), "bf16", CPU) == "bf16"


def test_all_images_of_the_split_are_used_in_an_order_that_depends_on_the_seed(finished_detector):
    split = session.common_split([finished_detector, finished_detector], [])
    orders = [session.shuffled_files(split, seed) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert len(set(orders[0])) == len(split.images) == 12
    assert set(orders[0]) == set(orders[2])


def test_experiments_with_different_validation_images_are_refused(finished_detector, tmp_path):
    other = Path(shutil.copytree(finished_detector, tmp_path / "other"))
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("instances_val.json", "instances_train.json"))
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("images/val", "images/train"))
    with pytest.raises(DatasetError, match="other: its validation images"):
        session.common_split([finished_detector, other], [])


# ---- timing ----------------------------------------------------------------------------------------------------------


class FakeRunner:
    """A program with a cost per batch, so that large batches pay. It raises `error` for batches above `most` images."""

    def __init__(self, most: int = 100, error: Exception | None = None) -> None:
        self.detector = SimpleNamespace(device=CPU)
        self.most, self.error = most, error

    def run(self, files):
        if len(files) > self.most:
            raise self.error
        total = 10.0 + len(files)
        return [], Times(total, 0.0, total)


@pytest.fixture
def measure(monkeypatch):
    """Measure fake programs for a few rounds; return the batch sizes that have times."""
    monkeypatch.setattr(timing, "LARGEST_BATCH", 8)
    monkeypatch.setattr(timing, "memory_limit", lambda: 2**60)

    def run(runners):
        parts = session.measure(runners, [Path("a.jpg")], 30, np.random.default_rng(0), timing.Load())
        times = {cell: series for part in parts for cell, series in part.items()}
        assert {(cell.experiment, cell.program) for cell in times} == runners.keys()
        return {cell.batch_size: len(series) for cell, series in times.items()}

    return run


def wrapped(error: Exception) -> Exception:
    """Return an error of a compiler, caused by another one."""
    outer = RuntimeError("compilation failed")
    outer.__cause__ = error
    return outer


def test_batches_of_one_and_the_largest_batch_are_measured(measure):
    assert measure({(ONE, "eager"): FakeRunner(), (TWO, "eager"): FakeRunner()}) == {1: 30, 8: timing.FEWEST_RUNS}


@pytest.mark.parametrize("wrap", [lambda error: error, wrapped])
def test_if_a_program_runs_out_of_memory_only_in_large_batches_the_batch_is_halved(measure, wrap, caplog):
    compiled = FakeRunner(3, wrap(torch.OutOfMemoryError("CUDA out of memory")))
    assert measure({(ONE, "eager"): FakeRunner(), (ONE, "compiled"): compiled}).keys() == {1, 2}
    lines = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert len(lines) == 2  # sizes 8 and 4
    assert "measuring batch size 2 instead" in lines[1]


def test_if_no_larger_batch_fits_the_times_of_single_images_are_kept(measure):
    compiled = FakeRunner(1, torch.OutOfMemoryError())
    assert measure({(ONE, "eager"): FakeRunner(), (ONE, "compiled"): compiled}).keys() == {1}


def test_other_errors_and_too_little_memory_for_one_image_are_raised(measure):
    with pytest.raises(RuntimeError, match="broken"):
        measure({(ONE, "eager"): FakeRunner(), (ONE, "compiled"): FakeRunner(3, RuntimeError("broken"))})
    with pytest.raises(torch.OutOfMemoryError):
        measure({(ONE, "eager"): FakeRunner(0, torch.OutOfMemoryError())})


def test_the_plan_is_logged_before_the_rounds(measure, caplog):
    caplog.set_level("INFO")
    measure({(ONE, "eager"): FakeRunner(), (TWO, "eager"): FakeRunner()})
    plan = next(record.getMessage() for record in caplog.records)
    assert all(part in plan for part in ("batch size 1", "30 to 300 rounds of 2 programs", "about 1 min"))


def test_each_program_is_compared_with_the_same_program_of_the_first_experiment():
    keys = [(ONE, "eager"), (ONE, "compiled"), (TWO, "eager"), (TWO, "compiled"), (TWO, "onnxruntime")]
    assert session.compared_pairs(keys) == [(keys[2], keys[0]), (keys[3], keys[1])]


# ---- records ---------------------------------------------------------------------------------------------------------


def test_a_timing_summarises_the_rounds():
    series = [Times(float(k), 1.0, 10.0 * k, 4.0) for k in range(1, 102)]
    found = session.timing_record(session.Cell(ONE, "eager", 4), series)
    assert (found.network.p50, found.postprocess.p50, found.end_to_end.p50, found.end_to_end.p95) == (51, 1, 510, 960)
    assert found.images_per_second == pytest.approx(4000 / 510)
    assert found.rounds_ms == [10.0 * k - 4 for k in range(1, 102)]  # without waiting


def test_memory_that_cannot_be_measured_is_left_out_with_one_warning(monkeypatch, runner, files, caplog):
    cells = {name: session.Cell(Path(name), "eager", 1) for name in ("one", "two")}
    timings = {cell: session.timing_record(cell, [Times(1.0, 1.0, 3.0)] * 5) for cell in cells.values()}

    def peak_memory(_, path, *__):
        if path == ONE:
            raise RuntimeError("a process was killed")
        return [123.0]

    monkeypatch.setattr(timing, "peak_memory", peak_memory)
    runners = {(path, "eager"): runner for path in (ONE, TWO)}
    found = session.with_memory(timings, runners, files, "fp32")
    assert [each.peak_memory_mib for each in found.values()] == [None, 123.0]
    (line,) = [record.getMessage() for record in caplog.records]
    assert all(part in line for part in ("one", "eager", "a process was killed"))


def test_the_session_describes_the_device_and_the_images(finished_detector):
    split = session.common_split([finished_detector], [])
    found = session.describe_session(CPU, "fp32", split, timing.Load())
    assert (found["images"], found["annotations_sha256"]) == (12, split.sha256)
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert found["load"] is None  # nothing was sampled
