"""Set experiments side by side, and say which differences are real.

    python -m ablation.compare experiments/experiment_2 experiments/experiment_3 --baseline experiments/experiment_2
    python -m ablation.compare configs/grid_coco.yaml --format latex --columns AP50,AP_small,parameters,gflops
    python -m ablation.compare configs/grid_coco.yaml --format html --output grid_coco.html

Experiments with the same recipe but for the seed share a cell of the table. Every difference comes with a 95%
interval and a corrected p value from a paired bootstrap over the validation images (stats/bootstrap.py).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ablation.columns import COLUMNS
from engine.arguments import check_config, check_experiment
from engine.start import start
from engine.text import UnknownNameError

SUFFIXES = {"md": ".md", "latex": ".tex", "csv": ".csv", "html": ".html"}


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ablation.compare",
        description="Scores of experiments side by side, with honest uncertainty.",
        epilog="example: python -m ablation.compare configs/grid_coco.yaml --format html --output grid_coco.html",
    )
    parser.add_argument("what", nargs="+", type=Path, metavar="EXPERIMENT|GRID", help="experiments, or one grid file")
    add_options(parser)
    arguments = parser.parse_args(words)
    check_output(arguments)
    for path in arguments.what:
        (check_config if path.suffix == ".yaml" else check_experiment)(path)
    return arguments


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this command and of `ablation.grid table`."""
    parser.add_argument("--baseline", help="experiment or 'row x column' to measure from (default: the first)")
    parser.add_argument("--pairs", action="store_true", help="every pair, not only from the baseline (not in csv)")
    parser.add_argument("--format", choices=tuple(SUFFIXES), help="default: by --output's suffix, or md")
    parser.add_argument("--output", type=Path, help="file to write (default: the terminal; html: comparison.html)")
    columns = f"more columns, of {','.join(COLUMNS)}, or all (csv, html: always)"
    parser.add_argument("--columns", type=column_names, default=(), help=columns)
    parser.add_argument("--per-class", action="store_true", help="score of every class, and its change (html: always)")
    parser.add_argument("--errors", action="store_true", help="errors by kind, and their change (html: always)")
    parser.add_argument("--replicates", type=replicate_count, default=1000, help="resamples of the images")
    parser.add_argument("--force", action="store_true", help="show what cannot be compared, with a warning in it")
    parser.add_argument("--experiments", type=Path, default=Path("experiments"), help="where runs are kept")


def replicate_count(text: str) -> int:
    """Parse --replicates: at least 100, so that 95% intervals can be read from them."""
    if not text.isdecimal() or int(text) < 100:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 100 up")
    return int(text)


def check_output(arguments: argparse.Namespace) -> None:
    """Choose the format by --output's suffix if --format is not given.

    Raises ValueError, before any work, if the file cannot be written or has an unknown suffix."""
    path = arguments.output
    if path and (not path.parent.is_dir() or path.is_dir()):
        raise ValueError(f"--output {path}: expected a file in a folder that exists")
    if path and not arguments.format:
        arguments.format = next((name for name, suffix in SUFFIXES.items() if path.suffix == suffix), None)
        if not arguments.format:
            raise ValueError(f"--output {path}: end it in {', '.join(SUFFIXES.values())}, or give --format")
    arguments.format = arguments.format or "md"


def column_names(text: str) -> Sequence[str]:
    """Parse --columns: 'AP50,gflops', names of COLUMNS, or 'all'."""
    names = text.split(",")
    for name in names:
        if name not in (*COLUMNS, "all"):
            raise argparse.ArgumentTypeError(str(UnknownNameError("column", name, [*COLUMNS, "all"])))
    return names


def main(arguments: argparse.Namespace, _: None) -> None:
    """Compare as the command line says."""
    show(arguments.what, arguments)


def show(what: Sequence[Path], arguments: argparse.Namespace) -> None:
    """Compare a grid or experiments, and print or write the comparison in the format asked for."""
    from ablation import tables
    from ablation.cells import compare
    from engine.files import write_text
    from engine.terminal import printable_lines

    options = {name: getattr(arguments, name) for name in ("baseline", "pairs", "replicates", "force")}
    comparison, path = compare(what, arguments.experiments, **options), arguments.output
    if arguments.format == "html":
        from ablation.report import write_report  # imports matplotlib

        path = path or Path("comparison.html")
        write_report(path, comparison)
    else:
        text = tables.as_text(comparison, arguments)
        if path:
            write_text(path, text)
        else:
            sys.stdout.write(printable_lines(text))
            picture = comparison.best and comparison.best.runs[0].path / "detections.png"
            if arguments.format == "md" and picture and picture.is_file():
                print(f"what the best cell finds: {picture}")
    if path:
        print(f"written to {path}")


if __name__ == "__main__":
    start(parse_arguments, main, on_device=False)
