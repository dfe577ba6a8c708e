"""Compare cells on slices of the validation images, such as night=yes, and test whether differences depend on them.

    python -m ablation.compare configs/grid_coco.yaml --slices objects,size,cameras.csv

A CSV file has a header. Its first column is `image_id` or `file_name`; every other column is an attribute of the
images. Each value of an attribute is a slice. Numbers with many different values are cut into ranges.
stats/slices.py computes the intervals.
"""

import csv
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ablation.comparison import Comparison, Difference, Slice, SliceDifference
from ablation.uncertainty import luck_of, seed_options, weights_of
from engine.inputs import content_sha256
from engine.logbook import progress_bar
from engine.text import listed
from stats.bootstrap import MIN_IMAGES, resampled_scores
from stats.image_statistics import Matches, Statistics
from stats.slices import FEW_IMAGES, assess_slices, cut, needed_replicates, restrict

ID_COLUMNS = ("image_id", "file_name")
SEPARATORS = {"semicolons": ";", "tabs": "\t"}  # that spreadsheets write in place of commas
MAX_SLICES = 20
MAX_VALUES = 6  # a numeric attribute with more distinct values is cut into ranges
AREAS = {"small": 32**2, "medium": 96**2, "large": math.inf}  # square pixels, COCO's limits
NUM_EXAMPLES = 3  # of ids in an error message


class MissingAnnotationsError(ValueError):
    """The annotation file is not where it was when the runs were scored, or it has changed since."""


def add_slices(comparison: Comparison, sources: Sequence[str]) -> None:
    """Add the differences from the baseline on every slice, and whether they depend on the slice.

    sources: names in BUILT_IN and paths of CSV files.
    Raises ValueError if a source is invalid or does not fit the validation images."""
    statistics = comparison.scored_cells[0].scored_runs[0].load_statistics()
    slices = read_slices(sources, statistics, comparison)
    compared = [each for each in slices if is_scorable(each.images, statistics)]
    left_out = [f"{each.name} ({each.num_images})" for each in slices if each not in compared]
    if left_out:
        comparison.slice_notes.append(
            f"Not compared, because there are fewer than {MIN_IMAGES} images or no objects (number of images): "
            f"{listed(left_out, MAX_SLICES)}."
        )
    if len(comparison.scored_cells) < 2 or not compared:
        return
    rests = {each: rest_of(each, slices) for each in compared}
    depending = without_opposites([each for each in compared if is_scorable(rests[each], statistics)], rests)
    scores = subset_scores(comparison, [each.images for each in compared] + [rests[each] for each in depending])

    def change(one: Slice) -> list[np.ndarray]:
        """Return for each cell the scores of its runs on the slice, minus their scores on the other images."""
        pairs = zip(scores[one.images.tobytes()], scores[rests[one].tobytes()], strict=True)
        return [inside - outside for inside, outside in pairs]

    comparison.slices = family(
        comparison,
        compared,
        [scores[each.images.tobytes()] for each in compared],
        [each.num_images for each in compared],
        luck_of(comparison, [cell.place for cell in comparison.scored_cells]),
    )
    # The luck of tuning is assumed to be the same on all slices, so it cancels in the interactions
    comparison.slice_interactions = family(
        comparison,
        depending,
        [change(each) for each in depending],
        [min(each.num_images, int(rests[each].sum())) for each in depending],
    )
    num_tests = len(comparison.slices)
    if comparison.replicates < needed_replicates(num_tests):
        comparison.warnings.append(
            f"{comparison.replicates:,} resamples are too few for corrected intervals of {num_tests} differences on "
            f"slices; use --replicates {needed_replicates(num_tests)}"
        )


