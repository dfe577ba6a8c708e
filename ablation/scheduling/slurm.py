"""Submit grids to Slurm, and read the state of their tasks from the queue.

A submission is an array job with one task per missing run of a grid, followed by a job that writes the table of scores,
or an array job with one task per missing trial.
The folder experiments/slurm/<grid>-<n>/ holds submission.json (the run of each array task), the logs and the table.
"""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ablation.scheduling.jobs import Grid, Job, job_from, read_grid
from ablation.scheduling.staleness import changed_recipe, is_same_data
from ablation.scheduling.trials import tuned
from engine.command import RunError
from engine.files import write_text
from records.results import read_object

SUBMISSION = ("grid", "experiments", "rerun_stale", "jobs", "array", "table")  # keys of submission.json
FINAL = (  # states of ended tasks
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE",
)  # fmt: skip


@dataclass(frozen=True)
class Submission:
    """A submission. Task i of its array job trains jobs[i]."""

    folder: Path
    grid: str  # path of the grid file
    experiments: str
    rerun_stale: bool
    jobs: tuple[dict, ...]  # a Job's fields and untuned recipe, because configs may be edited before the job starts
    tune: dict | None = None  # section `tune` of the grid file, by which the choice for a run is made when it starts
    array: str | None = None  # job id of the array job
    table: str | None = None  # job id of the job that writes the table; None for trials

    @property
    def are_trials(self) -> bool:
        """Whether the jobs are trials, which choose values for later runs."""
        return self.jobs[0].get("trial") is not None

    @property
    def what(self) -> str:
        return "trials" if self.are_trials else "runs"

    def write(self) -> None:
        """Write submission.json to the folder."""
        content = {key: value for key, value in asdict(self).items() if key != "folder"}
        write_text(self.folder / "submission.json", json.dumps(content, indent=2) + "\n")


def prepare(grid: Grid, experiments: Path, groups: Sequence[Sequence[Job]], rerun_stale: bool) -> list[Submission]:
    """Return a submission for each group of jobs, for the next free folders, without creating the folders."""
    name, tune = grid.path.stem, grid.config.tune
    numbers = [path.name.rpartition("-") for path in (experiments / "slurm").glob("*-*")]
    last = max((int(number) for stem, _, number in numbers if stem == name and number.isdecimal()), default=0)
    return [
        Submission(
            experiments / "slurm" / f"{name}-{last + number}", str(grid.path), str(experiments), rerun_stale,
            tuple(asdict(job) | {"recipe": job.untuned_recipe()} for job in jobs),
            tune.model_dump(mode="json") if tune else None,
        )
        for number, jobs in enumerate(groups, start=1)
    ]  # fmt: skip


def read_submission(folder: Path) -> Submission:
    """Read a submission. Raises ValueError if the folder has no submission.json."""
    path = folder / "submission.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no submission.json in it; expected a folder that `ablation.grid submit` created")
    content = read_object(path, SUBMISSION)
    fields = {key: content[key] for key in SUBMISSION} | {"jobs": tuple(content["jobs"]), "tune": content.get("tune")}
    return Submission(folder, **fields)


def read_submissions(experiments: Path) -> list[Submission]:
    """Return all submissions, oldest first."""
    paths = experiments.glob("slurm/*/submission.json")
    return [read_submission(path.parent) for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns)]


def submit(submissions: Sequence[Submission], after: Sequence[str], max_running: int | None) -> list[Submission]:
    """Submit an array job for each submission, and a job that writes the table. Return the submissions with job ids.

    Each array job starts after the previous one has ended, because trials choose the values of the runs after them.
    after: ids of array jobs in the queue with trials that the runs need.
    If sbatch refuses a job, raises ValueError with sbatch's message, after cancelling the submitted array jobs."""
    done: list[Submission] = []
    try:
        for submission in submissions:
            submission.folder.mkdir(parents=True)
            submission.write()  # a task may start before all jobs are submitted
            before = [each.array for each in done] + ([] if submission.are_trials else list(after))
            done.append(replace(submission, array=_sbatch(array_command(submission, before, max_running))))
        if not done[-1].are_trials:
            done[-1] = replace(done[-1], table=_sbatch(table_command(done[-1])))
    except ValueError:
        for submission in done:
            subprocess.run(["scancel", submission.array], check=False)
        for submission in submissions:
            shutil.rmtree(submission.folder, ignore_errors=True)
        raise
    for submission in done:
        submission.write()
    return done


def preview(submissions: Sequence[Submission], after: Sequence[str], max_running: int | None) -> str:
    """Return a text with the jobs that `submit` would submit and the output of sbatch --test-only. Write no files."""
    text, commands, before = [], [], []
    for submission in submissions:
        text += [f"{index:>5}  {job_from(entry).name}" for index, entry in enumerate(submission.jobs)]
        known = before if submission.are_trials else [*before, *after]
        commands.append(array_command(submission, known, max_running))
        before = ["TRIALS_JOB"]
    if not submission.are_trials:
        commands.append(table_command(replace(submission, array="ARRAY_JOB")))
    text += [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("SBATCH_")]
    for command in commands:
        words = [word for word in command[1:] if not word.startswith("--dependency")]  # that job may not exist
        text += ["", f"$ {shlex.join(command)}", _run(["sbatch", "--test-only", *words])]
    return "\n".join(text)


def array_command(submission: Submission, before: Sequence[str], max_running: int | None) -> list[str]:
    """Return the command that submits the array job.

    before: ids of jobs that must have ended. max_running: limit of parallel tasks, None for no limit."""
    folder, limit = submission.folder, f"%{max_running}" if max_running else ""
    return [
        "sbatch", "--parsable", f"--job-name={folder.name}", f"--array=0-{len(submission.jobs) - 1}{limit}",
        f"--output={folder}/slurm_%A_%a.out", *([f"--dependency=afterany:{':'.join(before)}"] if before else []),
        "sbatch/grid.sbatch", str(folder),
    ]  # fmt: skip


