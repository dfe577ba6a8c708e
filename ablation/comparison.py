"""Data classes of a comparison: cells with their runs, differences with their intervals, and warnings.

ablation/display/tables.py, sentences.py and report.py turn a Comparison into text and HTML.
"""

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from records.latency import Program
from records.results import Place, Run
from stats.contrasts import LEVEL, Interval, Tested
from stats.factorial import Design
from stats.pareto import Membership
from stats.planning import Variances
from stats.replicates import SeedSpread
from stats.robustness import RankAgreement

if TYPE_CHECKING:
    from ablation.tuning import Tuning

MEASURE = "python -m detection.latency"
MAX_MEASURED = 24  # experiments in the command of a message


class Note(NamedTuple):
    """The reason why one seed of a cell has no score, or why the score needs a warning."""

    seed: int
    kind: str  # waiting, running, stopped, killed, failed, stale
    detail: str

    @property
    def reason(self) -> str:
        return f"{self.kind} ({self.detail})".removesuffix(" ()")


def cell_name(place: Place) -> str:
    """Return row and column as text; only the row if the table has a single column without a name."""
    row, column = place
    return f"{row} x {column}" if column else row


@dataclass
class Cell:
    """One cell of the table: the runs of one recipe, such as a backbone with a neck."""

    row: str
    column: str
    runs: list[Run] = field(default_factory=list)  # one per seed
    notes: list[Note] = field(default_factory=list)  # one per seed that is not done

    @property
    def place(self) -> Place:
        return self.row, self.column

    @property
    def name(self) -> str:
        return cell_name(self.place)

    @property
    def scored_runs(self) -> list[Run]:
        """The runs whose score is defined, ordered by seed."""
        return sorted((run for run in self.runs if run.score is not None), key=lambda run: run.seed)

    @property
    def scores(self) -> list[float]:
        return [run.score for run in self.scored_runs]

    @property
    def mean(self) -> float | None:
        """Mean score over seeds; None if no run has a score."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of the score over seeds; None with fewer than two scores."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    def mean_of(self, section: str, name: str) -> float | None:
        """Return the mean over seeds of a number in results.json; None if a run lacks the number.

        section: scores, cost, delta_AP50 or counts. name: key in the section, such as AP50."""
        values = []
        for run in self.runs:
            owner = run.results.errors if section in ("delta_AP50", "counts") else run.results
            numbers = getattr(owner, section, {})
            values.append(getattr(numbers, name) if section == "cost" else numbers.get(name))
        return statistics.fmean(values) if values and None not in values else None


class LookVerdict(NamedTuple):
    """What the planned looks (ablation/looks.py) found about a difference."""

    shown_at: int | None  # number of the look at which it became significant, from 1
    is_hopeless: bool = False  # whether hardly any chance is left that it becomes significant, see conditional_power
    is_small: bool = False  # whether it is smaller than the margin
    unstable_at: int | None = None  # number of the first look at which other resamples may change the verdict

    def is_open(self, margin: float | None) -> bool:
        """Return whether more seeds may still settle the difference. margin: differences below it do not matter."""
        return self.shown_at is None and not self.is_small and (not self.is_hopeless or margin is not None)


@dataclass(frozen=True)
class Looks:
    """The planned looks at a grid, and which of them are complete: all cells that need it have the planned seeds."""

    planned: tuple[int, ...]  # seeds per cell at each look
    fractions: list[float]  # information fraction of each complete look
    levels: list[float]  # significance level of each complete look, for Holm-corrected p values
    needed: dict[Place, int]  # seeds that each cell needs: at the next look or, if it is settled, at its last look

    @property
    def complete(self) -> int:
        """Number of complete looks."""
        return len(self.levels)


@dataclass(frozen=True)
class Difference(Tested):
    """A difference between cells, a main effect or an interaction, tested in a family of such differences.

    probability_better: chance that a single run of the first cell is better than a single run of the second cell; nan
    for effects and interactions, and with one seed per cell."""

    label: str
    probability_better: float = math.nan
    contrast: Mapping[Place, float] = field(default_factory=dict, repr=False, compare=False)  # factor of each cell
    at_looks: LookVerdict | None = None  # only with planned looks: it replaces the test of p_holm

    @property
    def is_significant(self) -> bool:
        return self.p_holm < self.level if self.at_looks is None else self.at_looks.shown_at is not None


class Family(NamedTuple):
    """The names of a family: differences that are tested together and shown in one table (ablation/families.py).

    kind: "difference", "row effect", "column effect" or "interaction"; in a factorial design "factor effect", "factor
    effect in ROW" or "factor interaction". plural: name in the conclusion; empty if the conclusion leaves them out."""

    kind: str
    title: str
    plural: str = ""


