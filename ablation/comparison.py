"""What a comparison holds: cells of finished experiments, differences between them with intervals, and warnings."""

import math
import re
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from records.results import Place, Run
from stats.bootstrap import Interval

NEGATIVE = re.compile(r"(?<![\w-])-(?=\d)")


class Note(NamedTuple):
    """What is not as it should be with one seed of a cell."""

    seed: int
    kind: str  # waiting, running, stopped, killed, failed, stale
    detail: str

    def __str__(self) -> str:
        return f"seed {self.seed} {self.reason}"

    @property
    def reason(self) -> str:
        return f"{self.kind}: {self.detail}".removesuffix(": ")


@dataclass
class Cell:
    """One place of the table."""

    row: str
    column: str
    runs: list[Run] = field(default_factory=list)  # one per seed
    notes: list[Note] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.row} x {self.column}"

    @property
    def status(self) -> str:
        """What is not as it should be, in short: 'failed, stale'; empty where all is well."""
        return ", ".join(sorted({note.kind for note in self.notes}))

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
        """Mean over seeds of a number in results.json, such as ("scores", "AP50"); None where a run has none."""
        values = [
            getattr(run.results.cost, name) if section == "cost" else run.results.scores.get(name) for run in self.runs
        ]
        return statistics.fmean(values) if values and None not in values else None


@dataclass(frozen=True)
class Difference:
    """A contrast of scores with its uncertainty, and its p value corrected for how many were looked at together."""

    label: str
    interval: Interval
    p_holm: float
    together: int  # how many that is

    @property
    def significant(self) -> bool:
        return self.p_holm < 0.05

    @property
    def smallest_detectable(self) -> float:
        """The true difference that would be found significant (5%, after the correction) in 80% of such experiments.

        Taken as if it were the only one there is, which Holm's correction tests as strictly as Bonferroni's. nan where
        the difference is the same on every resample, as between two models that get nothing right."""
        if self.interval.standard_error == 0:
            return math.nan
        normal = statistics.NormalDist()
        return (normal.inv_cdf(1 - 0.025 / self.together) + normal.inv_cdf(0.8)) * self.interval.standard_error


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

    def reasons(self, of_scored: bool) -> list[str]:
        """What is not as it should be, a line for all runs that share it; of the runs that count, or of the others."""
        shared: dict[str, list[tuple[Cell, Note]]] = {}
        for cell in self.cells.values():
            for note in cell.notes:
                if of_scored == any(run.seed == note.seed for run in cell.runs):
                    shared.setdefault(note.reason, []).append((cell, note))
        runs = sum(len({each.seed for each in (*cell.runs, *cell.notes)}) for cell in self.cells.values())
        lines = []
        for reason, noted in shared.items():
            (cell, note), names = noted[0], few(dict.fromkeys(cell.name for cell, _ in noted))
            who = f"all {runs} runs" if len(noted) == runs else f"{len(noted)} runs ({names})"
            lines.append(f"{who} {reason}" if len(noted) > 1 else f"{cell.name}: {note}")
        return lines

    @property
    def filled(self) -> list[Cell]:
        """Cells with a score, row by row."""
        return [cell for cell in self.cells.values() if cell.mean is not None]

    @property
    def lower_is_better(self) -> bool:
        """Whether the score is a loss."""
        return any(run.results.lower_is_better for cell in self.cells.values() for run in cell.runs)

    @property
    def best(self) -> Cell | None:
        """The cell with the best mean score."""
        return min(self.filled, key=lambda cell: self.as_loss(cell.mean), default=None)

    @property
    def difference_in(self) -> str:
        """What differences are in, and whether they are good below zero."""
        return f"{self.metric} (below zero is better)" if self.lower_is_better else self.metric

    def as_loss(self, score: float) -> float:
        """The score as something to be made small."""
        return score if self.lower_is_better else -score

    @property
    def images(self) -> int:
        """Validation images behind the scores."""
        return self.filled[0].runs[0].results.protocol.images

    @property
    def class_metric(self) -> str:
        """What the score of one class is called: the first in results.json's per_class, such as AP of mAP."""
        classes = self.filled[0].runs[0].results.per_class
        return next(iter(next(iter(classes.values()), {})), self.metric)

    @property
    def seeds(self) -> str:
        """'3 seeds', or '1 to 3 seeds' where the filled cells have different numbers."""
        counts = sorted({len(cell.scores) for cell in self.filled}) or [0]
        return f"{' to '.join(map(str, [counts[0], counts[-1]][-len(counts) :]))} seed{'s' * (counts[-1] > 1)}"

    @property
    def detectable(self) -> float:
        """The true difference that this many images and seeds would have shown four times out of five, typically."""
        each = [difference.smallest_detectable for difference in self.differences]
        return statistics.median([value for value in each if not math.isnan(value)] or [math.nan])

    @property
    def seeds_are_uncertain(self) -> bool:
        """Whether the intervals hold for other seeds too: some cell has several, to tell how much they differ."""
        return any(len(cell.scores) > 1 for cell in self.filled)

    @property
    def conclusion(self) -> str:
        """What the differences say, in words."""
        if not self.differences:
            return "No difference was computed."
        if math.isnan(self.detectable):
            return (
                f"No difference can be tested: {self.images} validation images are too few, or hold too little to "
                "score, or all score the same on them."
            )
        shown, effects = significant(self.differences), significant([*self.row_effects, *self.column_effects])
        whose = "" if self.seeds_are_uncertain else " for these very weights (one seed per cell)"
        sentences = [
            f"{len(shown)} of {len(self.differences)} differences significant at 5% after Holm{whose}: {told(shown)}."
            if shown
            else f"No difference shown{whose}: none of {len(self.differences)} is significant at 5% after Holm."
        ]
        if self.lower_is_better and (shown or effects):
            sentences.append("Below zero is better.")
        if self.row_effects:
            over = "averaged over the rest of the grid"
            sentences.append(f"Significant {over}: {told(effects)}." if effects else f"None is, {over}.")
        sentences.append(
            f"{self.images} validation images and {self.seeds} per cell would have shown a true difference of about "
            f"{self.detectable:.2g} four times out of five; not much smaller ones."
            + ("" if self.seeds_are_uncertain else " What another seed would change comes on top and is not known.")
        )
        return " ".join(sentences)


def significant(differences: Sequence[Difference]) -> list[Difference]:
    return [difference for difference in differences if difference.significant]


def told(differences: Sequence[Difference]) -> str:
    """Return 'fpn against none: −0.0101 (95%: −0.0174 to −0.0023); pan against none: ...'."""
    return "; ".join(
        f"{' against '.join(each.label.rsplit(' - ', 1))}: {with_minus(f'{each.interval.estimate:+.4f}')} "
        f"(95%: {with_minus(f'{each.interval.low:+.4f} to {each.interval.high:+.4f}')})"
        for each in differences
    )


def with_minus(text: str) -> str:
    """The same with a minus sign, not a hyphen, before negative numbers; for people."""
    return NEGATIVE.sub("\N{MINUS SIGN}", text)


def few(names: Collection[str]) -> str:
    """The first three, and how many more there are."""
    return ", ".join([*names][:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
