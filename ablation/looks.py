"""Looks at a grid: verdicts at the looks that its file plans, and a record of all looks.

A grid file with `looks: [3, 5, 8]` plans to compare the cells when each has 3, 5 and 8 seeds. `add_looks` tests the
differences at every complete look, at the level that stats/looks.py gives to it. A look uses the first seeds of the
list only, so its verdicts do not change when more runs finish. A difference is settled if it is significant at a look,
if it is smaller than the margin, or if there is no margin and more seeds are unlikely to make it significant.
ablation/stopping.py then adds no seeds for it.

Without a plan, every look at more seeds than before is recorded, and the next table says so (`announce_look`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ablation.comparison import Cell, Comparison, Difference, Looks, LookVerdict
from ablation.scheduling.jobs import SCHEDULE_LOCK, Grid
from ablation.uncertainty import luck_of, seed_options, with_tuning_luck
from engine.config import leaves
from engine.files import locked, write_text
from records.experiment import FREE_FIELDS
from records.results import CURE, Place
from stats.contrasts import Tested, are_stable, assess_family, holm, monte_carlo_errors
from stats.decisions import may_be_best
from stats.looks import conditional_power, information_fractions, look_levels
from stats.replicates import cell_replicates

FUTILE_POWER = 0.1  # more seeds are not worth their cost if the conditional power is lower
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


# ---- verdicts at planned looks -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """A family of differences with verdicts, and the looks that gave these verdicts."""

    differences: list[Difference]
    fractions: list[float]  # information fraction of each complete look
    levels: list[float]  # significance level of each complete look
    needed: dict[Place, int]  # seeds that each cell needs: for the next look or, if it is settled, for its last look


def add_looks(comparison: Comparison, grid: Grid) -> None:
    """Give all differences the verdicts of the complete planned looks, and set `comparison.looks`.

    The main family decides which looks are complete and which cells need more seeds."""
    planned, seeds = grid.config.looks, grid.config.seeds
    main = judge(comparison.main_family, comparison, planned, seeds)
    comparison.looks = Looks(planned, main.fractions, main.levels, main.needed)
    comparison.families = {
        family: judge(found, comparison, planned, seeds).differences for family, found in comparison.families.items()
    }
    comparison.may_be_best = best_at_look(comparison, seeds[: planned[len(main.levels) - 1]]) if main.levels else []
    comparison.warnings += plan_warnings(comparison, seeds)


def judge(family: Sequence[Difference], comparison: Comparison, planned: Sequence[int], seeds: Sequence[int]) -> Judged:
    """Test a family of differences at each complete look.

    planned: seeds per cell at each look. seeds: the seeds of the grid, in order.
    A look is complete if all cells of open differences have its seeds. A difference that became significant at an
    earlier look stays significant, and the others are no longer corrected for it (Holm's method). A difference that
    looked hopeless is tested again if its cells have the seeds nevertheless."""
    counts = {place: complete_seeds(comparison.cells[place], seeds) for place in comparison.run_scores}
    verdicts = {each.label: LookVerdict(None) for each in family}
    fractions: list[float] = []
    levels: list[float] = []
    needed: dict[Place, int] = {}
    latest: dict[str, Tested] = {}  # of each difference, from the last look that tested it
    for number, count in enumerate(planned, start=1):
        open_ = [each for each in family if verdicts[each.label].is_open(comparison.margin)]
        required = [place for place in counts if any(place in each.contrast for each in open_)]
        needed |= dict.fromkeys(required, count)
        tested = [
            each
            for each in family
            if verdicts[each.label].shown_at is None and all(counts[place] >= count for place in each.contrast)
        ]
        if not tested or any(counts[place] < count for place in required):
            break
        scores = first_scores(comparison, seeds[:count])
        factors = [[each.contrast.get(place, 0) for place in scores] for each in tested]
        luck = luck_of(comparison, list(scores))
        predicted = information_fractions(factors, list(scores.values()), planned, luck)
        fractions.append(predicted[number - 1])
        schedule = look_levels([*fractions, *predicted[number:]], len(family))
        levels = schedule[:number]
        found = assess(tested, scores, comparison, levels[-1])
        latest |= found
        verdicts |= verdicts_at(number, found, verdicts, fractions[-1], schedule, comparison)
    level = levels[-1] if levels else comparison.level
    judged = [with_verdict(each, verdicts[each.label], latest.get(each.label), level) for each in family]
    return Judged(judged, fractions, levels, needed)


def verdicts_at(
    number: int,
    found: Mapping[str, Tested],
    before: Mapping[str, LookVerdict],
    fraction: float,
    schedule: Sequence[float],
    comparison: Comparison,
) -> dict[str, LookVerdict]:
    """Return the verdicts of the differences that a look tests, by label.

    found: the tested differences. before: the verdicts on the whole family at the look before. fraction: information
    fraction of the look. schedule: levels of all looks."""
    level = schedule[number - 1]
    p_values = np.array(
        [0.0 if each.shown_at else found[label].interval.p if label in found else 1.0 for label, each in before.items()]
    )
    is_significant = holm(p_values) < level
    is_stable = are_stable(p_values, monte_carlo_errors(p_values, comparison.replicates), level)
    level_of_rest = schedule[-1] / max(1, len(before) - is_significant.sum())
    verdicts = {}
    for (label, earlier), p, significant, stable in zip(
        before.items(), p_values, is_significant, is_stable, strict=True
    ):
        if label in found:
            verdicts[label] = LookVerdict(
                number if significant else None,
                is_hopeless=not significant and conditional_power(p, fraction, level_of_rest) < FUTILE_POWER,
                is_small=not significant and comparison.margin is not None and found[label].bound < comparison.margin,
                unstable_at=earlier.unstable_at or (None if stable else number),
            )
    return verdicts


def with_verdict(difference: Difference, verdict: LookVerdict, tested: Tested | None, level: float) -> Difference:
    """Return a difference with its verdict at the looks. tested: at the last look that tested it, if any did.

    Corrected interval and bound are those of this look; p, interval and detectable stay those of all runs."""
    judged = replace(difference, level=level, at_looks=verdict, is_stable=verdict.unstable_at is None)
    return replace(judged, simultaneous=tested.simultaneous, bound=tested.bound) if tested else judged


def best_at_look(comparison: Comparison, seeds: Sequence[int]) -> list[Place]:
    """Return the cells that may be the best at the level of the latest look. seeds: that its runs may have."""
    scores = first_scores(comparison, seeds)
    sign = -1 if comparison.lower_is_better else 1
    kept = may_be_best(
        [sign * each[:, 0].mean() for each in scores.values()],
        sign * replicates_at_look(comparison, scores),
        comparison.looks.levels[-1],
    )
    return [place for place, is_kept in zip(scores, kept, strict=True) if is_kept]


def replicates_at_look(comparison: Comparison, scores: Mapping[Place, np.ndarray]) -> np.ndarray:
    """Return replicates (K, R) of the cells' mean scores. scores: of some runs of each cell, (n_k, 1 + R)."""
    options = seed_options(comparison, [comparison.cells[place] for place in scores], for_contrasts=False)
    options["shared_seeds"] = len({len(each) for each in scores.values()}) == 1  # the first seeds of the grid
    estimates, resampled = ([each[:, part] for each in scores.values()] for part in (0, slice(1, None)))
    known = comparison.known_spread
    sample = cell_replicates(estimates, resampled, comparison.resample_seed, known=known, **options)
    return with_tuning_luck(comparison, list(scores), sample)


def complete_seeds(cell: Cell, seeds: Sequence[int]) -> int:
    """Return how many of the first seeds of the grid have a score in this cell, without a gap."""
    found = {run.seed for run in cell.scored_runs}
    return next((number for number, seed in enumerate(seeds) if seed not in found), len(seeds))


def first_scores(comparison: Comparison, seeds: Sequence[int]) -> dict[Place, np.ndarray]:
    """Return `comparison.run_scores` of the runs with these seeds, without cells that have none of them."""
    scores = {
        place: each[[run.seed in seeds for run in comparison.cells[place].scored_runs]]
        for place, each in comparison.run_scores.items()
    }
    return {place: each for place, each in scores.items() if len(each)}


def assess(
    family: Sequence[Difference], scores: Mapping[Place, np.ndarray], comparison: Comparison, level: float
) -> dict[str, Tested]:
    """Test differences with some of the runs, by label. scores: of these runs of each cell, (n_k, 1 + R)."""
    replicates = replicates_at_look(comparison, scores)
    means = {place: each[:, 0].mean() for place, each in scores.items()}
    found = assess_family([each.contrast for each in family], means, replicates, level)
    return {each.label: tested for each, tested in zip(family, found, strict=True)}


def plan_warnings(comparison: Comparison, seeds: Sequence[int]) -> list[str]:
    """Return warnings if the table is not at a planned look, or if a planned look has too few resamples."""
    looks, warnings = comparison.looks, []
    counts = {place: complete_seeds(cell, seeds) for place, cell in comparison.cells.items()}
    lacking = [place for place, count in looks.needed.items() if counts[place] < count]
    if lacking and not looks.complete:
        place = min(lacking, key=counts.get)
        warnings.append(
            f"no planned look is complete: the first is at {looks.planned[0]} seeds per cell, and "
            f"{comparison.cells[place].name} has {counts[place]}; until then, there are no verdicts"
        )
    elif lacking and any(counts[place] > looks.planned[looks.complete - 1] for place in looks.needed):
        warnings.append(
            f"not a planned look: the verdicts are those of look {looks.complete} "
            f"({looks.planned[looks.complete - 1]} seeds per cell); next at {looks.planned[looks.complete]} seeds"
        )
    num_tests = len(comparison.main_family)
    lowest = 2 / (comparison.replicates + 1) * num_tests
    if low := [number for number, level in enumerate(looks.levels, start=1) if 0 < level <= lowest]:
        warnings.append(
            f"{comparison.replicates} resamples are too few for look {low[0]}: its level is "
            f"{looks.levels[low[0] - 1]:.4f}, and the smallest possible p (Holm) of {num_tests} differences is "
            f"{lowest:.4f}; raise --replicates"
        )
    return warnings


# ---- the record of looks -----------------------------------------------------------------------------------


def announce_look(comparison: Comparison, grid: Grid, experiments: Path) -> None:
    """Record that the table of a grid was made, and warn if there were earlier looks that p values do not account for.

    Only a table with more seeds than all earlier tables of the same cells is a new look. With one seed per cell there
    are no verdicts, so such a table is not a look."""
    if not comparison.differences or not comparison.has_several_seeds:
        return
    seeds = {cell.name: len(cell.scores) for cell in comparison.scored_cells}
    known = [each for each in read_looks(grid, experiments) if each["cells"] == hash_of_cells(grid)]
    is_new = all(any(count > each["seeds"].get(name, 0) for name, count in seeds.items()) for each in known)
    if is_new:
        known.append(new_look(comparison, grid) | {"needed": None})
        record_look(known[-1], grid, experiments)
    planned = list(grid.config.looks)
    unplanned = [each for each in known if each["planned"] != planned]
    if planned and unplanned:
        comparison.warnings.append(
            f"`looks:` was added or changed after {len(unplanned)} looks at this grid: the levels of the planned looks "
            "do not account for them"
        )
    elif not planned and len(known) > 1:
        which = f"{ORDINALS[len(known) - 1]} look" if len(known) <= len(ORDINALS) else f"look {len(known)}"
        comparison.warnings.append(
            f"{which} at this grid ({', '.join(map(shown_seeds, known))} seeds per cell): p values do not account "
            "for the earlier looks; list `looks:` in the grid file before the first run"
        )


def new_look(comparison: Comparison, grid: Grid) -> dict[str, Any]:
    """Return the entry of a look in the record. needed: seeds of each cell, if `ablation.grid run` decides by them."""
    looks = comparison.looks
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cells": hash_of_cells(grid),
        "seeds": {cell.name: len(cell.scores) for cell in comparison.scored_cells},
        "baseline": comparison.baseline_cell.name,
        "differences": len(comparison.differences),
        "planned": list(grid.config.looks),
        "complete": looks and looks.complete,
        "needed": looks and {comparison.cells[place].name: count for place, count in looks.needed.items()},
    }


