"""Grids under Slurm: what was submitted, and what the queue says of it.

A submission is one array job over the runs that a grid lacks, the job behind it that writes the table, and before it
the smoke test, if there is one. It has a folder, experiments/slurm/<grid>-<n>/: submission.json says which run each
task of the array is; the logs lie beside it, and in the end the table.
"""

import json
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ablation.records import read_object
from engine.experiment import write_text

SUBMISSION = ("grid", "experiments", "rerun_stale", "jobs", "smoke", "array", "table")  # what submission.json has
FINAL = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
)


@dataclass(frozen=True)
class Submission:
    """What was sent off together. Task i of the array trains jobs[i], task i of the smoke test tries smoke_jobs[i]."""

    folder: Path
    grid: str  # path of the grid file
    experiments: str
    rerun_stale: bool
    jobs: tuple[str, ...]  # Job.name each: the grid file may be edited before they start
    smoke: str | None = None  # Slurm's job ids
    array: str | None = None
    table: str | None = None

    @property
    def smoke_jobs(self) -> list[str]:
        """The first run of every cell."""
        return list({name.rpartition(",")[0]: name for name in reversed(self.jobs)}.values())[::-1]

    def write(self) -> None:
        """Into its folder."""
        content = {key: value for key, value in asdict(self).items() if key != "folder"}
        write_text(self.folder / "submission.json", json.dumps(content, indent=2) + "\n")


def read_submission(folder: Path) -> Submission:
    """What was submitted from `folder`. Raises ValueError if it holds no such thing."""
    path = folder / "submission.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no submission.json in it; `ablation.grid submit` makes such folders")
    content = read_object(path, SUBMISSION)
    return Submission(folder, **{key: content[key] for key in SUBMISSION} | {"jobs": tuple(content["jobs"])})


def read_submissions(experiments: Path) -> list[Submission]:
    """All of them, oldest first."""
    paths = experiments.glob("slurm/*/submission.json")
    return [read_submission(path.parent) for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns)]


def submit(submission: Submission, max_running: int | None, after_smoke: bool) -> Submission:
    """Send off the array job, and what goes before and after it; returns the record of it, which is in its folder.

    If one of them is refused the others are taken back. Raises ValueError with what sbatch said."""
    submission.folder.mkdir(parents=True)
    submission.write()
    try:
        if after_smoke:
            submission = replace(submission, smoke=_sbatch(smoke_command(submission)))
        submission = replace(submission, array=_sbatch(array_command(submission, max_running)))
        submission = replace(submission, table=_sbatch(table_command(submission)))
    except ValueError:
        ids = [job_id for job_id in (submission.smoke, submission.array) if job_id]
        if ids:
            subprocess.run(["scancel", *ids], check=False)
        shutil.rmtree(submission.folder)
        raise
    submission.write()
    return submission


def rehearse(submission: Submission, max_running: int | None, after_smoke: bool) -> str:
    """What `submit` would send off, and what Slurm says to it (sbatch --test-only); nothing is written."""
    submission = replace(submission, smoke="SMOKE_JOB" if after_smoke else None, array="ARRAY_JOB")
    commands = [smoke_command(submission)] if after_smoke else []
    commands += [array_command(submission, max_running), table_command(submission)]
    text = []
    for command in commands:
        text.append(f"$ {shlex.join(command)}")
        known = [word for word in command[1:] if not word.startswith("--dependency")]  # on jobs that do not exist yet
        text.append(_run(["sbatch", "--test-only", *known]))
    for script in dict.fromkeys(word for command in commands for word in command if word.endswith(".sbatch")):
        text += ["", f"# ---- {script}", Path(script).read_text().rstrip()]
    return "\n".join(text)


def smoke_command(submission: Submission) -> list[str]:
    """What tries every cell for a minute; the array job waits until all have passed."""
    folder = submission.folder
    return [
        "sbatch", "--parsable", f"--job-name={folder.name}-smoke", f"--array=0-{len(submission.smoke_jobs) - 1}",
        f"--output={folder}/smoke_%A_%a.out", "--time=20", "sbatch/grid.sbatch", str(folder), "--smoke",
    ]  # fmt: skip


