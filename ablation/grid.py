"""Run a grid of experiments, see how far it is, and set its scores side by side.

    python -m ablation.grid run    configs/grid_coco.yaml [--only 'ResNet50Backbone_B x fpn'] [--seeds 0,1,2]
    python -m ablation.grid status configs/grid_coco.yaml
    python -m ablation.grid table  configs/grid_coco.yaml [options of ablation.compare]

`run` works through what is missing, goes on with what was interrupted, skips what is finished, and goes on after a
cell fails. A run that is stale (its recipe, data or code is another now) is left alone unless --rerun-stale is given.
"""

import argparse
import fcntl
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

import torch

from ablation import compare
from ablation.plan import Grid, Job, State, claimed, last_error, read_cells, read_grid, remember, state_of
from engine.checkpoint import list_checkpoints
from engine.command import RunError, run_command
from engine.experiment import new_experiment

INTERRUPTED = 130  # exit code of a command that was interrupted from the keyboard


def main(_: torch.device) -> None:
    """Do what the command line says."""
    arguments = parse_arguments()
    if arguments.action == "table":
        compare.check_output(arguments.output)
        comparison = compare.compare(
            [arguments.grid], arguments.experiments, arguments.baseline, arguments.pairs, arguments.replicates,
            arguments.force,
        )  # fmt: skip
        compare.show(comparison, arguments)
        return
    grid = read_grid(arguments.grid)
    jobs = grid.select(arguments.only, arguments.seeds)
    if arguments.action == "run":
        run(jobs, arguments.experiments, arguments.rerun_stale)
    else:
        print(status(grid, jobs, arguments.experiments))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ablation.grid",
        description="Train every cell of a grid file, as numbered experiments, and compare them.",
        epilog="example: python -m ablation.grid run configs/grid_quickstart.yaml --only '* x fpn'",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="run|status|table")
    for name, text in (
        ("run", "train what is missing, one after the other"),
        ("status", "how far each cell is"),
        ("table", "the scores side by side"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("grid", type=Path, help="grid file, see configs/grid_*.yaml")
        if name == "table":
            compare.add_options(action)
            continue
        action.add_argument("--only", metavar="'ROW x COLUMN'", help="these cells alone; * and ? match anything")
        action.add_argument("--seeds", type=seed_list, metavar="0,1,2", help="these seeds alone")
        action.add_argument("--experiments", type=Path, default=Path("experiments"), help="where runs are kept")
        if name == "run":
            action.add_argument("--rerun-stale", action="store_true", help="train stale cells anew")
    return parser.parse_args()


def seed_list(text: str) -> Sequence[int]:
    """'0,1,2' as numbers."""
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected seeds, such as 0,1,2")
    return [int(part) for part in text.split(",")]


def run(jobs: Sequence[Job], experiments: Path, rerun_stale: bool) -> None:
    """Train every job that is not done, one after the other.

    Raises RunError at the end if any has failed, KeyboardInterrupt if one was interrupted from the keyboard."""
    states = {}
    for number, job in enumerate(jobs, start=1):
        heading = f"[{number}/{len(jobs)}] {job.name}"
        with ExitStack() as stack:
            with one_at_a_time(experiments):  # two grids that start at once do not choose the same cell
                state = state_of(job, read_cells(experiments))
                wanted = state.kind in ("waiting", "interrupted", "failed") or (state.kind == "stale" and rerun_stale)
                if wanted:
                    experiment = choose_experiment(job, state, experiments)
                    stack.enter_context(claimed(experiment))
            if wanted:
                print(f"{heading}: {experiment}", flush=True)
                train(job, experiment)
            else:
                print(f"{heading}: {state.kind}, {state.experiment} ({state.detail})", flush=True)
        states[job] = state_of(job, read_cells(experiments))
    kinds = [state.kind for state in states.values()]
    print(", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)))
    bad = [f"{job.name}: {state.detail}" for job, state in states.items() if state.kind in ("failed", "interrupted")]
    if bad:
        raise RunError("\n  ".join([f"{len(bad)} of {len(jobs)} runs did not finish", *bad]))
    if "stale" in kinds:
        print("stale runs were left alone; to train them anew, as new experiments: --rerun-stale")


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


def train(job: Job, experiment: Path) -> None:
    """Train a job into its experiment, or go on there. Raises KeyboardInterrupt if that was interrupted."""
    process = subprocess.Popen(job.command(experiment))
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the terminal told both; let the other end in its own time
        process.wait()
        code = INTERRUPTED
    if code in (INTERRUPTED, -signal.SIGINT):
        print(f"\ninterrupted in {experiment}; the same command goes on from its last checkpoint", flush=True)
        raise KeyboardInterrupt
    if code > 0 and not last_error(experiment):  # it ended before it could write to its own log
        with open(experiment / "train.log", "a", encoding="utf-8") as log:
            moment = datetime.now().isoformat(sep=" ", timespec="seconds")
            log.write(f"{moment} ERROR error: exit code {code} without a word in train.log; see the terminal\n")


def status(grid: Grid, jobs: Sequence[Job], experiments: Path) -> str:
    """A line for each job: cell, seed, how far it is, and where."""
    cells = read_cells(experiments)
    rows = []
    for job in sorted(jobs, key=lambda job: [row.name for row in grid.config.rows].index(job.row)):
        state = state_of(job, cells)
        rows.append(
            [f"{job.row} x {job.column}", f"seed {job.seed}", state.kind, str(state.experiment or ""), state.detail]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


if __name__ == "__main__":
    run_command(main)
