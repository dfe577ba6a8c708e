"""Grids under Slurm: submit them, and read their state in the queue.

A submission is one array job over the runs that a grid lacks, a job after it that writes the table, and before it a
smoke test, if asked for. It has a folder, experiments/slurm/<grid>-<n>/, with submission.json, which says which run
each task of the array is, the logs, and in the end the table.
"""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ablation.plan import Job, job_of
from ablation.staleness import changed_recipe, is_same_data
from engine.command import RunError
from engine.files import write_text
from records.results import read_object

SUBMISSION = ("grid", "experiments", "rerun_stale", "jobs", "smoke", "array", "table")  # what submission.json has
FINAL = (  # states that a task does not leave by itself
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE",
)  # fmt: skip


@dataclass(frozen=True)
class Submission:
    """What was submitted together. Task i of the array trains jobs[i], task i of the smoke test tries smoke_jobs[i]."""

    folder: Path
    grid: str  # path of the grid file
    experiments: str
    rerun_stale: bool
    jobs: tuple[dict, ...]  # a Job's fields and its recipe: grid and configs may be edited before it starts
    smoke: str | None = None  # Slurm's job ids
    array: str | None = None
    table: str | None = None

    @property
    def smoke_jobs(self) -> list[dict]:
        """Return the first run of every cell."""
        first = {(entry["row"], entry["column"]): entry for entry in reversed(self.jobs)}
        return [entry for entry in self.jobs if first[entry["row"], entry["column"]] is entry]

    def write(self) -> None:
        """Write submission.json into its folder."""
        content = {key: value for key, value in asdict(self).items() if key != "folder"}
        write_text(self.folder / "submission.json", json.dumps(content, indent=2) + "\n")


def prepare(grid: Path, experiments: Path, jobs: Sequence[Job], rerun_stale: bool) -> Submission:
    """Return a submission in the next free folder; nothing is written yet."""
    numbers = [path.name.rpartition("-") for path in (experiments / "slurm").glob("*-*")]
    last = max((int(number) for name, _, number in numbers if name == grid.stem and number.isdecimal()), default=0)
    entries = tuple(asdict(job) | {"recipe": job.recipe()} for job in jobs)
    return Submission(
        experiments / "slurm" / f"{grid.stem}-{last + 1}", str(grid), str(experiments), rerun_stale, entries
    )


def read_submission(folder: Path) -> Submission:
    """Return what was submitted from `folder`. Raises ValueError if it has no submission.json."""
    path = folder / "submission.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no submission.json in it; `ablation.grid submit` makes such folders")
    content = read_object(path, SUBMISSION)
    return Submission(folder, **{key: content[key] for key in SUBMISSION} | {"jobs": tuple(content["jobs"])})


def read_submissions(experiments: Path) -> list[Submission]:
    """Return all of them, oldest first."""
    paths = experiments.glob("slurm/*/submission.json")
    return [read_submission(path.parent) for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns)]


# ---- sending off -------------------------------------------------------------------------------------------


def submit(submission: Submission, max_running: int | None, after_smoke: bool, earlier: Sequence[str]) -> Submission:
    """Submit the array job, and what goes before and after it; return the record of it, which is in its folder.

    earlier: array jobs of this grid that have not ended; the table waits for them, too.
    If one of the jobs is refused the others are cancelled. Raises ValueError with what sbatch said."""
    submission.folder.mkdir(parents=True)
    submission.write()
    ids: list[str] = []

    def send(options: Sequence[str], words: Sequence[str]) -> str:
        ids.append(_run(["sbatch", "--parsable", *options, *words]).partition(";")[0])  # a cluster's name may follow
        return ids[-1]

    try:
        submission = _send_all(submission, max_running, after_smoke, earlier, send)
    except ValueError:
        if ids:
            subprocess.run(["scancel", *ids], check=False)
        shutil.rmtree(submission.folder)
        raise
    submission.write()
    return submission


def rehearse(submission: Submission, max_running: int | None, after_smoke: bool, earlier: Sequence[str]) -> str:
    """Return what `submit` would send, and what Slurm says to it (sbatch --test-only); nothing is written."""
    text = [f"{index:>5}  {job_of(entry).name}" for index, entry in enumerate(submission.jobs)]
    text += [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("SBATCH_")]

    def send(options: Sequence[str], words: Sequence[str]) -> str:
        known = [word for word in options if not word.startswith("--dependency")]  # on jobs that do not exist yet
        text.extend(["", f"$ {shlex.join(['sbatch', *options, *words])}"])
        text.append(_run(["sbatch", "--test-only", *known, *words]))
        return "JOB"

    _send_all(submission, max_running, after_smoke, earlier, send)
    return "\n".join(text)