def array_command(submission: Submission, max_running: int | None) -> list[str]:
    """What trains every run, `max_running` at a time."""
    folder, limit = submission.folder, f"%{max_running}" if max_running else ""
    after = [f"--dependency=afterok:{submission.smoke}", "--kill-on-invalid-dep=yes"] if submission.smoke else []
    return [
        "sbatch", "--parsable", f"--job-name={folder.name}", f"--array=0-{len(submission.jobs) - 1}{limit}",
        f"--output={folder}/slurm_%A_%a.out", *after, "sbatch/grid.sbatch", str(folder),
    ]  # fmt: skip


def table_command(submission: Submission) -> list[str]:
    """What writes the comparison when the array job has ended, however it has."""
    folder = submission.folder
    return [
        "sbatch", "--parsable", f"--job-name={folder.name}-table", f"--output={folder}/table_%j.out",
        f"--dependency=afterany:{submission.array}", "sbatch/grid_table.sbatch", str(folder), submission.grid,
        "--experiments", submission.experiments,
    ]  # fmt: skip


def new_folder(experiments: Path, grid: str) -> Path:
    """The next free experiments/slurm/<grid>-<n>; not made yet."""
    taken = [path.name.rpartition("-") for path in (experiments / "slurm").glob("*-*")]
    numbers = [int(number) for name, _, number in taken if name == grid and number.isdecimal()]
    return experiments / "slurm" / f"{grid}-{max(numbers, default=0) + 1}"


@dataclass(frozen=True)
class Task:
    """What Slurm says of a task of an array."""

    name: str  # 12_3
    state: str
    reason: str = ""  # why it waits, or where it runs

    @property
    def ended(self) -> bool:
        return self.state in FINAL

    def __str__(self) -> str:
        return f"{self.name} {self.state}" + (f" {self.reason}" if self.reason and not self.ended else "")


def tasks_of(submissions: Sequence[Submission]) -> dict[str, Task]:
    """The task of the newest submission that trains a run, by Job.name, as far as Slurm still knows it.

    Where a smoke test has failed, it stands for the task that has therefore never started."""
    known = _queue()
    if missing := [s.array for s in submissions if s.array and f"{s.array}_0" not in known]:
        known = _accounts(missing) | known
    tasks = {}
    for submission in submissions:
        for job_id, names in ((submission.array, submission.jobs), (submission.smoke, submission.smoke_jobs)):
            for index, name in enumerate(names):
                task = known.get(f"{job_id}_{index}")
                if task and (job_id == submission.array or task.state not in ("COMPLETED", "CANCELLED")):
                    tasks[name] = replace(task, name=f"smoke test {task.name}") if job_id == submission.smoke else task
    return tasks


def _queue() -> dict[str, Task]:
    """This user's tasks that are waiting or running, or have ended a short while ago, by their name."""
    lines = _lines("squeue", "--me", "-h", "-r", "-t", "all", "-o", "%F_%K|%T|%R")
    return {name: Task(name, state, reason) for name, state, reason in lines}


def _accounts(job_ids: Sequence[str]) -> dict[str, Task]:
    """The same of tasks that have left the queue, where Slurm keeps accounts."""
    lines = _lines("sacct", "-n", "-X", "-P", "-j", ",".join(job_ids), "-o", "JobID,State")
    return {name: Task(name, state.partition(" ")[0]) for name, state in lines}  # CANCELLED by 1000


def _lines(*command: str) -> list[list[str]]:
    """What a command of Slurm lists, by its bars; nothing where there is no Slurm, or no accounts."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [line.split("|", maxsplit=2) for line in done.stdout.splitlines()]


def _sbatch(command: Sequence[str]) -> str:
    """Submit; returns the job's number. Raises ValueError with what sbatch said."""
    return _run(command).partition(";")[0]  # a cluster's name may follow


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ValueError(f"{command[0]}: no such command; this is for the login node of a Slurm cluster") from None
    if done.returncode:
        raise ValueError(f"{' '.join(command[:1])} refused: {done.stderr.strip()}; it was {shlex.join(command)}")
    return (done.stdout + done.stderr).strip()
