"""Weak scaling of a training step: the cost of the gradient all-reduce between processes.

    torchrun --standalone --nproc_per_node=8 -m benchmarks.scaling
    srun --ntasks-per-node=8 --gpus-per-task=1 python -m benchmarks.scaling

Steps with and without the all-reduce alternate. The efficiency is the time without all-reduce divided by the time with
all-reduce. NVIDIA measured that 8 A100 are 7.9 times as fast as one (DeepLearningExamples, SSD300 v1.1).
"""

import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from benchmarks.comparison import Page, Row, run_benchmark
from benchmarks.training_step import first_batch, make_run
from detection.shapes import generate
from engine import distributed

WARMUP, STEPS = 3, 12


def time_steps(root: Path, device: torch.device, backbone: str, batch_size: int, precision: str) -> list[float]:
    """Return the seconds of a step with the all-reduce and of a step without it, each the minimum of STEPS steps."""
    run = make_run(root, device, backbone=backbone, batch_size=batch_size, precision=precision)
    batch = first_batch(run)

    def seconds_of_step(all_reduce: bool) -> float:
        distributed.any_rank(False)  # a barrier, so that all ranks start together
        started = time.perf_counter()
        no_sync = not all_reduce and distributed.world_size() > 1
        with run.parallel_model.no_sync() if no_sync else nullcontext():
            run.train_step([batch])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    times = [[seconds_of_step(all_reduce) for all_reduce in (True, False)] for _ in range(WARMUP + STEPS)]
    return [min(column) for column in zip(*times[WARMUP:], strict=True)]


def measure(device: torch.device) -> Page:
    """Time training steps on all processes that the launcher started."""
    on_gpu, count = device.type == "cuda", distributed.world_size()
    backbone, size, precision = ("ResNet50Backbone_B", 64, "bf16") if on_gpu else ("ResNet18SlimBackbone_B", 8, "fp32")
    with tempfile.TemporaryDirectory() as name:
        generate(name, num_train=count * size, num_val=1, image_size=300 if on_gpu else 128)
        step, step_alone = time_steps(Path(name), device, backbone, size, precision)
    text = f"""# Weak scaling

{backbone}, {size} images per process, {precision}, {count} processes; wall-clock time, the minimum of {STEPS} steps.

{{rows}}

Processes on CPU cores share memory and caches, so there this shows that the all-reduce works, not how a cluster scales.
"""
    what, peer = f"step of {count} processes", "without all-reduce"
    return Page(text, [Row(what, peer, 1e3 * step_alone, 1e3 * step, "ms")])


if __name__ == "__main__":
    run_benchmark(measure, on_cpu=False)
