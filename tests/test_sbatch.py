"""sbatch/ and `ablation.grid submit` on a real Slurm cluster of two nodes, started as users start them.

The cluster pretends to have GPUs: everything trains on the CPU, with gloo.
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
from ablation.scheduling.jobs import read_grid
from detection.shapes import generate
from engine.checkpoint import list_checkpoints, load_checkpoint
from records.experiment import read_environments
from records.metrics import read_metrics
from records.status import read_status

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
STEPS = 30  # per epoch, with two processes
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
    """A Slurm cluster, used through its command-line tools."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # one per test: every cluster counts job ids from 1, and logs are appended to

    def submit(self, script: str, *arguments: object, options: tuple[str, ...] = (), cwd: Path = ROOT) -> str:
        """Submit a script with one pretended GPU; return the job id."""
        log = f"--output={self.folder}/%j.out"
        return call("sbatch", "--parsable", "--gpus-per-node=1", log, *options, script, *arguments, cwd=cwd)

    def show(self, job: str, key: str) -> str:
        """Return a field of `scontrol show job`."""
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
    """Run a command that must succeed; return its output."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def until(condition: Callable[[], bool], seconds: float, describe: Callable[[], str] = str) -> None:
    """Wait until a condition holds. Raises AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still waiting after {seconds} s\n{describe()}"
        time.sleep(0.2)


def processes_of_jobs() -> list[tuple[int, list[str], list[str]]]:
    """Return process id, command line and environment of every process of a Slurm job, on any node."""
    processes = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended
            words, environment = ((folder / name).read_text().split("\0") for name in ("cmdline", "environ"))
            if any(variable.startswith("SLURM_JOB_ID=") for variable in environment):
                processes.append((int(folder.name), words, environment))
    return processes


@pytest.fixture(scope="module")
def running_cluster() -> Iterator[None]:
    """Start a cluster of two nodes, on which a preempted job gets its requested signal and then ten seconds."""
    tool = Path(os.environ.get("WORKBENCH_TEST_SLURM", ROOT.parent / "shared/slurm/local-slurm"))
    if not tool.is_file():
        pytest.skip(f"no tool to start a Slurm cluster: {tool} not found (set WORKBENCH_TEST_SLURM)")
    if os.geteuid():
        pytest.skip("only root can start a Slurm cluster")
    if subprocess.run([tool, "status"], check=False, capture_output=True).returncode == 0:
        pytest.fail("a Slurm cluster that these tests did not start is running: stop it first")
    call(tool, "up", "--grace", "10", "--conf", "SlurmctldParameters=preempt_send_user_signal")
    yield
    subprocess.run([tool, "down"], check=False, capture_output=True)


