"""Beside a peer: the rows of a benchmark's table, and the page that it is written to.

Every benchmark here compares with its peers in the same run, turn by turn, and fails where the results differ. A ratio
of 3 means three times as fast, or a third of the memory.
"""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

from records.experiment import commit_of, describe_environment

COLUMNS = ("what", "peer", "theirs", "ours", "", "ratio", "asked")


@dataclass(frozen=True)
class Row:
    """One figure of ours beside a peer's."""

    what: str
    peer: str
    theirs: float
    ours: float
    unit: str  # of both: ms, s, MiB, images/s, ...
    asked: float | None = None  # least ratio

    @property
    def ratio(self) -> float:
        """How many times better ours is: larger for a rate, smaller for anything else."""
        return self.ours / self.theirs if self.unit.endswith("/s") else self.theirs / self.ours


def turn_by_turn(contenders: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Seconds of process time of each contender: the least of `rounds` rounds, in each of which all have their turn.

    They should have run once before."""
    seconds = [[] for _ in contenders]
    for _ in range(rounds):
        for contender, taken in zip(contenders, seconds, strict=True):
            started = time.process_time()
            contender()
            taken.append(time.process_time() - started)
    return [min(taken) for taken in seconds]


def table(rows: Sequence[Row]) -> str:
    """In Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|---:|---:|---|---:|---:|"]
    for row in rows:
        asked = f"{row.asked:g}" if row.asked else ""
        lines.append(
            f"| {row.what} | {row.peer} | {row.theirs:.4g} | {row.ours:.4g} | {row.unit} | {row.ratio:.2f} | {asked} |"
        )
    return "\n".join(lines)


def write_page(script: str, text: str, rows: Sequence[Row], device: torch.device) -> None:
    """Write the .md beside `script` and print it: where and when, what it says, what is short of what was asked.

    text: Markdown that begins with a title line, and has "{rows}" where the table goes."""
    environment = describe_environment([platform.node()], device)
    machine = environment["device"] if device.type == "cuda" else environment["cpu"]
    threads = environment["cpu_threads"]
    title, _, rest = text.partition("\n")
    short = [f"{row.what} ({row.ratio:.2f} of {row.asked:g})" for row in rows if row.asked and row.ratio < row.asked]
    page = f"""{title}

`python -m benchmarks.{Path(script).stem}`, {date.today()}, commit {commit_of(environment)}, {machine}, \
{threads} thread{"s" * (threads > 1)}, torch {torch.__version__}.

Short of what is asked: {"; ".join(short) or "nothing"}.
{rest.format(rows=table(rows))}"""
    Path(script).with_suffix(".md").write_text(page)
    print(page)


def overview() -> str:
    """The rows of all pages that have a figure asked of them, with the page they are on."""
    lines = ["| benchmark | what | peer | ratio | asked |", "|---|---|---|---:|---:|"]
    for page in sorted(Path(__file__).parent.glob("*.md")):
        _, _, rows = page.read_text().partition(f"| {' | '.join(COLUMNS)} |\n")
        for line in rows.partition("\n\n")[0].splitlines()[1:]:
            what, peer, _, _, _, ratio, asked = (cell.strip() for cell in line.strip("|").split("|"))
            if asked:
                lines.append(f"| [{page.stem}]({page.name}) | {what} | {peer} | {ratio} | {asked} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(overview())
