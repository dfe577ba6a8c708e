"""Stress test of resuming: kill a small run again and again, and compare its final state with an undisturbed run.

    python -m benchmarks.stress [--kills 50] [--seed 0]        (make stress)

Each variant (see VARIANTS) is trained once undisturbed, then several times with interruptions. An interruption is a
random signal after a random time. The same command then resumes the run, until it finishes. All runs must have the same
digest of the last checkpoint, metrics.jsonl (without times) and detections.json.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.comparison import Page, run_benchmark
from detection.shapes import generate
from engine.checkpoint import list_checkpoints, load_checkpoint
from engine.command import RunError
from records.metrics import read_metrics

ROOT = Path(__file__).parent.parent
CONFIG = """
data:
  root: {root}
  train: {{images: images/train, annotations: annotations/instances_train.json}}
  val: {{images: images/val, annotations: annotations/instances_val.json}}
model: {{backbone: ResNet18SlimBackbone_B, neck: fpn, input_size: 96}}
optim: {{optimizer: adamw, learning_rate: 1e-3, reference_batch_size: 8, warmup_epochs: 1, schedule: cosine}}
train: {{epochs: 3, batch_size: 2, precision: fp32, eval_every_epochs: 2, checkpoint_every_steps: 3}}
"""
VARIANTS = {  # name: (number of processes, overrides of the config above)
    "1 process": (1, ("data.workers=0",)),
    "1 process, 2 loader workers, moving average, bf16": (
        1, ("data.workers=2", "train.ema_decay=0.9", "train.precision=bf16"),
    ),
    "1 process, 3 accumulated batches, frozen BatchNorm": (
        1, ("data.workers=0", "train.accumulation_steps=3", "train.batch_norm=frozen"),
    ),
    "2 processes, 2 loader workers each, moving average": (2, ("data.workers=2", "train.ema_decay=0.9")),
}  # fmt: skip
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
LIMIT_SECONDS = 300  # time limit of one start


class Result(NamedTuple):
    """Result of one variant."""

    kills: Counter  # by signal
    runs: int  # finished runs that were interrupted
    identical: int  # number of these runs that are bit-identical to the undisturbed run
    seconds: float


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield the name and value of every leaf of nested containers. For a tensor, the value is dtype, shape and hash."""
    if isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flatten(item, f"{name}/{key}")
    elif isinstance(value, torch.Tensor):
        yield name, (value.dtype, value.shape, hashlib.sha256(value.contiguous().numpy().tobytes()).digest())
    else:
        yield name, value


def digest(experiment: Path) -> str:
    """Return a SHA-256 hash of all results that must not depend on interruptions."""
    final = [load_checkpoint(list_checkpoints(experiment / "checkpoints")[-1]), read_metrics(experiment)]
    values = sorted(repr(leaf) for leaf in flatten(final) if "second" not in leaf[0])
    return hashlib.sha256("".join(values).encode() + (experiment / "detections.json").read_bytes()).hexdigest()


def kill_all(log: Path) -> None:
    """Send SIGKILL to all processes whose environment variable STRESS_RUN is this log, as if the machine failed."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended
            if f"STRESS_RUN={log}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)


def train(command: Sequence[str], log: Path, kills: int, max_seconds: float, rng: random.Random) -> Counter:
    """Run `command` until it finishes. Interrupt it at most `kills` times; return how often each signal was sent.

    Each interruption comes at most max_seconds after a start. Raises RunError if a start fails without interruption."""
    sent: Counter = Counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "STRESS_RUN": str(log)}
    for limit in [*(rng.uniform(0.3, 1.0) * max_seconds for _ in range(kills)), LIMIT_SECONDS]:
        with open(log, "a") as file:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
        try:
            if process.wait(limit):
                raise RunError(f"a start failed without being interrupted: {log.read_text()[-2000:]}")
            break
        except subprocess.TimeoutExpired:
            number = rng.choice(SIGNALS)
            sent[number.name] += 1
            if number == signal.SIGKILL:
                kill_all(log)
            process.send_signal(number)
            process.wait(LIMIT_SECONDS)
    return sent


def stress(name: str, kills: int, rng: random.Random, folder: Path) -> Result:
    """Train a variant undisturbed, then again until its runs have been interrupted `kills` times in total."""
    processes, overrides = VARIANTS[name]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    begin = [sys.executable, *launcher, "-m", "detection.training", str(folder.parent / "config.yaml"), *overrides]

    def run(experiment: Path, kills: int, max_seconds: float) -> Counter:
        experiment.mkdir(parents=True)
        command = [*begin, "--experiment", str(experiment)]
        return train(command, experiment.with_suffix(".log"), kills, max_seconds, rng)

    started = time.monotonic()
    run(folder / "undisturbed", 0, 0)
    duration = time.monotonic() - started
    sent, runs, identical, started = Counter(), 0, 0, time.monotonic()
    while sent.total() < kills:
        experiment = folder / f"interrupted_{runs}"
        sent += run(experiment, kills - sent.total(), duration)
        runs += 1
        identical += digest(experiment) == digest(folder / "undisturbed")
    return Result(sent, runs, identical, time.monotonic() - started)


def measure(device: torch.device, kills: int, seed: int) -> Page:
    """Stress every variant, with `kills` interruptions in total."""
    rng, lines, different, signals = random.Random(seed), [], [], Counter()
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "sample", num_train=24, num_val=6, image_size=96)
        (Path(folder) / "config.yaml").write_text(CONFIG.format(root=Path(folder) / "sample"))
        for index, name in enumerate(VARIANTS):
            share = kills // len(VARIANTS) + (index < kills % len(VARIANTS))
            result = stress(name, share, rng, Path(folder) / str(index))
            lines.append(
                f"| {name} | {result.kills.total()} | {result.runs} | {result.identical} | {result.seconds:.0f} |"
            )
            different += [name] * (result.identical < result.runs)
            signals += result.kills
    text = f"""# Are killed and resumed runs bit-identical to undisturbed ones?

{signals.total()} kills: {", ".join(f"{count} by {name}" for name, count in sorted(signals.items()))}.

| variant | kills | finished runs | of these, bit-identical to an undisturbed run | seconds |
|---|---|---|---|---|
{chr(10).join(lines)}
"""
    return Page(text, failures=different)


if __name__ == "__main__":
    run_benchmark(measure, {"--kills": {"type": int, "default": 50}, "--seed": {"type": int, "default": 0}})
