"""Run a grid of experiments, see how far it is, and set its scores side by side.

    python -m ablation.grid run    configs/grid_coco.yaml [--only 'ResNet50Backbone_B x fpn'] [--seeds 0,1,2]
    python -m ablation.grid submit configs/grid_coco.yaml [--max-running 4] [--after-smoke] [--dry-run]
    python -m ablation.grid status configs/grid_coco.yaml
    python -m ablation.grid table  configs/grid_coco.yaml [options of ablation.compare]

`run` works through what is missing, goes on with what was interrupted, skips what is finished, and goes on after a
cell fails. A run that is stale (its recipe, data or code is another now) is left alone unless --rerun-stale is given.
`submit` sends all that to Slurm, as one array job (ablation/slurm.py, sbatch/grid.sbatch).
"""

import argparse
import fcntl
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import FrameType

import torch

from ablation import compare, slurm
from ablation.plan import Grid, Job, State, claimed, last_error, last_of_each, read_cells, read_grid, remember, state_of
from engine.checkpoint import list_checkpoints
from engine.command import INTERRUPTED, STOPPED, RunError, run_command
from engine.experiment import new_experiment
from engine.signals import Stopped

SMOKE_SECONDS = 60


def main(_: torch.device) -> None:
    """Do what the command line says."""
    arguments = parse_arguments()
    arguments.do(arguments)