def family(
    comparison: Comparison,
    slices: Sequence[Slice],
    scores: Sequence[Sequence[np.ndarray]],
    num_images: Sequence[int],
    luck: np.ndarray | None = None,
) -> list[SliceDifference]:
    """Return the differences of all cells from the baseline on all slices, corrected as one family.

    scores: for each slice and cell, (n_k, 1 + R), see assess_slices. num_images: for each slice, the number of
    images that the intervals are based on. luck: (K, R), of tuning."""
    cells = comparison.scored_cells
    base = cells.index(comparison.baseline_cell)
    others = [index for index in range(len(cells)) if index != base]
    contrasts = np.eye(len(cells))[others]
    contrasts[:, base] = -1
    options = seed_options(comparison, cells, for_contrasts=True)
    seed, level = comparison.resample_seed, comparison.level
    tested = assess_slices(scores, num_images, contrasts, seed, level, luck, **options)
    return [
        SliceDifference(
            each,
            cells[index],
            float(values[index][:, 0].mean()),
            images < FEW_IMAGES,
            Difference(**vars(result), label=f"{each.name}: {cells[index].name} - {cells[base].name}"),
        )
        for each, values, images, found in zip(slices, scores, num_images, tested, strict=True)
        for index, result in zip(others, found, strict=True)
    ]


def without_opposites(slices: Sequence[Slice], rests: dict[Slice, np.ndarray]) -> list[Slice]:
    """Leave out slices that are the rest of an earlier slice, because the test would be the same."""
    found = []
    for each in slices:
        if not any(np.array_equal(each.images, rests[earlier]) for earlier in found):
            found.append(each)
    return found


def is_scorable(images: np.ndarray, statistics: Statistics) -> bool:
    """Return whether a subset of the images, (I,) bool, has enough images and, for a detector, any object."""
    has_objects = not isinstance(statistics, Matches) or bool(images[statistics.object_images].any())
    return images.sum() >= MIN_IMAGES and has_objects


def rest_of(one: Slice, slices: Sequence[Slice]) -> np.ndarray:
    """Return the images, (I,) bool, that have a different value of the slice's attribute."""
    return np.any([each.images for each in slices if each.attribute == one.attribute], axis=0) & ~one.images


def subset_scores(comparison: Comparison, subsets: Sequence[np.ndarray]) -> dict[bytes, list[np.ndarray]]:
    """Return the compared score of every run on subsets of the images, and on the same subsets of the resamples.

    subsets: (I,) bool each. Returns {bytes of the subset: for each scored cell (n_k, 1 + R)}."""
    subsets = list({each.tobytes(): each for each in subsets}.values())
    scores: dict[bytes, list[np.ndarray]] = {each.tobytes(): [] for each in subsets}
    weights = weights_of(comparison, len(subsets[0]))
    cells = comparison.scored_cells
    runs = [run for cell in cells for run in cell.scored_runs]
    for run in progress_bar(runs, desc="slices", unit="run", leave=False):
        statistics = run.load_statistics()
        for each in subsets:
            found, _ = resampled_scores(restrict(statistics, each), weights[:, each])
            scores[each.tobytes()].append(found[comparison.metric])
    ends = np.cumsum([len(cell.scored_runs) for cell in cells])[:-1]
    return {key: np.split(np.array(values), ends) for key, values in scores.items()}


# ---- where slices come from --------------------------------------------------------------------------------


def read_slices(sources: Sequence[str], statistics: Statistics, comparison: Comparison) -> list[Slice]:
    """Return the slices of all sources; explain in the comparison's notes which images are in no slice.

    Raises ValueError if a source is invalid, or if the slices are too many."""
    slices: list[Slice] = []
    for source in sources:
        if source not in BUILT_IN:
            slices += read_csv(Path(source), statistics, comparison)
        elif not isinstance(statistics, Matches):
            task = comparison.scored_cells[0].runs[0].results.task
            raise ValueError(f"--slices {source}: {task} has no objects; use a CSV file with the column image_id")
        else:
            try:
                slices += BUILT_IN[source](statistics, comparison)
            except MissingAnnotationsError as error:
                comparison.warnings.append(f"--slices {source}: skipped; {error}")
    attributes = list(dict.fromkeys(each.attribute for each in slices))
    if len(slices) > MAX_SLICES:
        counts = ", ".join(f"{name}: {sum(each.attribute == name for each in slices)}" for name in attributes)
        raise ValueError(f"--slices: {len(slices)} slices ({counts}), at most {MAX_SLICES} are allowed; merge values")
    repeated = [name for name, count in Counter(each.name for each in slices).items() if count > 1]
    if repeated:
        raise ValueError(f"--slices: {repeated[0]} is defined twice; rename the column")
    return slices


