"""What a run reads, identified by content: annotation files and sets of images; and images that are there twice.

Two data sets are the same if their annotations and their images are, in whatever folder and whenever written. A file
is identified by its SHA-256. A set of images is identified by the names and sizes of all its files and by the content
of some (`identify_images`).
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
MOST_READ, MOST_BYTES = 2_000, 2**28  # images, and their bytes, up to which the content of all of them is read
SAMPLE = 64  # images whose content is read where there are more
MOST_MEASURED = 200_000  # images up to which the size of all of them is taken
END = 4096  # bytes: those of two images of one size differ, except in formats without compression


class ImageSet(NamedTuple):
    """The images of one half of a data set."""

    folder: str
    count: int
    names: list[str]  # of the images whose content was read, relative to the folder
    contents: str  # SHA-256 of these: see contents_sha256
    sha256: str  # of the names and sizes of all, and of `contents`


def identify_images(folder: Path, names: Iterable[str]) -> ImageSet:
    """Identify a set of images by the names and sizes of all and the content of some, in a second or so for COCO.

    Up to MOST_READ images and MOST_BYTES bytes, the content of all images counts; in larger sets that of SAMPLE of
    them, evenly spread over the sorted names, so a few images replaced by others of the same size may go unnoticed.
    Of more than MOST_MEASURED images only the sizes of the sample count. Modification times do not count.

    names: file names relative to the folder. Raises OSError naming the file if one is missing."""
    names = sorted(set(names))
    measured = names if len(names) <= MOST_MEASURED else _spread(names, SAMPLE)
    sizes = [os.stat(folder / name).st_size for name in measured]
    few = len(names) <= MOST_READ and sum(sizes) <= MOST_BYTES
    read = names if few else _spread(names, SAMPLE)
    contents = contents_sha256(folder, read)
    digest = hashlib.sha256(json.dumps([names, sizes, contents]).encode()).hexdigest()
    return ImageSet(str(folder), len(names), read, contents, digest)


def _spread(names: list[str], count: int) -> list[str]:
    """`count` of the names, evenly spread."""
    count = min(count, len(names))
    return [names[k * len(names) // count] for k in range(count)]


def contents_sha256(folder: Path, names: Iterable[str]) -> str:
    """Return the SHA-256 over the names and contents of files in a folder. Raises OSError if one is missing."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{json.dumps(name)} {content_sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def content_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, cached until it is written to: a grid asks for the same files in every cell."""
    stat = os.stat(path)
    return _content_sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=2**14)
def _content_sha256(path: Path, size: int, mtime_ns: int) -> str:
    return file_sha256(path)


class Change(NamedTuple):
    """A file or folder that differs from what a run has read."""

    path: Path
    what: str
    is_gone: bool = False  # with all that is in it

    def __str__(self) -> str:
        return f"{self.path} {self.what}"


@dataclass(frozen=True)
class Inputs:
    """The data that a run read at its start."""

    root: str  # folder of the data set
    files: dict[str, str]  # annotation files and the like: path to SHA-256
    images: dict[str, ImageSet]  # by half, "train" and "val"; empty where `files` hold the images

    def write(self, experiment: Path) -> None:
        """Write inputs.json into an experiment directory."""
        images = {half: images._asdict() for half, images in self.images.items()}
        write_text(experiment / INPUTS, json.dumps(vars(self) | {"images": images}) + "\n")

    def changes(self, root: Path | None = None) -> Iterator[Change]:
        """Yield every file and set of images that differs now, or that is gone.

        root: where the data set is now, if not in `self.root`."""
        for name, digest in self.files.items():
            path = self._moved(name, root)
            if not path.is_file():
                yield Change(path, "is gone", is_gone=True)
            elif content_sha256(path) != digest:
                yield Change(path, "has other content")
        for half, images in self.images.items():
            folder = self._moved(images.folder, root)
            try:
                if contents_sha256(folder, images.names) != images.contents:
                    yield Change(folder, f"has other {half} images")
            except OSError as error:
                yield Change(Path(error.filename), "is gone", is_gone=not folder.is_dir())

    def _moved(self, name: str, root: Path | None) -> Path:
        path, then = Path(name), Path(self.root).expanduser()
        return root / path.relative_to(then) if root is not None and path.is_relative_to(then) else path


def read_inputs(experiment: Path) -> Inputs | None:
    """Read the inputs.json of an experiment; None if it has none. Raises ValueError if it is damaged."""
    path = experiment / INPUTS
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["images"] = {half: ImageSet(**images) for half, images in content["images"].items()}
        return Inputs(**content)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error!r:.100}); without it, annotations alone are compared") from None


# ---- images that a data set holds twice ------------------------------------------------------------------------

ADVICE = {
    "file names": "{count} of {total} file names occur more than once, such as {names}; give each image one record",
    "bytes": "{count} of {total} images have the same bytes as another one, such as {names}; keep one of each",
    "halves": "{count} of {total} validation images are also training images (same file or same bytes), such as "
    "{names}: the score is too high, because the model was trained on what it is scored on; take them out of one half",
}


class Repeats(NamedTuple):
    """Images that a data set holds more than once: in both halves, or twice in one of them."""

    kind: str  # a key of ADVICE
    count: int
    total: int  # images that were compared
    examples: list[str]  # names of the first three

    def __str__(self) -> str:
        return ADVICE[self.kind].format(count=self.count, total=f"{self.total:,}", names=listed(self.examples))


def repeats(kind: str, names: Sequence[str], total: int) -> Repeats | None:
    """Return the repeats of these names; None if there are none."""
    return Repeats(kind, len(names), total, list(names[:3])) if names else None


def repeated_names(names: Sequence[str]) -> Repeats | None:
    """Return the file names that several records of one half have."""
    counts = Counter(str(PurePath(name)) for name in names)
    return repeats("file names", [name for name, count in counts.items() if count > 1], len(counts))


def repeated_bytes(paths: Iterable[Path]) -> Repeats | None:
    """Return the files of one half that hold the same bytes as an earlier one."""
    paths = list(dict.fromkeys(paths))
    found = copies(paths)
    return repeats("bytes", [path.name for path in paths if path in found], len(paths))


def shared_between(train: Iterable[Path], val: Iterable[Path]) -> Repeats | None:
    """Return the validation images that are also training images: the same file, or one with the same bytes.

    Content is compared among files of one size only, so that a clean COCO takes seconds."""
    train, val = dict.fromkeys(train), dict.fromkeys(val)
    if len(train) + len(val) > MOST_MEASURED:
        return None
    sizes = {path: os.stat(path).st_size for path in (train | val)}
    common = {sizes[path] for path in train} & {sizes[path] for path in val}
    found = copies([path for path in (train | val) if sizes[path] in common])
    return repeats("halves", [path.name for path in val if path in train or found.get(path) in train], len(val))


def copies(paths: Sequence[Path]) -> dict[Path, Path]:
    """Return for each file that holds the same bytes as an earlier one the first of these.

    Files are read whole only if their sizes and ends are equal."""
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
