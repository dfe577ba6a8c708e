"""Identify the data of a run by its content, and find duplicate images.

Two data sets are the same if their annotations and images have the same content; folders and times do not matter. A
file is identified by its SHA-256. A set of images is identified by the names and sizes of all files, and by the
content of all or some files (`identify_images`).
"""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from typing import NamedTuple

from engine.files import file_sha256, write_text
from engine.text import listed

INPUTS = "inputs.json"  # in an experiment directory
MAX_READ, MAX_READ_BYTES = 2_000, 2**28  # in a set of at most this many images and bytes, all images are read
SAMPLE = 64  # number of images that are read in a larger set
MAX_MEASURED = 200_000  # in a set of at most this many images, all file sizes are read
END = 4096  # bytes at the end of a file; different compressed images of equal size usually differ there


class ImageSet(NamedTuple):
    """Identity of the images of one split of a data set."""

    folder: str
    count: int
    names: list[str]  # images whose content was read, relative to the folder
    contents: str  # contents_sha256 of `names`
    sha256: str  # hash of the names and sizes of all images, and of `contents`


def identify_images(folder: Path, names: Iterable[str]) -> ImageSet:
    """Identify a set of images by names, sizes and content. This takes about 1 s for COCO.

    All images are read in sets of at most MAX_READ images and MAX_READ_BYTES bytes. In larger sets, SAMPLE images are
    read, at equal distances in the sorted names. A replaced image that has the same size may then go undetected. In
    sets of more than MAX_MEASURED images, only the sizes of the sample are read. Modification times are ignored.

    names: file names relative to the folder. Raises OSError naming the file if one is missing."""
    names = sorted(set(names))
    measured = names if len(names) <= MAX_MEASURED else _spread(names, SAMPLE)
    sizes = [os.stat(folder / name).st_size for name in measured]
    few = len(names) <= MAX_READ and sum(sizes) <= MAX_READ_BYTES
    read = names if few else _spread(names, SAMPLE)
    contents = contents_sha256(folder, read)
    digest = hashlib.sha256(json.dumps([names, sizes, contents]).encode()).hexdigest()
    return ImageSet(str(folder), len(names), read, contents, digest)


def _spread(names: list[str], count: int) -> list[str]:
    """Return `count` of the names, evenly spaced."""
    count = min(count, len(names))
    return [names[k * len(names) // count] for k in range(count)]


def contents_sha256(folder: Path, names: Iterable[str]) -> str:
    """Return one SHA-256 over the names and contents of files in a folder. Raises OSError if a file is missing."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{json.dumps(name)} {content_sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def content_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; cached until the file changes, because many runs read the same files."""
    stat = os.stat(path)
    return _content_sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=2**14)
def _content_sha256(path: Path, size: int, mtime_ns: int) -> str:
    return file_sha256(path)


class Change(NamedTuple):
    """A file or folder whose content has changed since a run read it."""

    path: Path
    what: str
    is_missing: bool = False  # True for a missing file of `files` or image folder; False for a missing image

    def __str__(self) -> str:
        return f"{self.path} {self.what}"


@dataclass(frozen=True)
class Inputs:
    """The data that a run read at its start."""

    root: str  # folder of the data set
    files: dict[str, str]  # from path to SHA-256: annotations, and files that contain many images
    images: dict[str, ImageSet]  # by split, "train" or "val"; empty if `files` contain the images

    def write(self, experiment: Path) -> None:
        """Write inputs.json to an experiment directory."""
        images = {split: images._asdict() for split, images in self.images.items()}
        write_text(experiment / INPUTS, json.dumps(vars(self) | {"images": images}) + "\n")

    def changes(self, root: Path | None = None) -> Iterator[Change]:
        """Yield a `Change` for every file and set of images that has changed or is missing.

        root: current folder of the data set; None if the folder is still `self.root`."""
        for name, digest in self.files.items():
            path = self._moved(name, root)
            if not path.is_file():
                yield Change(path, "is missing", is_missing=True)
            elif content_sha256(path) != digest:
                yield Change(path, "has changed")
        for split, images in self.images.items():
            folder = self._moved(images.folder, root)
            try:
                if contents_sha256(folder, images.names) != images.contents:
                    yield Change(folder, f"has different {split} images")
            except OSError as error:
                yield Change(Path(error.filename), "is missing", is_missing=not folder.is_dir())

    def _moved(self, name: str, root: Path | None) -> Path:
        path, then = Path(name), Path(self.root).expanduser()
        return root / path.relative_to(then) if root is not None and path.is_relative_to(then) else path


def read_inputs(experiment: Path) -> Inputs | None:
    """Return the content of an experiment's inputs.json; None if it is missing. Raises ValueError if it is corrupt."""
    path = experiment / INPUTS
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["images"] = {split: ImageSet(**images) for split, images in content["images"].items()}
        return Inputs(**content)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: corrupt ({error!r:.100}); without this file, changed images cannot be detected"
        ) from None


