"""Threads or runs: what two cores train in images/s, quiet and beside a busy process.

    python -m benchmarks.threads

Training steps of ResNet18SlimBackbone_B at 128 pixels, batch 16, fp32, on one batch in memory, on the first two cores
that this process may use. Four ways: one run with two threads that spin while they wait for each other (3 ms, as
libgomp's do by default) or that wait passively, one run with one thread, and two runs at the same time with one thread
each, as `ablation.grid run` starts them. The neighbour is a process that does nothing but compute. Figures are wall
clock, the most of all turns. There is no peer: each way is compared with the first. Takes five minutes.
"""

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Self

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python benchmarks/threads.py`

from benchmarks.comparison import Row, write_page
from benchmarks.training_step import first_batch, make_run
from detection.shapes import generate
from engine.command import RunError, run_command
from engine.logbook import logger

ROOT = Path(__file__).parent.parent
BACKBONE, BATCH_SIZE, IMAGE_SIZE = "ResNet18SlimBackbone_B", 16, 128
TURNS, WARMUP_STEPS, SECONDS = 3, 2, 10  # SECONDS of each measurement
SPINNING = {"GOMP_SPINCOUNT": "300000"}  # libgomp's default, whatever OMP_WAIT_POLICY says
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}


class Way(NamedTuple):
    """One way to use two cores."""

    name: str
    runs: int  # at the same time
    threads: int  # of each
    environment: Mapping[str, str]


WAYS = (
    Way("one run, two threads", 1, 2, SPINNING),
    Way("one run, two threads, passive", 1, 2, PASSIVE),
    Way("one run, one thread", 1, 1, PASSIVE),
    Way("two runs, one thread each", 2, 1, PASSIVE),
)


# ---- one of the processes ------------------------------------------------------------------------------------------


def serve(root: Path, threads: int) -> None:
    """Train for as many seconds as each line of stdin says, and answer with images/s; until stdin ends."""
    logger.setLevel(logging.WARNING)  # stdout is for the answers
    torch.set_num_threads(threads)
    run = make_run(root, torch.device("cpu"), backbone=BACKBONE, batch_size=BATCH_SIZE, precision="fp32")
    batch = first_batch(run)
    for _ in range(WARMUP_STEPS):
        run.train_step([batch])
    print("ready", flush=True)
    for line in sys.stdin:
        steps, started = 0, time.perf_counter()
        while time.perf_counter() - started < float(line):
            run.train_step([batch])
            steps += 1
        print(steps * BATCH_SIZE / (time.perf_counter() - started), flush=True)


class Trainer:
    """A process that runs `serve`."""

    def __init__(self, root: Path, threads: int, environment: Mapping[str, str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        inherited |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.threads", "--serve", str(root), "--threads", str(threads)],
            cwd=ROOT, env=inherited | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, seconds: float) -> None:
        """Have it train; the answer comes later."""
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """Wait for its next line. Raises RunError if it has died."""
        line = self.process.stdout.readline().strip()
        if not line:
            raise RunError(f"a training process has died with exit code {self.process.wait()}")
        return line


# ---- all of them ---------------------------------------------------------------------------------------------------


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """Context manager in which another process computes without a pause."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def images_per_second(trainers: Sequence[Trainer], seconds: float) -> float:
    """Have all of them train at the same time; return the sum of their speeds."""
    for trainer in trainers:
        trainer.ask(seconds)
    return sum(float(trainer.answer()) for trainer in trainers)


def rows_of(quiet: Sequence[float], busy: Sequence[float]) -> list[Row]:
    """Return the table: images/s of each of WAYS beside those of the first, without and with a neighbour."""
    return [
        Row(f"{way.name}{beside}", WAYS[0].name + beside, speeds[0], speed, "images/s")
        for beside, speeds in (("", quiet), (", busy neighbour", busy))
        for way, speed in zip(WAYS[1:], speeds[1:], strict=True)
    ]


def main(device: torch.device) -> None:
    """Start the processes, measure, and write the page; or be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--serve", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.threads)
        return
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise RunError("this process may use one core; two are needed")
    os.sched_setaffinity(0, cores)
    quiet, busy = [[0.0] * len(WAYS) for _ in range(2)]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        generate(name, num_train=BATCH_SIZE, num_val=1, image_size=IMAGE_SIZE)
        trainers = [
            [stack.enter_context(Trainer(Path(name), way.threads, way.environment)) for _ in range(way.runs)]
            for way in WAYS
        ]
        for of_way in trainers:
            for trainer in of_way:
                trainer.answer()  # ready
        for _ in range(TURNS):
            for index, of_way in enumerate(trainers):
                quiet[index] = max(quiet[index], images_per_second(of_way, SECONDS))
                with busy_neighbour():
                    busy[index] = max(busy[index], images_per_second(of_way, SECONDS))
    text = f"""# Threads or runs on two cores

{BACKBONE} at {IMAGE_SIZE} pixels, batch {BATCH_SIZE}, fp32: images/s of training steps on two cores, all runs \
together; wall-clock time, the most of {TURNS} turns of {SECONDS} s. The peer is one run with two threads that spin \
while they wait, which is the default of OpenMP. The neighbour is a process that never waits.

{{rows}}
"""
    write_page(__file__, text, rows_of(quiet, busy), device)


if __name__ == "__main__":
    run_command(main)