def _send_all(
    submission: Submission, max_running: int | None, after_smoke: bool, earlier: Sequence[str],
    send: Callable[[Sequence[str], Sequence[str]], str],
) -> Submission:  # fmt: skip
    """Call `send` with the options of each job and its script with arguments; return the record with their numbers.

    These are a job that takes two steps of every cell, the array job, which waits until all cells have passed, and the
    one that writes the table, without GPUs, when the array job has ended in whatever way."""
    folder, after = submission.folder, []
    script = ["sbatch/grid.sbatch", str(folder)]
    if after_smoke:
        options = [f"--array=0-{len(submission.smoke_jobs) - 1}", f"--output={folder}/smoke_%A_%a.out", "--time=30"]
        smoke = send([f"--job-name=smoke-{folder.name}", *options], [*script, "--smoke"])
        submission = replace(submission, smoke=smoke)
        after = [f"--dependency=afterok:{smoke}", "--kill-on-invalid-dep=yes"]
    tasks = f"--array=0-{len(submission.jobs) - 1}" + (f"%{max_running}" if max_running else "")
    array = send([f"--job-name={folder.name}", tasks, f"--output={folder}/slurm_%A_%a.out", *after], script)
    options = [f"--dependency=afterany:{':'.join([*earlier, array])}", "--gpus-per-node=0", "--time=60"]
    table = send(
        [f"--job-name=table-{folder.name}", f"--output={folder}/table_%j.out", *options],
        ["sbatch/grid_table.sbatch", str(folder), submission.grid, "--experiments", submission.experiments],
    )
    return replace(submission, array=array, table=table)


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ValueError(f"{command[0]}: no such command; this is for the login node of a Slurm cluster") from None
    if done.returncode:
        said = "; ".join(line.removeprefix("sbatch: error: ") for line in done.stderr.strip().splitlines())
        raise ValueError(f"sbatch refused: {said} (SBATCH_* variables: see sbatch/cluster.env.example)")
    return (done.stdout + done.stderr).strip()


# ---- in the job --------------------------------------------------------------------------------------------


def run_task(folder: Path, index: int, smoke: bool, launcher: Sequence[str]) -> None:
    """Train one run of a submission, or try it. Raises RunError if it fails, ValueError if its config was edited."""
    from ablation.runner import run, try_out  # imports torch

    submission = read_submission(folder)
    entry = (submission.smoke_jobs if smoke else submission.jobs)[index]
    job = job_of(entry)
    if changes := changed_recipe(entry["recipe"], job.recipe()):
        raise ValueError(f"{job.config}: edited since this was submitted: {'; '.join(changes)}; submit the grid again")
    if smoke:
        try_out(job, Path(submission.experiments), launcher)
        return
    state = run([job], Path(submission.experiments), submission.rerun_stale, launcher)[job]
    if state.kind != "done":  # also if another process is training it
        raise RunError(f"{job.name}: {state.kind}, {state.detail}")


# ---- what the queue says -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArrayTask:
    """A task of an array job, as Slurm reports it."""

    name: str  # 12_3
    state: str
    reason: str = ""  # why it waits, where it runs, or where to read why it has failed

    @property
    def ended(self) -> bool:
        return self.state in FINAL

    def __str__(self) -> str:
        return f"{self.name} {self.state} {self.reason}".rstrip()


def tasks_of(jobs: Sequence[Job], submissions: Sequence[Submission]) -> dict[Job, ArrayTask]:
    """Return the task of the newest submission that trains each job's recipe, as far as Slurm still knows it.

    If a failed smoke test has kept it from starting, the reason says so."""
    known = _tasks([each for each in submissions if each.array])
    tasks = {}
    for submission in submissions:
        smoke = {index: known.get(f"{submission.smoke}_{index}") for index in range(len(submission.smoke_jobs))}
        passed = ("COMPLETED", "CANCELLED")
        failed = {i: task for i, task in smoke.items() if task and task.ended and task.state not in passed}
        for index, entry in enumerate(submission.jobs):
            task = known.get(f"{submission.array}_{index}")
            job = next((job for job in jobs if is_of(entry, job)), None)
            if not task or not job:
                continue
            if failed and task.state == "CANCELLED":
                first, test = next(iter(failed.items()))
                log = submission.folder / f"smoke_{test.name}.out"
                cell = job_of(submission.smoke_jobs[first]).name
                task = replace(task, reason=f"for the smoke test of {cell} failed, see {log}")
            elif task.ended and task.state != "COMPLETED":
                task = replace(task, reason=f"see {submission.folder}/slurm_{task.name}.out")
            tasks[job] = task
    return tasks


def is_of(entry: dict, job: Job) -> bool:
    """Whether what was submitted trains the job as it is now."""
    recipe = job.recipe()
    return not changed_recipe(entry["recipe"], recipe) and is_same_data(entry["recipe"], recipe)


def _tasks(submissions: Sequence[Submission]) -> dict[str, ArrayTask]:
    """Return all tasks of these submissions that Slurm still knows, by their name."""
    lines = _lines("squeue", "--me", "-h", "-r", "-t", "all", "-o", "%F_%K|%T|%R")
    known = {name: ArrayTask(name, state, reason) for name, state, reason in lines}
    job_ids = [job_id for each in submissions for job_id in (each.smoke, each.array) if job_id]
    if not job_ids:
        return known
    # Ended tasks leave the queue after minutes; where there are accounts, they are kept there.
    lines = _lines("sacct", "-n", "-X", "-P", "-j", ",".join(job_ids), "-o", "JobID,State")
    return {name: ArrayTask(name, state.partition(" ")[0]) for name, state in lines} | known  # CANCELLED by 1000


def _lines(*command: str) -> list[list[str]]:
    """Return the fields, between bars, of what a Slurm command lists; nothing without Slurm, or without accounting."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [line.split("|", maxsplit=2) for line in done.stdout.splitlines()]
