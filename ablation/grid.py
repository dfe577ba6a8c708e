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
with Slurm array jobs: one for missing trials, one for runs. The parts are in ablation/scheduling.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation import compare
from engine.arguments import check_config, positive
from engine.start import start

if TYPE_CHECKING:
    from ablation.scheduling.jobs import Grid, Job, State
    from ablation.scheduling.slurm import ArrayTask


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
        ("submit", submit_grid, "train the missing runs as a Slurm array job, then write the table"),
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
    from ablation.scheduling.jobs import read_cells, read_grid
    from ablation.scheduling.runner import default_parallel, run
    from ablation.scheduling.trials import check_configs, describe_choices, read_trials, trials_of, with_choices
    from ablation.stopping import needed_jobs

    grid = read_grid(arguments.grid)
    parallel = arguments.parallel or default_parallel(arguments.launcher)

    def train(jobs: "Sequence[Job]") -> "dict[Job, State]":
        return run(jobs, arguments.experiments, arguments.rerun_stale, arguments.launcher, parallel)

    jobs = grid.select(arguments.only, arguments.seeds)
    trials = trials_of(jobs, grid)
    check_configs([*trials, *jobs])
    states = train(trials)
    if grid.config.tune:
        known = read_trials(grid, read_cells(arguments.experiments))
        grid = with_choices(grid, known)
        print("\n".join(describe_choices(grid, known)))
    jobs = grid.select(arguments.only, arguments.seeds)
    without_values = [job for job in jobs if job.chosen is None]
    jobs = [job for job in jobs if job.chosen is not None]
    if not grid.config.looks or arguments.all_seeds:
        states |= train(jobs)
    elif without_values:  # some cells have no scores to look at
        states |= train(needed_jobs(jobs, None, grid))
    else:
        states |= run_to_looks(grid, jobs, train, arguments)
    report(states, without_values)