def table_command(submission: Submission) -> list[str]:
    """Return the command that submits the table job, which runs without GPUs after all array tasks have ended."""
    folder = submission.folder
    return [
        "sbatch", "--parsable", f"--job-name=table-{folder.name}", f"--output={folder}/table_%j.out",
        "--gpus-per-node=0", "--time=60", f"--dependency=afterany:{submission.array}",
        "sbatch/grid_table.sbatch", str(folder), submission.grid, "--experiments", submission.experiments,
    ]  # fmt: skip


def _sbatch(command: Sequence[str]) -> str:
    """Submit a job and return its id. Raises ValueError with sbatch's message if sbatch refuses the job."""
    return _run(command).partition(";")[0]  # sbatch may print id;cluster


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ValueError(f"{command[0]}: command not found; run this on the login node of a Slurm cluster") from None
    if done.returncode:
        message = "; ".join(line.removeprefix("sbatch: error: ") for line in done.stderr.strip().splitlines())
        raise ValueError(f"sbatch refused: {message} (to set SBATCH_* variables, see sbatch/cluster.env.example)")
    return (done.stdout + done.stderr).strip()


def run_task(folder: Path, index: int, launcher: Sequence[str]) -> None:
    """Train one run of a submission. Raises RunError if the run does not finish, ValueError if its config changed."""
    from ablation.scheduling.runner import run  # imports torch

    submission = read_submission(folder)
    entry = submission.jobs[index]
    job = job_from(entry)
    if changes := changed_recipe(entry["recipe"], job.untuned_recipe()):
        raise ValueError(f"{job.config}: edited since the submission: {'; '.join(changes)}; submit the grid again")
    if job.chosen is None:
        job = with_choice(job, submission)
    state = run([job], Path(submission.experiments), submission.rerun_stale, launcher)[job]
    if state.kind not in ("done", "diverged"):  # the array task also fails if another process trains the run
        raise RunError(f"{job.name}: {state.kind}, {state.detail}")


def with_choice(job: Job, submission: Submission) -> Job:
    """Return a job with the values that its trials chose.

    Raises RunError if the trials have not all ended, ValueError if the grid was edited since the submission."""
    grid = read_grid(Path(submission.grid))
    tune = grid.config.tune and grid.config.tune.model_dump(mode="json")
    if tune != submission.tune or job.place not in {each.place for each in grid.jobs}:
        raise ValueError(f"{submission.grid}: edited since the submission; submit the grid again")
    grid = tuned(grid, Path(submission.experiments))
    choice = grid.choices.get(grid.tuned_place(job.place))
    if choice is None:
        raise RunError(
            f"{job.name}: its trials chose no value, because not all of them have ended, or none has a score; "
            "see `ablation.grid status`, and submit the grid again"
        )
    return replace(job, chosen=choice)


# ---- state of the queue -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArrayTask:
    """A task of an array job and its state in Slurm."""

    name: str  # job id and index, such as 12_3
    state: str
    reason: str = ""  # why the task waits, the node of a running task, or the log of a failed task

    @property
    def array(self) -> str:
        """Id of the array job."""
        return self.name.partition("_")[0]

    @property
    def ended(self) -> bool:
        return self.state in FINAL

    def __str__(self) -> str:
        return f"{self.name} {self.state} {self.reason}".rstrip()


def tasks_of(jobs: Sequence[Job], submissions: Sequence[Submission]) -> dict[Job, ArrayTask]:
    """Return a dict from job to the newest task with the job's recipe, without tasks that Slurm no longer lists."""
    known = _tasks([each.array for each in submissions if each.array])
    tasks = {}
    for submission in submissions:
        for index, entry in enumerate(submission.jobs):
            task = known.get(f"{submission.array}_{index}")
            job = next((job for job in jobs if _trains(entry, job)), None)
            if task and job:
                failed = task.ended and task.state != "COMPLETED"
                log = f"see {submission.folder}/slurm_{task.name}.out"
                tasks[job] = replace(task, reason=log) if failed else task
    return tasks


def _trains(entry: dict, job: Job) -> bool:
    """Return whether a submitted job (an entry of submission.json) has the current recipe and data of a job.

    Values that trials chose count only if they were known when the job was submitted, and still are."""
    chosen = entry.get("chosen", ())
    if None not in (chosen, job.chosen) and tuple(chosen) != job.chosen:
        return False
    recipe = job.untuned_recipe()
    return not changed_recipe(entry["recipe"], recipe) and is_same_data(entry["recipe"], recipe)


def _tasks(arrays: Sequence[str]) -> dict[str, ArrayTask]:
    """Return a dict from name to task, for all tasks of the array jobs that Slurm still lists."""
    if not arrays:
        return {}
    # squeue drops ended tasks after minutes; sacct keeps them, if the cluster has accounting.
    ended = _lines("sacct", "-n", "-X", "-P", "-j", ",".join(arrays), "-o", "JobID,State")
    queued = _lines("squeue", "--me", "-h", "-r", "-t", "all", "-o", "%F_%K|%T|%R")
    known = {name: ArrayTask(name, state.partition(" ")[0]) for name, state in ended}  # "CANCELLED by 1000"
    return known | {name: ArrayTask(name, state, reason) for name, state, reason in queued}


def _lines(*command: str) -> list[list[str]]:
    """Return the output lines of a Slurm command, split at `|`; an empty list if the command fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [line.split("|", maxsplit=2) for line in done.stdout.splitlines()]