@dataclass(frozen=True, eq=False)
class Slice:
    """The validation images that share a value of an attribute, such as night=yes."""

    attribute: str
    name: str
    images: np.ndarray = field(repr=False)  # (I,) bool, whether each validation image is in the slice
    num_objects: int | None  # None if the task has no objects

    @property
    def num_images(self) -> int:
        return int(self.images.sum())


@dataclass(frozen=True)
class SliceDifference:
    """The difference of a cell from the baseline on a slice, or how much larger it is there than on other images."""

    slice: Slice
    cell: Cell
    score: float  # of the cell on the slice; for an interaction, minus the score on the other images
    is_unreliable: bool  # whether the interval is based on few images
    difference: Difference  # corrected for all slices and cells


def measure_command(experiments: Sequence[Path], program: Program) -> str:
    """Return the command that measures experiments in one session, with "..." if they are too many to list.

    Names the program if it is not measured by default, and what it needs."""
    words = [MEASURE, *(shlex.quote(str(path)) for path in experiments[:MAX_MEASURED])]
    if len(experiments) > MAX_MEASURED:
        words.append("...")
    if program == "onnxruntime":
        words.append("--programs eager,onnxruntime --device cpu --precision fp32")
    return " ".join(words)


@dataclass(frozen=True)
class CellLatency:
    """The latency of a cell in milliseconds, as means over its measured runs, which have the same network."""

    p50: float
    p50_low: float  # 95% interval: the means of the runs' ends, because runs of one session are not independent
    p50_high: float
    p95: float
    images_per_second: float  # at the largest measured batch size
    batch_size: int  # the largest measured one
    device: str
    threads: int
    precision: str
    sessions: frozenset[str]
    loads: frozenset[float]  # of the sessions: threads that ran or waited for a core, on average; empty if unknown
    rounds: np.ndarray | None = field(repr=False, compare=False)  # (n,) of a single session; None if there are several


@dataclass(frozen=True)
class Budget:
    """The cells within a latency budget, by their p50. A scored cell is within, or too slow, or not measured."""

    limit: float  # milliseconds
    within: list[Place]
    too_slow: list[Place]
    not_measured: list[Place]
    borderline: list[Place]  # the interval of p50 includes the budget; these cells are also within or too slow
    may_be_best: list[Place]  # set that contains the best cell within the budget; empty if nothing was tested


@dataclass
class Latencies:
    """The latencies of one program (ablation/latency.py). conflict: why they cannot be compared; then without cells.

    command: the command that measures all cells in one session."""

    program: Program
    command: str = MEASURE
    cells: dict[Place, CellLatency] = field(default_factory=dict)  # measured cells with a score
    conflict: str = ""
    front: dict[Place, Membership] = field(default_factory=dict)  # by cell; empty if differences cannot be tested
    budget: Budget | None = None

    @property
    def sessions(self) -> frozenset[str]:
        """The sessions in which the cells were measured."""
        return frozenset().union(*(each.sessions for each in self.cells.values()))

    @property
    def loads(self) -> frozenset[float]:
        """The known loads of the machine in these sessions."""
        return frozenset().union(*(each.loads for each in self.cells.values()))

    def check(self, option: str) -> None:
        """Raise ValueError if the latencies that an option needs cannot be compared, or were not measured."""
        if self.conflict:
            raise ValueError(f"{option}: {self.conflict}")
        if not self.cells:
            raise ValueError(f"{option}: no cell has a latency of the program {self.program}; run {self.command}")


