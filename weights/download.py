"""A file from the network: resumed where it was cut, checked, and in its place only when it is whole.

    download("https://host/file.zip", Path("datasets/file.zip"), size=1_048_576, sha256="30e14955")

What has come lies in `file.zip.part`; `file.zip.part.version` keeps the server's ETag or Last-Modified, so that the
rest (HTTP Range with If-Range, RFC 9110, sections 13.1.5 and 14.2) is asked for of the same file only. A call that
was interrupted, by whatever, goes on where it ended when it is made again.
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from engine.files import file_sha256, writing
from engine.logbook import progress_bar

ATTEMPTS = 3  # in a row that bring nothing
WAIT_SECONDS = 1.0  # before the second attempt; twice as long before the third
TIMEOUT_SECONDS = 30.0  # without a byte
CHUNK = 2**18  # bytes
PASSING = {408, 429, 500, 502, 503, 504}  # what a server says that may have recovered in a moment


class DownloadError(ValueError):
    """A file that cannot be had; the message names the URL and the cure."""


class _Cut(Exception):
    """No connection, or one that ended early: worth another attempt."""


def download(url: str, path: Path, *, size: int | None = None, sha256: str | None = None) -> None:
    """Download `url` to `path`, replacing what is there: whole and checked, or not at all.

    size: in bytes. sha256: hexadecimal digits, all 64 or the first 8 or more. None: unknown, not checked.
    Raises DownloadError if the server cannot be reached, does not have the file or has another one, or if it cannot
    be written."""
    part = path.with_name(f"{path.name}.part")
    version = path.with_name(f"{path.name}.part.version")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _occupied(part) as file:
                _receive(url, path, file, version, size)
                file.flush()
                os.fsync(file.fileno())
                check_file(part, url, size, sha256)
                os.replace(part, path)
                version.unlink(missing_ok=True)
    except OSError as error:
        raise DownloadError(f"{error} (downloading {url}); make room, or download to another folder") from error


def check_file(path: Path, url: str, size: int | None, sha256: str | None) -> None:
    """Compare a file that came from `url` with what it should be; one that is not is removed.

    size, sha256: as in `download`. Raises DownloadError."""
    found = path.stat().st_size
    if size not in (None, found):
        path.unlink()
        raise DownloadError(f"{url}: {found:,} bytes came, expected {size:,}; they were removed. Download it again")
    if sha256 and not (digest := file_sha256(path)).startswith(sha256.lower()):
        path.unlink()
        raise DownloadError(
            f"{url}: damaged on the way, or another file: its SHA-256 is {digest}, expected {sha256}"
            f"{'...' * (len(sha256) < 64)}; it was removed. Download it again"
        )


@contextmanager
def _occupied(part: Path) -> Iterator[BinaryIO]:
    """Open the file to append to, and keep a second process from it; the lock ends with the process, however it ends.

    Raises DownloadError if another process is at it, or was done with it in this very moment."""
    with open(part, "ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise DownloadError(f"{part}: another process is downloading it; wait for it, or stop it") from None
        except OSError:  # a file system without locks keeps no two processes apart
            pass
        if not part.exists() or part.stat().st_ino != os.fstat(file.fileno()).st_ino:
            raise DownloadError(f"{part}: another process has just finished it; it is there")
        yield file


def _receive(url: str, path: Path, file: BinaryIO, version: Path, size: int | None) -> None:
    """Fill `file` to its end, in as many connections as that takes."""
    fruitless = 0
    while True:
        before = file.tell()
        try:
            _receive_rest(url, path, file, version, size)
            return
        except _Cut as cut:
            fruitless = 1 if file.tell() > before else fruitless + 1
            if fruitless == ATTEMPTS:
                cure = f"again, for the rest after {file.tell():,} bytes" if file.tell() else "when there is a network"
                raise DownloadError(
                    f"{url}: cannot be downloaded ({cut}). Try {cure}, or download it on another machine "
                    f"and copy it to {path}"
                ) from cut
        time.sleep(WAIT_SECONDS * 2 ** (fruitless - 1))


def _receive_rest(url: str, path: Path, file: BinaryIO, version: Path, size: int | None) -> None:
    """Append what is missing, over one connection; begin anew if the server's file is no longer the one begun with.

    Raises _Cut if the connection ends early."""
    begun_with = version.read_text() if version.exists() else ""
    if not begun_with:
        _begin_anew(file)
    response = _connect(url, begun_with, file.tell())
    if response is None:  # there is no more
        return
    with response:
        offered = _version(response)
        start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            _begin_anew(file)
            version.write_text(offered)
        elif offered != begun_with or not start or int(start[1]) != file.tell():
            version.unlink()
            raise _Cut("the server has another file than before")
        length = response.headers.get("Content-Length")
        total = None if length is None else file.tell() + int(length)
        _check_offer(url, path, total, size, missing=int(length or 0))
        _copy(response, file, total, path.name)


def _connect(url: str, begun_with: str, start: int) -> HTTPResponse | None:
    """Ask for the file from byte `start` on; None if that is its end."""
    headers = {"User-Agent": "ssd-workbench", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": begun_with}
    try:
        return urlopen(Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        at_end = error.headers.get("Content-Range") == f"bytes */{start}"
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and at_end:
            return None
        if error.code in PASSING:
            raise _Cut(f"HTTP {error.code} {error.reason}") from error
        raise DownloadError(
            f"{url}: HTTP {error.code} {error.reason}: the server does not give it; has it moved?"
        ) from error
    except (OSError, HTTPException) as error:
        raise _Cut(error.reason if isinstance(error, URLError) else error) from error


def _version(response: HTTPResponse) -> str:
    """What tells this state of the file from others, if the server says; a weak ETag does not hold for its bytes."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _begin_anew(file: BinaryIO) -> None:
    file.truncate(0)
    file.seek(0)


def _check_offer(url: str, path: Path, total: int | None, size: int | None, missing: int) -> None:
    """Before anything comes: is it the file that is wanted, and is there room? Raises DownloadError."""
    if None not in (total, size) and total != size:
        raise DownloadError(f"{url}: the server has {total:,} bytes, expected {size:,}; is it another version?")
    free = shutil.disk_usage(path.parent).free
    if free < missing:
        mib = 2**20
        raise DownloadError(
            f"{path}: no space left for {url}: {missing // mib:,} MiB are to come, {free // mib:,} MiB are free; make "
            "room, or download to another folder"
        )


def _copy(response: HTTPResponse, file: BinaryIO, total: int | None, name: str) -> None:
    """Append the body to `file`. Raises _Cut if it ends before `total`."""
    with progress_bar(total=total, initial=file.tell(), desc=name, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        while True:
            try:
                chunk = response.read(CHUNK)
            except (OSError, HTTPException) as error:
                raise _Cut(str(error) or type(error).__name__) from error
            if not chunk:
                break
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and file.tell() < total:
        raise _Cut(f"the connection was cut at {file.tell():,} of {total:,} bytes")