def report(states: "dict[Job, State]", without_values: "Sequence[Job]") -> None:
    """Print how many jobs ended how. Raises RunError if any did not finish.

    without_values: runs whose trials chose no values. This is an error unless another process trains these trials."""
    from ablation.scheduling.jobs import UNFINISHED
    from engine.command import RunError

    kinds = [state.kind for state in states.values()]
    print(", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)))
    stale = "skipped; --rerun-stale trains them again as new experiments"
    bad = {job: state.detail for job, state in states.items() if state.kind in UNFINISHED}
    if any(job.trial and state.kind == "running" for job, state in states.items()):
        print(f"{len(without_values)} runs wait for trials of a different process; then run the same command again")
    else:
        bad |= dict.fromkeys(without_values, "not trained, because the trials of its row or cell gave no values")
    if bad:
        reasons = {why: [job.name for job in bad if bad[job] == why] for why in bad.values()}
        lines = [f"{names[0] if len(names) == 1 else f'{len(names)} runs'}: {why}" for why, names in reasons.items()]
        lines += [f"stale trials were {stale}"] * ("stale" in kinds and bool(without_values))
        raise RunError("\n  ".join([f"{len(bad)} of {len({*states, *without_values})} runs did not finish", *lines]))
    if "stale" in kinds:
        print(f"stale runs were {stale}")


def run_to_looks(
    grid: "Grid",
    jobs: "Sequence[Job]",
    train: "Callable[[Sequence[Job]], dict[Job, State]]",
    arguments: argparse.Namespace,
) -> "dict[Job, State]":
    """Train the runs that the planned looks need, look by look. Return the state of each of them."""
    from ablation.stopping import needed_jobs, outcome_of, stopping_point

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

    Missing trials become an array job of their own. The runs that need them start after it, with the chosen values."""
    from ablation.scheduling import slurm
    from ablation.scheduling.jobs import read_cells, read_grid
    from ablation.scheduling.runner import scheduling_lock
    from ablation.scheduling.trials import check_configs, describe_choices, read_trials, trials_of, with_choices

    if not Path("sbatch/grid.sbatch").is_file():
        raise ValueError(f"{Path.cwd()}: sbatch/grid.sbatch not found; run this command from the project's root folder")
    grid, experiments = read_grid(arguments.grid), arguments.experiments
    check_configs([*trials_of(grid.jobs, grid), *grid.jobs])
    known = read_trials(grid, read_cells(experiments))
    grid = with_choices(grid, known)
    jobs = jobs_to_submit(grid, arguments)
    trials = trials_of(jobs, grid)
    with scheduling_lock(experiments):
        tasks = slurm.tasks_of([*trials, *grid.jobs], slurm.read_submissions(experiments))
        groups, without_values = missing_jobs(trials, jobs, tasks, grid, arguments)
        count = sum(map(len, groups))
        print(f"{count} of {len(trials) + len(jobs)} runs are missing and not in the queue")
        if without_values:
            print("\n".join([f"{len(without_values)} runs wait for values:", *describe_choices(grid, known)]))
        if not count:
            print(f"nothing to submit; to compare the scores: {follow_up(arguments, 'table')}")
            return
        after = sorted({task.array for job, task in tasks.items() if job.trial and not task.ended})
        submissions = slurm.prepare(grid, experiments, groups, arguments.rerun_stale)
        if arguments.dry_run:
            print(slurm.preview(submissions, after, arguments.max_running))
            return
        submissions = slurm.submit(submissions, after, arguments.max_running)
    for submission in submissions:
        print(f"job {submission.array}: {len(submission.jobs)} {submission.what}")
    if submissions[-1].table:
        print(f"job {submissions[-1].table}: table, written to {submissions[-1].folder}")
    print(f"to see their progress: {follow_up(arguments, 'status')}")
    if grid.config.looks and not arguments.all_seeds:
        print("submit again when they have ended, to decide which cells get more seeds")


def jobs_to_submit(grid: "Grid", arguments: argparse.Namespace) -> "list[Job]":
    """Return the selected runs of the table; with planned looks, those that the next look needs."""
    from ablation.stopping import needed_jobs, outcome_of, stopping_point

    jobs = grid.select(arguments.only, arguments.seeds)
    if not grid.config.looks or arguments.all_seeds:
        return jobs
    if any(job.chosen is None for job in grid.jobs):
        return needed_jobs(jobs, None, grid)
    stopping = stopping_point(grid, arguments.experiments, **look_options(arguments))
    print(outcome_of(stopping, grid, arguments.experiments))
    return needed_jobs(jobs, stopping, grid)


def missing_jobs(
    trials: "Sequence[Job]",
    jobs: "Sequence[Job]",
    tasks: "dict[Job, ArrayTask]",
    grid: "Grid",
    arguments: argparse.Namespace,
) -> "tuple[list[list[Job]], list[Job]]":
    """Return the groups of jobs to submit, trials and runs, and the runs that cannot be submitted without values.

    Jobs in the queue are left out. Runs that wait for trials in the queue or in the first group get their values when
    they start. tasks: of the jobs in the queue. Prints a hint if stale jobs are left out."""
    from ablation.scheduling.jobs import read_cells, state_of
    from ablation.scheduling.runner import needs_training

    cells, stale = read_cells(arguments.experiments), arguments.rerun_stale
    queued = {job for job, task in tasks.items() if not task.ended}
    states = {job: state_of(job, cells) for job in [*trials, *jobs]}
    missing_trials = [job for job in trials if job not in queued and needs_training(states[job], stale)]
    pending = {job.place for job in [*missing_trials, *queued] if job.trial}
    runs, without_values = [], []
    for job in jobs:
        waits = grid.config.tune is not None and grid.tuned_place(job.place) in pending
        if job in queued or not (waits or needs_training(states[job], stale)):
            continue
        if waits or job.chosen is not None:
            runs.append(replace(job, chosen=None) if waits else job)
        else:
            without_values.append(job)
    if not stale and any(state.kind == "stale" for state in states.values()):
        print("stale runs were skipped; --rerun-stale trains them again as new experiments")
    return [group for group in (missing_trials, runs) if group], without_values


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
    from ablation.scheduling.jobs import read_cells, read_grid
    from ablation.scheduling.trials import describe_choices, read_trials, trials_of, with_choices

    grid = read_grid(arguments.grid)
    known = read_trials(grid, read_cells(arguments.experiments))
    grid = with_choices(grid, known)
    jobs = grid.select(arguments.only, arguments.seeds)
    print(status(grid, [*trials_of(jobs, grid), *jobs], arguments.experiments))
    if grid.config.tune:
        print("\n".join(["trials:", *describe_choices(grid, known)]))


def print_table(arguments: argparse.Namespace) -> None:
    """Print the comparison or write it to --output."""
    compare.show_comparison([arguments.grid], arguments)


def status(grid: "Grid", jobs: Sequence["Job"], experiments: Path) -> str:
    """Return a table with the state and experiment of each job, and the Slurm state of each job that is not done."""
    from ablation.scheduling import slurm
    from ablation.scheduling.jobs import read_cells, state_of
    from ablation.stopping import settled_cells
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
