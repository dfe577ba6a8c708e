"""Cells for the detections of other tools: results files, named on the command line as NAME=FILE[,FILE...].

The files of one name are its seeds. detection/results_files.py reads and scores them. The table has a row per name, and
a single column without a name. Experiments can be rows of the same table; such a row has the name of the experiment's
cell, such as 'SwinSlimBackbone_A x fpn'.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ablation.comparison import Cell
from engine.terminal import counted
from records.results import Place

TASK = "detection"  # the task whose results files can be scored
ROW_NAME, COLUMN = "detector", ""


class ScoredFiles(NamedTuple):
    """The cells of scored results files, and warnings about the files."""

    cells: dict[Place, Cell]
    warnings: list[str]
    annotations: Path


def score_files(annotations: Path, files: Mapping[str, Sequence[Path]], with_errors: bool) -> ScoredFiles:
    """Score results files. with_errors: whether to count errors by kind. Raises ValueError if a file is invalid."""
    scorer = importlib.import_module(f"{TASK}.results_files")
    runs, warnings = scorer.score_files(annotations, files, with_errors)
    return ScoredFiles({(name, COLUMN): Cell(name, COLUMN, each) for name, each in runs.items()}, warnings, annotations)


def beside_experiments(cells: Mapping[Place, Cell], files: ScoredFiles) -> tuple[dict[Place, Cell], str]:
    """Return the cells of experiments and of results files in a table with one column, and the table's title.

    Raises ValueError if a results file has the name of an experiment's cell."""
    rows = {(cell.name, COLUMN): Cell(cell.name, COLUMN, cell.runs, cell.notes) for cell in cells.values()}
    if same := rows.keys() & files.cells.keys():
        raise ValueError(f"{min(same)[0]!r}: an experiment has this name too; choose a different NAME in NAME=FILE")
    rows |= files.cells
    return rows, f"{counted(len(rows), 'detector', 'detectors')} on {files.annotations.name}"
