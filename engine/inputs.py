"""What a run reads, identified by content: annotation files and sets of images.

Two data sets are the same if their annotations and their images are, in whatever folder and whenever written. A file
is identified by its SHA-256. A set of images is identified by the names and sizes of all its files and by the content
of some (`identify_images`).
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from engine.files import file_sha256, write_text

INPUTS = "inputs.json"  # in an experiment directory
MOST_READ, MOST_BYTES = 2_000, 2**28  # images, and their bytes, up to which the content of all of them is read
SAMPLE = 64  # images whose content is read where there are more
MOST_MEASURED = 200_000  # images up to which the size of all of them is taken


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
        content = {"root": self.root, "files": self.files, "images": images}
        write_text(experiment / INPUTS, json.dumps(content) + "\n")

    def changes(self, root: Path | None = None) -> Iterator[Change]:
        """Yield every file and set of images that differs now, or that is gone.

        root: where the data set is now, if not in `self.root`."""
        for name, digest in self.files.items():
            path = self._moved(name, root)
            try:
                if content_sha256(path) != digest:
                    yield Change(path, "has other content")
            except OSError:
                yield Change(path, "is gone", is_gone=True)
        for half, images in self.images.items():
            folder = self._moved(images.folder, root)
            try:
                if contents_sha256(folder, images.names) != images.contents:
                    yield Change(folder, f"has other {half} images")
            except OSError as error:
                yield Change(Path(error.filename), "is gone", is_gone=not folder.is_dir())

    def _moved(self, name: str, root: Path | None) -> Path:
        path, then = Path(name), Path(os.path.expanduser(self.root))
        return root / path.relative_to(then) if root is not None and path.is_relative_to(then) else path


def read_inputs(experiment: Path) -> Inputs | None:
    """Read the inputs.json of an experiment; None if it has none. Raises ValueError if it is damaged."""
    path = experiment / INPUTS
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = {half: ImageSet(**images) for half, images in content["images"].items()}
        return Inputs(content["root"], dict(content["files"]), images)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({error!r:.100}); without it, annotations alone are compared") from None
