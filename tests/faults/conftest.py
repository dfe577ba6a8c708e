"""What the tests of faults share: a tiny data set, and commands whose processes are all known."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from detection.shapes import generate

ROOT = Path(__file__).parent.parent.parent
LIMIT_SECONDS = 120  # for what takes a few on a quiet machine

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
    """A command in a session of its own, as a terminal starts it; its processes inherit a mark."""

    def __init__(self, words: list[str], log: Path) -> None:
        self.log = log
        self.mark = f"FAULTS_JOB={log}"
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "FAULTS_JOB": str(log),
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5",
        }  # fmt: skip
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                words, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )

    @property
    def text(self) -> str:
        """What it has said so far, on both streams."""
        return self.log.read_text()

    def wait_for(self, what: Callable[[], object] | str, seconds: float = LIMIT_SECONDS) -> object:
        """Until `what` is true, or has been said; returns what it gave."""
        deadline = time.monotonic() + seconds
        while not (found := what in self.text if isinstance(what, str) else what()):
            ended = self.process.poll() is not None and isinstance(what, str)
            assert not ended, f"ended without {what!r}; it said: {self.text}"
            assert time.monotonic() < deadline, f"not within {seconds} s; it said: {self.text}"
            time.sleep(0.005)
        return found

    def send(self, *numbers: int) -> None:
        """Signals to the command's first process alone."""
        for number in numbers:
            self.process.send_signal(number)

    def end(self, seconds: float = LIMIT_SECONDS) -> int:
        """The exit code, once nothing of the job is left: asserts that it ends, and its other processes soon after."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still at work after {seconds} s; it said: {self.text}") from None
        self.wait_for(lambda: not self.processes(), 30)
        return code

    def processes(self) -> dict[int, list[str]]:
        """Every process of the job that is alive, with its command line."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_text().split("\0")
        return found

    def ranks(self) -> list[int]:
        """The processes that the launcher started, without itself and their loader workers, oldest first."""
        return sorted(
            pid
            for pid in self.processes()
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1] == str(self.process.pid)
        )

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
    """Starts `python WORDS`, by `launcher` where there is more than one process; kills what is left of it at the end.

    WORDS: as on a command line. launcher: engine.launch, or torchrun's module."""
    jobs: list[Job] = []
    folder = tmp_path_factory.mktemp("jobs")

    def start(*words: object, processes: int = 1, launcher: str = "engine.launch") -> Job:
        start = ["-m", launcher, "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
        command = [os.environ["PYTHON_EXEC"], *start, *map(str, words)]
        jobs.append(Job(command, folder / f"{len(jobs)}.log"))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()
