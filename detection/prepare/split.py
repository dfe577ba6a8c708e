"""Split one annotation file into train and val.

Writes annotations/instances_{train,val}.json; the images stay where they are. Records are copied unchanged, and both
files list all categories. All images of a group, such as a patient or a video, are in the same split.

The split depends on the image names, the seed and the classes, not on the order of the file: groups are taken in the
order of a hash. Three passes fill val up to its share. The first takes a group with each class that val lacks, the
rarest class first; the second takes any group. Neither removes the last objects of a class from train; the third may.
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
from detection.coco.defects import printable_path
from detection.prepare.labels import SPLITS, full_path
from detection.prepare.layouts import (
    Layout,
    UnsplitDataset,
    config_path,
    dataset_root,
    find_unsplit,
    is_split_output,
    summary,
    unsplit_at,
    write_annotations,
)
from records.experiment import table


def main(arguments: argparse.Namespace) -> None:
    """Run the `split` command; print the counts of each split and the command that trains on them.

    Raises DatasetError if the annotation file is missing or cannot be split; nothing is written then."""
    dataset = _find_source(arguments.source, arguments.images)
    coco = read_coco(*dataset)
    groups = group_images(coco, arguments.groups)
    val = choose_val(groups, classes_of(coco, groups), arguments.val_share, arguments.seed)
    val_ids = {coco.images[index].id for name in val for index in groups[name]}
    root = arguments.to or dataset_root(dataset.annotations_path)
    options = {"val_share": arguments.val_share, "seed": arguments.seed, "groups": arguments.groups}
    layout = _write_splits(dataset, val_ids, root, options)

    surveys = [survey_coco(*layout.paths(split)) for split in SPLITS]
    train_coco, val_coco = (survey.coco for survey in surveys)
    print(table(class_rows(train_coco, val_coco)))
    for name, *counts in zip(coco.class_names, train_coco.class_counts, val_coco.class_counts, strict=True):
        if (counts[0] == 0) != (counts[1] == 0):
            print(f"warning: no objects of class {name!r} in {SPLITS[counts.index(0)]}")
    share = len(val_ids) / len(coco.images)
    of_groups = f" ({len(val)} of {len(groups)} groups)" if arguments.groups else ""
    print(f"{share:.0%} of the images are in val{of_groups}")
    print(summary(layout, surveys))


def _find_source(source: Path, images_dir: Path | None) -> UnsplitDataset:
    """Return the file to split and its image folder. Raises DatasetError if there is not exactly one file to split."""
    if not source.exists():
        raise DatasetError(f"{source}: no such file or folder")
    datasets = find_unsplit(source) if source.is_dir() else list(filter(None, [unsplit_at(source)]))
    if not datasets:
        expected = "JSON with images, annotations that have a bbox, and categories"
        raise DatasetError(f"{source}: no COCO annotation file; expected {expected}")
    if len(datasets) > 1:
        names = " and ".join(printable_path(dataset.annotations_path) for dataset in datasets)
        raise DatasetError(f"{source}: several annotation files, such as {names}; name the one to split")
    if is_split_output(datasets[0].annotations_path):
        raise DatasetError(f"{source}: already a result of `split`; name the file that it was split from")
    return UnsplitDataset(datasets[0].annotations_path, images_dir or datasets[0].images_dir)


# ---- choosing the images of val ---------------------------------------------------------------------------------


def group_images(coco: CocoFile, pattern: str | None) -> dict[str, list[int]]:
    """Return a dict from each group's name to the indices of its images. Without a pattern, each file name is a group.

    Raises DatasetError if the pattern does not match some file name, or if there is only one group."""
    groups: dict[str | None, list[int]] = {}
    for index, image in enumerate(coco.images):
        found = re.search(pattern or "(?s)(.*)", image.file_name)
        groups.setdefault(found and found[1], []).append(index)
    path = printable_path(coco.annotations_path)
    if unnamed := groups.get(None):
        number = f"{len(unnamed):,} of {len(coco.images):,} file names, such as {coco.images[unnamed[0]].file_name!r}"
        raise DatasetError(f"{path}: --groups {pattern} finds no group in {number}; expected one in every file name")
    if len(groups) < 2:
        kind = f"all images are in one group, {next(iter(groups))!r}" if pattern else "only one image"
        raise DatasetError(f"{path}: {kind}, so there is nothing to split")
    return groups


def classes_of(coco: CocoFile, groups: Mapping[str, Sequence[int]]) -> dict[str, set[int]]:
    """Return a dict from each group's name to the set of labels of its objects. Crowds do not count."""
    labels = {}
    for name, indices in groups.items():
        objects = [coco.objects(index) for index in indices]
        labels[name] = {int(label) for _, labels, is_crowd in objects for label in labels[~is_crowd]}
    return labels


def choose_val(
    groups: Mapping[str, Sequence[int]], classes: Mapping[str, set[int]], share: float, seed: int
) -> set[str]:
    """Return the groups for val, at least one and not all, chosen as described at the top of this module."""
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
        if groups_with[label] == left_in_train[label]:  # this class is not in val yet
            name = next((name for name in order if label in classes[name] and fits(name) and is_spare(name)), None)
            if name is not None:
                take(name)
    for condition in (is_spare, lambda name: True):
        for name in order:
            if fits(name) and condition(name):
                take(name)
    return val or {min(order, key=lambda name: len(groups[name]))}  # every group is larger than the share


# ---- writing ----------------------------------------------------------------------------------------------------


def _write_splits(dataset: UnsplitDataset, val_ids: set[int], root: Path, options: Mapping[str, object]) -> Layout:
    """Write the annotation files of train and val. options: recorded in the mark of each file."""
    content = json.loads(dataset.annotations_path.read_bytes())
    images = config_path(full_path(dataset.images_dir), root)
    configs = {split: SplitConfig(images=images, annotations=f"annotations/instances_{split}.json") for split in SPLITS}
    contents = {}
    for split, config in configs.items():
        lists = {
            name: [record for record in content[name] if (record[key] in val_ids) == (split == "val")]
            for name, key in (("images", "id"), ("annotations", "image_id"))
        }
        contents[config] = content | lists
    write_annotations("split", root, contents, **options)
    return Layout("split", root, **configs)


def class_rows(train: CocoFile, val: CocoFile) -> list[dict[str, object]]:
    """Return a table row per class: its images and objects in train and val. Crowds do not count."""
    columns: dict[str, Sequence[object]] = {"class": train.class_names}
    for split, coco in zip(SPLITS, (train, val), strict=True):
        pairs = np.unique(np.stack([coco.image_indices, coco.labels])[:, ~coco.is_crowd], axis=1)
        columns[f"{split} images"] = np.bincount(pairs[1], minlength=len(coco.class_names) + 1)[1:].tolist()
        columns[f"{split} objects"] = coco.class_counts.tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