def slices_of(
    attribute: str, values: Sequence[str], statistics: Statistics, order: Sequence[str] | None = None
) -> list[Slice]:
    """Return a slice for each value of an attribute, or for ranges of values if there are many numbers.

    values: one per image; an image with an empty value is in no slice. order: of the slices (default: sorted)."""
    distinct = {value for value in values if value}
    numbers = {value: number(value) for value in distinct}
    is_numeric = None not in numbers.values()
    if is_numeric and len(set(numbers.values())) > MAX_VALUES:
        return ranges(attribute, np.array([numbers.get(value, math.nan) for value in values]), statistics)
    order = order or sorted(distinct, key=numbers.get if is_numeric else None)
    return [
        new_slice(attribute, f"{attribute}={value}", np.array([each == value for each in values]), statistics)
        for value in order
        if value in distinct
    ]


def ranges(attribute: str, numbers: np.ndarray, statistics: Statistics, least: float = -math.inf) -> list[Slice]:
    """Cut numbers into thirds, or into halves if thirds would have fewer than FEW_IMAGES images.

    numbers: (I,), nan for images that are in no slice. least: smaller numbers are not separated from it."""
    known = ~np.isnan(numbers)
    groups = np.full(len(numbers), -1)
    num_groups = 3 if known.sum() >= 3 * FEW_IMAGES else 2
    groups[known] = cut(np.maximum(numbers[known], least), num_groups)
    slices = []
    for group in range(groups.max() + 1):
        low, high = numbers[groups == group].min(), numbers[groups == group].max()
        values = f"{low:g} to {high:g}" if low < high else f"{low:g}"
        slices.append(new_slice(attribute, f"{attribute} {values}", groups == group, statistics))
    return slices


def new_slice(attribute: str, name: str, images: np.ndarray, statistics: Statistics) -> Slice:
    """Return a slice with the number of its objects. images: (I,) bool."""
    is_detection = isinstance(statistics, Matches)
    num_objects = int(images[statistics.object_images].sum()) if is_detection else None
    return Slice(attribute, name, images, num_objects)


