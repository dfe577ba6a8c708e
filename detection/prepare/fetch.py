"""Download COCO 2017, check it, and unpack it where the configs look for it.

Downloads three archives (20.4 GB) one after the other to ROOT/downloads, and removes that folder at the end. If an
archive is already in ROOT itself, it is used instead of a download, and kept. When run again, the command unpacks only
the annotated images that are missing. Each image is written completely or not at all.
"""

import argparse
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile

from data import DatasetError
from detection.coco.annotations import SplitConfig, Survey, dataset_error, survey_coco
from detection.prepare.labels import SPLITS
from detection.prepare.layouts import Layout, summary
from engine.files import describe_write_errors, write_atomically
from engine.logbook import progress_bar
from weights.download import download, mismatch

HOST = "http://images.cocodataset.org"  # not https: the certificate is for a different host name; we verify checksums
DOWNLOADS = "downloads"
RECIPE = "configs/detection_ssd_resnet50.yaml"  # config for training on COCO
GB = 1e9


class Archive(NamedTuple):
    """A zip file published by the COCO Consortium."""

    url_path: str
    size: int  # bytes
    sha256: str
    unpacked: int  # bytes on disk once unpacked, rounded up

    @property
    def name(self) -> str:
        return self.url_path.rpartition("/")[2]


# The publisher states no checksums. These sizes and checksums are from TensorFlow Datasets
# (tensorflow_datasets/url_checksums/coco.txt).
ANNOTATIONS = Archive(
    "annotations/annotations_trainval2017.zip",
    252_907_541,
    "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    500_000_000,
)
IMAGES = {
    "val": Archive(  # first, because it is small, so errors show early
        "zips/val2017.zip",
        815_585_330,
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        830_000_000,
    ),
    "train": Archive(
        "zips/train2017.zip",
        19_336_861_798,
        "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        19_700_000_000,
    ),
}
SPLIT_CONFIGS = {
    split: SplitConfig(images=f"{split}2017", annotations=f"annotations/instances_{split}2017.json") for split in SPLITS
}


def main(arguments: argparse.Namespace) -> None:
    """Run the `fetch` command; print what the data set holds and the command that trains on it."""
    print(summary(*fetch(arguments.root), RECIPE))


def fetch(root: Path) -> tuple[Layout, list[Survey]]:
    """Download the parts of COCO 2017 that a folder lacks; return its layout and the surveys of train and val.

    Raises DatasetError if the disk is too full, or if the folder holds corrupt files or a different data set.
    Raises DownloadError if an archive cannot be downloaded."""
    layout = Layout("COCO 2017", root, **SPLIT_CONFIGS)
    paths = {split: layout.paths(split) for split in SPLITS}
    annotations = {config.annotations: root / config.annotations for config in SPLIT_CONFIGS.values()}
    missing = {name: path for name, path in annotations.items() if not path.is_file()}
    absent_images = [IMAGES[split] for split in IMAGES if not paths[split][1].is_dir()]
    _check_free_space(root, [ANNOTATIONS] * bool(missing) + absent_images)
    if missing:
        _unpack(root, ANNOTATIONS, missing)
    surveys = {}
    for split, archive in IMAGES.items():
        images_dir = paths[split][1]
        surveys[split] = _survey(layout, split)
        present = {file.path for file in surveys[split].files}
        names = [image.file_name for image in surveys[split].coco.images]
        targets = {f"{split}2017/{name}": images_dir / name for name in names if images_dir / name not in present}
        if targets:
            _check_free_space(root, [archive])
            _unpack(root, archive, targets)
            surveys[split] = _survey(layout, split)
    shutil.rmtree(root / DOWNLOADS, ignore_errors=True)
    return layout, [surveys[split] for split in SPLITS]


def _survey(layout: Layout, split: str) -> Survey:
    """Read a split, even if images are missing. Raises DatasetError if it is unreadable or holds shrunken copies."""
    annotations_path, images_dir = layout.paths(split)
    print(f"reading {annotations_path}", flush=True)  # train takes half a minute
    survey = survey_coco(annotations_path, images_dir)
    if survey.coco is None:
        raise DatasetError(f"{dataset_error(survey.defects)}; remove the file and run this again to download it")
    if survey.coco.short_side is not None:
        raise DatasetError(f"{images_dir}: holds shrunken copies; choose a different folder for COCO 2017")
    return survey


# ---- archives -------------------------------------------------------------------------------------------------


def _check_free_space(root: Path, archives: Sequence[Archive]) -> None:
    """Print which archives and how much disk space are needed. Raises DatasetError if less space is free."""
    if not archives:
        return
    needed = sum(archive.size + archive.unpacked - _bytes_on_disk(root, archive) for archive in archives)
    existing = next(folder for folder in [root.absolute(), *root.absolute().parents] if folder.is_dir())
    free = shutil.disk_usage(existing).free
    shown = ", ".join(f"{archive.name} ({archive.size / GB:.1f} GB)" for archive in archives)
    print(f"archives needed: {shown}; disk space needed {needed / GB:.1f} GB, free {free / GB:.1f} GB", flush=True)
    if free < needed:
        raise DatasetError(
            f"{root}: not enough disk space for COCO 2017: {needed / GB:.1f} GB needed, {free / GB:.1f} GB free; free "
            "some space, or choose a folder on a different disk"
        )


def _bytes_on_disk(root: Path, archive: Archive) -> int:
    """Return the bytes on disk of an archive (complete or partly downloaded) and of the images unpacked from it."""
    places = (root / archive.name, root / DOWNLOADS / archive.name, root / DOWNLOADS / f"{archive.name}.part")
    images = (root / archive.name.removesuffix(".zip")).glob("*.jpg")
    return max(path.stat().st_size if path.is_file() else 0 for path in places) + sum(p.stat().st_size for p in images)


def _unpack(root: Path, archive: Archive, targets: Mapping[str, Path]) -> None:
    """Unpack members of an archive; download the archive if it is missing.

    targets: dict from a member's name to the path to write it to. Files with a wrong CRC-32 are not written.
    Raises DatasetError if the archive is corrupt or lacks a member."""
    path = root / archive.name
    if path.is_file():
        print(f"checking {path}", flush=True)  # the SHA-256 of train takes a minute or more
        if problem := mismatch(path, archive.size, archive.sha256):
            raise DatasetError(f"{path}: corrupt: {problem}; remove it and run this again to download it")
    else:
        path = root / DOWNLOADS / archive.name
        if not path.is_file():
            download(f"{HOST}/{archive.url_path}", path, size=archive.size, sha256=archive.sha256)
    try:
        with ZipFile(path) as file:
            if missing := targets.keys() - set(file.namelist()):
                raise DatasetError(
                    f"{root}: holds a different data set: {min(missing)!r} is not in COCO's {archive.name}; choose a "
                    "different folder"
                )
            for folder in {target.parent for target in targets.values()}:
                with describe_write_errors(folder):
                    folder.mkdir(parents=True, exist_ok=True)
            for member in progress_bar(targets, desc=f"unpacking {archive.name}", unit="file", leave=False):
                with file.open(member) as source:
                    write_atomically(
                        targets[member], lambda copy, source=source: shutil.copyfileobj(source, copy), sync=False
                    )
    except (BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DatasetError(f"{path}: corrupt ({error}); remove it and run this again") from error
