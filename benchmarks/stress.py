"""Is anything lost when a run is killed? Kill a small run over and over, and compare where it ends.

    python -m benchmarks.stress [--kills 50] [--seed 0]        (make stress)

Each variant is trained once in peace, then again and again under fire: started, ended after a random while by a random
signal, started again with the same command, until it is through. Compared is a digest of the last checkpoint,
metrics.jsonl (but for times) and detections.json.
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
VARIANTS = {  # processes, and what differs from the config above
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
LIMIT_SECONDS = 300  # of one start


class Result(NamedTuple):
    """What came of one variant."""

    kills: Counter  # by signal
    runs: int  # that came to their end under fire
    identical: int  # of these, to the same end as in peace
    seconds: float


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, object]]:
    """Name and value of every number and text, name and hash of every tensor of nested containers."""
    if isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{name}/{key}")
    elif isinstance(value, torch.Tensor):
        yield name, (value.dtype, value.shape, hashlib.sha256(value.contiguous().numpy().tobytes()).digest())
    else:
        yield name, value


def digest(experiment: Path) -> str:
    """Return the SHA-256 of all that must not depend on interruptions."""
    end = [load_checkpoint(list_checkpoints(experiment / "checkpoints")[-1]), read_metrics(experiment)]
    values = sorted(repr(leaf) for leaf in leaves(end) if "second" not in leaf[0])
    return hashlib.sha256("".join(values).encode() + (experiment / "detections.json").read_bytes()).hexdigest()


def kill_all(log: Path) -> None:
    """SIGKILL to every process of a run, known by STRESS_RUN, as a node that dies does: launcher, ranks, workers."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if f"STRESS_RUN={log}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)


def train(words: Sequence[str], log: Path, kills: int, lifetime: float, chance: random.Random) -> Counter:
    """Run to the end, interrupted at most `kills` times, each within `lifetime` seconds of a start; return by what.

    Raises RunError if a start fails by itself."""
    done: Counter = Counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "STRESS_RUN": str(log)}
    for limit in [*(chance.uniform(0.3, 1.0) * lifetime for _ in range(kills)), LIMIT_SECONDS]:
        with open(log, "a") as file:
            process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=file, stderr=file)
        try:
            if process.wait(limit):
                raise RunError(f"a start failed by itself: {log.read_text()[-2000:]}")
            break
        except subprocess.TimeoutExpired:
            number = chance.choice(SIGNALS)
            done[number.name] += 1
            if number == signal.SIGKILL:
                kill_all(log)
            process.send_signal(number)
            process.wait(LIMIT_SECONDS)
    return done


def stress(name: str, kills: int, chance: random.Random, folder: Path) -> Result:
    """Train a variant in peace, then under fire until it has been interrupted `kills` times."""
    processes, overrides = VARIANTS[name]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    begin = [sys.executable, *launcher, "-m", "detection.training", str(folder.parent / "config.yaml"), *overrides]

    def run(experiment: Path, kills: int, lifetime: float) -> Counter:
        experiment.mkdir(parents=True)
        words = [*begin, "--experiment", str(experiment)]
        return train(words, experiment.with_suffix(".log"), kills, lifetime, chance)

    started = time.monotonic()
    run(folder / "peace", 0, 0)
    lifetime = time.monotonic() - started
    done, runs, identical, started = Counter(), 0, 0, time.monotonic()
    while done.total() < kills:
        experiment = folder / f"fire_{runs}"
        done += run(experiment, kills - done.total(), lifetime)
        runs += 1
        identical += digest(experiment) == digest(folder / "peace")
    return Result(done, runs, identical, time.monotonic() - started)


def measure(device: torch.device, kills: int, seed: int) -> Page:
    """Stress every variant."""
    chance, lines, different, signals = random.Random(seed), [], [], Counter()
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "sample", num_train=24, num_val=6, image_size=96)
        (Path(folder) / "config.yaml").write_text(CONFIG.format(root=Path(folder) / "sample"))
        for index, name in enumerate(VARIANTS):
            share = kills // len(VARIANTS) + (index < kills % len(VARIANTS))
            result = stress(name, share, chance, Path(folder) / str(index))
            lines.append(
                f"| {name} | {result.kills.total()} | {result.runs} | {result.identical} | {result.seconds:.0f} |"
            )
            different += [name] * (result.identical < result.runs)
            signals += result.kills
    text = f"""# Killed, resumed, and the same to the last bit?

{signals.total()} kills: {", ".join(f"{count} by {name}" for name, count in sorted(signals.items()))}.

| variant | kills | runs ended | of these bit-identical to an undisturbed one | seconds |
|---|---|---|---|---|
{chr(10).join(lines)}
"""
    return Page(text, short=different)


if __name__ == "__main__":
    run_benchmark(measure, {"--kills": {"type": int, "default": 50}, "--seed": {"type": int, "default": 0}})
