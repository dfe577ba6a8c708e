"""Train a grid of experiments (rows x columns x seeds), show its progress, and compare the scores.

    python -m ablation.grid run    configs/grid_coco.yaml [--only 'ResNet50Backbone_B x fpn'] [--parallel 2]
                                                          [--all-seeds]
    python -m ablation.grid submit configs/grid_coco.yaml [--max-running 4] [--dry-run]
    python -m ablation.grid status configs/grid_coco.yaml
    python -m ablation.grid table  configs/grid_coco.yaml [options of ablation.compare]

`run` trains the missing runs, several at a time on a CPU. It resumes stopped, killed and failed runs, and
skips finished runs. Stale runs (their recipe, data or code has changed) are trained again only with --rerun-stale.
With `tune:` in the grid file, trials choose values of some fields for each row or cell before its runs start.
With `looks:` in the grid file, cells get more seeds only while they are in an open difference. `submit` does the same
as one Slurm array job. The parts are in ablation/scheduling.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation import compare
from engine.arguments import check_config, positive
from engine.start import start

if TYPE_CHECKING:
    from ablation.scheduling.jobs import Grid, Job, State


def main(arguments: argparse.Namespace, _: None) -> None:
    """Run the selected action: run, submit, status, table or task."""
    arguments.do(arguments)


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. `do` in the result is the function that runs the selected action."""
    parser = argparse.ArgumentParser(
        prog="python -m ablation.grid",
        description="Train every cell (row x column) and seed of a grid file, and compare the scores of the cells.",
        epilog="example: python -m ablation.grid run configs/grid_quickstart.yaml --only '* x fpn'",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="run|submit|status|table")
    for name, do, text in (
        ("run", run_grid, "train the missing runs, several at a time on a CPU"),
        ("submit", submit_grid, "train the missing runs as one Slurm array job, then write the table"),
        ("status", print_status, "show the state of each run"),
        ("table", print_table, "compare the scores of the cells"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.set_defaults(do=do)
        action.add_argument("grid", type=Path, help="grid file, see configs/grid_*.yaml")
        if name == "table":
            compare.add_options(action)
            continue
        action.add_argument("--only", metavar="'ROW x COLUMN'", help="only matching cells; * and ? are wildcards")
        action.add_argument("--seeds", type=seed_list, metavar="0,1,2", help="only these seeds")
        action.add_argument("--experiments", type=Path, default=Path("experiments"), help="folder of the experiments")
        if name in ("run", "submit"):
            action.add_argument("--rerun-stale", action="store_true", help="train stale runs again, in new experiments")
            looks = "with `looks:` in the grid file: "
            action.add_argument("--all-seeds", action="store_true", help=f"{looks}train all seeds of all cells")
            action.add_argument("--pairs", action="store_true", help=f"{looks}seeds for all pairs of cells")
            action.add_argument("--baseline", metavar="'ROW x COLUMN'", help=f"{looks}baseline (default: first cell)")
            margin = f"{looks}stop for differences below D too"
            action.add_argument("--margin", type=compare.positive_number, metavar="D", help=margin)
            action.add_argument(
                "--replicates", type=compare.replicate_count, default=compare.REPLICATES, metavar="R",
                help=f"{looks}number of resamples (default: {compare.REPLICATES})",
            )  # fmt: skip
        if name == "run":
            action.add_argument(
                "--parallel", type=positive, metavar="N",
                help="parallel runs (default: one per core, at most one per 2 GiB; 1 with GPUs or --launcher)",
            )  # fmt: skip
            add_launcher(action)
        if name == "submit":
            action.add_argument("--max-running", type=positive, metavar="N", help="parallel tasks (default: no limit)")
            action.add_argument("--dry-run", action="store_true", help="print the jobs without submitting them")
    task = actions.add_parser("task", description="train one run of a submission")  # for sbatch/grid.sbatch
    task.set_defaults(do=run_task)
    task.add_argument("folder", type=Path, help="folder of the submission")
    task.add_argument("--index", type=int, required=True, help="index of the task in the array")
    add_launcher(task)
    arguments = parser.parse_args(words)
    if arguments.action != "task":
        check_config(arguments.grid)
    if arguments.action == "table":
        arguments.files = {}
        compare.check_options(arguments)
    return arguments


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add --launcher, the command that starts each run."""
    parser.add_argument(
        "--launcher", type=shlex.split, default=[sys.executable], metavar="COMMAND",
        help="command that starts each run, such as 'torchrun --standalone --nproc_per_node=4' "
        "(default: python, one process)",
    )  # fmt: skip


def seed_list(text: str) -> Sequence[int]:
    """Parse --seeds: comma-separated integers, such as '0,1,2'."""
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected comma-separated seeds such as 0,1,2")
    return [int(part) for part in text.split(",")]


# ---- on this machine ---------------------------------------------------------------------------------------


def run_grid(arguments: argparse.Namespace) -> None:
    """Train every missing trial, then every missing run. Raises RunError at the end if any of them did not finish."""
    from ablation.scheduling.jobs import UNFINISHED, read_grid
    from ablation.scheduling.runner import default_parallel, run
    from ablation.scheduling.stopping import needed_jobs
    from ablation.scheduling.trials import describe_choices, trials_of, tuned
    from engine.command import RunError

    grid = read_grid(arguments.grid)
    parallel = arguments.parallel or default_parallel(arguments.launcher)

    def train(jobs: "Sequence[Job]") -> "dict[Job, State]":
        return run(jobs, arguments.experiments, arguments.rerun_stale, arguments.launcher, parallel)

    states = train(trials_of(grid.select(arguments.only, arguments.seeds), grid))
    grid = tuned(grid, arguments.experiments)
    if grid.config.tune:
        print("\n".join(describe_choices(grid, arguments.experiments)))
    jobs = grid.select(arguments.only, arguments.seeds)
    blocked = [job for job in jobs if job.chosen is None]
    jobs = [job for job in jobs if job.chosen is not None]
    if not grid.config.looks or arguments.all_seeds:
        states |= train(jobs)
    elif blocked:  # some cells have no scores to look at
        states |= train(needed_jobs(jobs, None, grid))
    else:
        states |= run_to_looks(grid, jobs, train, arguments)
    kinds = [state.kind for state in states.values()]
    print(", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)))
    bad = {job: state.detail for job, state in states.items() if state.kind in UNFINISHED}
    bad |= dict.fromkeys(blocked, "not trained, because the trials of its row or cell gave no values")
    if bad:
        reasons = {why: [job.name for job in bad if bad[job] == why] for why in bad.values()}
        lines = [f"{names[0] if len(names) == 1 else f'{len(names)} runs'}: {why}" for why, names in reasons.items()]
        if "stale" in kinds and blocked:
            lines.append("stale trials were skipped; --rerun-stale trains them again as new experiments")
        raise RunError(f"{len(bad)} of {len(states) + len(blocked)} runs did not finish\n  " + "\n  ".join(lines))
    if "stale" in kinds:
        print("stale runs were skipped; --rerun-stale trains them again as new experiments")


def run_to_looks(
    grid: "Grid",
    jobs: "Sequence[Job]",
    train: "Callable[[Sequence[Job]], dict[Job, State]]",
    arguments: argparse.Namespace,
) -> "dict[Job, State]":
    """Train the runs that the planned looks need, look by look. Return the state of each of them."""
    from ablation.scheduling.stopping import needed_jobs, outcome_of, stopping_point

    states, outcome = {}, ""
    while True:
        stopping, before = stopping_point(grid, arguments.experiments, **look_options(arguments)), outcome
        outcome = outcome_of(stopping, grid, arguments.experiments)
        if outcome != before:
            print(outcome)
        missing = [job for job in needed_jobs(jobs, stopping, grid) if job not in states]
        if not missing:
            return states
        states |= train(missing)


# ---- under Slurm -------------------------------------------------------------------------------------------


def submit_grid(arguments: argparse.Namespace) -> None:
    """Submit the missing runs that are not yet in the Slurm queue.

    Missing trials become an array job of their own. The other runs start after it, with the values that it chose."""
    from ablation.scheduling import slurm
    from ablation.scheduling.jobs import read_cells, read_grid, state_of
    from ablation.scheduling.runner import needs_training, scheduling_lock
    from ablation.scheduling.stopping import needed_jobs, outcome_of, stopping_point
    from ablation.scheduling.trials import trials_of, tuned

    if not Path("sbatch/grid.sbatch").is_file():
        raise ValueError(f"{Path.cwd()}: sbatch/grid.sbatch not found; run this command from the project's root folder")
    experiments = arguments.experiments
    grid = tuned(read_grid(arguments.grid), experiments)
    jobs = grid.select(arguments.only, arguments.seeds)
    decides_at_looks = grid.config.looks and not arguments.all_seeds
    if decides_at_looks and all(job.chosen is not None for job in grid.jobs):
        stopping = stopping_point(grid, experiments, **look_options(arguments))
        print(outcome_of(stopping, grid, experiments))
        jobs = needed_jobs(jobs, stopping, grid)
    elif decides_at_looks:
        jobs = needed_jobs(jobs, None, grid)
    with scheduling_lock(experiments):
        cells = read_cells(experiments)
        trials = trials_of(jobs, grid)
        tasks = slurm.tasks_of([*trials, *grid.jobs], slurm.read_submissions(experiments))

        def missing(jobs: "Sequence[Job]") -> "list[Job]":
            waiting = [job for job in jobs if needs_training(state_of(job, cells), arguments.rerun_stale)]
            return [job for job in waiting if job not in tasks or tasks[job].ended]

        groups = [group for group in (missing(trials), missing(jobs)) if group]
        total = len(trials) + len(jobs)
        print(f"{sum(map(len, groups))} of {total} runs are missing and not in the queue")
        if not groups:
            print(f"nothing to submit; to compare the scores: {follow_up(arguments, 'table')}")
            if any(state_of(job, cells).kind == "stale" for job in [*trials, *jobs]):
                print("stale runs were skipped; --rerun-stale trains them again as new experiments")
            return
        running = {tasks[job].array for job in trials if job in tasks and not tasks[job].ended}
        submissions = slurm.prepare(arguments.grid, experiments, groups, arguments.rerun_stale)
        if arguments.dry_run:
            print(slurm.preview(submissions, sorted(running), arguments.max_running))
            return
        submissions = slurm.submit(submissions, sorted(running), arguments.max_running)
    for submission in submissions:
        print(f"job {submission.array}: {len(submission.jobs)} {submission.what}")
    if submission.table:
        print(f"job {submission.table}: table, written to {submission.folder}")
    print(f"to see their progress: {follow_up(arguments, 'status')}")
    if decides_at_looks:
        print("submit again when they have ended, to decide which cells get more seeds")


def look_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the comparison that decides at planned looks."""
    return {name: getattr(arguments, name) for name in ("baseline", "pairs", "replicates", "margin")}


def follow_up(arguments: argparse.Namespace, action: str) -> str:
    """Return the command line that runs another action on the same grid."""
    words = ["python", "-m", "ablation.grid", action, arguments.grid, "--experiments", arguments.experiments]
    return shlex.join(map(str, words))


def run_task(arguments: argparse.Namespace) -> None:
    """Train the run of one array task of a submission."""
    from ablation.scheduling import slurm

    slurm.run_task(arguments.folder, arguments.index, arguments.launcher)


def print_status(arguments: argparse.Namespace) -> None:
    """Print the state of each job, and what the trials chose."""
    from ablation.scheduling.jobs import read_grid
    from ablation.scheduling.trials import describe_choices, trials_of, tuned

    grid = tuned(read_grid(arguments.grid), arguments.experiments)
    jobs = grid.select(arguments.only, arguments.seeds)
    print(status(grid, [*trials_of(jobs, grid), *jobs], arguments.experiments))
    if grid.config.tune:
        print("\n".join(["values that the trials chose:", *describe_choices(grid, arguments.experiments)]))


def print_table(arguments: argparse.Namespace) -> None:
    """Print the comparison or write it to --output."""
    compare.show_comparison([arguments.grid], arguments)


def status(grid: "Grid", jobs: Sequence["Job"], experiments: Path) -> str:
    """Return a table with the state and experiment of each job, and the Slurm state of each job that is not done."""
    from ablation.scheduling import slurm
    from ablation.scheduling.jobs import read_cells, state_of
    from ablation.scheduling.stopping import settled_cells
    from records.experiment import table

    settled = settled_cells(grid, experiments)
    cells, tasks = read_cells(experiments), slurm.tasks_of(jobs, slurm.read_submissions(experiments))
    rows = []
    for job in sorted(jobs, key=lambda job: [row.name for row in grid.config.rows].index(job.row)):
        state, task = state_of(job, cells), tasks.get(job)
        number, count = settled.get(job.cell, (0, len(grid.config.seeds)))
        is_needed = state.kind == "done" or job.trial or grid.config.seeds.index(job.seed) < count
        notes = [state.detail, f"Slurm: {task}" if task and state.kind != "done" else ""]
        detail = "; ".join(filter(None, [*notes, "" if is_needed else f"not needed (decided at look {number})"]))
        where, seed = str(state.experiment or ""), f"trial {job.trial}" if job.trial else str(job.seed)
        rows.append({"cell": job.cell, "seed": seed, "state": state.kind, "experiment": where, "detail": detail})
    design = grid.config.design
    legend = ["factors: " + ", ".join(map(design.label, design.factors))] if design else []
    return "\n".join([table(rows), *legend])


if __name__ == "__main__":
    start(parse_arguments, main, on_device=False)
