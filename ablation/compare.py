"""Compare experiments side by side, and test which differences are significant.

    python -m ablation.compare experiments/experiment_2 experiments/experiment_3 --baseline experiments/experiment_2
    python -m ablation.compare small=experiments/experiment_2 large=experiments/experiment_3 --plot latency.png
    python -m ablation.compare configs/grid_coco.yaml --format latex --columns AP50,AP_small,parameters,gflops
    python -m ablation.compare configs/grid_coco.yaml --format html --output grid_coco.html
    python -m ablation.compare --annotations instances_val.json yolo=a.json rtdetr=b.json,c.json

Experiments that differ only in their seed share a cell of the table. Every difference has a 95% interval and a
corrected p value from a paired bootstrap over the validation images (stats/bootstrap.py). The last example compares the
detections of other tools: results files in COCO's format, scored against an annotation file.
"""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablation.display.columns import COLUMNS
from engine.arguments import check_config, check_experiment, positive
from engine.start import start
from engine.text import UnknownNameError, did_you_mean, nearest

if TYPE_CHECKING:
    from ablation.results_files import ScoredFiles

BUILT_IN_SLICES = ("objects", "size")  # here and not in ablation/slices.py, so that --help stays fast
REPLICATES = 10_000
SYNTAX = "write NAME=FILE.json, or NAME=FILE.json,FILE.json for several seeds, such as yolo=predictions.json"
EXPERIMENT_SYNTAX = "write NAME=EXPERIMENT, or NAME=EXPERIMENT,EXPERIMENT for several seeds"
SUFFIXES = {"md": ".md", "latex": ".tex", "csv": ".csv", "html": ".html"}
PICTURES = (".png", ".svg", ".pdf")
PROGRAMS = ("eager", "compiled", "onnxruntime")  # of records/latency.py, which imports pydantic
MILLISECONDS = {"ms": 1, "s": 1000}  # by unit


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ablation.compare",
        description="Compare the scores of experiments, with 95% intervals and corrected p values.",
        epilog="example: python -m ablation.compare configs/grid_coco.yaml --format html --output grid_coco.html",
    )
    parser.add_argument(
        "paths", nargs="+", metavar="EXPERIMENT|GRID|NAME=EXPERIMENT[,EXPERIMENT]|NAME=FILE[,FILE]",
        help="experiments, also with a name for the table, a grid file, or detections by name: results files in COCO's "
        "format, one per seed",
    )  # fmt: skip
    add_options(parser)
    arguments = parser.parse_intermixed_args(words)
    arguments.paths, arguments.names, arguments.files = split_words(arguments.paths, arguments.annotations)
    check_options(arguments)
    for path in arguments.paths:
        (check_config if path.suffix == ".yaml" else check_experiment)(path)
    return arguments


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this command shares with `ablation.grid table`."""
    parser.set_defaults(names={})
    parser.add_argument(
        "--baseline", help="baseline: 'row x column', NAME, or an experiment (default: the first scored)"
    )
    parser.add_argument("--pairs", action="store_true", help="test all pairs, not only with the baseline")
    parser.add_argument(
        "--format", choices=tuple(SUFFIXES), help="default: from the suffix of --output; md without --output"
    )
    parser.add_argument("--output", type=Path, help="file to write (default: print text; for html: comparison.html)")
    columns = f"comma-separated columns to add, from {','.join(COLUMNS)}; or 'all' (csv and html always have all)"
    parser.add_argument("--columns", type=column_names, default=(), help=columns)
    parser.add_argument("--per-class", action="store_true", help="add class scores and their changes (html: always)")
    parser.add_argument("--errors", action="store_true", help="add errors by kind and their changes (html: always)")
    parser.add_argument("--margin", type=positive_number, metavar="D", help="also show which differences are below D")
    parser.add_argument(
        "--one-family", action="store_true", help="correct all tests of the comparison together, not each table"
    )
    parser.add_argument(
        "--seed-sd", type=positive_number, metavar="SD",
        help="standard deviation between seeds, known from N + 1 other runs; only if the cells have one seed each",
    )  # fmt: skip
    parser.add_argument("--seed-df", type=positive, metavar="N", help="number of the runs of --seed-sd, minus 1")
    slices = (
        "compare on parts of the images too, with the baseline only: by objects per image or object size, or by CSV"
    )
    parser.add_argument("--slices", type=slice_sources, default=(), metavar="objects,size,FILE.csv", help=slices)
    parser.add_argument(
        "--corruptions", action="store_true",
        help="compare under corruptions of the images too (detectors scored with detection.evaluate --corruptions)",
    )  # fmt: skip
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE",
        help="annotation file of the images: of NAME=FILE, and for --slices if it is not where the runs recorded it",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=milliseconds, metavar="20ms",
        help="which cells may be the best among those with this median latency or less (see detection.latency)",
    )  # fmt: skip
    parser.add_argument(
        "--program", choices=PROGRAMS, default=PROGRAMS[0], help=f"whose latency counts (default: {PROGRAMS[0]})"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="also draw score against latency (suffix: png, svg or pdf)"
    )
    parser.add_argument("--replicates", type=replicate_count, default=REPLICATES, help="number of resamples")
    parser.add_argument("--resample-seed", type=int, default=0, metavar="N", help="random seed of the resamples")
    parser.add_argument("--force", action="store_true", help="show runs that cannot be compared, without any tests")
    parser.add_argument("--experiments", type=Path, default=Path("experiments"), help="directory of the experiments")


def replicate_count(text: str) -> int:
    """Parse --replicates: an integer of at least 100, because fewer resamples give no usable 95% interval."""
    if not text.isdecimal() or int(text) < 100:
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer of at least 100")
    return int(text)


def check_options(arguments: argparse.Namespace) -> None:
    """Check the options of add_options, and set the format from the suffix of --output if --format is not given.

    Raises ValueError if the folder of --output or --plot does not exist, if a suffix is unknown, if options cannot be
    used together or need each other, or if --annotations is not a file or has no use."""
    path, annotations = arguments.output, arguments.annotations
    if annotations:
        check_json(annotations)
        if not arguments.slices and not arguments.files:
            raise ValueError(f"--annotations {annotations}: no results files and no --slices that need it; {SYNTAX}")
    if (arguments.seed_sd is None) != (arguments.seed_df is None):
        raise ValueError("--seed-sd and --seed-df: give both, such as --seed-sd 0.0014 --seed-df 14 from 15 runs")
    if arguments.corruptions and arguments.one_family:
        raise ValueError("--one-family: the tests under corruption are a family of their own; remove --corruptions")
    if arguments.corruptions and arguments.seed_sd is not None:
        raise ValueError(
            "--seed-sd is the spread of the score on original images, and that under corruption is not known; remove "
            "--corruptions, or train several seeds per cell"
        )
    for option, file in (("--output", path), ("--plot", arguments.plot)):
        if file and (not file.parent.is_dir() or file.is_dir()):
            raise ValueError(f"{option} {file}: expected a file in an existing folder")
    if arguments.plot and arguments.plot.suffix not in PICTURES:
        raise ValueError(f"--plot {arguments.plot}: unknown suffix; use {', '.join(PICTURES)}")
    if path and not arguments.format:
        arguments.format = next((name for name, suffix in SUFFIXES.items() if path.suffix == suffix), None)
        if not arguments.format:
            raise ValueError(f"--output {path}: unknown suffix; use {', '.join(SUFFIXES.values())}, or add --format")
    arguments.format = arguments.format or "md"


def positive_number(text: str) -> float:
    """Parse a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value


