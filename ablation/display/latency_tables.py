"""Tables and sentences about latency: accuracy against latency, the Pareto front, and the best within a budget."""

from collections.abc import Sequence
from typing import Any

from ablation.comparison import CellLatency, Comparison, Latencies
from ablation.display.formats import Table
from engine.terminal import counted
from engine.text import listed
from records.results import Place
from stats.latency import TOLERANCE
from stats.pareto import Membership

MAX_NAMED = 6  # cells in a sentence; the table lists all


def measured(comparison: Comparison) -> dict[Place, CellLatency]:
    """Return the latencies that can be shown, by cell."""
    return comparison.latencies.cells if comparison.latencies else {}


def names_of(comparison: Comparison, places: Sequence[Place]) -> str:
    """Return the names of cells as text, such as "'A x fpn', 'B x none'"."""
    return listed([repr(comparison.cells[place].name) for place in places], MAX_NAMED)


def latency_sentences(comparison: Comparison) -> list[str]:
    """Return the sentence about the budget, to quote; none without a budget."""
    found = comparison.latencies
    if not found or not found.budget:
        return []
    budget = found.budget
    if not budget.within:
        fastest = min(found.cells, key=lambda place: found.cells[place].p50)
        text = (
            f"No cell is within {budget.limit:g} ms; the fastest is {names_of(comparison, [fastest])} with "
            f"{found.cells[fastest].p50:.2f} ms."
        )
    else:
        text = best_within(comparison)
    if budget.too_slow and budget.within:
        text += f" Too slow: {names_of(comparison, budget.too_slow)}."
    return [f"{text} {measured_how(comparison)}"]


def budget_warnings(comparison: Comparison) -> list[str]:
    """Return why the answer to a budget may be different after another measurement; empty without a budget."""
    found = comparison.latencies
    if not found or not found.budget:
        return []
    budget, warnings = found.budget, []
    if budget.borderline:
        warnings.append(
            f"borderline: {names_of(comparison, budget.borderline)}; the 95% interval of the latency contains "
            f"{budget.limit:g} ms, so a new measurement may change the answer"
        )
    if budget.not_measured:
        warnings.append(f"not measured, so not in the answer: {names_of(comparison, budget.not_measured)}")
    if len(found.sessions) > 1:
        warnings.append(sessions_note(found))
    if budget.not_measured or len(found.sessions) > 1:
        warnings[-1] += f"; to measure all in one session, run {found.command}"
    return warnings


def sessions_note(found: Latencies) -> str:
    """Return why latencies of several sessions need care."""
    return (
        f"the cells were measured in {len(found.sessions)} sessions, and the machine may have been busier in one than "
        "in another"
    )


def best_within(comparison: Comparison) -> str:
    """Return which of the cells within the budget may be the best."""
    budget = comparison.latencies.budget
    within, all_names = f"within {budget.limit:g} ms", names_of(comparison, budget.within)
    rest = [place for place in budget.within if place not in budget.may_be_best]
    scope = "95% confidence" if comparison.covers_seeds else "95% confidence, for these weights only"
    if len(budget.within) == 1:
        return f"Only {all_names} is {within}."
    if not budget.may_be_best:
        return f"{len(budget.within)} cells are {within}: {all_names}. It was not tested which of them is the best."
    if not rest:
        return f"{within.capitalize()}, any of these may be the best: {all_names}."
    if len(budget.may_be_best) == 1:
        text = f"{within.capitalize()}, {names_of(comparison, budget.may_be_best)} is the best ({scope})."
    else:
        text = f"{within.capitalize()}, these may be the best ({scope}): {names_of(comparison, budget.may_be_best)}."
    return f"{text} Probably not the best: {names_of(comparison, rest)}."


def measured_how(comparison: Comparison) -> str:
    """Return what was measured, and where: program, precision, device, threads and load."""
    found = comparison.latencies
    each = next(iter(found.cells.values()))
    threads = counted(each.threads, "thread", "threads")
    text = f"{found.program} program in {each.precision} on {each.device} with {threads}"
    if found.loads:
        low, high = f"{min(found.loads):.1f}", f"{max(found.loads):.1f}"
        load = low if low == high else f"{low} to {high}"
        text += f" (on average, {load} threads ran or waited for a core)"
    return f"Latency: median time from the file of one image to boxes; {text}."


