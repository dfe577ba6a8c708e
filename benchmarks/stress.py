"""Is anything lost when a run is killed? Kill a small run over and over, and compare where it ends.

    python -m benchmarks.stress [--kills 50] [--seed 0]        (make stress)

Each variant is trained once in peace, then again and again under fire: started, ended after a random while by a random
signal (SIGKILL twice as often as the others), started again with the same command, until it is through. What counts
is a digest of everything that a resumed run depends on and everything that it leaves: weights, moving average,
optimizer, schedule, epoch means, metrics.jsonl (but for times) and detections.json. Writes benchmarks/stress.md.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparison import write_page
from detection.shapes import generate
from engine.checkpoint import list_checkpoints, load_checkpoint
from engine.command import RunError, run_command
from engine.logbook import progress_bar, start_logging
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


@dataclass
class Result:
    """What came of one variant."""

    kills: Counter = field(default_factory=Counter)  # by signal
    runs: int = 0  # that came to their end under fire
    identical: int = 0  # of these, to the same end as in peace
    seconds: float = 0.0


def digest(experiment: Path) -> str:
    """SHA-256 of all that must not depend on interruptions."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.update(f"{value.dtype} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                if "second" not in str(key):
                    found.update(str(key).encode())
                    add(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        else:
            found.update(repr(value).encode())

    add(load_checkpoint(list_checkpoints(experiment / "checkpoints")[-1]))
    add(read_metrics(experiment))
    found.update((experiment / "detections.json").read_bytes())
    return found.hexdigest()


def command(config: Path, experiment: Path, processes: int, overrides: Sequence[str]) -> list[str]:
    """Starts a run, or goes on with it."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [
        sys.executable, *(launcher if processes > 1 else []), "-m", "detection.training", str(config),
        *overrides, "--experiment", str(experiment),
    ]  # fmt: skip


def start(words: Sequence[str], log: Path) -> subprocess.Popen:
    """A run; its processes are known by the setting STRESS_RUN."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "STRESS_RUN": str(log)}
    with open(log, "a") as file:
        return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=file, stderr=file)


def kill_all(log: Path) -> None:
    """SIGKILL to every process of a run, as a node that dies does: launcher, ranks, loader workers."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if f"STRESS_RUN={log}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)


def train_in_peace(words: Sequence[str], log: Path) -> float:
    """Run to the end; returns the seconds that took. Raises RunError if it fails."""
    began = time.monotonic()
    if start(words, log).wait(LIMIT_SECONDS):
        raise RunError(f"an undisturbed run failed: {log.read_text()[-2000:]}")
    return time.monotonic() - began


def train_under_fire(words: Sequence[str], log: Path, kills: int, lifetime: float, chance: random.Random) -> Counter:
    """Run to the end, interrupted at most `kills` times, each within `lifetime` seconds of a start; returns by what."""
    done: Counter = Counter()
    while done.total() < kills:
        process = start(words, log)
        try:
            if process.wait(chance.uniform(0.3, 1.0) * lifetime):
                raise RunError(f"a start failed by itself: {log.read_text()[-2000:]}")
            return done
        except subprocess.TimeoutExpired:
            number = chance.choice(SIGNALS)
            done[number.name] += 1
            if number == signal.SIGKILL:
                kill_all(log)
            process.send_signal(number)
            process.wait(LIMIT_SECONDS)
    train_in_peace(words, log)
    return done


def stress(name: str, kills: int, chance: random.Random, folder: Path) -> Result:
    """A variant in peace, then under fire until it has been interrupted `kills` times."""
    processes, overrides = VARIANTS[name]
    folder.mkdir()

    def words(experiment: Path) -> list[str]:
        experiment.mkdir()
        return command(folder.parent / "config.yaml", experiment, processes, overrides)

    lifetime = train_in_peace(words(folder / "peace"), folder / "peace.log")
    result, began = Result(), time.monotonic()
    while result.kills.total() < kills:
        experiment = folder / f"fire_{result.runs}"
        left = kills - result.kills.total()
        result.kills += train_under_fire(words(experiment), experiment.with_suffix(".log"), left, lifetime, chance)
        result.runs += 1
        result.identical += digest(experiment) == digest(folder / "peace")
    result.seconds = time.monotonic() - began
    return result


def main(device: torch.device) -> None:
    """Stress every variant, and write the page. Raises RunError if one ends differently from an undisturbed run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="interruptions of all variants together (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the signals")
    arguments = parser.parse_args()
    start_logging(None, verbose=True)
    chance, lines, different, signals = random.Random(arguments.seed), [], [], Counter()
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "sample", num_train=24, num_val=6, image_size=96)
        (Path(folder) / "config.yaml").write_text(CONFIG.format(root=Path(folder) / "sample"))
        for index, name in enumerate(progress_bar(list(VARIANTS), desc="variants")):
            kills = arguments.kills // len(VARIANTS) + (index < arguments.kills % len(VARIANTS))
            result = stress(name, kills, chance, Path(folder) / str(index))
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
    write_page(__file__, text, [], device)
    if different:
        raise RunError(f"not as without interruption: {'; '.join(different)}")


if __name__ == "__main__":
    run_command(main)