def parse_arguments() -> argparse.Namespace:
    """The command line; `do` is the function of the action."""
    parser = argparse.ArgumentParser(
        prog="python -m ablation.grid",
        description="Train every cell of a grid file, as numbered experiments, and compare them.",
        epilog="example: python -m ablation.grid run configs/grid_quickstart.yaml --only '* x fpn'",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="run|submit|status|table")
    for name, do, text in (
        ("run", run_grid, "train what is missing, one after the other"),
        ("submit", submit_grid, "have Slurm train what is missing, as one array job, and then write the table"),
        ("status", print_status, "how far each cell is"),
        ("table", print_table, "the scores side by side"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.set_defaults(do=do)
        action.add_argument("grid", type=Path, help="grid file, see configs/grid_*.yaml")
        if name == "table":
            compare.add_options(action)
            continue
        action.add_argument("--only", metavar="'ROW x COLUMN'", help="these cells alone; * and ? match anything")
        action.add_argument("--seeds", type=seed_list, metavar="0,1,2", help="these seeds alone")
        action.add_argument("--experiments", type=Path, default=Path("experiments"), help="where runs are kept")
        if name in ("run", "submit"):
            action.add_argument("--rerun-stale", action="store_true", help="train stale cells anew")
        if name == "run":
            add_launcher(action)
        if name == "submit":
            action.add_argument("--max-running", type=positive, metavar="N", help="tasks at a time (default: no limit)")
            action.add_argument(
                "--after-smoke", action="store_true", help="first train each cell for a minute; go on if all can"
            )
            action.add_argument("--dry-run", action="store_true", help="show what would be sent, and what Slurm says")
    task = actions.add_parser("task", description="one task of what `submit` has sent off")  # for sbatch/grid.sbatch
    task.set_defaults(do=run_task)
    task.add_argument("folder", type=Path, help="of the submission")
    task.add_argument("--index", type=int, required=True, help="of the task in the array")
    task.add_argument("--smoke", action="store_true", help="for a minute, outside of all experiments")
    add_launcher(task)
    return parser.parse_args()


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """The option that says how runs are started."""
    parser.add_argument(
        "--launcher", type=shlex.split, default=[sys.executable], metavar="'torchrun --standalone --nproc_per_node=4'",
        help="starts the module of a run (default: python, one process)",
    )  # fmt: skip


def positive(text: str) -> int:
    """A number from 1 up."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 1 up")
    return int(text)


def seed_list(text: str) -> Sequence[int]:
    """'0,1,2' as numbers."""
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected seeds, such as 0,1,2")
    return [int(part) for part in text.split(",")]


# ---- here, one after the other -----------------------------------------------------------------------------


def run_grid(arguments: argparse.Namespace) -> None:
    """Train every job that is not done, one after the other. Raises RunError at the end if any has failed."""
    jobs = read_grid(arguments.grid).select(arguments.only, arguments.seeds)
    states = run(jobs, arguments.experiments, arguments.rerun_stale, arguments.launcher)
    kinds = [state.kind for state in states.values()]
    print(", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)))
    bad = [f"{job.name}: {state.detail}" for job, state in states.items() if state.kind in ("failed", "interrupted")]
    if bad:
        raise RunError("\n  ".join([f"{len(bad)} of {len(jobs)} runs did not finish", *bad]))
    if "stale" in kinds:
        print("stale runs were left alone; to train them anew, as new experiments: --rerun-stale")


def run(jobs: Sequence[Job], experiments: Path, rerun_stale: bool, launcher: Sequence[str]) -> dict[Job, State]:
    """Train every job that is not done; returns how far each is then.

    Raises KeyboardInterrupt or Stopped if one was interrupted."""
    states = {}
    for number, job in enumerate(jobs, start=1):
        heading = f"[{number}/{len(jobs)}] {job.name}"
        with ExitStack() as stack:
            with one_at_a_time(experiments):  # two grids that start at once do not choose the same cell
                state = state_of(job, read_cells(experiments))
                wanted = is_wanted(state, rerun_stale)
                if wanted:
                    experiment = choose_experiment(job, state, experiments)
                    stack.enter_context(claimed(experiment))
            if wanted:
                print(f"{heading}: {experiment}", flush=True)
                train(job, experiment, launcher)
            else:
                print(f"{heading}: {state.kind}, {state.experiment} ({state.detail})", flush=True)
        states[job] = state_of(job, read_cells(experiments))
    return states


def is_wanted(state: State, rerun_stale: bool) -> bool:
    """Whether a job is to be trained, or gone on with."""
    return state.kind in ("waiting", "interrupted", "failed") or (state.kind == "stale" and rerun_stale)


@contextmanager
def one_at_a_time(experiments: Path) -> Iterator[None]:
    """Inside, no other grid chooses what to train."""
    experiments.mkdir(parents=True, exist_ok=True)
    with open(experiments / "grid.lock", "a") as file:
        with suppress(OSError):  # a file system without locks keeps no two grids apart
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def choose_experiment(job: Job, state: State, experiments: Path) -> Path:
    """Where to train a job: where it was interrupted or failed, else in a new experiment, which remembers the job."""
    goes_on = state.kind in ("interrupted", "failed")
    experiment = state.experiment if goes_on else new_experiment(experiments)
    if not list_checkpoints(experiment / "checkpoints"):  # nothing to go on from: it starts with the present code
        remember(job, experiment)
    return experiment


def train(job: Job, experiment: Path, launcher: Sequence[str]) -> None:
    """Train a job into its experiment, or go on there.

    Raises KeyboardInterrupt or Stopped if a signal came meanwhile, which the run has had as well."""
    process = subprocess.Popen(job.command(experiment, launcher))
    with passed_on_to(process) as signals:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the terminal told both; let the other end in its own time
            process.wait()
            code = INTERRUPTED
    if signals:
        raise Stopped(signals[0].name)
    if code in (INTERRUPTED, -signal.SIGINT):
        print(f"\ninterrupted in {experiment}; the same command goes on from its last checkpoint", flush=True)
        raise KeyboardInterrupt
    if code > 0 and code != STOPPED and not last_error(experiment):  # before it could write to its own log
        with open(experiment / "train.log", "a", encoding="utf-8") as log:
            moment = datetime.now().isoformat(sep=" ", timespec="seconds")
            log.write(f"{moment} ERROR error: exit code {code} without a word in train.log; see the terminal\n")


@contextmanager
def passed_on_to(process: subprocess.Popen) -> Iterator[list[signal.Signals]]:
    """Inside, SIGTERM and SIGUSR1 go to `process`; yields the list of those that have come."""
    came: list[signal.Signals] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        came.append(signal.Signals(number))
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- under Slurm -------------------------------------------------------------------------------------------


def submit_grid(arguments: argparse.Namespace) -> None:
    """Send off what is missing and not in the queue already."""
    if not Path("sbatch/grid.sbatch").is_file():
        raise ValueError(f"{Path.cwd()}: no sbatch/grid.sbatch here; submit from the folder of the project")
    jobs = read_grid(arguments.grid).select(arguments.only, arguments.seeds)
    experiments = arguments.experiments
    with one_at_a_time(experiments):
        cells, tasks = read_cells(experiments), slurm.tasks_of(slurm.read_submissions(experiments))
        queued = [job for job in jobs if job.name in tasks and not tasks[job.name].ended]
        missing = [job for job in jobs if is_wanted(state_of(job, cells), arguments.rerun_stale) and job not in queued]
        print(f"{len(missing)} of {len(jobs)} runs are missing" + (f", {len(queued)} are queued" if queued else ""))
        if not missing:
            return
        submission = slurm.Submission(
            slurm.new_folder(experiments, arguments.grid.stem), str(arguments.grid), str(experiments),
            arguments.rerun_stale, tuple(job.name for job in missing),
        )  # fmt: skip
        if arguments.dry_run:
            print(slurm.rehearse(submission, arguments.max_running, arguments.after_smoke))
            return
        submission = slurm.submit(submission, arguments.max_running, arguments.after_smoke)
    if submission.smoke:
        print(f"job {submission.smoke}: {len(submission.smoke_jobs)} cells for a minute each")
    print(f"job {submission.array}: {len(missing)} runs\njob {submission.table}: the table, in {submission.folder}")
    print(f"to see how far it is: python -m ablation.grid status {arguments.grid}")


def run_task(arguments: argparse.Namespace) -> None:
    """Train one run of a submission, or try it. Raises RunError if it fails."""
    submission = slurm.read_submission(arguments.folder)
    name = (submission.smoke_jobs if arguments.smoke else submission.jobs)[arguments.index]
    job = next((job for job in read_grid(Path(submission.grid)).jobs if job.name == name), None)
    if job is None:
        raise ValueError(f"{submission.grid}: {name!r} is no longer there, which {submission.folder} was submitted for")
    if arguments.smoke:
        try_out(job, submission.folder / f"smoke_{arguments.index}", arguments.launcher)
        return
    states = run([job], Path(submission.experiments), submission.rerun_stale, arguments.launcher)
    if states[job].kind != "done":  # a task that was left to another process must not look done, either
        raise RunError(f"{job.name}: {states[job].kind}, {states[job].detail}")


def try_out(job: Job, folder: Path, launcher: Sequence[str]) -> None:
    """Train a job for a minute, in a folder that is deleted if all goes well. Raises RunError if it fails."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    overrides = last_of_each([*job.overrides, "train.checkpoint_every_steps=10"])  # a checkpoint shows that it trains
    process = subprocess.Popen(replace(job, overrides=overrides).command(folder, launcher))
    ends, stopped = time.monotonic() + SMOKE_SECONDS, False
    with passed_on_to(process) as signals:
        while process.poll() is None:
            if not stopped and time.monotonic() > ends and list_checkpoints(folder / "checkpoints"):
                process.send_signal(signal.SIGUSR1)
                stopped = True
            time.sleep(1)
    if signals or last_error(folder) or (process.returncode and not stopped):
        reason = last_error(folder) or (f"ended by {signals[0].name}" if signals else f"exit code {process.returncode}")
        raise RunError(f"{job.name}: {reason}")
    print(f"{job.name}: trains")
    shutil.rmtree(folder)


# ---- how far it is -----------------------------------------------------------------------------------------


def print_status(arguments: argparse.Namespace) -> None:
    """How far each job is."""
    grid = read_grid(arguments.grid)
    print(status(grid, grid.select(arguments.only, arguments.seeds), arguments.experiments))


def print_table(arguments: argparse.Namespace) -> None:
    """The scores side by side."""
    compare.check_output(arguments.output)
    comparison = compare.compare(
        [arguments.grid], arguments.experiments, arguments.baseline, arguments.pairs, arguments.replicates,
        arguments.force,
    )  # fmt: skip
    compare.show(comparison, arguments)


def status(grid: Grid, jobs: Sequence[Job], experiments: Path) -> str:
    """A line for each job: cell, seed, how far it is, and where; for what is not done, what Slurm says of it."""
    cells, tasks = read_cells(experiments), slurm.tasks_of(slurm.read_submissions(experiments))
    rows = []
    for job in sorted(jobs, key=lambda job: [row.name for row in grid.config.rows].index(job.row)):
        state, task = state_of(job, cells), tasks.get(job.name)
        details = [state.detail, f"Slurm: {task}" if task and state.kind != "done" else ""]
        where = str(state.experiment or "")
        rows.append(
            [f"{job.row} x {job.column}", f"seed {job.seed}", state.kind, where, "; ".join(filter(None, details))]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


if __name__ == "__main__":
    run_command(main)
