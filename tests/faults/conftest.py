"""What the tests of faults share: a tiny data set, and commands whose processes are all known."""

import os
import re
import signal
import subprocess
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
    """A command in a session of its own, as a terminal starts it; its processes print to its log.

    python: $PYTHON_EXEC of the ranks, and what the command itself is started with; see tests/forkserver.py."""

    def __init__(self, python: str, words: list[str], log: Path) -> None:
        self.log = log
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "PYTHON_EXEC": python,
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5",
        }  # fmt: skip
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                [python, *words], cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
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
        self.wait_for(lambda: not self.processes())
        return code

    def processes(self) -> set[int]:
        """Return every process of the job that is alive, without those that wait for one of the fork server's."""
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                words = (folder / "cmdline").read_text().split("\0")
                waits = any(word.endswith("forkserver.py") for word in words) and "serve" not in words
                if os.readlink(folder / "fd/1") == str(self.log) and not waits:
                    found.add(int(folder.name))
        return found

    def children(self) -> list[int]:
        """Return the processes of the job that others of it have started, oldest first.

        That is the loader processes of the fork server's; without it the ranks, too."""
        processes = self.processes()
        return sorted(pid for pid in processes if parent(pid) in processes)

    def rank(self, number: int) -> int:
        """Return the process of a rank that the fork server has started, once there is one."""
        name = f"rank{number}\n"
        return self.wait_for(
            lambda: next((pid for pid in self.processes() - {*self.children()} if command_name(pid) == name), None)
        )

    def kill(self) -> None:
        """Leave nothing behind."""
        for pid in self.processes() | {self.process.pid} if self.process.poll() is None else self.processes():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def parent(pid: int) -> int | None:
    """Return the parent of a process, or None if the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    except OSError:
        return None


def command_name(pid: int) -> str:
    """Return the name of a process, which the fork server sets for ranks; "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


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
    """Starts `python WORDS`, by torchrun if there is more than one process; kills what is left of it at the end.

    WORDS: as on a command line. python: sys.executable where the start of Python itself is the subject."""
    jobs: list[Job] = []
    folder = tmp_path_factory.mktemp("jobs")

    def start(*words: object, processes: int = 1, python: str | None = None) -> Job:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        words = [*(torchrun if processes > 1 else []), *map(str, words)]
        jobs.append(Job(python or os.environ["PYTHON_EXEC"], words, folder / f"{len(jobs)}.log"))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()
