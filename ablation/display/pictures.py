"""The pictures of the HTML page that runs made, as data URIs, for as many cells as fit into the page."""

import base64
import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablation.comparison import Cell, Comparison

CAPTION = 500  # bytes for the caption and the markup of a picture
PICTURES = (  # that the page shows
    "class_scores.png", "precision_recall.png", "confusion.png", "samples.png", "corruptions.png",
)  # fmt: skip


def cells_that_fit(order: Sequence[Cell], room: int) -> list[Cell]:
    """Return the first cells of `order` whose pictures fit into `room` bytes of the page."""
    chosen, truths = [], set()
    for cell in order:
        folder = cell.runs[0].path
        files = [folder / name for name in PICTURES] + list((folder / "examples").glob("*.jpg"))
        files = [path for path in files if path.is_file() and path.name not in truths]
        truths |= {path.name for path in files if path.stem.endswith("_truth")}  # shown once for all cells
        room -= sum(CAPTION + path.stat().st_size * 4 // 3 for path in files)
        if room < 0:
            break
        chosen.append(cell)
    return chosen


def pictures_of(comparison: Comparison, chosen: Sequence[Cell]) -> dict[str, Any]:
    """Return the template's variables for the pictures that the runs of the chosen cells made."""
    cells, pictured = [cell for cell in comparison.scored_cells if cell in chosen], ""
    if len(chosen) < len(comparison.scored_cells):
        count = f"{len(chosen)} of {len(comparison.scored_cells)} cells are shown"
        pictured = f" To keep the page small, only {count}: the baseline and those with the best mean."
    return {
        "pictures": lambda name: pictures(cells, name),
        "examples": examples(cells),
        "pictured": pictured,
    }


def pictures(cells: Sequence[Cell], name: str) -> dict[str, Path]:
    """Return a dict from cell name to the picture `name` of the cell's first run; cells without it are omitted."""
    files = {cell.name: cell.runs[0].path / name for cell in cells}
    return {cell: path for cell, path in files.items() if path.is_file()}


def examples(cells: Sequence[Cell]) -> dict[str, dict[str, Path]]:
    """Return the example images as {image: {caption: file}}, with the ground truth first."""
    folders = [cell.runs[0].path / "examples" for cell in cells]
    names = {path.stem for folder in folders for path in folder.glob("*.jpg") if not path.stem.endswith("_truth")}
    found = {}
    for name in sorted(names, key=lambda name: (len(name), name)):
        truths = [path for folder in folders if (path := folder / f"{name}_truth.jpg").is_file()]
        found[name] = {"ground truth": truths[0]} if truths else {}
        found[name] |= pictures(cells, f"examples/{name}.jpg")
    return found


def data_uri(picture: Path | bytes) -> str:
    """Return the content of a JPEG or PNG file, or the bytes of a JPEG, as a data URI."""
    kind, content = "image/jpeg", picture
    if isinstance(picture, Path):
        (kind, _), content = mimetypes.guess_type(picture), picture.read_bytes()
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
