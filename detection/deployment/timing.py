"""Time several programs in turns, so that a busy machine slows all of them alike.

In each round, every program detects objects in the same images once. The order of the programs is random in each round:
if two programs are equally fast, each of them has the same chance of the busier moment. `stats.latency.ratio_interval`
relies on this. The time that a program waits for a core is measured and subtracted for ratios (`Times.undelayed`).
"""

import itertools
import logging
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from detection.deployment.programs import Runner, Times, build
from detection.detector import load
from engine.compute.cost import peak_memory_mib
from engine.compute.machine import memory_limit
from engine.compute.precision import Precision
from engine.logbook import logger, progress_bar
from records.latency import Program
from stats.latency import Ratio, ratio_interval

WARM_UP = 10  # runs of each program before the first round; fewer of a larger batch
FEWEST_RUNS = 20  # of a batch of several images
MOST_BLOCKS = 10  # rounds are added in blocks of `runs`, until the ratios are precise, but at most 10 blocks
MOST_BLOCKS_OF_BATCHES = 2  # of several images, because each round takes long
RESOLUTION = 0.015  # half the width of the interval of a ratio that is precise enough to see a difference of 5%
LARGEST_BATCH = 64
LEAST_GAIN = 1.05  # in images per second, from doubling the batch
TRIES = 5  # runs per batch size, when the largest batch that pays is searched

PEAK_RESET = Path("/proc/self/clear_refs")

Key = TypeVar("Key", bound=Hashable)
Step = Callable[[Sequence[Path]], Times]


class Cell(NamedTuple):
    """What is timed: a program of an experiment's detector at a batch size."""

    experiment: Path
    program: Program
    batch_size: int


class Load:
    """Number of processes that want a core, sampled now and then."""

    def __init__(self) -> None:
        self.samples: list[int] = []

    def sample(self) -> None:
        with suppress(OSError):  # not on Linux
            running, _, _ = Path("/proc/loadavg").read_text().split()[3].partition("/")
            self.samples.append(int(running))

    @property
    def mean(self) -> float | None:
        return round(float(np.mean(self.samples)), 1) if self.samples else None


def batches(files: Sequence[Path], size: int) -> Iterator[list[Path]]:
    """Yield batches of the files, from the first file to the last and then again, forever."""
    endless = itertools.cycle(files)
    while True:
        yield list(itertools.islice(endless, size))


def one_round(programs: Mapping[Key, Step], batch: list[Path], generator: np.random.Generator) -> dict[Key, Times]:
    """Run every program once on the same batch, in random order; return the times of each."""
    keys = list(programs)
    return {keys[index]: programs[keys[index]](batch) for index in generator.permutation(len(keys))}


def warm_up(
    programs: Mapping[Key, Step], files: Iterator[list[Path]], generator: np.random.Generator, runs: int = WARM_UP
) -> float:
    """Run every program `runs` times, in turns; return the median time of a round in seconds."""
    rounds = [one_round(programs, next(files), generator) for _ in range(runs)]
    return float(np.median([sum(times.end_to_end for times in each.values()) for each in rounds])) / 1000


def take_turns(
    programs: Mapping[Key, Step],
    pairs: Sequence[tuple[Key, Key]],
    files: Iterator[list[Path]],
    runs: int,
    generator: np.random.Generator,
    load: Load,
    most_blocks: int = MOST_BLOCKS,
) -> dict[Key, list[Times]]:
    """Run every program once per round; return the times of each, by round.

    pairs: programs to compare by their ratio. Rounds are added in blocks of `runs`, until the ratio of every pair is
    known to RESOLUTION, but at most `most_blocks`. If that is not enough, a warning says how precise the ratios are.
    Stopping depends only on the width of the intervals, not on what they contain, so the intervals stay valid (Chow and
    Robbins 1965). files: yields the batch of each round."""
    times: dict[Key, list[Times]] = {key: [] for key in programs}
    with progress_bar(total=runs, desc="timing", unit="round", leave=False) as bar:
        for block in range(1, most_blocks + 1):
            for _ in range(runs):
                load.sample()
                for key, each in one_round(programs, next(files), generator).items():
                    times[key].append(each)
                bar.update()
            widest = max((resolution(times[one], times[other]) for one, other in pairs), default=0.0)
            if widest <= RESOLUTION:
                break
            # the width falls with the square root of the number of rounds
            expected = math.ceil(min(most_blocks, block * (widest / RESOLUTION) ** 2))
            bar.total = runs * min(most_blocks, max(block + 1, expected))
    if widest > RESOLUTION:
        logger.warning(
            "after %d rounds, ratios are known to %.1f%% only, so smaller differences are not shown; for more rounds, "
            "raise --runs, or measure while the machine is less busy", len(times[pairs[0][0]]), 100 * widest
        )  # fmt: skip
    return times


