"""weights/download.py: complete or resumed, against servers that cut, change, refuse and lie."""

import errno
import hashlib
import os
import threading

import pytest

from tests.fileserver import Handler
from weights import download as module
from weights.download import DownloadError, download

CONTENT = bytes(range(256)) * 8192  # 2 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(file_server):
    file_server.files["weights.pth"] = CONTENT
    file_server.url += "/weights.pth"
    return file_server


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder/weights.pth"


@pytest.fixture
def part(path):
    return path.with_name("weights.pth.part")


def ranges(server):
    return [wanted for _, wanted in server.requests]


def interrupt(server, path, at=1_000_000):
    """Let a download give up whose connections all end at byte `at`."""
    server.cuts = [at] * module.ATTEMPTS
    with pytest.raises(DownloadError, match=r"weights\.pth: download failed after 1,000,000 bytes \(.*cut"):
        download(server.url, path, sha256=SHA256)
    server.requests.clear()


@pytest.mark.parametrize("digits", [SHA256, SHA256[:8], SHA256[:12].upper(), None])
def test_a_complete_file_has_nothing_beside_it(server, path, digits):
    download(server.url, path, size=len(CONTENT), sha256=digits)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_a_cut_connection_is_resumed_where_it_ended(server, path, sha256):
    server.cuts = [700_000, 1_500_000]
    download(server.url, path, sha256=sha256)
    assert path.read_bytes() == CONTENT
    assert ranges(server) == ["bytes=0-", "bytes=700000-", "bytes=1500000-"]


def test_connections_may_be_cut_often_if_each_makes_progress(server, path):
    server.cuts = list(range(100_000, 1_000_000, 100_000))
    download(server.url, path, sha256=SHA256)
    assert len(server.requests) == 10 > module.ATTEMPTS


def test_a_later_call_resumes_where_the_first_gave_up(server, path):
    interrupt(server, path)
    assert not path.exists()
    download(server.url, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert ranges(server) == ["bytes=1000000-"]


def test_a_later_call_without_a_checksum_starts_over(server, path):
    interrupt(server, path)
    download(server.url, path)
    assert path.read_bytes() == CONTENT
    assert ranges(server) == ["bytes=0-"]


def test_a_server_without_ranges_sends_the_file_again(server, path):
    server.supports_ranges, server.cuts = False, [1_000_000]
    download(server.url, path, size=len(CONTENT), sha256=SHA256)
    assert path.read_bytes() == CONTENT


def test_a_call_that_was_killed_just_before_the_end_needs_nothing_more(server, path, part):
    interrupt(server, path)
    part.write_bytes(CONTENT)
    download(server.url, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server, path):
    server.failures = [503, 429]
    download(server.url, path, sha256=SHA256)
    assert len(server.requests) == 3


def test_a_file_with_a_different_checksum_is_removed(server, path, part):
    server.files["weights.pth"] = b"x" + CONTENT[1:]
    found = hashlib.sha256(server.files["weights.pth"]).hexdigest()
    with pytest.raises(DownloadError, match=rf"SHA-256 is {found}, expected {SHA256}"):
        download(server.url, path, sha256=SHA256)
    assert not path.exists()
    assert not part.exists()


def test_a_file_that_changed_between_two_calls_is_found(server, path):
    interrupt(server, path)
    server.files["weights.pth"] = CONTENT[::-1]
    with pytest.raises(DownloadError, match="another version"):
        download(server.url, path, sha256=SHA256)


def test_a_failed_download_leaves_the_previous_file(server, path):
    path.parent.mkdir()
    path.write_bytes(b"before")
    with pytest.raises(DownloadError):
        download(server.url, path, sha256="deadbeef")
    assert path.read_bytes() == b"before"


def test_a_file_of_a_different_size_is_refused_before_it_is_received(server, path, part):
    with pytest.raises(DownloadError, match=r"the server has 2,097,152 bytes, expected 1,000"):
        download(server.url, path, size=1000)
    assert part.stat().st_size == 0


def test_a_missing_file_is_not_asked_for_again(server, path):
    server.failures = [404]
    with pytest.raises(DownloadError, match=r"weights\.pth: HTTP 404 Not Found"):
        download(server.url, path)
    assert len(server.requests) == 1


def test_without_a_network_the_error_says_what_to_copy_where(server, path):
    server.stop()
    with pytest.raises(DownloadError) as error:
        download(server.url, path)
    message = str(error.value)
    assert message.startswith(server.url)
    assert f"[Errno {errno.ECONNREFUSED}]" in message
    assert message.endswith(f"copy it to {path}")
    assert "\n" not in message


def test_a_silent_server_is_given_up(server, path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.05)
    release = threading.Event()
    monkeypatch.setattr(Handler, "do_GET", lambda self: release.wait())
    try:
        with pytest.raises(DownloadError, match=r"weights\.pth: download failed .*timed out"):
            download(server.url, path)
    finally:
        release.set()


def test_a_full_disk_is_named(server, path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match=r"folder/weights\.pth: cannot be written: no space left"):
        download(server.url, path)


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/weights\.pth: cannot be written"):
        download(server.url, tmp_path / "file/weights.pth")


def test_two_processes_do_not_write_to_one_file(server, path, part):
    path.parent.mkdir()
    reader, writer = os.pipe()
    holder = os.fork()  # a lock keeps out other processes only
    if holder == 0:
        try:
            with open(part, "ab") as file:
                module._lock(file)
                os.write(writer, b"x")
                threading.Event().wait(60)
        finally:
            os._exit(0)
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    try:
        with pytest.raises(DownloadError, match=r"weights\.pth\.part: another process is downloading it"):
            download(server.url, path)
    finally:
        os.kill(holder, 9)
        os.waitpid(holder, 0)