def front_sentence(comparison: Comparison) -> str:
    """Return which cells are on the Pareto front of score and latency; empty if it was not tested."""
    front = comparison.latencies.front
    groups = {each: [place for place, found in front.items() if found is each] for each in Membership}
    labels = {
        Membership.YES: "Shown to be on the Pareto front",
        Membership.MAYBE: "Undecided",
        Membership.NO: "Shown not to be on it",
    }
    parts = [f"{labels[each]}: {names_of(comparison, places) or 'none'}." for each, places in groups.items()]
    return " ".join(parts) if front else ""


def latency_notes(comparison: Comparison) -> list[str]:
    """Return sentences that explain latencies and the Pareto front."""
    found = comparison.latencies
    if found.conflict:
        return [f"No latencies: {found.conflict}"]
    if not found.cells:
        return []
    sizes = sorted({each.batch_size for each in found.cells.values()})
    batch = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
    missing = [cell.place for cell in comparison.scored_cells if cell.place not in found.cells]
    notes = [
        f"{measured_how(comparison)} p95: 95% of the images take at most this long. Images/s: in batches of {batch}. "
        "Brackets contain 95% intervals."
    ]
    if missing and not found.budget:  # with a budget, these are warnings
        notes.append(f"Not measured: {names_of(comparison, missing)}.")
    if len(found.sessions) > 1 and not found.budget:
        notes.append(f"{sessions_note(found).capitalize()}; to measure all in one session, run {found.command}.")
    if found.front:
        scope = "" if comparison.covers_seeds else ", for these weights only"
        notes.append(
            f"A cell is on the Pareto front if no other cell has a better score and takes at most {TOLERANCE:.0%} "
            f"longer. With 95% confidence, all answers yes and no are true together{scope}. Maybe means that the data "
            "do not decide. The front compares times without waiting for a core; p50 and p95 include the waiting."
        )
    return notes


def latency_table(comparison: Comparison) -> Table:
    """Return the table of accuracy against latency, from the fastest cell to the slowest."""
    found, budget = comparison.latencies, comparison.latencies.budget
    header = ["", comparison.metric, "latency p50 (ms)", "latency p95 (ms)", "images/s"]
    header += ["Pareto front"] * bool(found.front)
    header += [f"within {budget.limit:g} ms", f"may be the best within {budget.limit:g} ms"] if budget else []
    rows = []
    for place in sorted(found.cells, key=lambda place: found.cells[place].p50):
        each, cell = found.cells[place], comparison.cells[place]
        score = comparison.intervals.get(place, {}).get(comparison.metric)
        ends = f" [{score.low:.4f}, {score.high:.4f}]" if score else ""
        row = [cell.name, f"{cell.mean:.4f}{ends}", shown_p50(each), f"{each.p95:.2f}", f"{each.images_per_second:.1f}"]
        row += [found.front.get(place, "-")] * bool(found.front)
        if budget:
            row.append(("yes" if place in budget.within else "no") + ", borderline" * (place in budget.borderline))
            is_tested = place in budget.within and budget.may_be_best
            row.append(("yes" if place in budget.may_be_best else "no") if is_tested else "-")
        rows.append(row)
    return Table(f"{comparison.metric} against latency", header, rows, notes=latency_notes(comparison))


def shown_p50(latency: CellLatency) -> str:
    """Return p50 and its interval as text, such as '12.30 [12.18, 12.44]'."""
    return f"{latency.p50:.2f} [{latency.p50_low:.2f}, {latency.p50_high:.2f}]"


def latency_columns(comparison: Comparison, place: Place) -> dict[str, Any]:
    """Return the columns of a cell's latency in CSV, besides those of COLUMNS; none if no cell has a latency."""
    found = comparison.latencies
    if not measured(comparison):
        return {}
    each, budget = found.cells.get(place), found.budget
    columns = {"latency_p50_low": each and each.p50_low, "latency_p50_high": each and each.p50_high}
    columns |= {"latency_batch_size": each and each.batch_size, "latency_device": each and each.device}
    if found.front:
        columns["pareto_front"] = found.front.get(place)
    if budget:
        columns["within_budget"] = int(place in budget.within) if each else None
        is_tested = place in budget.within and budget.may_be_best
        columns["may_be_best_within_budget"] = int(place in budget.may_be_best) if is_tested else None
    return columns
