"""sbatch/ and `ablation.grid submit` on a real Slurm cluster of two nodes, as their users start them.

The cluster has no GPUs but numbers of them: everything trains on the CPU, with gloo.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch

from ablation import grid as grid_command
from ablation.plan import read_grid
from detection.shapes import generate
from engine.checkpoint import list_checkpoints, load_checkpoint
from records.experiment import read_environments
from records.metrics import read_metrics
from records.status import read_status

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
STEPS = 30  # of an epoch of two processes
CONFIG = """
data:
  root: {root}
  train: {{images: images/train, annotations: annotations/instances_train.json}}
  val: {{images: images/val, annotations: annotations/instances_val.json}}
  workers: 2
model: {{backbone: ResNet18SlimBackbone_B, neck: none, input_size: 96}}
optim: {{optimizer: adamw, learning_rate: 1e-3, reference_batch_size: 4, warmup_epochs: 1, schedule: cosine}}
train:
  {{epochs: 2, batch_size: 2, precision: fp32, batch_norm: frozen, eval_every_epochs: 2, checkpoint_every_steps: 10}}
"""
OTHER_TASKS = {
    "train_clf_ddp": "model: {name: swin_slim, input_size: 32}\naugment: {mixup: 0.0, cutmix: 0.0}\n",
    "train_diff_ddp": "model: {name: swin_slim, input_size: 16, patch_size: 4, window_size: 2}\n"
    "diffusion: {timesteps: 20}\neval: {steps: 4, samples_per_class: 1}\n",
}
FIRST_STEP = re.compile(r"first step: total (\S+), classification (\S+), box (\S+), gradient norm (\S+)")


class Cluster:
    """A Slurm cluster, by its own commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # of this test: job ids begin anew with each cluster, and logs are appended to

    def submit(self, script: str, *arguments: object, options: tuple[str, ...] = (), cwd: Path = ROOT) -> str:
        """Send off a script with one pretended GPU; returns the job's number."""
        log = f"--output={self.folder}/%j.out"
        return call("sbatch", "--parsable", "--gpus-per-node=1", log, *options, script, *arguments, cwd=cwd)

    def show(self, job: str, key: str) -> str:
        """A field of `scontrol show job`."""
        return re.search(rf"\b{key}=(\S+)", call("scontrol", "show", "job", job))[1]

    def log(self, job: str) -> str:
        path = self.folder / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def wait(self, job: str, seconds: float = 600) -> str:
        """Wait until the job has ended; return its log."""
        until(lambda: self.show(job, "JobState") in ("COMPLETED", "FAILED"), seconds, lambda: self.describe(job))
        return self.log(job)

    def describe(self, job: str) -> str:
        return call("scontrol", "show", "job", job) + self.log(job)


def call(*command: object, cwd: Path = ROOT) -> str:
    """Output of a command that must not fail."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def until(condition: Callable[[], bool], seconds: float, describe: Callable[[], str] = str) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still waiting after {seconds} s\n{describe()}"
        time.sleep(0.2)


def processes_of_jobs() -> list[tuple[int, list[str], list[str]]]:
    """Return the id, command line and environment of what runs inside Slurm jobs, on any node."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            words, environment = ((folder / name).read_text().split("\0") for name in ("cmdline", "environ"))
            if any(variable.startswith("SLURM_JOB_ID=") for variable in environment):
                found.append((int(folder.name), words, environment))
    return found


@pytest.fixture(scope="module")
def running_cluster() -> Iterator[None]:
    """Two nodes; a preempted job has ten seconds, from the signal that it asked for."""
    tool = Path(os.environ.get("WORKBENCH_TEST_SLURM", ROOT.parent / "shared/slurm/local-slurm"))
    if not tool.is_file():
        pytest.skip(f"nothing to start a Slurm cluster with at {tool} (set WORKBENCH_TEST_SLURM)")
    if os.geteuid():
        pytest.skip("only root can start a Slurm cluster")
    if subprocess.run([tool, "status"], check=False, capture_output=True).returncode == 0:
        pytest.fail("a cluster is up already, and not for these tests: take it down first")
    call(tool, "up", "--grace", "10", "--conf", "SlurmctldParameters=preempt_send_user_signal")
    yield
    subprocess.run([tool, "down"], check=False, capture_output=True)


