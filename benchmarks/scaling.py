"""Weak scaling of a training step: as many images per process, on 1, 2, 4, ... processes.

    python -m benchmarks.scaling

Each number of processes is started by torchrun, twice and in turn, up to the number of GPUs, or of CPU cores
(one thread each); the figures are the least of all, for others may be at work there. Steps with and without the
exchange of gradients alternate, and the sum of as many numbers over all processes is timed by itself. There is no peer:
the efficiency is one process' time of a step over that of P processes. It fails if the processes, which see different
images, end a step with different weights, or a step without the exchange with the same.

On paper. A ring all-reduce of G bytes over links of B bytes/s, one way, takes 2 (P - 1) / P G / B: each process passes
on G / P bytes 2 (P - 1) times. DistributedDataParallel sends buckets of 25 MiB while the backward pass, two thirds of
the step, is still under way, so a step lengthens by what does not fit in there, and at least by the last bucket, which
is full only when the backward pass is over: efficiency = T / (T + max(last bucket, all-reduce - 2/3 T)).

- G: 22.9 million weights of ResNet50Backbone_B without a neck, 81 classes: 92 MB in fp32 (25.6 million and 103 MB for
  SwinTBackbone_B). T: 43 ms for 64 images at the 1,500 images/s asked of one H200.
- 8 GPUs, NVLink. B taken as 200 GB/s, less than half of the 450 GB/s of an H200's data sheet, for buckets are small:
  all-reduce 0.8 ms, last bucket 0.2 ms; efficiency 0.99, 7.9 of 8. Measured by others: 5,734 images/s on 8 A100, 724
  on one, 7.9 times (NVIDIA's DeepLearningExamples, SSD300 v1.1, the same tap).
- 64 GPUs, 8 to a node. B taken as 25 GB/s a GPU, half of the 400 Gbit/s that each has: all-reduce 7.2 ms, hidden
  behind 29 ms of backward; last bucket 2.1 ms; efficiency 0.95, 61 of 64. On one 400 Gbit/s link per node (6 GB/s a
  GPU) it would be 30 ms, and the efficiency 0.83.

The bandwidths are assumptions, and neither slow ranks nor latency (2 (P - 1) times some 10 us) are counted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python benchmarks/scaling.py`

from benchmarks.comparison import Row, write_page
from benchmarks.training_step import first_batch, make_run
from detection.shapes import generate
from engine import distributed
from engine.command import RunError, run_command

ROOT = Path(__file__).parent.parent
TURNS, WARMUP, STEPS = 2, 3, 12
LIMIT_SECONDS = 240  # of one start


class Size(NamedTuple):
    """What is trained."""

    backbone: str
    batch_size: int  # images per process
    precision: str
    image_size: int  # of the images drawn


ON_CPU = Size("ResNet18SlimBackbone_B", 8, "fp32", 128)
ON_GPU = Size("ResNet50Backbone_B", 64, "bf16", 300)


class Figures(NamedTuple):
    """Of one number of processes, as rank 0 sees them."""

    processes: int
    step: float  # seconds, and so are the next two
    step_alone: float  # without the exchange of gradients
    all_reduce: float  # of as many numbers, by itself
    gradient_bytes: int


# ---- one of the processes ------------------------------------------------------------------------------------------


def measure(root: Path, device: torch.device, size: Size) -> Figures:
    """Time steps; all processes call it together. Raises RunError if gradients are not exchanged where they are to be,
    or are where they are not."""
    torch.set_num_threads(1)
    run = make_run(root, device, backbone=size.backbone, batch_size=size.batch_size, precision=size.precision)
    batch = first_batch(run)
    world_size = distributed.world_size()
    alone = run.parallel_model.no_sync if world_size > 1 else nullcontext
    numbers = torch.zeros(sum(weight.numel() for weight in run.state.model.parameters()), device=device)

    def seconds_of(work: Callable[[], object]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        distributed.any_rank(False)  # all begin together
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    def step_alone() -> None:
        with alone():
            run.train_step([batch])

    for _ in range(WARMUP):
        run.train_step([batch])
    if not same_weights(run.state.model):
        raise RunError("the processes have different weights after the same steps: gradients are not exchanged")
    works = (lambda: run.train_step([batch]), step_alone, lambda: distributed.sum_over_ranks(numbers))
    taken = [[seconds_of(work) for work in works] for _ in range(STEPS)]
    if world_size > 1 and same_weights(run.state.model):
        raise RunError("the processes have the same weights after steps that were to exchange nothing")
    step, without, all_reduce = (min(column) for column in zip(*taken, strict=True))
    return Figures(world_size, step, without, all_reduce, numbers.nbytes)


def same_weights(model: torch.nn.Module) -> bool:
    """Whether all processes have them, by the sum of each."""
    sums = [weight.detach().double().sum().item() for weight in model.parameters()]
    return not distributed.any_rank(distributed.broadcast(sums) != sums)


# ---- all of them ---------------------------------------------------------------------------------------------------


def start(processes: int, root: Path) -> Figures:
    """Start this script once for each process. Raises RunError if it fails."""
    result = root / "figures.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*torchrun, "-m", "benchmarks.scaling", "--measure", str(root)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    if done.returncode:
        raise RunError(f"{processes} processes: exit code {done.returncode}\n{done.stderr}")
    figures = Figures(*json.loads(result.read_text()))
    result.unlink()
    return figures


def numbers_of_processes(most: int) -> list[int]:
    """1, 2, 4, ... up to the most."""
    return [2**power for power in range(most.bit_length())]


def text(best: list[Figures], size: Size, on_gpu: bool) -> str:
    """The page, with "{rows}" where the first table goes."""
    lines = [
        "| processes | images/s | efficiency | step, ms | without exchange, ms | all-reduce alone, ms | GB/s |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for figures in best:
        count = figures.processes
        cells = [count, f"{count * size.batch_size / figures.step:.4g}", f"{best[0].step / figures.step:.2f}"]
        cells += [f"{figures.step * 1e3:.4g}"]
        if count > 1:
            passed_on = 2 * (count - 1) / count * figures.gradient_bytes
            cells += [f"{1e3 * figures.step_alone:.4g}", f"{1e3 * figures.all_reduce:.4g}"]
            cells += [f"{passed_on / figures.all_reduce / 1e9:.3g}"]
        else:
            cells += ["", "", ""]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    caveat = (
        "One process for each GPU."
        if on_gpu
        else "The processes share the cores of a busy machine, its memory and its caches, and exchange gradients by "
        "computing on the same cores: this shows that the exchange works and what it takes, not how a cluster scales."
    )
    return f"""# Weak scaling

