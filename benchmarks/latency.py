"""Check that `detection.latency` shows a 5% difference in latency, and none between equal networks.

    OMP_NUM_THREADS=1 python -m benchmarks.latency
    OMP_NUM_THREADS=1 python -m benchmarks.latency --load 0    # no load of its own

Three networks are timed in turns, as the command does it: A of 20 equal blocks, A again (a second copy in memory), and
B of 21 such blocks, which takes 5% longer because it does 5% more work. Meanwhile, one busy process per core loads the
machine. This is repeated 20 times. Takes 5 to 25 minutes on two cores, depending on the load.
"""

import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.comparison import Page, run_benchmark
from detection.deployment.programs import Times, finished, waited
from detection.deployment.timing import MOST_BLOCKS, Load, ratio_of, take_turns, warm_up
from engine.compute.machine import allowed_cores
from engine.logbook import progress_bar
from stats.latency import RATIO_CONFIDENCE, TOLERANCE, Ratio

REPETITIONS, RUNS = 20, 200
BLOCKS = {"A": 20, "A again": 20, "B": 21}
TRUTH = BLOCKS["B"] / BLOCKS["A"]
CHANNELS, SIDE = 24, 56  # a run takes about 10 ms, most of it in the blocks


def network(blocks: int) -> nn.Module:
    """Return convolutions with normalisation, `blocks` times."""
    layers = [
        (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU(inplace=True))
        for _ in range(blocks)
    ]
    model = nn.Sequential(*itertools.chain(*layers)).eval().requires_grad_(False)
    return model.to(memory_format=torch.channels_last)


def step_of(model: nn.Module, images: torch.Tensor) -> Callable[[Sequence[Path]], Times]:
    """Return a program that runs the network once and returns its time."""

    @torch.inference_mode()
    def step(_: Sequence[Path]) -> Times:
        started, waiting = finished(images.device), waited(images.device)
        model(images)
        waiting = waited(images.device) - waiting
        milliseconds = 1000 * (finished(images.device) - started)
        return Times(milliseconds, 0.0, milliseconds, 1000 * waiting)

    return step


def keep_busy(seed: int) -> None:
    """Multiply matrices in bursts of random length, as other jobs on a machine do."""
    torch.set_num_threads(1)
    generator = np.random.default_rng(seed)
    matrix = torch.ones(400, 400)
    while True:
        for _ in range(generator.integers(10, 200)):
            matrix @ matrix
        time.sleep(generator.exponential(0.05))


@contextmanager
def busy_machine(count: int) -> Iterator[None]:
    """Run `count` busy processes."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=keep_busy, args=(seed,), daemon=True) for seed in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()


def measure_once(device: torch.device, seed: int, meter: Load) -> dict[str, Ratio | int]:
    """Measure the three networks; return the ratio of each to A, and the number of rounds."""
    images = torch.rand(1, CHANNELS, SIDE, SIDE, device=device).to(memory_format=torch.channels_last)
    steps = {name: step_of(network(blocks).to(device), images) for name, blocks in BLOCKS.items()}
    pairs, generator = [(name, "A") for name in steps if name != "A"], np.random.default_rng(seed)
    warm_up(steps, itertools.repeat([]), generator)
    times = take_turns(steps, pairs, itertools.repeat([]), RUNS, generator, meter)
    return {name: ratio_of(times[name], times["A"]) for name, _ in pairs} | {"rounds": len(times["A"])}


def measure(device: torch.device, load: int, beside: str) -> Page:
    """Return the page with the verdicts of all repetitions. load: number of busy processes. beside: other load."""
    meter = Load()
    with busy_machine(load):
        found = [measure_once(device, seed, meter) for seed in progress_bar(range(REPETITIONS), unit="repetition")]
    lines = ["| repetition | rounds | B / A | verdict | A again / A | verdict |", "|---|---|---|---|---|---|"]
    for number, each in enumerate(found, start=1):
        columns = [f"{ratio.estimate:.3f} ({ratio.low:.3f} to {ratio.high:.3f}) | {ratio.verdict}"
                   for ratio in (each["B"], each["A again"])]  # fmt: skip
        lines.append(f"| {number} | {each['rounds']:,} | {' | '.join(columns)} |")
    slower = sum(each["B"].verdict == "slower" for each in found)
    wrong = sum(each["A again"].verdict != "no difference shown" for each in found)
    median = statistics.median(each["B"].estimate for each in found)
    failures = [f"a difference of 5% shown {slower} times of {REPETITIONS}"] * (slower < REPETITIONS)
    failures += [f"a difference of equal networks shown {wrong} times of {REPETITIONS}"] * (wrong > 0)
    own = f"Meanwhile, {load} processes of the benchmark load the cores in bursts."
    loaded = own if load else "The benchmark adds no load of its own."
    if beside:
        loaded += f" Beside it ran {beside}."
    text = f"""# Latency on a busy machine

Two networks whose work differs by 5% (B of {BLOCKS["B"]} equal blocks, A of {BLOCKS["A"]}), and two equal ones, \
timed in turns on {os.cpu_count()} cores. {loaded} On average, {meter.mean} threads ran or waited for a core. \
{RUNS:,} to {RUNS * MOST_BLOCKS:,} rounds, intervals of {RATIO_CONFIDENCE:.1%}. *Slower* means: shown to be slower by \
more than {TOLERANCE:.0%}. Target: B is slower, and the equal networks are not told apart, in all {REPETITIONS} \
repetitions.

**B was shown to be slower in {slower} of {REPETITIONS} repetitions, a difference of the equal networks in {wrong}.** \
The median of B / A is {median:.3f}. It may be less than {TRUTH:.2f}, the ratio of the work, because a run also has \
costs that do not depend on the number of blocks.

{chr(10).join(lines)}
"""
    return Page(text, failures=failures)


if __name__ == "__main__":
    cores = allowed_cores()
    options = {
        "--load": {"type": int, "default": cores, "help": f"busy processes (default: {cores})"},
        "--beside": {"default": "", "metavar": "TEXT", "help": "what else runs on the machine, for the page"},
    }
    run_benchmark(measure, options)
