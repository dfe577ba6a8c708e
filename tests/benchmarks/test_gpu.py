"""benchmarks/gpu.py: its smoke run, which is all that a CPU can do, and the counting that its figures stand on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def bench(tmp_path) -> gpu.Bench:
    return gpu.Bench(gpu.SMOKE, tmp_path, CPU, seconds=60)


@pytest.mark.slow
def test_without_a_gpu_the_script_measures_nothing_and_says_so(tmp_path):
    page = ROOT / "benchmarks/gpu.md"
    before = page.read_bytes() if page.exists() else None
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/gpu.py"], cwd=tmp_path, capture_output=True, text=True, timeout=1200,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "NO FIGURE BELOW IS A MEASUREMENT" in done.stdout
    assert "Nothing is missing" in done.stdout  # every part of it ran
    assert "- SwinTBackbone_B x dense_fpn, training, compiled" in done.stdout
    assert before == (page.read_bytes() if page.exists() else None)


def test_what_there_is_no_time_for_is_named(tmp_path, capsys):
    bench = gpu.Bench(gpu.SMOKE, tmp_path, CPU, seconds=0)
    bench.measure_all()
    assert not bench.figures
    assert "- ssd300_vgg16, training: no time left" in capsys.readouterr().out


def test_a_figure_that_fails_leaves_the_others(bench, monkeypatch):
    def fail() -> dict[str, float]:
        raise torch.OutOfMemoryError("of {some} memory\nand more")

    in_order = [("first", "quick", fail), ("second", "quick", lambda: {"second": 1.0})]
    monkeypatch.setattr(bench, "figures_in_order", lambda: in_order)
    bench.measure_all()
    assert bench.figures == {"second": 1.0}
    assert bench.missing == {"first": "OutOfMemoryError: of {some} memory"}
    assert bench.failed


def test_braces_in_the_name_of_an_operator_are_printed_as_they_are(bench):
    bench.profiles["cell"] = "void kernel<{lambda(int)#1}>"
    assert "void kernel<{lambda(int)#1}>" in bench.text().format(rows="")


def test_an_addition_reads_two_tensors_and_writes_one():
    a, b = torch.zeros(10), torch.zeros(10)
    with gpu.Traffic() as traffic:
        torch.add(a, b)
    assert traffic.bytes == 3 * 40


def test_views_and_room_that_is_made_are_no_traffic():
    with gpu.Traffic() as traffic:
        torch.empty(10).view(2, 5).t().expand(2, 5, 2)
    assert traffic.bytes == 0


def test_an_expanded_tensor_is_read_once():
    with gpu.Traffic() as traffic:
        torch.zeros(1).expand(1000).sum()
    assert traffic.bytes <= 16  # the zero written, read; the sum


def test_the_backward_pass_is_counted_too():
    weight = torch.zeros(10, requires_grad=True)
    with gpu.Traffic() as forward:
        loss = (weight * 2).sum()
    with gpu.Traffic() as whole:
        (weight * 2).sum().backward()
    assert whole.bytes > forward.bytes
    assert loss == 0


def test_the_faster_way_to_train_is_held_against_what_is_asked(bench):
    cell, asked = next(iter(bench.plan.asked.items()))
    bench.figures = {f"{cell}, training, eager": 1000.0, f"{cell}, training, compiled": 3000.0}
    row = bench.rows()[0]
    assert (row.what, row.asked) == (f"{cell}, training, compiled", 1.0)
    assert row.ratio == pytest.approx(3000 / asked)


def test_the_drawn_set_has_80_classes_and_a_record_for_every_image(tmp_path):
    gpu.draw_set(tmp_path, files=2, images=5)
    run = gpu.make_run(tmp_path, CPU, backbone="ResNet18SlimBackbone_B", batch_size=5, precision="fp32")
    assert run.task.model.num_classes == 80
    assert len(run.task.train_set) == 5
    assert len(list(tmp_path.glob("images/train/*.jpg"))) == 2