def resolution(times: Sequence[Times], reference: Sequence[Times]) -> float:
    """Return half the width of the interval of the ratio, see stats.latency.Ratio."""
    return ratio_of(times, reference).resolution


def ratio_of(times: Sequence[Times], reference: Sequence[Times]) -> Ratio:
    """Return the ratio of two programs from end to end, without the time that they waited for a core."""
    return ratio_interval([each.undelayed for each in times], [each.undelayed for each in reference])


def largest_batch(programs: Sequence[Step], files: Sequence[Path], device: torch.device) -> int:
    """Return the largest batch that pays, for a comparison of these programs at one batch size.

    The batch is doubled as long as a program gains LEAST_GAIN in images per second, and no program runs out of memory,
    up to LARGEST_BATCH. Compares the fastest of TRIES runs, because load can only slow a run down."""
    rates = None
    for size in itertools.takewhile(lambda size: size <= LARGEST_BATCH, (2**power for power in itertools.count())):
        if device.type == "cpu" and 2 * peak_memory_mib(device) * 2**20 > memory_limit():
            logger.info("batch of %d: not tried, because a larger batch may need too much memory", size)
            return max(1, size // 2)
        try:
            found = np.zeros(len(programs))
            stream = batches(files, size)
            for _ in range(TRIES):
                batch = next(stream)
                seconds = np.array([program(batch).end_to_end for program in programs])
                found = np.maximum(found, size / seconds)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return max(1, size // 2)
        if rates is not None and np.all(found < LEAST_GAIN * rates):
            return max(1, size // 2)
        rates = found
    return LARGEST_BATCH


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that caused it, says that a GPU has too little memory. Compilers wrap errors."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


# ---- memory ----------------------------------------------------------------------------------------------------------


def peak_memory(
    runner: Runner, experiment: Path, program: Program, precision: Precision, batches: list[list[Path]]
) -> list[float | None]:
    """Return the peak memory of a program that detects objects in each batch, in MiB; None if it cannot be measured.

    GPU: tensors, with the weights of this detector only. CPU: resident memory of a new process that has only this
    detector loaded, with the interpreter and PyTorch; not measured for compiled programs, whose compiler needs more."""
    device = runner.detector.device
    if device.type == "cuda":
        return [tensor_peak(runner, files) for files in batches]
    if program == "compiled" or not PEAK_RESET.exists():
        return [None] * len(batches)
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(resident_peaks, experiment, program, precision, batches, torch.get_num_threads()).result()


def tensor_peak(runner: Runner, files: list[Path]) -> float:
    """Return the peak memory of the tensors of one run on a GPU, in MiB, without those of other detectors."""
    device = runner.detector.device
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    runner.run(files)
    weights = sum(each.numel() * each.element_size() for each in runner.detector.model.state_dict().values())
    return (torch.cuda.max_memory_allocated(device) - before + weights) / 2**20


def resident_peaks(
    experiment: Path, program: Program, precision: Precision, batches: list[list[Path]], threads: int
) -> list[float | None]:
    """Load a detector, and return the peak resident memory of this process while it detects objects in each batch.

    In MiB. Run this in a new process. Loading is not counted, because a checkpoint contains the optimizer's state."""
    logger.setLevel(logging.ERROR)
    torch.set_num_threads(threads)
    runner = build(load(experiment, "cpu"), program, precision)
    peaks = []
    for files in batches:
        try:
            PEAK_RESET.write_text("5")  # resets the peak, see proc_pid_clear_refs(5)
        except OSError:
            return [None] * len(batches)
        for _ in range(3):
            runner.run(files)
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        peaks.append(int(status["VmHWM"].split()[0]) / 2**10)
    return peaks