@pytest.fixture
def cluster(running_cluster, tmp_path, monkeypatch) -> Iterator[Cluster]:
    """The cluster for one test, which must leave no process on it."""
    for name in [name for name in os.environ if name.startswith("SBATCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums depend on it
    yield Cluster(tmp_path)
    jobs = subprocess.run(["squeue", "-h", "-o", "%A"], capture_output=True, text=True, check=True).stdout.split()
    if jobs:
        subprocess.run(["scancel", "-f", *jobs], check=False)
    until(lambda: not processes_of_jobs(), 120, lambda: str(processes_of_jobs()))
    assert not jobs


@pytest.fixture(scope="module")
def config_path(tmp_path_factory) -> Path:
    """120 images to train on, 5 to validate."""
    folder = tmp_path_factory.mktemp("data")
    generate(folder / "sample", num_train=4 * STEPS, num_val=5, image_size=96)
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(root=folder / "sample"))
    return path


def train_here(config_path: Path, experiments: Path, *overrides: str, processes: int) -> Path:
    """The experiment of a run outside of Slurm."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    words = [*launcher, "detection.training", config_path, "--experiments", experiments, *overrides]
    command = [sys.executable, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return experiments / "experiment_1"


@pytest.fixture(scope="module")
def uninterrupted(config_path, tmp_path_factory) -> Path:
    """What two processes come to."""
    return train_here(config_path, tmp_path_factory.mktemp("uninterrupted"), processes=2)


@pytest.fixture(scope="module")
def first_step(config_path, tmp_path_factory) -> list[float]:
    """Losses and gradient norm of the first step of one process at global batch 4."""
    overrides = ("train.batch_size=4", "train.epochs=1")
    experiment = train_here(config_path, tmp_path_factory.mktemp("one"), *overrides, processes=1)
    return first_step_of((experiment / "train.log").read_text())


def first_step_of(log: str) -> list[float]:
    return [float(value) for value in FIRST_STEP.search(log).groups()]


def weights(experiment: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(list_checkpoints(experiment / "checkpoints")[-1])["model"]


def to(cluster: Cluster) -> tuple[object, ...]:
    """Where a test keeps its experiments."""
    return "--experiments", cluster.folder


def at_step(experiment: Path, step: int) -> Callable[[], bool]:
    """Whether training has come to a checkpoint at or after this step."""
    return lambda: any(int(path.stem[5:]) >= step for path in list_checkpoints(experiment / "checkpoints"))


def test_two_nodes_train_as_one_process_does_and_a_job_may_be_sent_off_from_the_scripts_folder(
    cluster, config_path, first_step
):
    arguments = (config_path, "train.epochs=1", *to(cluster))
    job = cluster.submit("train_det_ddp.sbatch", *arguments, options=("--nodes=2",), cwd=ROOT / "sbatch")
    log = cluster.wait(job)
    assert cluster.show(job, "ExitCode") == "0:0", log
    assert "rank 0 on node1, cpu\nrank 1 on node2, cpu" in log
    assert first_step_of(log)[:3] == pytest.approx(first_step[:3], rel=1e-5)
    assert first_step_of(log)[3] == pytest.approx(first_step[3], rel=1e-4)
    assert [start["hosts"] for start in read_environments(cluster.folder / "experiment_1")] == [["node1", "node2"]]
    score = cluster.submit("sbatch/test_detection.sbatch", cluster.folder / "experiment_1", options=("--nodes=2",))
    cluster.wait(score)
    assert (cluster.folder / "experiment_1/test.json").exists()


@pytest.mark.parametrize("script", OTHER_TASKS)
def test_the_other_tasks_train_on_two_processes_too(cluster, mnist_root, script):
    path = cluster.folder / "config.yaml"
    data = f"data: {{root: {mnist_root}, format: mnist, workers: 0}}\ntrain: {{epochs: 1, batch_size: 8}}\n"
    path.write_text(data + OTHER_TASKS[script])
    job = cluster.submit(f"sbatch/{script}.sbatch", path, *to(cluster), options=("--gpus-per-node=2",))
    log = cluster.wait(job)
    assert cluster.show(job, "ExitCode") == "0:0", log
    assert json.loads((cluster.folder / "experiment_1/results.json").read_text())["cost"]["processes"] == 2


def preempt(cluster: Cluster) -> None:
    """Send off a job that takes both nodes away from all others, and wait until it has run."""
    script = cluster.folder / "urgent.sh"
    script.write_text("#!/bin/bash\nsleep 1\n")
    job = cluster.submit(script, options=("--partition=urgent", "--nodes=2", "--exclusive"))
    cluster.wait(job)


def take_node_down() -> None:
    call("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    # Refused if the node's own daemon has reported in the meantime, and so brought it back.
    subprocess.run(["scontrol", "update", "nodename=node2", "state=resume"], check=False)


@pytest.mark.parametrize(
    ("fault", "evidence"),
    [
        ("requeued", "start 2, on node[1-2]"),
        ("preempted", "stopped: SIGUSR1"),
        ("preempted without warning", "stopped: SIGTERM"),
        ("node down", "start 2, on node[1-2]"),
    ],
)
def test_an_interrupted_job_continues_in_its_experiment_to_the_same_weights(
    cluster, config_path, uninterrupted, fault, evidence
):
    experiment, script = cluster.folder / "experiment_1", cluster.folder / "train_det_ddp.sbatch"
    text = (ROOT / "sbatch/train_det_ddp.sbatch").read_text()
    # Without the signal of its own choice a job gets only SIGTERM.
    script.write_text(text.replace("#SBATCH --signal", "# --signal") if "without" in fault else text)
    job = cluster.submit(script, config_path, *to(cluster), options=("--nodes=2",))
    until(at_step(experiment, 10), 600, lambda: cluster.describe(job))
    if fault == "requeued":
        call("scontrol", "requeue", job)
    elif fault == "node down":
        take_node_down()
    else:
        preempt(cluster)
    log = cluster.wait(job)
    assert cluster.show(job, "Restarts") == "1"
    assert log.count("first step") == 1
    assert evidence in log
    assert int(re.search(r"resumed after step (\d+)", log)[1]) % STEPS
    assert [start["slurm"]["job"] for start in read_environments(experiment)] == [job, job]
    assert not (cluster.folder / "experiment_2").exists()
    ours, theirs = weights(experiment), weights(uninterrupted)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [line["step"] for line in read_metrics(experiment)] == [STEPS, 2 * STEPS]
    assert json.loads((experiment / "results.json").read_text())["steps"] == 2 * STEPS


def test_the_time_limit_requeues_a_job_and_restarts_are_bounded(cluster, config_path, monkeypatch):
    monkeypatch.setenv("MAX_RESTARTS", "1")
    experiment = cluster.folder / "experiment_1"
    arguments = (config_path, *to(cluster), "train.epochs=100", "train.eval_every_epochs=100")
    job = cluster.submit("sbatch/train_det_ddp.sbatch", *arguments)
    until(at_step(experiment, 10), 600, lambda: cluster.describe(job))
    end = datetime.now() + timedelta(seconds=100)  # less than what --signal asks for
    call("scontrol", "update", f"JobId={job}", f"EndTime={end:%Y-%m-%dT%H:%M:%S}")
    until(lambda: "resumed after step" in cluster.log(job), 600, lambda: cluster.describe(job))
    saved = int(re.search(r"stopped: SIGUSR1; step_(\d+)", cluster.log(job))[1])
    until(at_step(experiment, saved + 1), 600, lambda: cluster.describe(job))
    assert cluster.show(job, "Restarts") == "1"
    call("scancel", "--signal=USR1", job)
    log = cluster.wait(job)
    assert cluster.show(job, "ExitCode") == "75:0"
    assert f"error: job {job}: not requeued: already requeued 1 times (MAX_RESTARTS)" in log
    assert log.count("stopped: SIGUSR1") == 2


def test_an_error_is_reported_once_and_not_requeued(cluster, config_path):
    arguments = (config_path, "model.neck=fnp", *to(cluster))
    job = cluster.submit("sbatch/train_det_ddp.sbatch", *arguments, options=("--gpus-per-node=3",))
    log = cluster.wait(job)
    assert cluster.show(job, "ExitCode") == "2:0"
    assert len(re.findall(r"^error.*fnp", log, re.MULTILINE)) == 1


@pytest.mark.parametrize(("rank", "state"), [(0, "killed"), (1, "failed")])
def test_a_process_that_dies_ends_the_job_within_30_seconds_and_it_is_not_requeued(cluster, config_path, rank, state):
    experiment = cluster.folder / "experiment_1"
    job = cluster.submit("sbatch/train_det_ddp.sbatch", config_path, *to(cluster), options=("--nodes=2",))
    until(at_step(experiment, 10), 600, lambda: cluster.describe(job))
    unlocked = cluster.folder / "unlocked"  # as a machine sees the experiment to which its locks are not visible
    unlocked.mkdir()
    shutil.copy(experiment / "status.json", unlocked)
    assert read_status(experiment).state == read_status(unlocked).state == "running"
    os.kill(rank_of(experiment, rank), signal.SIGKILL)
    log = cluster.wait(job, seconds=40)
    assert cluster.show(job, "ExitCode") == "137:0"
    assert f"node{rank + 1}: task {rank}: Killed" in log
    others = re.findall(r"^error.*another process of this run died", log, re.MULTILINE)
    assert len(others) == (rank != 0)  # without rank 0 the others cannot agree on who reports, and srun's line says it
    assert "a bug" not in log
    assert read_status(experiment).state == state
    assert read_status(unlocked).state == "killed"


def rank_of(experiment: Path, rank: int) -> int:
    """Return the process of a rank at work: the oldest with its number, because its loader processes have the same."""
    found = [
        pid
        for pid, words, environment in processes_of_jobs()
        if words[0].endswith("python") and f"SLURM_PROCID={rank}" in environment
        if "detection.training" in words and {str(experiment), str(experiment.parent)} & {*words}
    ]
    return min(found)


GRID = """
task: detection.training
seeds: [0]
overrides: [train.eval_every_epochs=1]
rows: [{{name: slim, config: {config}, overrides: [train.epochs=1]}}]
columns:
  - {{name: none, overrides: [model.neck=none]}}
  - {{name: fpn, overrides: [model.neck=fpn]}}
  - {{name: pan, overrides: [model.neck=pan]}}
  - {{name: broken, overrides: [model.weights=/nowhere.pth]}}
"""


@pytest.fixture
def grid_path(cluster, config_path, monkeypatch) -> Path:
    """A grid whose last column cannot be trained."""
    monkeypatch.setenv("SBATCH_GPUS_PER_NODE", "1")
    path = cluster.folder / "grid_test.yaml"
    path.write_text(GRID.format(config=config_path))
    return path


def submit(grid_path: Path, *options: str) -> str:
    command = [sys.executable, "-m", "ablation.grid", "submit", grid_path, "--experiments", grid_path.parent / "runs"]
    return call(*command, *options)


def states(grid_path: Path) -> list[str]:
    grid = read_grid(grid_path)
    lines = grid_command.status(grid, grid.jobs, grid_path.parent / "runs").splitlines()[1:]
    return [re.sub(r"^slim x (\w+) +0 +", r"\1: ", line) for line in lines]


def test_a_grid_is_an_array_job_with_a_table_after_it(cluster, grid_path):
    folder = grid_path.parent / "runs/slurm/grid_test-1"
    rehearsal = submit(grid_path, "--max-running", "2", "--dry-run")
    assert "--array=0-3%2" in rehearsal
    assert not folder.exists()

    told = submit(grid_path, "--max-running", "2")
    array, table = re.findall(r"job (\d+):", told)
    assert "4 of 4 runs are missing" in told
    assert "0 of 4 runs are missing and not in the queue" in submit(grid_path)
    second = grid_path.parent / "runs/experiment_2"
    until(lambda: len(list(grid_path.parent.glob("runs/experiment_*"))) == 2, 600)
    assert sum("PENDING" in state for state in states(grid_path)) == 2
    until(lambda: (second / "checkpoints").exists(), 600)
    requeued = json.loads((second / "environment.json").read_text())[0]["slurm"]["job"]
    call("scontrol", "requeue", requeued)
    third = grid_path.parent / "runs/experiment_3"
    until(at_step(third, 10), 600)
    os.kill(rank_of(third, 0), signal.SIGKILL)

    cluster.wait(table, seconds=600)
    assert [state.split()[1] for state in states(grid_path)] == ["done", "done", "killed", "failed"]
    assert re.search(rf"broken: failed .*/nowhere.pth.*; Slurm: {array}_3 FAILED see .*_3.out", states(grid_path)[3])
    starts = {
        start["slurm"]["job"]: len(read_environments(path))
        for path in grid_path.parent.glob("runs/experiment_*")
        for start in read_environments(path)
    }
    assert starts == {f"{array}_{index}": 2 if f"{array}_{index}" == requeued else 1 for index in range(3)}
    assert "start 2" in (folder / f"slurm_{requeued}.out").read_text()
    text = (folder / "table.md").read_text()
    assert re.search(r"\| slim \| \S+ \| \S+ \| killed \| failed \|", text.replace("*", "")), text
    assert (folder / "table.html").exists()
