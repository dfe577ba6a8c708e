"""weights/download.py with servers that close connections, fail, hang, or send different content."""

import errno
import hashlib
import os
import threading

import pytest

from engine.files import locked
from tests.fileserver import Handler
from weights import download as module
from weights.download import DownloadError, download, stated_sha256

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


def requested_ranges(server):
    return [requested for _, requested in server.requests]


def interrupt(server, path, at=1_000_000):
    """Start a download that fails because every connection is closed at byte `at`."""
    server.cuts = [at] * module.ATTEMPTS
    with pytest.raises(DownloadError, match=r"weights\.pth: download failed after 1,000,000 bytes"):
        download(server.url, path, sha256=SHA256)
    server.requests.clear()


@pytest.mark.parametrize("sha256", [SHA256[:12].upper(), None])
def test_after_a_closed_connection_the_download_resumes_at_the_same_byte(server, path, sha256):
    server.cuts = [700_000, 1_500_000]
    download(server.url, path, sha256=sha256)
    assert path.read_bytes() == CONTENT
    assert requested_ranges(server) == ["bytes=0-", "bytes=700000-", "bytes=1500000-"]
    assert [file.name for file in path.parent.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize(("sha256", "requested"), [(SHA256, "bytes=1000000-"), (None, "bytes=0-")])
def test_a_later_call_resumes_only_with_a_checksum(server, path, sha256, requested):
    interrupt(server, path)
    assert not path.exists()
    download(server.url, path, sha256=sha256)
    assert path.read_bytes() == CONTENT
    assert requested_ranges(server) == [requested]


def test_with_a_server_without_ranges_the_download_starts_over(server, path):
    server.supports_ranges, server.cuts = False, [1_000_000]
    download(server.url, path, size=len(CONTENT), sha256=SHA256)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(("failures", "requests"), [([503, 429], 3), ([404], 1)])
def test_a_download_is_retried_if_the_server_is_busy_but_not_if_the_file_is_missing(server, path, failures, requests):
    server.failures = list(failures)
    if requests == 1:
        with pytest.raises(DownloadError, match=r"weights\.pth: HTTP 404 Not Found"):
            download(server.url, path)
    else:
        download(server.url, path)
    assert len(server.requests) == requests


def test_a_file_with_a_different_checksum_is_removed_and_the_previous_one_is_kept(server, path, part):
    path.parent.mkdir()
    path.write_bytes(b"before")
    server.files["weights.pth"] = b"x" + CONTENT[1:]
    digest = hashlib.sha256(server.files["weights.pth"]).hexdigest()
    with pytest.raises(DownloadError, match=rf"{digest}, expected {SHA256}"):
        download(server.url, path, sha256=SHA256)
    assert path.read_bytes() == b"before"
    assert not part.exists()


def test_a_file_of_a_different_size_is_rejected_before_it_is_received(server, path, part):
    with pytest.raises(DownloadError, match=r"2,097,152 bytes, expected 1,000"):
        download(server.url, path, size=1000)
    assert part.stat().st_size == 0


def test_without_a_network_the_error_names_the_url_and_the_target_path(server, path):
    server.stop()
    with pytest.raises(DownloadError) as error:
        download(server.url, path)
    message = str(error.value)
    assert message.startswith(server.url)
    assert f"[Errno {errno.ECONNREFUSED}]" in message
    assert message.endswith(f"copy it to {path}")
    assert "\n" not in message


def test_a_download_from_a_silent_server_times_out(server, path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.05)
    release = threading.Event()
    monkeypatch.setattr(Handler, "do_GET", lambda self: release.wait())
    try:
        with pytest.raises(DownloadError, match=r"weights\.pth: download failed .*timed out"):
            download(server.url, path)
    finally:
        release.set()


def test_the_error_about_a_full_disk_names_the_file(server, path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match=r"folder/weights\.pth: .*no space left"):
        download(server.url, path)


def test_two_processes_cannot_download_to_the_same_file(server, path, part):
    path.parent.mkdir()
    with locked(part), pytest.raises(DownloadError, match=r"weights\.pth\.part: another process"):
        download(server.url, path)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [({"X-Linked-Etag": f'"{SHA256}"'}, SHA256), ({"X-Linked-Etag": '"1a2b"'}, None), ({}, None)],
)
def test_the_hash_that_a_hub_states_is_in_a_redirect_to_its_storage(server, headers, expected):
    server.redirects = {"model.safetensors": ("second", {}), "second": ("weights.pth", headers)}
    assert stated_sha256(server.url.replace("weights.pth", "model.safetensors")) == expected
    assert server.requests == []


@pytest.mark.parametrize("is_stopped", [True, False])
def test_a_server_without_an_answer_states_no_hash(server, is_stopped):
    if is_stopped:
        server.stop()
    server.failures = [404]
    assert stated_sha256(server.url) is None
