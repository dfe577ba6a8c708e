"""Data classes of a comparison: cells with their runs, differences with their intervals, and warnings.

ablation/display/tables.py, sentences.py and report.py turn a Comparison into text and HTML.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from records.results import Place, Run
from stats.bootstrap import Interval
from stats.contrasts import detectable_difference
from stats.factorial import Design


class Note(NamedTuple):
    """The reason why one seed of a cell has no score, or why the score needs a warning."""

    seed: int
    kind: str  # waiting, running, stopped, killed, failed, stale
    detail: str

    @property
    def reason(self) -> str:
        return f"{self.kind} ({self.detail})".removesuffix(" ()")


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
        """Row and column; only the row if the table has a single column without a name."""
        return f"{self.row} x {self.column}" if self.column else self.row

    @property
    def scored_runs(self) -> list[Run]:
        """The runs whose score is defined."""
        return [run for run in self.runs if run.score is not None]

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


@dataclass(frozen=True)
class Difference:
    """A difference between cells, a main effect or an interaction, with its uncertainty."""

    label: str
    interval: Interval
    p_holm: float  # p value after Holm correction for `num_tests` tests
    num_tests: int  # number of differences that were tested together

    @property
    def significant(self) -> bool:
        return self.p_holm < 0.05

    @property
    def smallest_detectable(self) -> float:
        """The true difference that would be significant in 80% of such experiments; nan if the standard error is 0."""
        return detectable_difference(self.interval.standard_error, self.num_tests)


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
    # by cell: the compared score of each run on the validation set and on R resamples, (n_k, 1 + R), without seed noise
    run_scores: dict[Place, np.ndarray] = field(default_factory=dict, repr=False)
    differences: list[Difference] = field(default_factory=list)  # from the baseline, or between all pairs of cells
    row_effects: list[Difference] = field(default_factory=list)  # empty without at least two complete rows and columns
    column_effects: list[Difference] = field(default_factory=list)
    interactions: list[Difference] = field(default_factory=list)
    # if the columns are the points of a factorial design, these replace column effects and interactions
    design: Design | None = None
    factor_effects: list[Difference] = field(default_factory=list)  # averaged over the complete rows
    factor_effects_in: dict[str, list[Difference]] = field(default_factory=dict)  # by row, if several are complete
    factor_interactions: list[Difference] = field(default_factory=list)  # how these effects differ from the first row's
    # (row, column, factor or cell; fields that it changes), such as ("giou", "loss.box=giou")
    recipes: list[tuple[str, str]] = field(default_factory=list)
    # by cell and score name; only scores that can be recomputed on a resample have an interval
    intervals: dict[Place, dict[str, Interval]] = field(default_factory=dict)
    # by cell and class name; these intervals cover only the choice of images, not the variation between seeds
    per_class: dict[Place, dict[str, Interval]] = field(default_factory=dict)
    per_class_change: dict[Place, dict[str, Interval]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

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

    @property
    def main_family(self) -> list[Difference]:
        """The differences that the conclusion reports: main effects of factors, if any, otherwise those of cells."""
        return self.factor_effects or self.differences

    @property
    def detectable(self) -> float:
        """The typical detectable difference: the median of `smallest_detectable` over the main family."""
        each = [difference.smallest_detectable for difference in self.main_family]
        return statistics.median([value for value in each if not math.isnan(value)] or [math.nan])

    @property
    def has_several_seeds(self) -> bool:
        """Whether any cell has several seeds. If so, the intervals include the variation between seeds."""
        return any(len(cell.scores) > 1 for cell in self.scored_cells)


def best_of(cells: Sequence[Cell], lower_is_better: bool) -> Cell | None:
    """Return the cell with the best mean score; None if `cells` is empty."""
    return min(cells, key=lambda cell: cell.mean if lower_is_better else -cell.mean, default=None)