def read_looks(grid: Grid, experiments: Path) -> list[dict[str, Any]]:
    """Return the recorded looks at a grid, oldest first. Raises ValueError naming the file if it is corrupt."""
    path = looks_file(grid, experiments)
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise ValueError(f"{path}: corrupt, not JSON lines ({error}); {CURE}") from None


def record_look(look: Mapping[str, Any], grid: Grid, experiments: Path) -> None:
    """Append a look to the record of a grid.

    Does nothing in a folder where no grid was trained, such as published experiments, or that is read-only."""
    path = looks_file(grid, experiments)
    if (experiments / SCHEDULE_LOCK).exists():
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            with locked(path.with_suffix(".lock")):
                before = path.read_text(encoding="utf-8") if path.exists() else ""
                write_text(path, f"{before}{json.dumps(look)}\n")


def looks_file(grid: Grid, experiments: Path) -> Path:
    """Return the path of the record: one JSON object per look."""
    return experiments / "looks" / f"{grid.path.stem}.jsonl"


def hash_of_cells(grid: Grid) -> str:
    """Return 16 hex digits that identify the cells of a grid, their recipes without seeds, and the tuning."""
    tune = grid.config.tune
    free = {*FREE_FIELDS, "train.seed", *(tune.ranges if tune else ())}
    recipes = {
        job.cell: {name: value for name, value in leaves(job.untuned_recipe()) if name not in free}
        for job in grid.jobs
        if job.seed == grid.config.seeds[0]
    }
    content = [recipes, tune.model_dump(mode="json")] if tune else recipes
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def shown_seeds(look: Mapping[str, Any]) -> str:
    """Return the seeds per cell of a recorded look as text, such as '3' or '2 to 3'."""
    counts = sorted({*look["seeds"].values()})
    return f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
