"""What a comparison holds: cells of finished experiments, differences between them with intervals, and warnings.

Data only: ablation/tables.py, sentences.py and report.py say how they are shown.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from records.results import Place, Run
from stats.bootstrap import Interval
from stats.contrasts import detectable_difference


class Note(NamedTuple):
    """Why one seed of a cell has no score, or a score that deserves a warning."""

    seed: int
    kind: str  # waiting, running, stopped, killed, failed, stale
    detail: str

    @property
    def reason(self) -> str:
        return f"{self.kind}: {self.detail}".removesuffix(": ")


@dataclass
class Cell:
    """One place of the table: a way to train, such as a backbone with a neck."""

    row: str
    column: str
    runs: list[Run] = field(default_factory=list)  # one per seed
    notes: list[Note] = field(default_factory=list)

    @property
    def place(self) -> Place:
        return self.row, self.column

    @property
    def name(self) -> str:
        return f"{self.row} x {self.column}"

    @property
    def scored(self) -> list[Run]:
        """The runs whose score is defined."""
        return [run for run in self.runs if run.score is not None]

    @property
    def scores(self) -> list[float]:
        return [run.score for run in self.scored]

    @property
    def mean(self) -> float | None:
        """Mean score over seeds, None without any."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of the score over seeds, None below two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    def mean_of(self, section: str, name: str) -> float | None:
        """Mean over seeds of a number in results.json, such as ("scores", "AP50"); None where a run has none.

        section: scores, cost, or the name of a dict in errors, such as delta_AP50."""
        values = []
        for run in self.runs:
            owner = run.results.errors if section in ("delta_AP50", "counts") else run.results
            numbers = getattr(owner, section, {})
            values.append(getattr(numbers, name) if section == "cost" else numbers.get(name))
        return statistics.fmean(values) if values and None not in values else None


@dataclass(frozen=True)
class Difference:
    """A contrast of scores with its uncertainty."""

    label: str
    interval: Interval
    p_holm: float  # corrected for the differences that were tested together
    together: int  # how many these were

    @property
    def significant(self) -> bool:
        return self.p_holm < 0.05

    @property
    def smallest_detectable(self) -> float:
        """The true difference that would be significant in 80% of such experiments; nan where nothing varies."""
        return detectable_difference(self.interval.standard_error, self.together)


@dataclass
class Comparison:
    """Scores side by side. Rows and columns are in the order in which they are shown."""

    title: str
    metric: str
    row_name: str  # "backbone"
    column_name: str  # "neck"
    rows: list[str]
    columns: list[str]
    cells: dict[Place, Cell]  # every (row, column) that was asked for; without runs where there is none yet
    baseline: Place
    replicates: int  # resamples behind each interval
    differences: list[Difference] = field(default_factory=list)  # from the baseline, or of every pair
    row_effects: list[Difference] = field(default_factory=list)  # empty where the grid is too small for effects
    column_effects: list[Difference] = field(default_factory=list)
    interactions: list[Difference] = field(default_factory=list)
    # name of a score to its interval, for those that can be computed on a resample
    intervals: dict[Place, dict[str, Interval]] = field(default_factory=dict)
    # class name to its score, and to its change against the baseline; only the choice of images is uncertain in these
    per_class: dict[Place, dict[str, Interval]] = field(default_factory=dict)
    per_class_change: dict[Place, dict[str, Interval]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def num_runs(self) -> int:
        """How many runs were asked for, whatever became of them."""
        return sum(len({each.seed for each in (*cell.runs, *cell.notes)}) for cell in self.cells.values())

    @property
    def filled(self) -> list[Cell]:
        """Cells with a score, row by row."""
        return [cell for cell in self.cells.values() if cell.mean is not None]

    @property
    def base(self) -> Cell:
        """The cell that differences are measured from."""
        return self.cells[self.baseline]

    @property
    def lower_is_better(self) -> bool:
        """Whether the score is a loss."""
        return any(run.results.lower_is_better for cell in self.cells.values() for run in cell.runs)

    @property
    def best(self) -> Cell | None:
        """The cell with the best mean score."""
        return best_of(self.filled, self.lower_is_better)

    @property
    def images(self) -> int:
        """Validation images behind the scores."""
        return self.filled[0].runs[0].results.protocol.images

    @property
    def class_metric(self) -> str:
        """Name of the score of one class: the first in results.json's per_class, such as AP of mAP."""
        classes = self.filled[0].runs[0].results.per_class
        return next(iter(next(iter(classes.values()), {})), self.metric)

    @property
    def detectable(self) -> float:
        """The true difference that this many images and seeds would have shown four times out of five, typically."""
        each = [difference.smallest_detectable for difference in self.differences]
        return statistics.median([value for value in each if not math.isnan(value)] or [math.nan])

    @property
    def seeds_are_uncertain(self) -> bool:
        """Whether the intervals hold for other seeds too, because some cell has several."""
        return any(len(cell.scores) > 1 for cell in self.filled)


def best_of(cells: Sequence[Cell], lower_is_better: bool) -> Cell | None:
    """The cell with the best mean score, None without any."""
    return min(cells, key=lambda cell: cell.mean if lower_is_better else -cell.mean, default=None)