def number(text: str) -> float | None:
    """Return a finite number, or None if the text is not one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


# ---- built-in slices ---------------------------------------------------------------------------------------


def slices_by_count(statistics: Matches, comparison: Comparison) -> list[Slice]:
    """Return slices of images with few, some and many objects. Images without objects count as images with few."""
    counts = np.bincount(statistics.object_images, minlength=len(statistics.image_ids))
    slices = ranges("objects", counts.astype(float), statistics, least=1)
    return several("--slices objects", slices, comparison)


def slices_by_size(statistics: Matches, comparison: Comparison) -> list[Slice]:
    """Return slices of images by the median area of their objects: small, medium or large, with COCO's limits.

    Raises MissingAnnotationsError if the annotation file is missing, because image_statistics.npz has no areas."""
    areas: dict[int, list[float]] = {}
    for each in read_annotations(comparison)["annotations"]:
        if not each.get("iscrowd"):
            areas.setdefault(each["image_id"], []).append(each.get("area", each["bbox"][2] * each["bbox"][3]))
    medians = [np.median(areas[image]) if image in areas else math.nan for image in statistics.image_ids.tolist()]
    sizes = [next((size for size, limit in AREAS.items() if median < limit), "") for median in medians]
    if "" in sizes:
        comparison.slice_notes.append(f"{sizes.count('')} images without objects are in no slice by size.")
    return several("--slices size", slices_of("size", sizes, statistics, list(AREAS)), comparison)


def several(source: str, slices: list[Slice], comparison: Comparison) -> list[Slice]:
    """Return the slices if there are several; otherwise add a warning and return none."""
    if len(slices) > 1:
        return slices
    comparison.warnings.append(f"{source}: skipped, because all images are in one slice")
    return []


BUILT_IN: dict[str, Callable[[Matches, Comparison], list[Slice]]] = {
    "objects": slices_by_count,
    "size": slices_by_size,
}


def read_annotations(comparison: Comparison) -> dict[str, Any]:
    """Return the content of the annotation file of the validation images. Raises ValueError like annotations_file."""
    return json.loads(annotations_file(comparison).read_bytes())


def annotations_file(comparison: Comparison) -> Path:
    """Return the annotation file of the validation images: that of --annotations, or else one that a run recorded.

    Raises ValueError if the file of --annotations has other content than the recorded SHA-256, and
    MissingAnnotationsError if no recorded file has this content."""
    runs = [run for cell in comparison.scored_cells for run in cell.scored_runs]
    protocol, given = runs[0].results.protocol, comparison.annotations
    wanted = f"{protocol.annotations} with SHA-256 {(protocol.annotations_sha256 or 'unknown')[:8]}"
    recorded = {
        path for run in runs for path, sha256 in run.results.inputs.items() if sha256 == protocol.annotations_sha256
    }
    paths = [given] if given else [Path(os.path.expanduser(path)) for path in sorted(recorded)]
    for path in paths:
        if path.is_file() and content_sha256(path) == protocol.annotations_sha256:
            return path
    if given:
        raise ValueError(
            f"--annotations {given}: SHA-256 {content_sha256(given)[:8]}; the runs were scored on {wanted}"
        )
    changed = [str(path) for path in paths if path.is_file()]
    what = f"{changed[0]} has changed since the runs" if changed else f"{', '.join(map(str, paths))} not found"
    raise MissingAnnotationsError(f"annotation file {what}; expected {wanted}: give its path with --annotations FILE")


# ---- CSV files ---------------------------------------------------------------------------------------------


def read_csv(path: Path, statistics: Statistics, comparison: Comparison) -> list[Slice]:
    """Read the attributes of images from a CSV file, and return their slices.

    Raises ValueError naming the file and the problem. Validation images without a row are in no slice."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = [[field.strip() for field in row] for row in csv.reader(file)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from None
    lines = [line for line in lines if any(line)]
    if len(lines) < 2:
        what = "only a header" if lines else "empty"
        raise ValueError(f"{path}: {what}; expected a header such as image_id,night and a row per image")
    header, *rows = lines
    if header[0] not in ID_COLUMNS or len(header) < 2:
        got = ",".join(header)
        other = next((name for name, mark in SEPARATORS.items() if mark in got), None)
        cure = f"; the columns seem to be separated by {other}: export the file with commas" if other else ""
        raise ValueError(
            f"{path}: header {got!r}: expected image_id or file_name first, then attributes, separated by commas{cure}"
        )
    if len(set(header)) < len(header) or "" in header:
        raise ValueError(f"{path}: header {','.join(header)!r}: expected a different name for every column")
    wrong = next((row for row in rows if len(row) != len(header)), None)
    if wrong:
        raise ValueError(f"{path}: row {','.join(wrong)!r} has {len(wrong)} fields; expected {len(header)}")

    if header[0] == "file_name" and isinstance(statistics, Matches):
        try:
            names = {image["id"]: image["file_name"] for image in read_annotations(comparison)["images"]}
        except MissingAnnotationsError as error:
            raise ValueError(f"{path}: file_name needs the annotations, but {error}, or use image_id") from None
        ids = [names[image] for image in statistics.image_ids.tolist()]
    else:
        ids = list(map(str, statistics.image_ids.tolist()))
    by_id = {row[0]: row for row in rows}
    repeated = [name for name, count in Counter(row[0] for row in rows).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: {len(repeated)} ids have several rows ({listed(repeated, NUM_EXAMPLES)})")
    known = set(ids)
    unknown = [name for name in by_id if name not in known]
    if unknown:
        raise ValueError(
            f"{path}: {len(unknown)} of {len(rows)} ids are not validation images "
            f"({listed(unknown, NUM_EXAMPLES)}); expected ids such as {listed(ids, NUM_EXAMPLES)}; remove other rows"
        )
    missing = len(ids) - len(rows)
    if missing:
        comparison.slice_notes.append(f"{missing} of {len(ids)} images are not in {path.name}; they are in no slice.")
    slices = []
    for column, attribute in enumerate(header[1:], start=1):
        values = [by_id[name][column] if name in by_id else "" for name in ids]
        found = slices_of(attribute, values, statistics)
        if len(found) < 2:
            value = next(filter(None, values), "")
            raise ValueError(f"{path}: {attribute} has the single value {value!r}; remove the column")
        slices += found
    return slices