@pytest.fixture
def cluster(running_cluster, tmp_path, monkeypatch) -> Iterator[Cluster]:
    """Provide the cluster to one test, and check that the test leaves no process on it."""
    for name in [name for name in os.environ if name.startswith("SBATCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums depend on the number of threads
    yield Cluster(tmp_path)
    jobs = subprocess.run(["squeue", "-h", "-o", "%A"], capture_output=True, text=True, check=True).stdout.split()
    if jobs:
        subprocess.run(["scancel", "-f", *jobs], check=False)
    until(lambda: not processes_of_jobs(), 120, lambda: str(processes_of_jobs()))
    assert not jobs


@pytest.fixture(scope="module")
def config_path(tmp_path_factory) -> Path:
    """Write a config and its data: 120 training and 5 validation images."""
    folder = tmp_path_factory.mktemp("data")
    generate(folder / "sample", num_train=4 * STEPS, num_val=5, image_size=96)
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(root=folder / "sample"))
    return path


def train_here(config_path: Path, experiments: Path, *overrides: str, processes: int) -> Path:
    """Train without Slurm; return the experiment."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    words = [*launcher, "detection.training", config_path, "--experiments", experiments, *overrides]
    command = [sys.executable, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return experiments / "experiment_1"


@pytest.fixture(scope="module")
def uninterrupted(config_path, tmp_path_factory) -> Path:
    """Train with two processes, without interruption; return the experiment."""
    return train_here(config_path, tmp_path_factory.mktemp("uninterrupted"), processes=2)


@pytest.fixture(scope="module")
def first_step(config_path, tmp_path_factory) -> list[float]:
    """Return losses and gradient norm of the first step of one process with global batch 4."""
    overrides = ("train.batch_size=4", "train.epochs=1")
    experiment = train_here(config_path, tmp_path_factory.mktemp("one"), *overrides, processes=1)
    return first_step_of((experiment / "train.log").read_text())


def first_step_of(log: str) -> list[float]:
    return [float(value) for value in FIRST_STEP.search(log).groups()]


def weights(experiment: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(list_checkpoints(experiment / "checkpoints")[-1])["model"]


def experiments_in(cluster: Cluster) -> tuple[object, ...]:
    """Return the options that keep the experiments in the folder of the test."""
    return "--experiments", cluster.folder


def at_step(experiment: Path, step: int) -> Callable[[], bool]:
    """Return a function that says whether training has written a checkpoint at or after this step."""
    return lambda: any(int(path.stem[5:]) >= step for path in list_checkpoints(experiment / "checkpoints"))


def test_two_nodes_train_like_one_process_and_jobs_can_be_submitted_from_the_sbatch_folder(
    cluster, config_path, first_step
):
    arguments = (config_path, "train.epochs=1", *experiments_in(cluster))
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
def test_classifiers_and_diffusion_models_train_on_two_processes(cluster, mnist_root, script):
    path = cluster.folder / "config.yaml"
    data = f"data: {{root: {mnist_root}, format: mnist, workers: 0}}\ntrain: {{epochs: 1, batch_size: 8}}\n"
    path.write_text(data + OTHER_TASKS[script])
    job = cluster.submit(f"sbatch/{script}.sbatch", path, *experiments_in(cluster), options=("--gpus-per-node=2",))
    log = cluster.wait(job)
    assert cluster.show(job, "ExitCode") == "0:0", log
    assert json.loads((cluster.folder / "experiment_1/results.json").read_text())["cost"]["processes"] == 2


def preempt(cluster: Cluster) -> None:
    """Submit an urgent job that preempts all jobs on both nodes, and wait until it has ended."""
    script = cluster.folder / "urgent.sh"
    script.write_text("#!/bin/bash\nsleep 1\n")
    job = cluster.submit(script, options=("--partition=urgent", "--nodes=2", "--exclusive"))
    cluster.wait(job)


def take_node_down() -> None:
    call("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    # This fails if the node's daemon has already reported to the controller, which resumes the node.
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
def test_interrupted_job_resumes_its_experiment_and_reaches_the_same_weights(
    cluster, config_path, uninterrupted, fault, evidence
):
    experiment, script = cluster.folder / "experiment_1", cluster.folder / "train_det_ddp.sbatch"
    text = (ROOT / "sbatch/train_det_ddp.sbatch").read_text()
    # Without --signal, a preempted job gets only SIGTERM.
    script.write_text(text.replace("#SBATCH --signal", "# --signal") if "without" in fault else text)
    job = cluster.submit(script, config_path, *experiments_in(cluster), options=("--nodes=2",))
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
    resumed, expected = weights(experiment), weights(uninterrupted)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert [line["step"] for line in read_metrics(experiment)] == [STEPS, 2 * STEPS]
    assert json.loads((experiment / "results.json").read_text())["steps"] == 2 * STEPS


def test_time_limit_requeues_a_job_until_max_restarts(cluster, config_path, monkeypatch):
    monkeypatch.setenv("MAX_RESTARTS", "1")
    experiment = cluster.folder / "experiment_1"
    arguments = (config_path, *experiments_in(cluster), "train.epochs=100", "train.eval_every_epochs=100")
    job = cluster.submit("sbatch/train_det_ddp.sbatch", *arguments)
    until(at_step(experiment, 10), 600, lambda: cluster.describe(job))
    end = datetime.now() + timedelta(seconds=100)  # earlier than the 180 seconds of --signal
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


def test_failed_job_reports_its_error_once_and_is_not_requeued(cluster, config_path):
    arguments = (config_path, "model.neck=fnp", *experiments_in(cluster))
    job = cluster.submit("sbatch/train_det_ddp.sbatch", *arguments, options=("--gpus-per-node=3",))
    log = cluster.wait(job)
    assert cluster.show(job, "ExitCode") == "2:0"
    assert len(re.findall(r"^error.*fnp", log, re.MULTILINE)) == 1


@pytest.mark.parametrize(("rank", "state"), [(0, "killed"), (1, "failed")])
def test_dead_process_ends_the_job_within_30_seconds_without_requeue(cluster, config_path, rank, state):
    experiment = cluster.folder / "experiment_1"
    job = cluster.submit("sbatch/train_det_ddp.sbatch", config_path, *experiments_in(cluster), options=("--nodes=2",))
    until(at_step(experiment, 10), 600, lambda: cluster.describe(job))
    unlocked = cluster.folder / "unlocked"  # as seen from a machine on which the locks of this one are not visible
    unlocked.mkdir()
    shutil.copy(experiment / "status.json", unlocked)
    assert read_status(experiment).state == read_status(unlocked).state == "running"
    os.kill(rank_of(experiment, rank), signal.SIGKILL)
    log = cluster.wait(job, seconds=40)
    assert cluster.show(job, "ExitCode") == "137:0"
    assert f"node{rank + 1}: task {rank}: Killed" in log
    reports = re.findall(r"^error.*another process of this run died", log, re.MULTILINE)
    assert len(reports) == (rank != 0)  # without rank 0, only srun reports the death
    assert "a bug" not in log
    assert read_status(experiment).state == state
    assert read_status(unlocked).state == "killed"


def rank_of(experiment: Path, rank: int) -> int:
    """Return the process id of a running rank: the lowest, because its loader processes have the same SLURM_PROCID."""
    process_ids = [
        pid
        for pid, words, environment in processes_of_jobs()
        if words[0].endswith("python") and f"SLURM_PROCID={rank}" in environment
        if "detection.training" in words and {str(experiment), str(experiment.parent)} & {*words}
    ]
    return min(process_ids)


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
    """Write a grid whose last column cannot be trained."""
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


def test_grid_is_submitted_as_an_array_job_and_a_table_job(cluster, grid_path):
    folder = grid_path.parent / "runs/slurm/grid_test-1"
    dry_run = submit(grid_path, "--max-running", "2", "--dry-run")
    assert "--array=0-3%2" in dry_run
    assert not folder.exists()

    submission = submit(grid_path, "--max-running", "2")
    array, table = re.findall(r"job (\d+):", submission)
    assert "4 of 4 runs are missing" in submission
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


TUNED_GRID = """
task: detection.training
seeds: [0]
overrides: [train.eval_every_epochs=1, train.epochs=2]
tune: {{trials: 2, on: 0.1, train.epochs: 0.5, optim.learning_rate: {{log_uniform: [1e-4, 1e-3]}}}}
rows:
  - {{name: none, config: {config}, overrides: [model.neck=none]}}
  - {{name: fpn, config: {config}, overrides: [model.neck=fpn]}}
columns: [{{name: slim}}]
"""


def test_the_runs_of_a_tuned_grid_start_after_its_trials_with_the_values_that_they_chose(
    cluster, grid_path, config_path
):
    grid_path.write_text(TUNED_GRID.format(config=config_path))
    runs = grid_path.parent / "runs"
    submission = submit(grid_path)
    trials, final, table = re.findall(r"job (\d+):", submission)
    assert "6 of 6 runs are missing" in submission
    assert "0 of 6 runs are missing and not in the queue" in submit(grid_path)
    assert f"afterany:{trials}" in cluster.show(f"{final}_0", "Dependency")

    # A requeued trial resumes; a trial whose process is killed leaves its row without values.
    requeued, killed = runs / "experiment_1", runs / "experiment_2"
    until(at_step(requeued, 10), 600)
    call("scontrol", "requeue", read_environments(requeued)[0]["slurm"]["job"])
    until(at_step(killed, 10), 600)
    os.kill(rank_of(killed, 0), signal.SIGKILL)
    cluster.wait(table, seconds=900)
    cells = {path: json.loads((path / "cell.json").read_text()) for path in runs.glob("experiment_*")}
    assert len(cells) == 5
    assert len(read_environments(requeued)) == 2
    without, other = cells[killed]["row"], cells[requeued]["row"]
    logs = "".join(path.read_text() for path in runs.glob(f"slurm/*/slurm_{final}_*.out"))
    assert f"{without} x slim, seed 0: its trials chose no value" in logs

    submission = submit(grid_path)
    assert "2 of 6 runs are missing" in submission
    *_, table = re.findall(r"job (\d+):", submission)
    cluster.wait(table, seconds=900)
    cells = {path: json.loads((path / "cell.json").read_text()) for path in runs.glob("experiment_*")}
    assert sorted((cell["row"], cell["trial"] or 0) for cell in cells.values()) == [
        (row, trial) for row in ("fpn", "none") for trial in (0, 1, 2)
    ]
    scores = {path: json.loads((path / "results.json").read_text())["scores"]["mAP"] for path in cells}
    for row in (without, other):
        of_row = [path for path in cells if cells[path]["row"] == row]
        [run] = [path for path in of_row if not cells[path]["trial"]]
        best = max((path for path in of_row if path != run), key=lambda path: (scores[path], -cells[path]["trial"]))
        assert cells[run]["recipe"]["optim"] == cells[best]["recipe"]["optim"] | {"warmup_epochs": 1}
        assert cells[best]["recipe"]["data"]["holdout"] == 0.1
        assert "holdout" not in cells[run]["recipe"]["data"]
