"""How the runs of a comparison were trained, on which data, hardware and software, as tables for the HTML page."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ablation.comparison import Comparison
from ablation.display.formats import Table
from ablation.display.sentences import seeds_of
from engine.config import leaves
from engine.text import shown
from records.experiment import FREE_FIELDS, commit_of
from records.results import Run

MAX_LISTED = 12  # values of a list in the protocol, such as class names


def facts_of(comparison: Comparison) -> dict[str, str]:
    """Return how the cells were scored, on which data, and where they were trained, as {name: text}."""
    cells = comparison.scored_cells
    if not cells:
        return {}
    runs = [run for cell in cells for run in cell.runs]
    facts = {"task": runs[0].results.task, "score": comparison.metric, **seeds(comparison)}
    if comparison.differences:
        facts["resamples"] = (
            f"{comparison.replicates:,} of the validation images, with random seed {comparison.resample_seed}; "
            "intervals: 95%"
        )
    facts |= protocol(runs)
    hashes = data(runs)
    if hashes:
        facts["data (SHA-256)"] = ", ".join(f"{name} {digest}" for name, digest in hashes.items())
    starts = [start for run in runs for start in run.starts]
    if starts:
        facts["hardware"] = by_number(hardware(start) for start in starts)
        facts["software"] = by_number(software(start) for start in starts)
        facts["commit"] = by_number(map(commit_of, starts))
        if len({start.get("commit") for start in starts}) > 1:
            facts["commit"] += (
                ". If a grid trained the runs, those whose results may be affected by later changes of the code are "
                "marked as stale above"
            )
    return facts


def seeds(comparison: Comparison) -> dict[str, str]:
    """Return the number of seeds and, for experiments, the seeds."""
    known = sorted({run.seed for cell in comparison.scored_cells for run in cell.runs if run.is_experiment})
    listed = f" ({', '.join(map(str, known[:MAX_LISTED]))}{', ...' * (len(known) > MAX_LISTED)})" * bool(known)
    return {"seeds": f"{seeds_of(comparison)} per cell{listed}"}


def protocol(runs: Sequence[Run]) -> dict[str, str]:
    """Return how the first run was scored; `cells.compare` refuses or warns of runs with other protocols."""
    shared = set.intersection(*(run.results.protocol.model_fields_set for run in runs))
    facts = {}
    for name, value in runs[0].results.protocol.model_dump(include=shared - {"annotations_sha256"}).items():
        if isinstance(value, list):
            value = f"{len(value)}: {', '.join(value[:MAX_LISTED])}{', ...' * (len(value) > MAX_LISTED)}"
        facts[name.replace("_", " ")] = str(value)
    return facts


def data(runs: Sequence[Run]) -> dict[str, str]:
    """Return the first digits of the SHA-256 of each annotation file and of the images of each split."""
    found: dict[str, list[str]] = {}
    for run in runs:
        if run.is_experiment:
            images = {f"{split} images": digest for split, digest in run.results.image_sets.items()}
            for name, digest in (run.results.inputs | images).items():
                found.setdefault(name, []).append(digest[:16])
    return {name: " or ".join(dict.fromkeys(digests)) for name, digests in found.items()}


def hardware(start: dict[str, Any]) -> str:
    """Return the devices of a start in environment.json, such as '1 x AMD EPYC, 1 thread'."""
    if start.get("device") != "cpu":
        return f"{start.get('processes', 1)} x {start.get('device') or 'unknown'}"
    threads = start.get("cpu_threads")
    count = f", {threads} thread{'s' * (threads > 1)} of {start['cpu_cores']} cores" if threads else ""
    return f"{start.get('processes', 1)} x {start.get('cpu') or 'cpu'}{count}"


def software(start: dict[str, Any]) -> str:
    """Return the versions of a start in environment.json, such as 'python 3.11.2, torch 2.9.0'."""
    versions = start.get("versions") or {}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version) or "unknown"


def by_number(values: Iterable[str]) -> str:
    """Return a value, or several with their numbers of runs: 'a (8 starts); b (4 starts)'."""
    counts = Counter(values)
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{value} ({count} start{'s' * (count > 1)})" for value, count in counts.most_common())


def recipe_table(comparison: Comparison) -> Table | None:
    """Return the table of the config that all runs share, with a row for each section; None without experiments."""
    configs = [dict(leaves(run.config)) for cell in comparison.cells.values() for run in cell.runs if run.is_experiment]
    if not configs:
        return None
    sections: dict[str, list[str]] = {}
    for name, value in configs[0].items():
        if name not in {*FREE_FIELDS, "train.seed"} and all(each.get(name, ...) == value for each in configs[1:]):
            section, _, key = name.partition(".")
            text = value if isinstance(value, str) else shown(value)
            sections.setdefault(section, []).append(f"{key}={text}")
    return Table("Shared by all runs", ["", "fields"], [[name, ", ".join(each)] for name, each in sections.items()])
