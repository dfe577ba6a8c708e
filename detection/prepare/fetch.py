"""Download COCO 2017, check it, and unpack it where the configs look for it.

    python -m detection.data fetch coco2017 datasets/coco

makes ROOT/annotations/instances_{train,val}2017.json, ROOT/val2017 and ROOT/train2017 from three archives, 20.4 GB.
They are downloaded one after the other to ROOT/downloads (weights/download.py) and removed once they are unpacked.
Archives in ROOT itself, copied from another machine, are used instead, and kept.

Called again, it does what is missing: only images that the annotation files list and that are not there are unpacked,
each completely or not at all. A folder in another of the usual layouts (detection/prepare/layouts.py) is completed
where it is.
"""

import argparse
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile

from data import DatasetError
from detection.coco.annotations import SplitConfig, Survey, dataset_error, survey_coco
from detection.prepare.layouts import HALVES, Layout, layout_of, summary
from engine.files import write_whole, writing
from engine.logbook import progress_bar
from weights.download import download, mismatch

HOST = "http://images.cocodataset.org"  # not https: its certificate is for a different name; checksums are checked
DOWNLOADS = "downloads"
RECIPE = "configs/detection_ssd_resnet50.yaml"  # for COCO
SMALL_FIRST = ("val", "train")  # so that errors show early
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
    "train": Archive(
        "zips/train2017.zip",
        19_336_861_798,
        "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        19_700_000_000,
    ),
    "val": Archive(
        "zips/val2017.zip",
        815_585_330,
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        830_000_000,
    ),
}
NUM_IMAGES, NUM_CLASSES = {"train": 118_287, "val": 5_000}, 80
COCO_NAME = re.compile(r"\d{12}\.jpg")  # of an image; nothing else is unpacked, so nothing can leave the folder


def main(arguments: argparse.Namespace) -> None:
    """Run `fetch` of the command line; print what is there afterwards, and how to train on it."""
    print(summary(*fetch(arguments.root), RECIPE))


def fetch(root: Path) -> tuple[Layout, list[Survey]]:
    """Download what `root` lacks of COCO 2017, in the layout that is there.

    Returns the layout, and what is in train and val.
    Raises DatasetError if there is no room, or if what is there is corrupt or a different data set; DownloadError if
    an archive cannot be downloaded."""
    layout = layout_of(root)
    print(f"{root}: {layout.name if layout else 'no whole data set yet'}")
    layout = layout or _new_layout(root)
    lacking = [half for half in HALVES if not layout.paths(half)[0].is_file()]
    if lacking:
        to_come = [IMAGES[half] for half in SMALL_FIRST if not layout.paths(half)[1].is_dir()]
        _check_room(root, dict.fromkeys([ANNOTATIONS, *to_come], 1.0))
        targets = {getattr(layout, half).annotations: layout.paths(half)[0] for half in lacking}
        with _archive(root, ANNOTATIONS) as archive:
            _unpack(archive, targets)

    surveys = {half: _survey(layout, half) for half in HALVES}
    missing = {half: _missing_images(surveys[half]) for half in HALVES}
    share = {half: len(missing[half]) / len(surveys[half].coco.images) for half in SMALL_FIRST}
    _check_room(root, {IMAGES[half]: share[half] for half in SMALL_FIRST if missing[half]})
    for half in SMALL_FIRST:
        if missing[half]:
            folder, images_dir = IMAGES[half].name.removesuffix(".zip"), layout.paths(half)[1]
            with _archive(root, IMAGES[half]) as archive:
                _unpack(archive, {f"{folder}/{name}": images_dir / name for name in missing[half]})
            surveys[half] = _survey(layout, half)
    for archive in (ANNOTATIONS, *IMAGES.values()):  # left by a call that was killed after its last file
        _remove(root, archive)
    return layout, [surveys[half] for half in HALVES]


def _new_layout(root: Path) -> Layout:
    """Return where to put things. A YOLO distribution, which lacks annotations of train, keeps its images in place."""
    is_yolo = any((root / f"images/{half}2017").is_dir() for half in HALVES)
    halves = {
        half: SplitConfig(
            images=f"images/{half}2017" if is_yolo else f"{half}2017",
            annotations=f"annotations/instances_{half}2017.json",
        )
        for half in HALVES
    }
    return Layout("COCO 2017", root, **halves)