{size.backbone}, {size.batch_size} images per process, {size.precision}; wall-clock time, the least of {STEPS} steps \
in each of {TURNS} turns.

{{rows}}

{chr(10).join(lines)}

The gradients are {best[0].gradient_bytes / 1e6:.4g} MB. GB/s is what each process passes on in a ring, \
2 (P - 1) / P times that, over the time of the all-reduce alone. {caveat}

What is to be expected of 8 and of 64 GPUs, on paper, is at the top of benchmarks/scaling.py.
"""


def main(device: torch.device) -> None:
    """Start the processes and write the page; or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    root = parser.parse_args().measure
    on_gpu = device.type == "cuda"
    size = ON_GPU if on_gpu else ON_CPU
    if root is not None:
        figures = measure(root, device, size)
        if distributed.is_main():
            (root / "figures.json").write_text(json.dumps(figures))
        return
    counts = numbers_of_processes(torch.cuda.device_count() if on_gpu else os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as name:
        generate(name, num_train=counts[-1] * size.batch_size, num_val=1, image_size=size.image_size)
        turns = [[start(count, Path(name)) for count in counts] for _ in range(TURNS)]
    best = [Figures(*map(min, zip(*of_count, strict=True))) for of_count in zip(*turns, strict=True)]
    rows = [
        Row(f"step of {figures.processes} processes", "1 process", 1e3 * best[0].step, 1e3 * figures.step, "ms")
        for figures in best[1:]
    ]
    write_page(__file__, text(best, size, on_gpu), rows, device)


if __name__ == "__main__":
    run_command(main)
