"""Atomic writes, file locks, and errors that name the file."""

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
def describe_write_errors(path: Path) -> Iterator[None]:
    """Context manager that turns errors of the operating system into an OSError naming `path` and the reason."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save raises a RuntimeError instead
        if not isinstance(cause, OSError):
            raise
        reason = "no space left" if cause.errno in (errno.ENOSPC, errno.EDQUOT) else cause.strerror
        raise OSError(f"{path}: cannot be written: {reason}") from error


def write_atomically(path: Path, write: Callable[[BinaryIO], object], sync: bool = True) -> None:
    """Write a file atomically: `write` fills a temporary file, which then replaces `path`.

    If the process is killed, the previous file is unchanged. Raises OSError naming `path` if writing fails.
    sync: whether to wait until the data is on the disk; without that, a power failure may leave an empty file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with describe_write_errors(path):
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
    """Write a text file in UTF-8 atomically, see `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()), sync)


_locks: set[int] = set()  # file descriptors of the locks that this process holds


def _release_in_child() -> None:
    """Close inherited locks, because a loader process that outlives its killed parent must not hold them."""
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(after_in_child=_release_in_child)


@contextmanager
def locked(path: Path, busy: Exception | None = None) -> Iterator[None]:
    """Context manager that holds an exclusive lock on a file, which is created if it is missing.

    The operating system releases the lock even if the process is killed. Does nothing on a file system without locks.
    busy: exception to raise if another process holds the lock; None: wait for the lock."""
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
    """Lock an open file; return False if another process holds the lock."""
    for _ in range(2):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return True
        except BlockingIOError:
            time.sleep(0.1)  # try again, because `is_locked` in another process holds the lock briefly
        except OSError:  # this file system has no locks
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
    """Return a path from user input, with `~` expanded. It need not exist.

    field: name of the config field, such as "data.root", for the message.
    Raises ValueError if the path is not usable: unknown home, NUL character, name too long, file used as a folder."""
    try:
        path = Path(text).expanduser()
        with suppress(FileNotFoundError):
            os.stat(path)
    except (RuntimeError, ValueError, OSError) as error:
        reason = getattr(error, "strerror", error)
        raise ValueError(f"{field} {text[:80]!r}: not a usable path: {reason}") from None
    return path


def rename_damaged(path: Path) -> Path:
    """Rename a damaged file to NAME.damaged, replacing an earlier file of this name; return the new path."""
    renamed = path.with_name(f"{path.name}.damaged")
    os.replace(path, renamed)
    return renamed


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits. Large files are read in chunks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
