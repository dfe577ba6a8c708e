"""Weak scaling of a training step: what the exchange of gradients costs on several processes.

    torchrun --standalone --nproc_per_node=8 -m benchmarks.scaling
    srun --ntasks-per-node=8 --gpus-per-task=1 python -m benchmarks.scaling

Steps with and without the exchange of gradients alternate, and an all-reduce of as many numbers is timed by itself. The
efficiency is the time of a step without the exchange over that of one with it. It fails if the processes, which see
different images, end a step with different weights, or a step without the exchange with the same.

Expected on paper. A ring all-reduce of G bytes over links of B bytes/s takes 2 (P - 1) / P G / B. DDP sends buckets of
25 MiB during the backward pass, two thirds of a step of T seconds, so the efficiency is
T / (T + max(last bucket, all-reduce - 2/3 T)). For ResNet50Backbone_B, G = 92 MB and T = 43 ms (64 images at 1,500
images/s): 0.99 on 8 GPUs with NVLink (B = 200 GB/s), 0.95 on 64 GPUs with 25 GB/s each. Measured by NVIDIA
(DeepLearningExamples, SSD300 v1.1): 7.9 times one A100 on 8.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.comparison import Row, write_page
from benchmarks.training_step import first_batch, make_run
from detection.shapes import generate
from engine import distributed
from engine.command import RunError, run_command

WARMUP, STEPS = 3, 12


class Figures(NamedTuple):
    """Seconds, the least of STEPS, and the size of the gradients."""

    step: float
    step_alone: float  # without the exchange of gradients
    all_reduce: float  # by itself
    gradient_bytes: int


def measure(root: Path, device: torch.device, backbone: str, batch_size: int, precision: str) -> Figures:
    """Time steps; all processes call it together. Raises RunError if gradients are not exchanged as they should be."""
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

    for _ in range(WARMUP):
        run.train_step([batch])
    if not same_weights(run.state.model):
        raise RunError("the processes have different weights after the same steps: gradients are not exchanged")
    works = (lambda: run.train_step([batch]), step_alone, lambda: distributed.sum_over_ranks(numbers))
    taken = [[seconds_of(work) for work in works] for _ in range(STEPS)]
    if several and same_weights(run.state.model):
        raise RunError("the processes have the same weights after steps without an exchange")
    return Figures(*(min(column) for column in zip(*taken, strict=True)), numbers.nbytes)


def same_weights(model: torch.nn.Module) -> bool:
    """Whether the sum of every weight is the same on all processes."""
    sums = [weight.detach().double().sum().item() for weight in model.parameters()]
    return not distributed.any_rank(distributed.broadcast(sums) != sums)


def main(device: torch.device) -> None:
    """Measure on the processes that were started, and write the page."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()  # --help measures nothing
    on_gpu = device.type == "cuda"
    size = ("ResNet50Backbone_B", 64, "bf16") if on_gpu else ("ResNet18SlimBackbone_B", 8, "fp32")
    torch.set_num_threads(1)
    count = distributed.world_size()
    with tempfile.TemporaryDirectory() as name:
        generate(name, num_train=count * size[1], num_val=1, image_size=300 if on_gpu else 128)
        figures = measure(Path(name), device, *size)
    if distributed.is_main():
        passed_on = 2 * (count - 1) / count * figures.gradient_bytes
        text = f"""# Weak scaling

{size[0]}, {size[1]} images per process, {size[2]}, {count} processes; wall-clock time, the least of {STEPS} steps.

{{rows}}

An all-reduce of the gradients ({figures.gradient_bytes / 1e6:.4g} MB) by itself takes \
{1e3 * figures.all_reduce:.3g} ms: {passed_on / figures.all_reduce / 1e9:.3g} GB/s per process. \
{"" if on_gpu else "Processes on CPU cores share memory and caches: this shows that the exchange works, not how a "}\
{"" if on_gpu else "cluster scales."}
"""
        what, peer = f"step of {count} processes", "the same without exchange"
        write_page(__file__, text, [Row(what, peer, 1e3 * figures.step_alone, 1e3 * figures.step, "ms")], device)


if __name__ == "__main__":
    run_command(main)
