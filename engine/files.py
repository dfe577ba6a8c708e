"""Files that are written whole or not at all, locks on files, and errors that name them."""

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, an error of the system becomes an OSError that names `path` and says why it cannot be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides what went wrong below it
        if not isinstance(cause, OSError):
            raise
        reason = "no space left" if cause.errno in (errno.ENOSPC, errno.EDQUOT) else cause.strerror
        raise OSError(f"{path}: cannot be written: {reason}") from error


def write_whole(path: Path, write: Callable[[BinaryIO], object], sync: bool = True) -> None:
    """Have `write` fill a file that takes the place of `path` when it is complete and on the disk.

    A process killed at any byte leaves the previous file. Raises OSError naming `path`.
    sync: wait for the disk; without it a power failure may leave an empty file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            with open(temporary, "w+b") as file:
                write(file)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, sync: bool = True) -> None:
    """`write_whole` of a text in UTF-8."""
    write_whole(path, lambda file: file.write(text.encode()), sync)


_locks: set[int] = set()  # descriptors of the locks that this process holds


def _release_in_child() -> None:
    """Close inherited locks: a loader process that outlives its killed parent must not hold them."""
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(after_in_child=_release_in_child)


@contextmanager
def locked(path: Path, busy: Exception | None = None) -> Iterator[None]:
    """Hold an exclusive lock on a file inside; the file is made if there is none.

    The system releases it when the process ends, however it ends. A file system without locks excludes nobody.
    busy: raised if another process holds the lock; None: wait for it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _locks.add(descriptor)
    try:
        if not _lock(descriptor, wait=busy is None):
            raise busy
        yield
    finally:
        if descriptor in _locks:  # not in a forked child
            _locks.remove(descriptor)
            os.close(descriptor)


def _lock(descriptor: int, wait: bool) -> bool:
    """Lock an open file; return whether nobody else holds the lock."""
    for _ in range(2):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return True
        except BlockingIOError:
            time.sleep(0.1)  # `is_locked` in another process holds it for an instant
        except OSError:  # no locks on this file system
            return True
    return False


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock on a file."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def user_path(text: str, field: str) -> Path:
    """Return the path that a user wrote, `~` expanded; there need be nothing at it.

    field: where it was written, such as "data.root", for the message.
    Raises ValueError for what cannot be a path: a home of nobody, a NUL, a name too long, a folder that is a file."""
    try:
        path = Path(text).expanduser()
        with suppress(FileNotFoundError):
            os.stat(path)
    except (RuntimeError, ValueError, OSError) as error:
        reason = getattr(error, "strerror", error)
        raise ValueError(f"{field} {text[:80]!r}: not a usable path: {reason}") from None
    return path


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to NAME.damaged, in place of an earlier one, and return the new path."""
    aside = path.with_name(f"{path.name}.damaged")
    os.replace(path, aside)
    return aside


def file_sha256(path: Path) -> str:
    """Of a file of any size."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
