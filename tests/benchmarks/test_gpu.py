"""benchmarks/gpu.py on a CPU: every part runs, and failed and skipped measurements are reported."""

import pytest
import torch

from benchmarks import gpu

CPU = torch.device("cpu")


@pytest.mark.slow
def test_every_part_runs_on_a_cpu_and_no_page_is_written(capsys):
    assert gpu.measure(CPU, seconds=1200) is None
    assert "NOT MEASUREMENTS" in capsys.readouterr().out


def test_measurements_without_time_left_are_reported(tmp_path):
    bench = gpu.Bench(gpu.SMOKE, tmp_path, CPU, seconds=0)
    bench.measure_all()
    assert "ssd300_vgg16, training: no time left" in bench.page().failures


def test_a_failed_measurement_does_not_stop_the_others(tmp_path, monkeypatch):
    def fail() -> float:
        raise torch.OutOfMemoryError("of memory\nand more")

    bench = gpu.Bench(gpu.SMOKE, tmp_path, CPU, seconds=600)
    monkeypatch.setattr(bench, "measurements", lambda: [("first", fail), ("second", lambda: 1.0)])
    bench.measure_all()
    assert bench.rates == {"second": 1.0}
    assert bench.failed == {"first": "OutOfMemoryError: of memory"}


def test_the_faster_training_mode_is_compared_with_the_target(tmp_path):
    bench = gpu.Bench(gpu.PUBLISHED, tmp_path, CPU, seconds=60)
    bench.rates = {"SwinTBackbone_B, training, eager": 700.0, "SwinTBackbone_B, training, compiled": 2800.0}
    assert bench.page().rows[0].ratio == 2
