"""What the tests of faults share: a tiny data set, and commands whose processes are all known."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from detection.shapes import generate

ROOT = Path(__file__).parent.parent.parent
LIMIT_SECONDS = 600  # for what takes a few on a quiet machine; only against hanging

CONFIG = """
data:
  root: {root}
  train: {{images: images/train, annotations: annotations/instances_train.json}}
  val: {{images: images/val, annotations: annotations/instances_val.json}}
  workers: 2
model: {{backbone: ResNet18SlimBackbone_B, neck: none, input_size: 96}}
optim: {{optimizer: adamw, learning_rate: 1e-3, reference_batch_size: 4, warmup_epochs: 1, schedule: cosine}}
train: {{epochs: 2, batch_size: 1, batch_norm: frozen, precision: fp32, ema_decay: 0.9, eval_every_epochs: 2}}
eval: {{score_threshold: 0.01}}
"""


class Job:
    """A command in a session of its own, as a terminal starts it; its processes print to its log."""

    def __init__(self, words: list[str], log: Path) -> None:
        self.log = log
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT),
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5",
        }  # fmt: skip
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )

    @property
    def text(self) -> str:
        """What it has printed so far, on both streams."""
        return self.log.read_text()

    @property
    def errors(self) -> list[str]:
        """The lines of errors so far, without torchrun's report."""
        return re.findall(r"^(?:python -m \S+: )?error(?: on rank \d+)?: .*", self.text, re.MULTILINE)

    def wait_for(self, what: Callable[[], object] | str, seconds: float = LIMIT_SECONDS) -> object:
        """Until `what` is true, or has been said; returns what it gave."""
        deadline = time.monotonic() + seconds
        while not (found := what in self.text if isinstance(what, str) else what()):
            ended = self.process.poll() is not None and isinstance(what, str)
            assert not ended, f"ended without {what!r}; it said: {self.text}"
            assert time.monotonic() < deadline, f"not within {seconds} s; it said: {self.text}"
            time.sleep(0.01)
        return found

    def end(self, seconds: float = LIMIT_SECONDS) -> int:
        """The exit code, once nothing of the job is left: asserts that it ends, and its other processes soon after."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still at work after {seconds} s; it said: {self.text}") from None
        self.wait_for(lambda: not self.processes())
        return code

    def processes(self) -> set[int]:
        """Return every process of the job that is alive."""
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                if os.readlink(folder / "fd/1") == str(self.log):
                    found.add(int(folder.name))
        return found

    def rank(self, number: int) -> int:
        """Return the process of a rank: the oldest with its number, because its loader processes have the same."""
        found = []
        for pid in self.processes():
            with suppress(OSError):
                if f"\0RANK={number}\0" in Path(f"/proc/{pid}/environ").read_text():
                    found.append(pid)
        return min(found)

    def kill(self) -> None:
        """Leave nothing behind."""
        for pid in self.processes():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="session")
def config_path(tmp_path_factory) -> Path:
    """240 images to train on and 7 to validate; 240 steps an epoch, long enough to be met in its middle."""
    folder = tmp_path_factory.mktemp("faults")
    generate(folder / "sample", num_train=240, num_val=7, image_size=96)
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(root=folder / "sample"))
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Iterator[Callable[..., Job]]:
    """Starts `python WORDS`, by torchrun if there is more than one process; kills what is left of it at the end."""
    jobs: list[Job] = []
    folder = tmp_path_factory.mktemp("jobs")

    def start(*words: object, processes: int = 1) -> Job:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        words = [*(torchrun if processes > 1 else []), *map(str, words)]
        jobs.append(Job(words, folder / f"{len(jobs)}.log"))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()
