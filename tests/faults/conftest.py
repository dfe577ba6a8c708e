"""Fixtures for the tests of faults: a tiny data set, and commands whose processes can be listed and killed."""

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
LIMIT_SECONDS = 600  # only to detect hangs: everything takes a few seconds on an idle machine

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
    """A command in its own session, as if started from a terminal; all its processes print to `log`."""

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
        """Output of the job so far, on stdout and stderr."""
        return self.log.read_text()

    @property
    def errors(self) -> list[str]:
        """Error lines so far, without torchrun's report."""
        return re.findall(r"^(?:python -m \S+: )?error(?: on rank \d+)?: .*", self.text, re.MULTILINE)

    def wait_for(self, what: Callable[[], object] | str, seconds: float = LIMIT_SECONDS) -> object:
        """Wait until `what` is printed (a string) or returns a true value (a function); return that value."""
        deadline = time.monotonic() + seconds
        while not (value := what in self.text if isinstance(what, str) else what()):
            has_ended = self.process.poll() is not None and isinstance(what, str)
            assert not has_ended, f"ended without {what!r}; output: {self.text}"
            assert time.monotonic() < deadline, f"not within {seconds} s; output: {self.text}"
            time.sleep(0.01)
        return value

    def end(self, seconds: float = LIMIT_SECONDS) -> int:
        """Wait until all processes of the job have ended; return the exit code of the first one."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s; output: {self.text}") from None
        self.wait_for(lambda: not self.processes())
        return code

    def processes(self) -> set[int]:
        """Return the process ids of the job."""
        pids = set()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # the process has ended meanwhile
                if os.readlink(folder / "fd/1") == str(self.log):
                    pids.add(int(folder.name))
        return pids

    def rank(self, number: int) -> int:
        """Return the process id of a rank: the lowest one, because its loader processes have the same RANK."""
        pids = []
        for pid in self.processes():
            with suppress(OSError):
                if f"\0RANK={number}\0" in Path(f"/proc/{pid}/environ").read_text():
                    pids.append(pid)
        return min(pids)

    def kill(self) -> None:
        """Kill all processes of the job."""
        for pid in self.processes():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="session")
def config_path(tmp_path_factory) -> Path:
    """Return a config with 240 training and 7 validation images: 240 steps per epoch, to interrupt one within."""
    folder = tmp_path_factory.mktemp("faults")
    generate(folder / "sample", num_train=240, num_val=7, image_size=96)
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(root=folder / "sample"))
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Iterator[Callable[..., Job]]:
    """Return a function that starts `python WORDS`, with torchrun if `processes` > 1; kill all jobs at the end."""
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
