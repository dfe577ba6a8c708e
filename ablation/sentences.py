"""What a comparison says in words: its conclusion, and why runs are missing."""

import math
import re
from collections.abc import Sequence

from ablation.comparison import Cell, Comparison, Difference, Note

NEGATIVE = re.compile(r"(?<![\w-])-(?=\d)")


def noted_runs(comparison: Comparison, counted: bool) -> list[str]:
    """Return 'all 12 runs stale: ...' for each reason: of the runs whose scores count, or of all others."""
    shared: dict[str, list[tuple[Cell, Note]]] = {}
    for cell in comparison.cells.values():
        for note in cell.notes:
            if counted == any(run.seed == note.seed for run in cell.runs):
                shared.setdefault(note.reason, []).append((cell, note))
    lines = []
    for reason, noted in shared.items():
        names = list(dict.fromkeys(cell.name for cell, _ in noted))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        if len(noted) == 1:
            runs = f"{names[0]}: seed {noted[0][1].seed}"
        elif len(noted) == comparison.num_runs:
            runs = f"all {len(noted)} runs"
        else:
            runs = f"{len(noted)} runs ({', '.join(names[:3])}{more})"
        lines.append(f"{runs} {reason}")
    return lines


def seeds_of(comparison: Comparison) -> str:
    """Return '3 seeds', or '1 to 3 seeds' where the filled cells have different numbers."""
    counts = sorted({len(cell.scores) for cell in comparison.filled}) or [0]
    shown = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    return f"{shown} seeds" if counts[-1] > 1 else f"{shown} seed"


def unit_of(comparison: Comparison) -> str:
    """Return what differences are in, and whether they are good below zero."""
    return f"{comparison.metric} (below zero is better)" if comparison.lower_is_better else comparison.metric


def conclusion_of(comparison: Comparison) -> str:
    """Return what the differences show, and what they could have shown."""
    if not comparison.differences:
        return "No difference was computed."
    if math.isnan(comparison.detectable):
        return (
            f"No difference can be tested: {comparison.images} validation images are too few, or hold too little to "
            "score, or all score the same on them."
        )
    shown = [each for each in comparison.differences if each.significant]
    effects = [each for each in (*comparison.row_effects, *comparison.column_effects) if each.significant]
    whose = "" if comparison.seeds_are_uncertain else " for these very weights (one seed per cell)"
    number = len(comparison.differences)
    if shown:
        sentences = [f"{len(shown)} of {number} differences significant at 5% after Holm{whose}: {_listed(shown)}."]
    else:
        sentences = [f"No difference shown{whose}: none of {number} is significant at 5% after Holm."]
    if comparison.lower_is_better and (shown or effects):
        sentences.append("Below zero is better.")
    if comparison.row_effects:
        over = "averaged over the rest of the grid"
        sentences.append(f"Significant {over}: {_listed(effects)}." if effects else f"None is, {over}.")
    sentences.append(
        f"{comparison.images} validation images and {seeds_of(comparison)} per cell would have shown a true difference "
        f"of about {comparison.detectable:.2g} four times out of five; not much smaller ones."
    )
    if not comparison.seeds_are_uncertain:
        sentences.append("What another seed would change comes on top and is not known.")
    return " ".join(sentences)


def _listed(differences: Sequence[Difference]) -> str:
    """Return 'fpn against none: −0.0101 (95%: −0.0174 to −0.0023); pan against none: ...'."""
    return "; ".join(
        f"{' against '.join(each.label.rsplit(' - ', 1))}: {with_minus(f'{each.interval.estimate:+.4f}')} "
        f"(95%: {with_minus(f'{each.interval.low:+.4f} to {each.interval.high:+.4f}')})"
        for each in differences
    )


def with_minus(text: str) -> str:
    """Return the text with a minus sign, not a hyphen, before negative numbers; for people."""
    return NEGATIVE.sub("\N{MINUS SIGN}", text)
