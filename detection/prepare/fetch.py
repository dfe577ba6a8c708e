"""COCO 2017 as its authors publish it: downloaded, checked, unpacked where the configs look for it.

    python -m detection.data fetch coco2017 datasets/coco

makes ROOT/annotations/instances_{train,val}2017.json, ROOT/val2017 and ROOT/train2017 out of three archives of 20.4 GB.
They come one after the other into ROOT/downloads (weights/download.py: whole, of the right size and SHA-256, or
not there) and are removed once they are unpacked. Archives that lie in ROOT itself, from another machine say, are used
in their stead, and left there.

Called again, it does what is missing: images are those that the annotation files list, each is there whole or not at
all, and only those that are not there are unpacked. So a folder in another of the usual layouts
(detection/prepare/layouts.py) is taken as it is, or filled up.
"""

import argparse
import fcntl
import os
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
from engine.files import file_sha256, writing
from engine.logbook import progress_bar
from weights.download import download

HOST = "http://images.cocodataset.org"  # its certificate for https is another's; the checksums stand for the bytes
DOWNLOADS = "downloads"
RECIPE = "configs/detection_ssd_resnet50.yaml"  # for COCO
SMALL_FIRST = ("val", "train")  # whatever is wrong shows early
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
    """Fetch as the command line after `fetch` says; print what is there then, and how to train on it.

    Raises DatasetError, or DownloadError, saying what to do."""
    print(summary(*fetch(arguments.root), RECIPE))


def fetch(root: Path) -> tuple[Layout, list[Survey]]:
    """Bring what `root` lacks of COCO 2017, in whatever layout that lies there.

    Returns where it lies, and what is in train and val.
    Raises DatasetError if there is no room, if what lies there is damaged or another data set;
    DownloadError if an archive cannot be had."""
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
    for archive in (ANNOTATIONS, *IMAGES.values()):  # of a call that was killed after its last file
        _remove(root, archive)
    return layout, [surveys[half] for half in HALVES]


def _new_layout(root: Path) -> Layout:
    """Where things go; a YOLO distribution, which has annotations of val alone, keeps its images where they are."""
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
    """What lies there of a half. Raises DatasetError if its annotations cannot be read, or are not COCO 2017's."""
    annotations_path, images_dir = layout.paths(half)
    print(f"reading {annotations_path}", flush=True)  # of train, half a minute
    survey = survey_coco(annotations_path, images_dir)
    if survey.coco is None:
        raise DatasetError(f"{dataset_error(survey.defects)}; remove the file, and it will be downloaded")
    found, expected = (len(survey.coco.images), len(survey.coco.class_names)), (NUM_IMAGES[half], NUM_CLASSES)
    if found != expected:
        raise DatasetError(
            "{}: {:,} images of {} classes, expected COCO 2017's {:,} of {}: {} holds another data set; choose another "
            "folder".format(annotations_path, *found, *expected, layout.root)
        )
    return survey


def _missing_images(survey: Survey) -> list[str]:
    """The images that an annotation file lists and its folder has not, or has empty.

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
    """Say what is to come, if anything; each archive goes before the next one comes.

    archives: with the share of each that is to be unpacked. Raises DatasetError if the disk cannot hold it."""
    if not archives:
        return
    needed, kept, shown = 0, 0, []
    for archive, share in archives.items():
        brought, *downloads = [path.stat().st_size if path.is_file() else 0 for path in _places(root, archive)]
        there = max(brought, *downloads)
        needed = max(needed, kept + archive.size - there + share * archive.unpacked)
        kept += share * archive.unpacked - (0 if brought else there)
        shown.append(f"{archive.name} ({archive.size / GB:.1f} GB{f', {there / GB:.1f} are there' if there else ''})")
    existing = next(folder for folder in [root.absolute(), *root.absolute().parents] if folder.is_dir())
    free = shutil.disk_usage(existing).free
    print(f"to come: {', '.join(shown)}; room needed {needed / GB:.1f} GB, free {free / GB:.1f} GB", flush=True)
    if free < needed:
        raise DatasetError(
            f"{root}: no space left for COCO 2017: {needed / GB:.1f} GB are needed, {free / GB:.1f} GB are free; make "
            "room, or choose a folder on another disk"
        )


def _places(root: Path, archive: Archive) -> tuple[Path, Path, Path]:
    """Where an archive may lie: brought by the user, downloaded, downloaded in part."""
    downloaded = root / DOWNLOADS / archive.name
    return root / archive.name, downloaded, downloaded.with_name(f"{archive.name}.part")


@contextmanager
def _archive(root: Path, archive: Archive) -> Iterator[Path]:
    """The file of an archive, downloaded unless it is there; what was downloaded is removed after use."""
    brought, downloaded, _ = _places(root, archive)
    if brought.is_file():
        if brought.stat().st_size != archive.size:
            raise DatasetError(
                f"{brought}: {brought.stat().st_size:,} bytes, expected {archive.size:,}; remove it, and it will be "
                "downloaded"
            )
        print(f"checking the SHA-256 of {brought}", flush=True)  # of train, a minute or more
        if (digest := file_sha256(brought)) != archive.sha256:
            raise DatasetError(
                f"{brought}: damaged: its SHA-256 is {digest}, expected {archive.sha256}; remove it, and it will be "
                "downloaded"
            )
        yield brought
        return
    if not downloaded.is_file():
        download(f"{HOST}/{archive.url_path}", downloaded, size=archive.size, sha256=archive.sha256)
    yield downloaded
    _remove(root, archive)


def _remove(root: Path, archive: Archive) -> None:
    """Remove what was downloaded of an archive."""
    folder = root / DOWNLOADS
    for name in (archive.name, f"{archive.name}.part", f"{archive.name}.part.version"):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # there is no such folder, or it holds another archive
        folder.rmdir()


@contextmanager
def _occupied(archive: Path) -> Iterator[None]:
    """Keep a second process from unpacking an archive; the lock ends with the process, however it ends.

    Raises DatasetError if another process is at it."""
    with open(archive, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatasetError(f"{archive}: another process is unpacking it; wait for it, or stop it") from None
        except OSError:  # a file system without locks keeps no two processes apart
            pass
        yield


def _unpack(archive: Path, targets: Mapping[str, Path]) -> None:
    """Write members of a zip file, each whole or not at all.

    targets: where each member goes; no path comes from the archive itself.
    Raises DatasetError if the archive is damaged or lacks one."""
    try:
        with _occupied(archive), ZipFile(archive) as file:
            if lacking := targets.keys() - set(file.namelist()):
                raise DatasetError(f"{archive}: {min(lacking)!r} is not in it, so it is not COCO's archive; remove it")
            for folder in {target.parent for target in targets.values()}:
                with writing(folder):
                    folder.mkdir(parents=True, exist_ok=True)
            for member in progress_bar(targets, desc=f"unpacking {archive.name}", unit="file", leave=False):
                _unpack_member(file, member, targets[member])
    except (BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DatasetError(f"{archive}: damaged ({error}); remove it, and call this again") from error


def _unpack_member(file: ZipFile, member: str, target: Path) -> None:
    """Raises BadZipFile if the CRC-32 of what came out is not the archive's."""
    part = target.with_name(f"{target.name}.part")  # one that a killed call left is written over: its image is missing
    try:
        with writing(target):
            with file.open(member) as source, open(part, "wb") as copy:
                shutil.copyfileobj(source, copy, 2**20)
            os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
