"""Images that a data set holds twice: in both halves, or twice in one of them."""

import os
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from engine.inputs import MOST_MEASURED, content_sha256
from engine.terminal import counted
from engine.text import listed

TAIL = 4096  # bytes at the end of a file: those of two images of one size differ, except in formats without compression


class Repeats(NamedTuple):
    """Images that a data set holds more than once."""

    kind: str  # for programs: "file names", "bytes", "halves"
    count: int
    total: int  # images that were compared
    examples: list[str]  # names of the first three

    def __str__(self) -> str:
        such = f"such as {listed(self.examples)}"
        if self.kind == "halves":
            shared = f"of {counted(self.total, 'validation image', 'validation images')}"
            shared = counted(self.count, f"{shared} is also a training image", f"{shared} are also training images")
            return (
                f"{shared} (same file or same bytes), {such}: the score is too high, because the model was trained on "
                "what it is scored on; take them out of one half"
            )
        if self.kind == "bytes":
            copied = counted(self.count, f"of {self.total:,} images has", f"of {self.total:,} images have")
            return f"{copied} the same bytes as another one, {such}; keep one of each"
        names = counted(self.count, "file name occurs", "file names occur")
        return f"{names} twice or more, {such}; give each image one record"


def repeats(kind: str, names: Sequence[str], total: int) -> Repeats | None:
    """Repeats of these names, None if there are none."""
    return Repeats(kind, len(names), total, list(names[:3])) if names else None


def repeated_names(names: Sequence[str]) -> Repeats | None:
    """File names that several records of one half have."""
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[str(PurePath(name))] += 1
    return repeats("file names", [name for name, count in counts.items() if count > 1], len(names))


def repeated_bytes(paths: Sequence[Path]) -> Repeats | None:
    """Files of one half that hold the same bytes as an earlier one."""
    paths = list(dict.fromkeys(paths))
    copies = enumerate(first_copies(paths))
    names = [paths[position].name for position, original in copies if position != original]
    return repeats("bytes", names, len(paths))


def shared_between(train: Sequence[Path], val: Sequence[Path]) -> Repeats | None:
    """Validation images that are also training images: the same file, or one with the same bytes.

    Content is compared among files of one size only, so that a clean COCO takes seconds."""
    train, val = list(dict.fromkeys(train)), list(dict.fromkeys(val))
    if len(train) + len(val) > MOST_MEASURED:
        return None
    sizes = [{path: os.stat(path).st_size for path in half} for half in (train, val)]
    common = set(sizes[0].values()) & set(sizes[1].values())
    first, second = ([path for path, size in half.items() if size in common] for half in sizes)
    copies = first_copies([*first, *second])[len(first) :]
    names = [path.name for path, original in zip(second, copies, strict=True) if original < len(first)]
    return repeats("halves", names, len(val))


def first_copies(paths: Sequence[Path]) -> list[int]:
    """For each file the position of the first file with the same bytes: its own position if that is the first.

    Links to one file are recognised without reading it; others are read whole only if size and end are equal."""
    first_of_inode: dict[tuple[int, int], int] = {}
    inodes = [(stat.st_dev, stat.st_ino) for stat in map(os.stat, paths)]
    for position, inode in enumerate(inodes):
        first_of_inode.setdefault(inode, position)
    groups = [list(first_of_inode.values())]
    for key in (_size, _tail, content_sha256):
        groups = [equal for group in groups for equal in _equal(group, [key(paths[position]) for position in group])]
    first = {position: group[0] for group in groups for position in group}
    return [first.get(first_of_inode[inode], first_of_inode[inode]) for inode in inodes]


def _equal(group: Sequence[int], keys: Sequence[Hashable]) -> list[list[int]]:
    """The members of a group by their key, where at least two share one."""
    by_key: dict[Hashable, list[int]] = defaultdict(list)
    for member, key in zip(group, keys, strict=True):
        by_key[key].append(member)
    return [members for members in by_key.values() if len(members) > 1]


def _size(path: Path) -> int:
    return os.stat(path).st_size


def _tail(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(0, os.stat(path).st_size - TAIL))
        return file.read()