def _survey(layout: Layout, half: str) -> Survey:
    """Return what is there of a half. Raises DatasetError if its annotations are unreadable, or not COCO 2017's."""
    annotations_path, images_dir = layout.paths(half)
    print(f"reading {annotations_path}", flush=True)  # of train, half a minute
    survey = survey_coco(annotations_path, images_dir)
    if survey.coco is None:
        raise DatasetError(f"{dataset_error(survey.defects)}; remove the file, and it will be downloaded")
    images, classes = len(survey.coco.images), len(survey.coco.class_names)
    if (images, classes) != (NUM_IMAGES[half], NUM_CLASSES):
        raise DatasetError(
            f"{annotations_path}: {images:,} images of {classes} classes, expected COCO 2017's {NUM_IMAGES[half]:,} of "
            f"{NUM_CLASSES}: {layout.root} holds another data set; choose another folder"
        )
    return survey


def _missing_images(survey: Survey) -> list[str]:
    """Return the images that an annotation file lists and that are missing from its folder, or empty.

    Raises DatasetError if these are not COCO's, or cannot be mixed with what is there."""
    there = {file.path for file in survey.files}
    names = [image.file_name for image in survey.coco.images]
    missing = [name for name in names if survey.images_dir / name not in there]
    if missing and survey.coco.short_side is not None:
        raise DatasetError(f"{survey.images_dir}: {missing[0]!r} is missing among shrunken copies; shrink again")
    if foreign := [name for name in missing if not COCO_NAME.fullmatch(name)]:
        raise DatasetError(
            f"{survey.annotations_path}: lists {foreign[0]!r}, which is neither there nor an image of COCO 2017; "
            "choose another folder for COCO 2017, or bring the image"
        )
    return missing


# ---- archives -------------------------------------------------------------------------------------------------


def _check_room(root: Path, archives: Mapping[Archive, float]) -> None:
    """Print what will be downloaded, if anything; each archive is removed before the next one is downloaded.

    archives: with the share of each that will be unpacked. Raises DatasetError if the disk cannot hold it."""
    if not archives:
        return
    needed = unpacked = 0.0
    for archive, share in archives.items():
        unpacked += share * archive.unpacked
        needed = max(needed, unpacked + archive.size - _bytes_there(root, archive))
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
    """Return how much of an archive is on the disk: provided by the user, or downloaded, perhaps in part."""
    downloads = root / DOWNLOADS
    places = (root / archive.name, downloads / archive.name, downloads / f"{archive.name}.part")
    return max(path.stat().st_size if path.is_file() else 0 for path in places)


@contextmanager
def _archive(root: Path, archive: Archive) -> Iterator[Path]:
    """Yield the file of an archive, downloaded unless it is there; remove it afterwards if it was downloaded."""
    provided, downloaded = root / archive.name, root / DOWNLOADS / archive.name
    if provided.is_file():
        print(f"checking {provided}", flush=True)  # the SHA-256 of train takes a minute or more
        if problem := mismatch(provided, archive.size, archive.sha256):
            raise DatasetError(f"{provided}: corrupt: {problem}; remove it, and it will be downloaded")
        yield provided
        return
    if not downloaded.is_file():
        download(f"{HOST}/{archive.url_path}", downloaded, size=archive.size, sha256=archive.sha256)
    yield downloaded
    _remove(root, archive)


def _remove(root: Path, archive: Archive) -> None:
    """Remove what was downloaded of an archive."""
    for name in (archive.name, f"{archive.name}.part"):
        (root / DOWNLOADS / name).unlink(missing_ok=True)
    with suppress(OSError):  # there is no such folder, or another archive is in it
        (root / DOWNLOADS).rmdir()


def _unpack(archive: Path, targets: Mapping[str, Path]) -> None:
    """Write members of a zip file, each complete and of the right CRC-32, or not at all.

    targets: member name to path; no path comes from the archive itself.
    Raises DatasetError if the archive is corrupt or lacks one."""
    try:
        with ZipFile(archive) as file:
            if missing := targets.keys() - set(file.namelist()):
                raise DatasetError(f"{archive}: {min(missing)!r} is not in it, so it is not COCO's archive; remove it")
            for folder in {target.parent for target in targets.values()}:
                with writing(folder):
                    folder.mkdir(parents=True, exist_ok=True)
            for member in progress_bar(targets, desc=f"unpacking {archive.name}", unit="file", leave=False):
                with file.open(member) as source:
                    write_whole(
                        targets[member], lambda copy, source=source: shutil.copyfileobj(source, copy), sync=False
                    )
    except (BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DatasetError(f"{archive}: corrupt ({error}); remove it, and run this again") from error