def milliseconds(text: str) -> float:
    """Parse a time with a unit, such as '20ms' or '0.02s'. Returns milliseconds."""
    unit = next((unit for unit in MILLISECONDS if text.endswith(unit)), None)
    try:
        value = float(text.removesuffix(unit)) * MILLISECONDS[unit] if unit else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a time above 0 with its unit, such as 20ms or 0.02s")
    return value


def column_names(text: str) -> Sequence[str]:
    """Parse --columns: comma-separated keys of COLUMNS such as 'AP50,gflops', or 'all'."""
    names = text.split(",")
    for name in names:
        if name not in (*COLUMNS, "all"):
            raise argparse.ArgumentTypeError(str(UnknownNameError("column", name, [*COLUMNS, "all"])))
    return names


def slice_sources(text: str) -> Sequence[str]:
    """Parse --slices: comma-separated names of built-in slices, and CSV files."""
    sources = text.split(",")
    for source in sources:
        if source not in BUILT_IN_SLICES and not Path(source).is_file():
            cure = did_you_mean(nearest(source, BUILT_IN_SLICES))
            expected = f"expected {', '.join(BUILT_IN_SLICES)} or an existing CSV file"
            raise argparse.ArgumentTypeError(f"{source!r}: {expected}{cure}")
    return list(dict.fromkeys(sources))


