"""Weak scaling of a training step: what the exchange of gradients costs on several processes.

    torchrun --standalone --nproc_per_node=8 -m benchmarks.scaling
    srun --ntasks-per-node=8 --gpus-per-task=1 python -m benchmarks.scaling

Steps with and without the exchange of gradients alternate, and an all-reduce of as many numbers is timed by itself. The
efficiency is the time of a step without the exchange over that of one with it.

Expected on paper. A ring all-reduce of G bytes over links of B bytes/s takes 2 (P - 1) / P G / B. DDP sends buckets of
25 MiB during the backward pass, two thirds of a step of T seconds, so the efficiency is
T / (T + max(last bucket, all-reduce - 2/3 T)). For ResNet50Backbone_B, G = 92 MB and T = 43 ms (64 images at 1,500
images/s): 0.99 on 8 GPUs with NVLink (B = 200 GB/s), 0.95 on 64 GPUs with 25 GB/s each. Measured by NVIDIA
(DeepLearningExamples, SSD300 v1.1): 7.9 times one A100 on 8.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from benchmarks.comparison import Page, Row, run_benchmark
from benchmarks.training_step import first_batch, make_run
from detection.shapes import generate
from engine import distributed

WARMUP, STEPS = 3, 12


def time_steps(root: Path, device: torch.device, backbone: str, batch_size: int, precision: str) -> tuple[float, ...]:
    """Seconds of a step, of one without the exchange, and of an all-reduce by itself, the least of STEPS; its bytes."""
    run = make_run(root, device, backbone=backbone, batch_size=batch_size, precision=precision)
    batch = first_batch(run)
    several = distributed.world_size() > 1
    numbers = torch.zeros(sum(weight.numel() for weight in run.state.model.parameters()), device=device)

    def step_alone() -> None:
        with run.parallel_model.no_sync() if several else nullcontext():
            run.train_step([batch])

    def seconds_of(work: Callable[[], object]) -> float:
        distributed.any_rank(False)  # all start together
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    works = (lambda: run.train_step([batch]), step_alone, lambda: distributed.sum_over_ranks(numbers))
    taken = [[seconds_of(work) for work in works] for _ in range(WARMUP + STEPS)]
    return *(min(column) for column in zip(*taken[WARMUP:], strict=True)), numbers.nbytes


def measure(device: torch.device) -> Page:
    """Measure on the processes that were started."""
    on_gpu, count = device.type == "cuda", distributed.world_size()
    backbone, size, precision = ("ResNet50Backbone_B", 64, "bf16") if on_gpu else ("ResNet18SlimBackbone_B", 8, "fp32")
    with tempfile.TemporaryDirectory() as name:
        generate(name, num_train=count * size, num_val=1, image_size=300 if on_gpu else 128)
        step, step_alone, all_reduce, num_bytes = time_steps(Path(name), device, backbone, size, precision)
    passed_on = 2 * (count - 1) / count * num_bytes
    text = f"""# Weak scaling

{backbone}, {size} images per process, {precision}, {count} processes; wall-clock time, the least of {STEPS} steps.

{{rows}}

An all-reduce of the gradients ({num_bytes / 1e6:.4g} MB) by itself takes {1e3 * all_reduce:.3g} ms: \
{passed_on / all_reduce / 1e9:.3g} GB/s per process. Processes on CPU cores share memory and caches: there this shows \
that the exchange works, not how a cluster scales.
"""
    what, peer = f"step of {count} processes", "the same without exchange"
    return Page(text, [Row(what, peer, 1e3 * step_alone, 1e3 * step, "ms")])


if __name__ == "__main__":
    run_benchmark(measure, on_cpu=False)