# ---- duplicate images ------------------------------------------------------------------------------------------

ADVICE = {
    "file names": "{count} of {total} file names occur more than once, such as {names}; keep one record per image",
    "bytes": "{count} of {total} images are exact copies of an earlier image, such as {names}; remove the copies",
    "splits": "{count} of {total} validation images are also training images (same file or same bytes), such as "
    "{names}; this makes scores too high; remove these images from one split",
}


class Repeats(NamedTuple):
    """Images that a data set contains more than once: in both splits, or twice in one split."""

    kind: str  # a key of ADVICE
    count: int
    total: int  # number of images that were compared
    examples: list[str]  # names of the first three repeats

    def __str__(self) -> str:
        return ADVICE[self.kind].format(count=self.count, total=f"{self.total:,}", names=listed(self.examples))


def repeats(kind: str, names: Sequence[str], total: int) -> Repeats | None:
    """Return `Repeats` for the names of repeated images; None if there are no names."""
    return Repeats(kind, len(names), total, list(names[:3])) if names else None


def find_repeated_names(names: Sequence[str]) -> Repeats | None:
    """Return the file names that occur in several records of a split; None if there are none."""
    counts = Counter(str(PurePath(name)) for name in names)
    return repeats("file names", [name for name, count in counts.items() if count > 1], len(counts))


def find_repeated_bytes(paths: Iterable[Path]) -> Repeats | None:
    """Return the files of a split that have the same bytes as an earlier file; None if there are none."""
    paths = list(dict.fromkeys(paths))
    found = copies(paths)
    return repeats("bytes", [path.name for path in paths if path in found], len(paths))


def find_shared_files(train: Iterable[Path], val: Iterable[Path]) -> Repeats | None:
    """Return the validation images that are also training images, by path or by content; None if there are none.

    Only files of equal size are compared, which takes seconds for COCO. Above MAX_MEASURED images, returns None."""
    train, val = dict.fromkeys(train), dict.fromkeys(val)
    if len(train) + len(val) > MAX_MEASURED:
        return None
    sizes = {path: os.stat(path).st_size for path in (train | val)}
    common = {sizes[path] for path in train} & {sizes[path] for path in val}
    found = copies([path for path in (train | val) if sizes[path] in common])
    return repeats("splits", [path.name for path in val if path in train or found.get(path) in train], len(val))


def copies(paths: Sequence[Path]) -> dict[Path, Path]:
    """Return a dict from each file that repeats the bytes of an earlier file to the first file with these bytes.

    A file is only read completely if another file has the same size and the same last bytes."""
    groups = [paths]
    for key in (_size_and_end, content_sha256):
        by_key = defaultdict(list)
        for number, group in enumerate(groups):
            for path in group:
                by_key[number, key(path)].append(path)
        groups = [group for group in by_key.values() if len(group) > 1]
    return {path: group[0] for group in groups for path in group[1:]}


def _size_and_end(path: Path) -> tuple[int, bytes]:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - END))
        return size, file.read()
