"""One annotation file for all images into two: one to train on and one to validate on.

Writes annotations/instances_{train,val}.json; the images stay where they are. Records are copied as they are, and both
files list all categories. An image is in one half only; so are all images of a group, such as one patient or video.

Which half an image is in depends on its name, the seed and the classes, not on the order of the file: groups are drawn
in the order of a hash. First come those that bring a class into val that is not there yet, the rarest class first;
while others are left, none is taken that has the last objects of a class in train.
"""

import argparse
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data import DatasetError
from detection.coco.annotations import CocoFile, SplitConfig, read_coco, survey_coco
from detection.coco.defects import shown_path
from detection.prepare.labels import HALVES, full_path
from detection.prepare.layouts import (
    Layout,
    Whole,
    below,
    find_wholes,
    is_half,
    root_of,
    summary,
    whole_at,
    write_annotations,
)
from records.experiment import table


def main(arguments: argparse.Namespace) -> None:
    """Split as the command line after `split` says; print what is in each half, and how to train on it.

    Raises DatasetError, with nothing written, if there is no such file or it cannot be split."""
    whole = _source(arguments.source, arguments.images)
    coco = read_coco(*whole)
    groups = group_images(coco, arguments.groups)
    val = choose_val(groups, classes_of(coco, groups), arguments.val_share, arguments.seed)
    val_ids = {coco.images[index].id for name in val for index in groups[name]}
    root = arguments.to or root_of(whole.annotations_path)
    how = {"val_share": arguments.val_share, "seed": arguments.seed, "groups": arguments.groups}
    layout = _write(whole, val_ids, root, how)

    surveys = [survey_coco(*layout.paths(half)) for half in HALVES]
    train_coco, val_coco = (survey.coco for survey in surveys)
    print(table(class_rows(train_coco, val_coco)))
    for name, *counts in zip(coco.class_names, train_coco.class_counts, val_coco.class_counts, strict=True):
        if (counts[0] == 0) != (counts[1] == 0):
            print(f"warning: no object of class {name!r} in {HALVES[counts.index(0)]}")
    share = len(val_ids) / len(coco.images)
    of_groups = f", {len(val)} of {len(groups)} groups" if arguments.groups else ""
    print(f"{share:.0%} of the images are in val{of_groups}")
    print(summary(layout, surveys))


def _source(source: Path, images_dir: Path | None) -> Whole:
    """Return the annotation file to split. Raises DatasetError if there is none, or more than one."""
    if not source.exists():
        raise DatasetError(f"{source}: no such file or folder")
    wholes = find_wholes(source) if source.is_dir() else list(filter(None, [whole_at(source)]))
    if not wholes:
        expected = "JSON with images, annotations that have a bbox, and categories"
        raise DatasetError(f"{source}: no COCO annotation file; expected {expected}")
    if len(wholes) > 1:
        names = " and ".join(shown_path(whole.annotations_path) for whole in wholes)
        raise DatasetError(f"{source}: holds several annotation files, such as {names}; name the one to split")
    if is_half(wholes[0].annotations_path):
        raise DatasetError(f"{source}: is a half that `split` wrote; name the file that was split")
    return Whole(wholes[0].annotations_path, images_dir or wholes[0].images_dir)


# ---- which image is in which half -------------------------------------------------------------------------------


def group_images(coco: CocoFile, pattern: str | None) -> dict[str, list[int]]:
    """Return the positions of the images of each group, by its name; without a pattern an image is a group.

    Raises DatasetError if the pattern does not fit a file name, or if there is only one group."""
    groups: dict[str | None, list[int]] = {}
    for index, image in enumerate(coco.images):
        found = re.search(pattern or "(?s)(.*)", image.file_name)
        groups.setdefault(found and found[1], []).append(index)
    path = shown_path(coco.annotations_path)
    if unnamed := groups.get(None):
        number = f"{len(unnamed):,} of {len(coco.images):,} file names, such as {coco.images[unnamed[0]].file_name!r}"
        raise DatasetError(f"{path}: --groups {pattern} names no group in {number}; expected one in each")
    if len(groups) < 2:
        kind = f"all images are of one group, {next(iter(groups))!r}" if pattern else "only one image"
        raise DatasetError(f"{path}: {kind}, so there is nothing to split")
    return groups


def classes_of(coco: CocoFile, groups: Mapping[str, Sequence[int]]) -> dict[str, set[int]]:
    """Return the labels of the objects in each group, crowds aside."""
    labels = {}
    for name, indices in groups.items():
        objects = [coco.objects(index) for index in indices]
        labels[name] = {int(label) for _, labels, is_crowd in objects for label in labels[~is_crowd]}
    return labels


def choose_val(
    groups: Mapping[str, Sequence[int]], classes: Mapping[str, set[int]], share: float, seed: int
) -> set[str]:
    """Return the groups to validate on: at least one and not all, by the rules at the top of this module."""
    order = sorted(groups, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    target = max(1, round(share * sum(map(len, groups.values()))))
    groups_with = Counter(label for name in order for label in classes[name])
    left_in_train = Counter(groups_with)
    val: set[str] = set()

    def fits(name: str) -> bool:
        size = sum(len(groups[each]) for each in val)
        return name not in val and size + len(groups[name]) <= target and len(val) + 1 < len(groups)

    def is_spare(name: str) -> bool:
        return all(left_in_train[label] > 1 for label in classes[name])

    def take(name: str) -> None:
        val.add(name)
        left_in_train.subtract(classes[name])

    for label in sorted(groups_with, key=lambda label: (groups_with[label], label)):
        if groups_with[label] == left_in_train[label]:  # none in val
            name = next((name for name in order if label in classes[name] and fits(name) and is_spare(name)), None)
            if name is not None:
                take(name)
    for condition in (is_spare, lambda name: True):
        for name in order:
            if fits(name) and condition(name):
                take(name)
    return val or {min(order, key=lambda name: len(groups[name]))}  # all are larger than the share


# ---- writing ----------------------------------------------------------------------------------------------------


def _write(whole: Whole, val_ids: set[int], root: Path, how: Mapping[str, object]) -> Layout:
    """Write both halves; how: for their mark."""
    content = json.loads(whole.annotations_path.read_bytes())
    images = below(full_path(whole.images_dir), root)
    splits = {half: SplitConfig(images=images, annotations=f"annotations/instances_{half}.json") for half in HALVES}
    contents = {}
    for half, split in splits.items():
        lists = {
            name: [record for record in content[name] if (record[key] in val_ids) == (half == "val")]
            for name, key in (("images", "id"), ("annotations", "image_id"))
        }
        contents[split] = content | lists
    write_annotations("split", root, contents, **how)
    return Layout("split", root, **splits)


def class_rows(train: CocoFile, val: CocoFile) -> list[dict[str, object]]:
    """Return the images and objects of each class in both halves, crowds aside."""
    columns: dict[str, Sequence[object]] = {"class": train.class_names}
    for half, coco in zip(HALVES, (train, val), strict=True):
        pairs = np.unique(np.stack([coco.image_indices, coco.labels])[:, ~coco.is_crowd], axis=1)
        columns[f"{half} images"] = np.bincount(pairs[1], minlength=len(coco.class_names) + 1)[1:].tolist()
        columns[f"{half} objects"] = coco.class_counts.tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