def split_words(
    words: Sequence[str], annotations: Path | None
) -> tuple[list[Path], dict[Path, str], dict[str, list[Path]]]:
    """Split the words of a command line into paths (experiments or a grid), names of experiments, and results files.

    Returns paths, names by experiment, and results files by name. Raises ValueError if the words cannot be used
    together, or if a file does not exist."""
    paths, names, files = [], {}, {}
    for word in words:
        name, separator, listed = word.partition("=")
        if not separator or Path(word).exists():
            paths.append(Path(word))
            continue
        targets = [Path(target) for target in listed.split(",")]
        named_targets = [target for target in targets if target.name]  # without Path(""), the current folder
        are_experiments = any(target.is_dir() or not target.suffix for target in named_targets)
        syntax = EXPERIMENT_SYNTAX if are_experiments else SYNTAX
        if name in files or name in names.values():
            raise ValueError(f"{word}: {name!r} is given twice; {syntax}")
        if not name.strip() or not all(listed.split(",")) or " - " in name:  # " - " separates the cells of a difference
            raise ValueError(f"{word!r}: expected a name (without ' - ') and files or experiments; {syntax}")
        if are_experiments:
            paths += targets
            names |= dict.fromkeys(targets, name)
        else:
            files[name] = targets
    for path in paths:
        if path.is_file() and path.suffix != ".yaml":
            raise ValueError(f"{path}: results files need a name: {SYNTAX}")
    if files and annotations is None:
        first = next(iter(files))
        raise ValueError(
            f"{first}={files[first][0]}: results files need the annotation file of their images; add --annotations FILE"
        )
    if (files or names) and any(path.suffix == ".yaml" for path in paths):
        kind = "results files" if files else "experiments"
        raise ValueError(f"{paths[0]}: a grid cannot be compared with {kind}; name its experiments instead of the grid")
    for file in (file for each in files.values() for file in each):
        check_json(file)
    return paths, names, files


def check_json(path: Path) -> None:
    """Raise ValueError if a file does not exist or is a folder."""
    check_experiment(path, "a JSON file")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected a JSON file")


def main(arguments: argparse.Namespace, _: None) -> None:
    """Run the command."""
    from ablation.results_files import score_files

    files = None
    if arguments.files:
        files = score_files(arguments.annotations, arguments.files, arguments.errors or arguments.format == "html")
    show_comparison(arguments.paths, arguments, files)


def show_comparison(paths: Sequence[Path], arguments: argparse.Namespace, files: "ScoredFiles | None" = None) -> None:
    """Compare a grid or experiments, and print the comparison or write it to --output. files: see cells.compare."""
    from ablation.cells import compare
    from ablation.display import tables
    from ablation.looks import announce_look
    from ablation.scheduling.jobs import read_grid
    from engine.files import write_text
    from engine.terminal import printable_lines
    from stats.replicates import SeedSpread

    names = (
        "names",
        "baseline",
        "pairs",
        "replicates",
        "resample_seed",
        "one_family",
        "margin",
        "force",
        "slices",
        "corruptions",
        "annotations",
        "program",
        "budget",
    )
    options = {name: getattr(arguments, name) for name in names}
    if arguments.seed_sd is not None:
        options["known_spread"] = SeedSpread(arguments.seed_sd, arguments.seed_df)
    comparison, path = compare(paths, arguments.experiments, files=files, **options), arguments.output
    if arguments.plot:
        comparison.latencies.check(f"--plot {arguments.plot}")
    comparison.commands = commands_of(paths)
    if paths and paths[0].suffix == ".yaml":
        announce_look(comparison, read_grid(paths[0]), arguments.experiments)
    if arguments.format == "html":
        from ablation.display.report import write_report  # imports matplotlib

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
                print(f"example detections of the best cell: {picture}")
    if arguments.plot:
        from ablation.display.plots import write_latency_plot  # imports matplotlib

        write_latency_plot(arguments.plot, comparison)
    for file in filter(None, (path, arguments.plot)):
        print(f"written to {file}")


def commands_of(paths: Sequence[Path]) -> list[str]:
    """Return the command lines that repeat the comparison: the training of a grid, and this command as it was typed."""
    typed = shlex.join(["python", *sys.orig_argv[1:]])
    is_grid = bool(paths) and paths[0].suffix == ".yaml"
    return [shlex.join(["python", "-m", "ablation.grid", "run", str(paths[0])]), typed] if is_grid else [typed]


if __name__ == "__main__":
    start(parse_arguments, main, on_device=False)
