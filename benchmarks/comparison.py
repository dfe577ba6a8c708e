"""Common code of the benchmarks: the command, the rows of the table, and the page with the results.

A benchmark runs our code and a peer (such as torchvision) alternately, and fails if their results differ. A ratio of 3
means three times as fast, or a third of the memory. `python -m benchmarks.comparison` lists all ratios with a target.
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

COLUMNS = ("what", "peer", "theirs", "ours", "", "ratio", "target")


@dataclass(frozen=True)
class Row:
    """One row of a table: a value measured for our code, and the value of a peer or a target."""

    what: str
    peer: str
    theirs: float
    ours: float
    unit: str  # of both values: ms, s, MiB, images/s, mAP, ...
    target: float | None = None  # smallest acceptable ratio

    @property
    def ratio(self) -> float:
        """Factor by which ours is better. Rates and scores are better if larger, all other values if smaller."""
        larger_is_better = self.unit.endswith("/s") or self.unit in ("mAP", "AP50")
        return self.ours / self.theirs if larger_is_better else self.theirs / self.ours


class Page(NamedTuple):
    """The results of a benchmark."""

    text: str  # Markdown: a title line, then text with the placeholder "{rows}" for the table
    rows: Sequence[Row] = ()
    failures: Sequence[str] = ()  # failures other than rows below their target

    def all_failures(self) -> list[str]:
        """Return a text for each row below its target, followed by all other failures."""
        rows = [row for row in self.rows if row.target and row.ratio < row.target]
        return [*(f"{row.what} ({row.ratio:.2f}, target {row.target:g})" for row in rows), *self.failures]


def run_benchmark(
    measure: Callable[..., Page | None], options: dict[str, dict] | None = None, on_cpu: bool = True
) -> None:
    """Run `measure(device, **options)` as a command. Write the returned page to a .md file next to the benchmark.

    options: dict from option name to keyword arguments of `add_argument`. on_cpu: use one CPU thread instead of a GPU.
    Raises RunError if the page has failures, such as a row below its target."""
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
        if page and page.all_failures():
            raise RunError(f"below target or failed: {'; '.join(page.all_failures())}")

    run_command(main)


def time_alternating(contenders: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Return the process time of each contender in seconds, the minimum over `rounds` rounds.

    Every round runs each contender once. Warm up all contenders before calling this function."""
    seconds = [[] for _ in contenders]
    for _ in range(rounds):
        for contender, times in zip(contenders, seconds, strict=True):
            started = time.process_time()
            contender()
            times.append(time.process_time() - started)
    return [min(times) for times in seconds]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|---:|---:|---|---:|---:|"]
    for row in rows:
        target = f"{row.target:g}" if row.target else ""
        lines.append(
            f"| {row.what} | {row.peer} | {row.theirs:.4g} | {row.ours:.4g} | {row.unit} | {row.ratio:.2f} | {target} |"
        )
    return "\n".join(lines)


def write_page(script: str, page: Page, device: torch.device) -> None:
    """Write the page to the .md file next to `script`, with date, commit, machine and failures, and print it."""
    environment = describe_environment([platform.node()], device)
    machine = environment["device"] if device.type == "cuda" else environment["cpu"]
    title, _, rest = page.text.partition("\n")
    text = f"""{title}

`python -m benchmarks.{Path(script).stem}`, {date.today()}, commit {commit_of(environment)}, {machine}, \
threads: {environment["cpu_threads"]}, torch {torch.__version__}.

Below target or failed: {"; ".join(page.all_failures()) or "nothing"}.
{rest.format(rows=table(page.rows))}"""
    Path(script).with_suffix(".md").write_text(text)
    print(text)


def overview() -> str:
    """Return a table of all rows with a target, from all pages, with links to the pages."""
    lines = ["| benchmark | what | peer | ratio | target |", "|---|---|---|---:|---:|"]
    for page in sorted(Path(__file__).parent.glob("*.md")):
        _, _, rows = page.read_text().partition(f"| {' | '.join(COLUMNS)} |\n")
        for line in rows.partition("\n\n")[0].splitlines()[1:]:
            what, peer, _, _, _, ratio, target = (cell.strip() for cell in line.strip("|").split("|"))
            if target:
                lines.append(f"| [{page.stem}]({page.name}) | {what} | {peer} | {ratio} | {target} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(overview())
