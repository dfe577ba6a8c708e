"""Download COCO 2017, check it, and unpack it where the configs look for it.

Three archives, 20.4 GB, are downloaded one after the other to ROOT/downloads, which is removed at the end. Archives in
ROOT itself are used instead, and kept. Called again, it does what is missing: only images that the annotation files
list and that are not there are unpacked, each completely or not at all.
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
from detection.prepare.labels import HALVES
from detection.prepare.layouts import Layout, summary
from engine.files import write_whole, writing
from engine.logbook import progress_bar
from weights.download import download, mismatch

HOST = "http://images.cocodataset.org"  # not https: its certificate is for a different name; checksums are checked
DOWNLOADS = "downloads"
RECIPE = "configs/detection_ssd_resnet50.yaml"  # for COCO
GB = 1e9


class Archive(NamedTuple):
    """A zip file of the COCO Consortium's."""

    url_path: str
    size: int  # bytes
    sha256: str
    unpacked: int  # bytes that it takes on the disk, rounded up

    @property
    def name(self) -> str:
        return self.url_path.rpartition("/")[2]


# Sizes and checksums as TensorFlow Datasets records them (tensorflow_datasets/url_checksums/coco.txt); the publisher
# states none.
ANNOTATIONS = Archive(
    "annotations/annotations_trainval2017.zip",
    252_907_541,
    "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    500_000_000,
)
IMAGES = {
    "val": Archive(  # first, because it is small: errors show early
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
SPLITS = {
    half: SplitConfig(images=f"{half}2017", annotations=f"annotations/instances_{half}2017.json") for half in HALVES
}


def main(arguments: argparse.Namespace) -> None:
    """Run `fetch` of the command line; print what is there afterwards, and how to train on it."""
    print(summary(*fetch(arguments.root), RECIPE))


def fetch(root: Path) -> tuple[Layout, list[Survey]]:
    """Download what a folder lacks of COCO 2017; return its layout, and what is in train and val.

    Raises DatasetError if there is no room, or if what is there is corrupt or a different data set; DownloadError if
    an archive cannot be downloaded."""
    layout = Layout("COCO 2017", root, **SPLITS)
    paths = {half: layout.paths(half) for half in HALVES}
    annotations = {split.annotations: root / split.annotations for split in SPLITS.values()}
    lacking = {name: path for name, path in annotations.items() if not path.is_file()}
    _check_room(root, [ANNOTATIONS] * bool(lacking) + [IMAGES[half] for half in IMAGES if not paths[half][1].is_dir()])
    if lacking:
        _unpack(root, ANNOTATIONS, lacking)
    surveys = {}
    for half, archive in IMAGES.items():
        images_dir = paths[half][1]
        surveys[half] = _survey(layout, half)
        there = {file.path for file in surveys[half].files}
        names = [image.file_name for image in surveys[half].coco.images]
        targets = {f"{half}2017/{name}": images_dir / name for name in names if images_dir / name not in there}
        if targets:
            _check_room(root, [archive])
            _unpack(root, archive, targets)
            surveys[half] = _survey(layout, half)
    shutil.rmtree(root / DOWNLOADS, ignore_errors=True)
    return layout, [surveys[half] for half in HALVES]


def _survey(layout: Layout, half: str) -> Survey:
    """Return what is there of a half. Raises DatasetError if nothing can be added to it."""
    annotations_path, images_dir = layout.paths(half)
    print(f"reading {annotations_path}", flush=True)  # of train, half a minute
    survey = survey_coco(annotations_path, images_dir)
    if survey.coco is None:
        raise DatasetError(f"{dataset_error(survey.defects)}; remove the file, and it will be downloaded")
    if survey.coco.short_side is not None:
        raise DatasetError(f"{images_dir}: holds shrunken copies; choose another folder for COCO 2017")
    return survey


# ---- archives -------------------------------------------------------------------------------------------------


def _check_room(root: Path, archives: Sequence[Archive]) -> None:
    """Print what will be downloaded, if anything. Raises DatasetError if the disk cannot hold it with its content."""
    if not archives:
        return
    needed = sum(archive.size + archive.unpacked - _bytes_there(root, archive) for archive in archives)
    existing = next(folder for folder in [root.absolute(), *root.absolute().parents] if folder.is_dir())
    free = shutil.disk_usage(existing).free
    shown = ", ".join(f"{archive.name} ({archive.size / GB:.1f} GB)" for archive in archives)
    print(f"needed: {shown}; disk space needed {needed / GB:.1f} GB, free {free / GB:.1f} GB", flush=True)
    if free < needed:
        raise DatasetError(
            f"{root}: no space left for COCO 2017: {needed / GB:.1f} GB are needed, {free / GB:.1f} GB are free; make "
            "room, or choose a folder on another disk"
        )


def _bytes_there(root: Path, archive: Archive) -> int:
    """Return how much of an archive is on the disk: provided by the user, or downloaded, perhaps in part; and of its
    images."""
    places = (root / archive.name, root / DOWNLOADS / archive.name, root / DOWNLOADS / f"{archive.name}.part")
    images = (root / archive.name.removesuffix(".zip")).glob("*.jpg")
    return max(path.stat().st_size if path.is_file() else 0 for path in places) + sum(p.stat().st_size for p in images)


def _unpack(root: Path, archive: Archive, targets: Mapping[str, Path]) -> None:
    """Write members of an archive, each complete and of the right CRC-32, or not at all; download it if need be.

    targets: member name to path; no path comes from the archive itself.
    Raises DatasetError if the archive is corrupt or lacks one."""
    path = root / archive.name
    if path.is_file():
        print(f"checking {path}", flush=True)  # the SHA-256 of train takes a minute or more
        if problem := mismatch(path, archive.size, archive.sha256):
            raise DatasetError(f"{path}: corrupt: {problem}; remove it, and it will be downloaded")
    else:
        path = root / DOWNLOADS / archive.name
        if not path.is_file():
            download(f"{HOST}/{archive.url_path}", path, size=archive.size, sha256=archive.sha256)
    try:
        with ZipFile(path) as file:
            if missing := targets.keys() - set(file.namelist()):
                raise DatasetError(
                    f"{root}: {min(missing)!r} is not in COCO's {archive.name}: another data set is there; choose "
                    "another folder"
                )
            for folder in {target.parent for target in targets.values()}:
                with writing(folder):
                    folder.mkdir(parents=True, exist_ok=True)
            for member in progress_bar(targets, desc=f"unpacking {archive.name}", unit="file", leave=False):
                with file.open(member) as source:
                    write_whole(
                        targets[member], lambda copy, source=source: shutil.copyfileobj(source, copy), sync=False
                    )
    except (BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DatasetError(f"{path}: corrupt ({error}); remove it, and run this again") from error
