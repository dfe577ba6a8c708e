"""Tables of a session of `detection.latency`: the times, and the ratios to the first experiment."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from detection.deployment.programs import Times
from detection.deployment.timing import Cell, ratio_of
from engine.terminal import counted
from records.experiment import table
from records.latency import Timing
from stats.latency import RATIO_CONFIDENCE, TOLERANCE


def print_tables(
    names: Mapping[Path, str], session: dict, times: Mapping[Cell, Sequence[Times]], timings: Mapping[Cell, Timing]
) -> None:
    """Print the conditions, the times, and the ratios to the first experiment. names: of the experiments."""
    print(conditions_line(session))
    print(table([first_columns(cell, names) | time_columns(each) for cell, each in timings.items()]))
    reference = next(iter(names))
    if rows := ratio_rows(times, reference, names):
        print(
            f"\ntime from end to end without waiting for a core, divided by that of {names[reference]}, with "
            f"{RATIO_CONFIDENCE:.1%} intervals; slower, faster: by more than {TOLERANCE:.0%}"
        )
        print(table(rows))


def short_names(experiments: Sequence[Path]) -> dict[Path, str]:
    """Return the name of each folder; if several have the same name, with the parents that tell them apart."""
    parts = {path: path.resolve().parts for path in experiments}
    names = {}
    for path, own in parts.items():
        depth = 1
        while any(other[-depth:] == own[-depth:] for each, other in parts.items() if each != path):
            depth += 1
        names[path] = str(Path(*own[-depth:]))
    return names


def conditions_line(session: dict) -> str:
    """Return device, precision, threads, load and power of a session as text."""
    load = session["load"]
    parts = [
        session["device"],
        session["precision"],
        counted(session["threads"], "thread", "threads"),
        "load unknown" if load is None else f"load: {load / (os.cpu_count() or 1):.1f} processes per core",
        f"power: {session['power'] or 'unknown'}",
    ]
    return ", ".join(parts)


def first_columns(cell: Cell, names: Mapping[Path, str]) -> dict[str, object]:
    """Return the columns of a table that name the cell."""
    return {"experiment": names[cell.experiment], "program": cell.program, "batch": cell.batch_size}


def time_columns(timing: Timing) -> dict[str, object]:
    """Return the columns of the table of times: medians, and the 95th and 99th percentile from end to end."""
    total = timing.end_to_end
    memory = timing.peak_memory_mib
    return {
        "rounds": len(timing.rounds_ms),
        "network ms": f"{timing.network.p50:.2f}",
        "post-processing ms": f"{timing.postprocess.p50:.2f}",
        "end to end ms": f"{total.p50:.2f} ({total.p50_low:.2f} to {total.p50_high:.2f})",
        "p95": f"{total.p95:.2f}",
        "p99": f"{total.p99:.2f}",
        "images/s": f"{timing.images_per_second:.1f}",
        "MiB": "" if memory is None else f"{memory:.0f}",
    }


def ratio_rows(
    times: Mapping[Cell, Sequence[Times]], reference: Path, names: Mapping[Path, str]
) -> list[dict[str, object]]:
    """Return the rows of the table of ratios: each experiment divided by the first, with the same program and batch."""
    rows = []
    for cell, series in times.items():
        other = times.get(cell._replace(experiment=reference))
        if cell.experiment == reference or other is None:
            continue
        ratio = ratio_of(series, other)
        text = f"{ratio.estimate:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
        rows.append(first_columns(cell, names) | {"ratio": text, "verdict": ratio.verdict})
    return rows