@dataclass(frozen=True)
class CorruptedCell:
    """The scores of a cell on original and on corrupted images: means over its runs, with 95% intervals."""

    clean: Interval
    mean: Interval  # mPC
    relative: Interval  # rPC: the mean over the runs of mPC / clean
    by_corruption: dict[str, Interval]  # mean over the severities


@dataclass(frozen=True)
class RobustnessComparison:
    """What the scores under corruption say about the cells of a comparison.

    With planned looks, only cells with runs of the latest complete look are in it. differences: of mPC from the
    baseline, corrected as one family. from_best: of mPC from the cell with the best mean score on original images, by
    cell, corrected as one family. may_be_best: the cells that may have the highest mPC. replicates: number of
    resamples. level: of the tests."""

    corruptions: list[str]
    severities: list[int]
    package: str  # name and version of what corrupted the images
    cells: dict[Place, CorruptedCell]
    differences: dict[Place, Difference]
    from_best: dict[Place, Difference]
    best: Place  # cell with the best mean score on the original images
    best_corrupted: Place  # cell with the highest mPC
    may_be_best: list[Place]
    agreement: RankAgreement | None  # of the rankings by clean score and by mPC; None with one cell
    replicates: int
    level: float


@dataclass
class Comparison:
    """A table of cells, and the statistics computed from the cells. Rows and columns are in display order."""

    title: str
    metric: str
    row_name: str  # what the rows are, such as "backbone"
    column_name: str  # what the columns are, such as "neck"
    rows: list[str]
    columns: list[str]
    cells: dict[Place, Cell]  # by (row, column); includes cells without finished runs
    baseline: Place
    replicates: int  # number of bootstrap resamples
    resample_seed: int = 0  # random seed of the resamples; fixed, so that the same experiments give the same intervals
    level: float = LEVEL  # of the tests
    known_spread: SeedSpread | None = None  # standard deviation between seeds, for cells with one run each
    margin: float | None = None  # differences below it do not matter
    one_family: bool = False  # whether all tests are corrected together, not those of each table
    # by cell: the compared score of each run on the validation set and on R resamples, (n_k, 1 + R), without the noise
    # of seeds and of tuning
    run_scores: dict[Place, np.ndarray] = field(default_factory=dict, repr=False)
    families: dict[Family, list[Difference]] = field(default_factory=dict)  # in the order of display
    design: Design | None = None  # if the columns are the points of a factorial design
    # (row, column, factor or cell; fields that it changes), such as ("giou", "loss.box=giou")
    recipes: list[tuple[str, str]] = field(default_factory=list)
    variances: Variances | None = None  # what limits the main family; None without several seeds per cell
    # by cell and score name; only scores that can be recomputed on a resample have an interval
    intervals: dict[Place, dict[str, Interval]] = field(default_factory=dict)
    # by cell and class name; these intervals are not corrected for the number of classes
    per_class: dict[Place, dict[str, Interval]] = field(default_factory=dict)
    per_class_change: dict[Place, dict[str, Interval]] = field(default_factory=dict)
    may_be_best: list[Place] = field(default_factory=list)  # set that contains the best cell with 95% confidence
    optimism: float = math.nan  # by how much the best mean score is expected to exceed the true score of its cell
    # by slice and cell; interactions test whether a difference is the same on the slice and on the other images
    slices: list[SliceDifference] = field(default_factory=list)
    slice_interactions: list[SliceDifference] = field(default_factory=list)
    annotations: Path | None = None  # annotation file of the validation images, if it is not where the runs recorded it
    slice_notes: list[str] = field(default_factory=list)  # which images and slices were left out
    robustness: RobustnessComparison | None = None  # only with --corruptions
    looks: Looks | None = None  # only if the grid file plans looks
    tuning: "Tuning | None" = None  # only if trials chose values for the rows or cells of the grid
    latencies: Latencies | None = None
    warnings: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)  # command lines that repeat the runs and this comparison

    @property
    def num_runs(self) -> int:
        """Number of runs in the comparison, finished or not."""
        return sum(len({each.seed for each in (*cell.runs, *cell.notes)}) for cell in self.cells.values())

    @property
    def scored_cells(self) -> list[Cell]:
        """Cells with a score, in the order of `cells`."""
        return [cell for cell in self.cells.values() if cell.mean is not None]

    @property
    def baseline_cell(self) -> Cell:
        """The cell that differences are measured from; `baseline` is its (row, column)."""
        return self.cells[self.baseline]

    @property
    def lower_is_better(self) -> bool:
        """Whether a lower score is better, as for a loss."""
        return any(run.results.lower_is_better for cell in self.cells.values() for run in cell.runs)

    @property
    def best(self) -> Cell | None:
        """The cell with the best mean score."""
        return best_of(self.scored_cells, self.lower_is_better)

    @property
    def num_images(self) -> int:
        """Number of validation images."""
        return self.scored_cells[0].runs[0].results.protocol.images

    @property
    def class_metric(self) -> str:
        """Name of the per-class score: the first key of a class in results.json, such as AP, or else `metric`."""
        classes = self.scored_cells[0].runs[0].results.per_class
        return next(iter(next(iter(classes.values()), {})), self.metric)

    def family(self, kind: str) -> list[Difference]:
        """Return the differences of the family of this kind; empty if there is none."""
        return next((found for family, found in self.families.items() if family.kind == kind), [])

    @property
    def differences(self) -> list[Difference]:
        """The differences from the baseline, or between all pairs of cells."""
        return self.family("difference")

    @property
    def main_family(self) -> list[Difference]:
        """The differences that decide: main effects of factors, if any, otherwise those of cells."""
        return self.family("factor effect") or self.differences

    @property
    def detectable(self) -> float:
        """The typical detectable difference: the median of `detectable` over the main family."""
        each = [difference.detectable for difference in self.main_family]
        return statistics.median([value for value in each if not math.isnan(value)] or [math.nan])

    @property
    def has_several_seeds(self) -> bool:
        """Whether any cell has several seeds. If so, the intervals include the variation between seeds."""
        return any(len(cell.scores) > 1 for cell in self.scored_cells)

    @property
    def covers_seeds(self) -> bool:
        """Whether the intervals include the variation between seeds. If not, they hold for the trained weights only."""
        return self.has_several_seeds or self.known_spread is not None

    @property
    def probably_not_best(self) -> list[Place]:
        """The cells that are left out of the set that contains the best with 95% confidence."""
        return [cell.place for cell in self.scored_cells if self.may_be_best and cell.place not in self.may_be_best]

    def verdict(self, difference: Difference) -> str:
        """Return the verdict on a difference as a word or two, such as "significant" or "smaller than 0.005"."""
        if math.isnan(difference.interval.low):
            return "undefined"
        scope, found = "" if self.covers_seeds else " for these weights only", []
        at_looks = difference.at_looks
        if difference.is_significant:
            when = f", at look {at_looks.shown_at}" if at_looks else ""
            found.append(f"differs{scope}" if scope else f"significant{when}")
        is_small = self.margin is not None and difference.bound < self.margin
        if at_looks.is_small if at_looks else is_small:
            found.append(f"smaller than {self.margin:g}{scope}")
        if not found and at_looks and at_looks.is_open(self.margin) and self.looks.complete < len(self.looks.planned):
            return "not yet shown"
        return ", ".join(found) or ("not shown" if self.margin is None else "open")


def best_of(cells: Sequence[Cell], lower_is_better: bool) -> Cell | None:
    """Return the cell with the best mean score; None if `cells` is empty."""
    return min(cells, key=lambda cell: cell.mean if lower_is_better else -cell.mean, default=None)
