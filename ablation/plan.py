"""Plan a comparison: what limits it, and how many seeds and images would find a difference of a given size.

    python -m ablation.plan configs/grid_coco.yaml --find 0.005                 # from the finished runs
    python -m ablation.plan configs/grid_coco.yaml --find 0.005 --images 5000   # before any run

With finished runs, the variances are measured (stats/planning.py), and the cost comes from results.json. Before any
run, they are taken from comparisons of other data, in reference_spreads.json: a rough guide to the size of a grid.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ablation.compare import REPLICATES, positive_number, replicate_count
from engine.arguments import check_config, check_experiment, positive
from engine.start import start
from engine.text import UnknownNameError

if TYPE_CHECKING:
    from ablation.comparison import Cell, Comparison
    from ablation.display.formats import Table
    from ablation.scheduling.jobs import Grid
    from records.results import Place
    from stats.planning import Spread, Variances

REFERENCES = Path(__file__).parent / "reference_spreads.json"  # written by benchmarks/reference_spreads.py


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ablation.plan",
        description="Show what limits a comparison, and the seeds and images that would find a given difference.",
        epilog="example: python -m ablation.plan configs/grid_coco.yaml --find 0.005",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="EXPERIMENT|GRID", help="experiments, or a grid file")
    parser.add_argument(
        "--find", type=positive_number, metavar="D", help="true difference to find in 80%% of comparisons"
    )
    parser.add_argument("--baseline", help="baseline: 'row x column' or an experiment (default: first with a score)")
    parser.add_argument("--pairs", action="store_true", help="plan for tests of all pairs, not only with the baseline")
    parser.add_argument("--seeds", type=seed_counts, default=(3, 5, 10), help="seeds per cell (default: 3,5,10)")
    parser.add_argument(
        "--replicates", type=replicate_count, default=REPLICATES, help=f"resamples (default: {REPLICATES:,})"
    )
    parser.add_argument("--experiments", type=Path, default=Path("experiments"), help="directory of the experiments")
    parser.add_argument("--images", type=positive, help="number of validation images, if no run is finished")
    parser.add_argument(
        "--seed-sd", type=positive_number, metavar="SD",
        help="standard deviation between seeds to plan with, in place of the measured or stored one (unlike "
        "--seed-sd of ablation.compare, which widens intervals)",
    )  # fmt: skip
    parser.add_argument(
        "--image-se", type=positive_number, help="standard error of one run's score over images, before any run"
    )
    parser.add_argument("--reference", help="entry of ablation/reference_spreads.json (default: nearest in images)")
    arguments = parser.parse_args(words)
    for path in arguments.paths:
        (check_config if path.suffix == ".yaml" else check_experiment)(path)
    return arguments


def seed_counts(text: str) -> Sequence[int]:
    """Parse --seeds: comma-separated numbers of seeds, each at least 2."""
    counts = text.split(",")
    if not all(part.isdecimal() and int(part) >= 2 for part in counts):
        raise argparse.ArgumentTypeError(f"{text!r}: expected comma-separated numbers of at least 2, such as 3,5,10")
    return sorted(set(map(int, counts)))


def main(arguments: argparse.Namespace, _: None) -> None:
    """Print the plan as Markdown."""
    from engine.terminal import printable_lines

    sys.stdout.write(printable_lines(as_markdown(make_plan(arguments.paths, arguments), arguments)))


# ---- reference spreads -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """Spreads of one comparison, for plans before any run. Correlations are those of scores on resamples.

    seed_sd: standard deviation of the score between seeds, on the same images. image_se: standard error of one run's
    score over images; None, with both correlations, if it was not published. same_cell: correlation between runs of
    the same cell. other_cell: between runs of different cells."""

    name: str
    task: str
    metric: str
    images: int
    seeds: int  # runs per cell
    cells: int
    source: str
    seed_sd: float
    image_se: float | None = None
    same_cell: float | None = None
    other_cell: float | None = None


def read_references() -> list[Reference]:
    """Return the entries of reference_spreads.json."""
    return [Reference(**entry) for entry in json.loads(REFERENCES.read_text(encoding="utf-8"))]


def nearest(references: Sequence[Reference], images: int) -> Reference:
    """Return the entry whose number of images is nearest, as a ratio."""
    return min(references, key=lambda each: abs(math.log(each.images / images)))


@dataclass(frozen=True)
class Guide:
    """Rough variances at a number of images. shared_half: half of the shared variance of a difference of two cells."""

    spread: "Spread"
    shared_half: float
    note: str


def guide(task: str, images: int, arguments: argparse.Namespace) -> Guide:
    """Return rough variances from the stored references, scaled to a number of images.

    Variances over images are inversely proportional to the number of images. Raises ValueError if no entry fits."""
    from stats.planning import Spread

    known = [each for each in read_references() if each.task == task]
    if arguments.reference:
        chosen = [each for each in known if each.name == arguments.reference]
        if not chosen:
            raise UnknownNameError(f"--reference: {task}", arguments.reference, [each.name for each in known])
    elif not known:
        raise ValueError(f"no stored spreads for the task {task}; train two cells with two seeds each, then plan")
    else:
        chosen = known
    seeds = nearest(chosen, images)
    measured = [each for each in chosen if each.image_se] or [each for each in known if each.image_se]
    over_images = nearest(measured, images)
    image_variance = (
        arguments.image_se**2 if arguments.image_se else over_images.image_se**2 * scale(over_images, images)
    )
    run_image = image_variance * (1 - over_images.same_cell)
    if arguments.seed_sd:
        seed_variance, source = arguments.seed_sd**2, "--seed-sd"
    else:  # the part of the entry's seed variance that comes from its own images shrinks with the number of images
        own = seeds.image_se**2 * (1 - seeds.same_cell) if seeds.image_se else 0.0
        seed_variance = max(seeds.seed_sd**2 - own, 0.0) + own * scale(seeds, images)
        source = f"{seeds.name}: {seeds.images:,} images, {seeds.seeds} seeds"
    where = "--image-se, with the correlations of " * bool(arguments.image_se)
    note = (
        f"standard deviation between seeds {math.sqrt(seed_variance):.4f} ({source}); standard error of one run's "
        f"score over images {math.sqrt(image_variance):.4f} ({where}{over_images.name}: {over_images.images:,} images)"
    )
    shared = max(over_images.same_cell - over_images.other_cell, 0.0) * image_variance
    return Guide(Spread(seed_variance, run_image), shared, note)


def scale(reference: Reference, images: int) -> float:
    """Return the factor from a variance over the images of a reference to the same variance over `images`."""
    return reference.images / images


# ---- plans -------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """What limits a comparison, and what more of it would cost.

    cells: with their finished runs; includes cells without runs. seeds: per cell, such as '3' or '1 to 3'; empty if
    they show no variance between seeds. is_measured: whether finished runs show it. warnings: what is not known.
    is_tuned: whether trials choose values for the cells."""

    title: str
    metric: str
    variances: "Variances"
    cells: "Sequence[Cell]"
    seeds: str
    is_measured: bool
    warnings: list[str] = field(default_factory=list)
    is_tuned: bool = False

    def new_runs(self, seeds: int) -> dict[str, int]:
        """Return how many runs each cell lacks to have this number of seeds."""
        return {cell.name: max(seeds - len(cell.scores), 0) for cell in self.cells}

    def device_hours(self, seeds: int) -> float | None:
        """Return the training time of these runs; None if no run recorded its time.

        A run costs the median of its cell; in a cell without recorded times, the median of the other cells."""
        costs = {cell.name: [run.results.cost.device_hours for run in cell.scored_runs] for cell in self.cells}
        medians = {
            name: statistics.median(known)
            for name, hours in costs.items()
            if (known := [each for each in hours if each is not None])
        }
        if not medians:
            return None
        typical = statistics.median(medians.values())
        return sum(count * medians.get(name, typical) for name, count in self.new_runs(seeds).items())


def make_plan(paths: Sequence[Path], arguments: argparse.Namespace) -> Plan:
    """Return the plan of a grid or of experiments. Raises ValueError if they leave too much unknown."""
    from ablation.cells import cells_of_grid, compare
    from ablation.scheduling.jobs import read_grid
    from ablation.scheduling.trials import tuned

    if len(paths) == 1 and paths[0].suffix == ".yaml":
        grid = tuned(read_grid(paths[0]), arguments.experiments)
        cells = cells_of_grid(grid, arguments.experiments)
        if sum(cell.mean is not None for cell in cells.values()) < 2:
            return plan_before_runs(grid, cells, arguments)
    options = {name: getattr(arguments, name) for name in ("baseline", "pairs", "replicates")}
    return plan_from_runs(compare(paths, arguments.experiments, **options), arguments)


def plan_from_runs(comparison: "Comparison", arguments: argparse.Namespace) -> Plan:
    """Return the plan of a comparison with runs in at least two cells."""
    from ablation.display.sentences import seeds_of
    from ablation.uncertainty import main_variances
    from stats.planning import Spread

    for option in ("images", "image_se"):
        if getattr(arguments, option):
            name = f"--{option.replace('_', '-')}"
            raise ValueError(f"{name} is only for plans before any run: the finished runs measure it; omit it")
    if not comparison.main_family:
        reason = "; ".join(comparison.warnings) or "two cells with a score are needed"
        raise ValueError(f"{comparison.title}: nothing to plan from: {reason}")
    warnings, variances = [], comparison.variances
    if variances is None:
        rough = guide(comparison.scored_cells[0].runs[0].results.task, comparison.num_images, arguments)
        variances = main_variances(comparison, rough.spread)
        warnings.append(
            f"one seed per cell cannot show the variance between seeds. A rough guide instead: {rough.note}"
        )
    elif arguments.seed_sd:
        variances = main_variances(comparison, Spread(arguments.seed_sd**2, variances.run_image))
        warnings.append(f"the variance between seeds is that of --seed-sd {arguments.seed_sd:g}, not the measured one")
    missing = [cell.name for cell in comparison.cells.values() if cell.mean is None]
    if missing:
        warnings.append(
            f"no score yet: {', '.join(missing)}; the variances are those of the other cells, and fewer differences "
            "are tested than in the complete table"
        )
    seeds = seeds_of(comparison).rpartition(" ")[0] if comparison.has_several_seeds else ""
    cells = list(comparison.cells.values())
    return Plan(
        comparison.title, comparison.metric, variances, cells, seeds, comparison.has_several_seeds, warnings,
        is_tuned=comparison.tuning is not None,
    )  # fmt: skip


def plan_before_runs(grid: "Grid", cells: "dict[Place, Cell]", arguments: argparse.Namespace) -> Plan:
    """Return a rough plan of a grid with a score in fewer than two cells, from stored spreads of other comparisons."""
    import numpy as np

    from ablation.families import cell_contrasts, factor_contrasts
    from stats.bootstrap import MIN_IMAGES
    from stats.planning import Variances
    from stats.replicates import pooling

    runs = [run for cell in cells.values() for run in cell.runs]
    images = arguments.images or (runs[0].results.protocol.images if runs else None)
    if images is None:
        raise ValueError(
            f"{grid.path}: no finished runs in {arguments.experiments}; name their folder with --experiments, or plan "
            "before any run with --images N, the number of validation images"
        )
    if images < MIN_IMAGES:
        raise ValueError(f"{images} validation images: at least {MIN_IMAGES} are needed to measure a difference")
    if len(cells) < 2:
        raise ValueError(f"{grid.path}: the grid has one cell; two are needed for a difference")
    places = {cell.name: place for place, cell in cells.items()}
    baseline = arguments.baseline or next(iter(places))
    if baseline not in places:
        raise UnknownNameError("--baseline", baseline, places)
    task, seeds = task_of(grid.config.task), grid.config.seeds
    rough = guide(task, images, arguments)
    if grid.config.design:
        contrasts = factor_contrasts(grid.config.design, [row.name for row in grid.config.rows])
    else:
        contrasts = cell_contrasts(list(cells), places[baseline], arguments.pairs)
    squares = statistics.fmean(sum(v**2 for v in contrast.values()) for contrast in contrasts.values())
    _, _, shared_seeds = pooling(np.full(len(cells), len(seeds)), None, shared_seeds=True)
    variances = Variances(
        shared=squares * rough.shared_half, run_image=rough.spread.run_image,
        seed=max(rough.spread.seed_variance - rough.spread.run_image, 0.0), squares=squares,
        per_seed=squares / len(seeds), images=images, tests=len(contrasts), cells=len(cells),
        degrees=(len(cells) - shared_seeds) * (len(seeds) - 1), shared_seeds=shared_seeds,
    )  # fmt: skip
    warnings = [
        f"a rough guide, because fewer than two cells have a score: {rough.note}. Data, models and training length "
        "change both: train two cells with two seeds each, then plan again"
    ]
    is_tuned = grid.config.tune is not None
    if is_tuned:
        warnings.append("the luck of tuning is not included, so the grid will find less than planned here")
    metric = next(each.metric for each in read_references() if each.task == task)
    in_grid = str(len(seeds)) if len(seeds) > 1 else ""
    return Plan(grid.path.stem, metric, variances, list(cells.values()), in_grid, False, warnings, is_tuned)


def task_of(module: str) -> str:
    """Return the task of a training module: "detection" of "detection.training"."""
    return "classification" if module == "train_clf_imagenet" else module.partition(".")[0]


# ---- text --------------------------------------------------------------------------------------------------


def as_markdown(plan: Plan, arguments: argparse.Namespace) -> str:
    """Return a plan as Markdown: what limits the comparison, detectable differences, and what finds --find."""
    from ablation.display.difference_tables import limits_table
    from ablation.display.formats import to_markdown
    from ablation.display.sentences import limits_of, spread_note

    title = f"## Plan of {plan.title}"
    lines = [f"WARNING: {warning}" for warning in plan.warnings]
    if not plan.variances.standard_error() > 0:
        lines.append("All cells have the same score on every resample, so there is no variance to plan from.")
        return "\n\n".join([title, *lines]) + "\n"
    table = limits_table(plan.variances, plan.seeds, plan.metric, arguments.seeds)
    notes = [limits_of(plan.variances)] + [spread_note(plan.variances)] * plan.is_measured
    sections = [title, *lines, *notes, to_markdown(table).rstrip()]
    if arguments.find:
        sections += [conclusion(plan, arguments.find), to_markdown(ways(plan, arguments)).rstrip()]
    return "\n\n".join(sections) + "\n"


def conclusion(plan: Plan, find: float) -> str:
    """Return how many seeds find a difference with the present images, or that no number of seeds does."""
    variances, images = plan.variances, f"{plan.variances.images:,} images"
    seeds = variances.seeds_needed(find)
    if seeds is None:
        limit, needed = variances.detectable(math.inf), variances.images_needed(find, math.inf)
        if needed is None:
            limit = variances.detectable(math.inf, math.inf)
            return (
                "**No number of seeds and images will do.** The luck of tuning remains, with which only differences of "
                f"{limit:.2g} or more are found in 80% of comparisons. Only more trials reduce it."
            )
        return (
            f"**No number of seeds will do.** Even infinitely many seeds per cell on these {images} would only find "
            f"differences of {limit:.2g} or more in 80% of comparisons. A difference of {find:g} needs at least "
            f"{needed:,} images, and more with few seeds."
        )
    runs, hours = sum(plan.new_runs(seeds).values()), plan.device_hours(seeds)
    cost = "" if hours is None else f", about {hours:.3g} device-hours"
    more = f"{runs:,} more runs{cost}" if runs else "which all cells have"
    return f"**{seeds:,} seeds per cell** find a difference of {find:g} on the present {images}: {more}."


def ways(plan: Plan, arguments: argparse.Namespace) -> "Table":
    """Return the table of combinations of seeds and images that find the difference, with their cost."""
    from ablation.display.formats import Table

    variances, find = plan.variances, arguments.find
    needed = variances.seeds_needed(find)
    counts = sorted({*arguments.seeds, *([needed] if needed and needed <= 1000 else [])})
    rows = []
    for seeds in counts:
        images = variances.images_needed(find, seeds)
        hours, runs = plan.device_hours(seeds), sum(plan.new_runs(seeds).values())
        if images is None:
            shown = "no number suffices"
        elif images <= variances.images:
            shown = f"{variances.images:,} (as now)"
        else:
            shown = f"{images:,} ({images / variances.images:.1f} times)"
        rows.append([f"{seeds:,}", shown, f"{runs:,}", "unknown" if hours is None else f"{hours:.3g}"])
    notes = [
        "Images: of the same source as the present validation images, and not used for training. They cost no "
        "training: the finished runs can be scored on them.",
        "Device-hours: training time of the new runs, from the median of the finished runs of each cell."
        if plan.device_hours(counts[0]) is not None
        else "Device-hours are unknown before the first run.",
        *["New runs and device-hours are without the trials."] * plan.is_tuned,
    ]
    header = ["seeds per cell", "validation images", "new runs", "device-hours"]
    return Table(f"To find a difference of {find:g} in {plan.metric} in 80% of comparisons", header, rows, notes=notes)


if __name__ == "__main__":
    start(parse_arguments, main, on_device=False)
