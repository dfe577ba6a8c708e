"""Beside a peer: how every benchmark is started, the rows of its table, and the page that it is written to.

A benchmark compares with its peers in the same run, turn by turn, and fails where results differ. A ratio of 3 means
three times as fast, or a third of the memory. `python -m benchmarks.comparison` lists every ratio asked for.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

from engine import distributed
from engine.command import RunError, run_command
from records.experiment import commit_of, describe_environment

COLUMNS = ("what", "peer", "theirs", "ours", "", "ratio", "asked")


@dataclass(frozen=True)
class Row:
    """One figure of ours beside a peer's."""

    what: str
    peer: str
    theirs: float
    ours: float
    unit: str  # of both: ms, s, MiB, images/s, mAP, ...
    asked: float | None = None  # least ratio

    @property
    def ratio(self) -> float:
        """How many times better ours is: larger for a rate or a score, smaller for anything else."""
        larger_is_better = self.unit.endswith("/s") or self.unit in ("mAP", "AP50")
        return self.ours / self.theirs if larger_is_better else self.theirs / self.ours


class Page(NamedTuple):
    """What a benchmark found."""

    text: str  # Markdown that begins with a title line, and has "{rows}" where the table goes
    rows: Sequence[Row] = ()
    short: Sequence[str] = ()  # what is not as asked, besides the rows

    def all_short(self) -> list[str]:
        """Return everything that is not as asked."""
        rows = [row for row in self.rows if row.asked and row.ratio < row.asked]
        return [*(f"{row.what} ({row.ratio:.2f} of {row.asked:g})" for row in rows), *self.short]


def run_benchmark(
    measure: Callable[..., Page | None], options: dict[str, dict] | None = None, on_cpu: bool = True
) -> None:
    """Run `measure(device, **options)` as a command, and write the page that it returns beside its module.

    options: name to the arguments of `add_argument`. on_cpu: on one thread of the CPU, whatever else there is.
    Raises RunError if something is not as asked."""
    module = sys.modules[measure.__module__]
    parser = argparse.ArgumentParser(description=module.__doc__.partition("\n")[0])
    for name, settings in (options or {}).items():
        parser.add_argument(name, **settings)
    arguments = vars(parser.parse_args())

    def main(device: torch.device) -> None:
        if on_cpu:
            torch.set_num_threads(1)
            device = torch.device("cpu")
        page = measure(device, **arguments)
        if page and distributed.is_main():
            write_page(module.__file__, page, device)
        if page and page.all_short():
            raise RunError(f"not as asked: {'; '.join(page.all_short())}")

    run_command(main)


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
    """Return the rows in Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|---:|---:|---|---:|---:|"]
    for row in rows:
        asked = f"{row.asked:g}" if row.asked else ""
        lines.append(
            f"| {row.what} | {row.peer} | {row.theirs:.4g} | {row.ours:.4g} | {row.unit} | {row.ratio:.2f} | {asked} |"
        )
    return "\n".join(lines)


def write_page(script: str, page: Page, device: torch.device) -> None:
    """Write the .md beside `script` and print it: where and when, what is not as asked, what was found."""
    environment = describe_environment([platform.node()], device)
    machine = environment["device"] if device.type == "cuda" else environment["cpu"]
    title, _, rest = page.text.partition("\n")
    text = f"""{title}

`python -m benchmarks.{Path(script).stem}`, {date.today()}, commit {commit_of(environment)}, {machine}, \
threads: {environment["cpu_threads"]}, torch {torch.__version__}.

Short of what is asked: {"; ".join(page.all_short()) or "nothing"}.
{rest.format(rows=table(page.rows))}"""
    Path(script).with_suffix(".md").write_text(text)
    print(text)


def overview() -> str:
    """Return the rows of all pages that have a figure asked of them, with the page they are on."""
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
