"""Download a file. Downloads resume after interruptions, and a file gets its final name only after verification.

    download("https://host/file.zip", Path("datasets/file.zip"), size=1_048_576, sha256="30e14955")

Received bytes are stored in `file.zip.part`. A later call resumes only if a checksum is given: without a checksum,
parts of two different versions of the file could be joined unnoticed. torch.hub and pooch always start over.
"""

import os
import re
import ssl
import time
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener, urlopen

from engine.files import describe_write_errors, file_sha256, locked
from engine.logbook import progress_bar

ATTEMPTS = 3  # consecutive attempts without progress before giving up
WAIT_SECONDS = 1.0  # before the second attempt; twice as long before the third
TIMEOUT_SECONDS = 30.0  # longest time without receiving a byte
CHUNK = 2**18  # bytes
TRANSIENT = {408, 429, 500, 502, 503, 504}  # HTTP status codes after which the download is retried
HEADERS = {"User-Agent": "ssd-workbench", "Accept-Encoding": "identity"}
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")  # start of the SHA-256 in file names of PyTorch's checkpoints
STATED_HASH = "X-Linked-Etag"  # header with the SHA-256 of a large file, which the Hugging Face hub sends
INTERRUPTIONS = (URLError, ConnectionError, TimeoutError, ssl.SSLError, HTTPException)


class DownloadError(ValueError):
    """A file that cannot be downloaded. The message names the URL or file, and what to do."""


def download(url: str, path: Path, *, size: int | None = None, sha256: str | None = None) -> None:
    """Download `url` to `path`. An existing file is replaced only by a complete and verified file.

    size: expected number of bytes. sha256: expected hexadecimal digits, all 64 or at least the first 8. None: no check.
    Raises DownloadError if the server cannot be reached, if its file is missing or different, or if another process is
    downloading the file. Raises OSError naming `path` if the file cannot be written."""
    part = path.with_name(f"{path.name}.part")
    busy = DownloadError(f"{part}: another process is downloading this file; wait until it ends, or stop it")
    with describe_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(part, busy):
            with open(part, "ab" if sha256 else "wb") as file:
                _receive(url, path, file, size)
                file.flush()
                os.fsync(file.fileno())
            if problem := mismatch(part, size, sha256):
                part.unlink()
                raise DownloadError(f"{url}: corrupt or a different version: {problem}. Run the command again")
            os.replace(part, path)


def _receive(url: str, path: Path, file: BinaryIO, size: int | None) -> None:
    """Receive the rest of `file`, reconnecting after interruptions. Raises DownloadError."""
    failures = 0
    while True:
        before = file.tell()
        try:
            return _receive_rest(url, file, size, path.name)
        except INTERRUPTIONS as error:
            if isinstance(error, HTTPError) and error.code not in TRANSIENT:
                raise DownloadError(f"{url}: HTTP {error.code} {error.reason}; has the file moved?") from error
            failures = 1 if file.tell() > before else failures + 1
            if failures == ATTEMPTS:
                raise DownloadError(
                    f"{url}: download failed after {file.tell():,} bytes ({error}). Run the command again, or download "
                    f"the file on another machine and copy it to {path}"
                ) from error
        time.sleep(WAIT_SECONDS * 2 ** (failures - 1))


def _receive_rest(url: str, file: BinaryIO, size: int | None, name: str) -> None:
    """Receive the missing bytes over one connection. Start over if the server does not support ranges.

    Raises one of INTERRUPTIONS if the connection ends early, DownloadError if the server has a different file."""
    headers = HEADERS | {"Range": f"bytes={file.tell()}-"}
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # the file is complete
            return
        raise
    with response:
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            file.truncate(0)
            file.seek(0)
        length = response.headers.get("Content-Length")
        total = None if length is None else file.tell() + int(length)
        if None not in (total, size) and total != size:
            raise DownloadError(f"{url}: the file has {total:,} bytes, expected {size:,}; is it a different version?")
        with progress_bar(total=total, initial=file.tell(), desc=name, unit="B", unit_scale=True) as bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and file.tell() < total:
        raise ConnectionError(f"the connection was closed at {file.tell():,} of {total:,} bytes")


class _StopAtStatedHash(HTTPRedirectHandler):
    """Follow redirects until a response states the SHA-256. Its target, a storage server, does not state it."""

    def redirect_request(self, request, file, code, message, headers, new_url):
        if STATED_HASH in headers:
            return None  # urllib raises an HTTPError with these headers
        redirected = super().redirect_request(request, file, code, message, headers, new_url)
        redirected.method = request.method  # urllib would replace HEAD by GET
        return redirected


def stated_sha256(url: str) -> str | None:
    """Return the SHA-256 that the server states for a file, without downloading it; None if it states none.

    Also returns None if the server cannot be reached, because the download then reports that."""
    request = Request(url, headers=HEADERS, method="HEAD")
    try:
        with build_opener(_StopAtStatedHash).open(request, timeout=TIMEOUT_SECONDS) as response:
            stated = response.headers.get(STATED_HASH, "")
    except HTTPError as error:
        stated = error.headers.get(STATED_HASH, "")
    except INTERRUPTIONS:
        return None
    match = re.fullmatch(r'"?([0-9a-f]{64})"?', stated)
    return match and match[1]


def mismatch(path: Path, size: int | None, sha256: str | None) -> str:
    """Describe for a message how a file differs from the expected size or SHA-256. Returns '' if it does not."""
    actual_size = path.stat().st_size
    if size not in (None, actual_size):
        return f"{actual_size:,} bytes, expected {size:,}"
    if sha256 and not (digest := file_sha256(path)).startswith(sha256.lower()):
        return f"SHA-256 is {digest}, expected {sha256}"
    return ""
