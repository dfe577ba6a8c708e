"""weights/download.py: whole or resumed, against servers that cut, forget, change, deny and lie."""

import errno
import hashlib
import os
import re
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from weights import download as module
from weights.download import DownloadError, download

CONTENT = bytes(range(256)) * 8192  # 2 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves what the `server` fixture says, in the manner it says, and notes the Range of every request."""

    def do_GET(self):
        shop = self.server
        shop.asked.append(self.headers.get("Range"))
        if shop.failures:
            self.send_error(shop.failures.pop(0))
            return
        content, start = shop.content, 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and shop.knows_ranges and self.headers.get("If-Range") in (shop.etag, *shop.also_takes):
            start = int(wanted[1])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        for name, value in shop.headers.items():
            self.send_header(name, value)
        if shop.etag:
            self.send_header("ETag", shop.etag)
        self.end_headers()
        end = shop.cuts.pop(0) if shop.cuts else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A local HTTP server; `url` is the file on it, `cuts` the bytes at which the next connections end."""
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 5.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.etag, server.headers, server.knows_ranges = CONTENT, '"1"', {}, True
    server.asked, server.failures, server.cuts, server.also_takes = [], [], [], []
    server.handle_error = lambda *_: None  # of a client that did not want the rest
    server.url = f"http://127.0.0.1:{server.server_port}/weights.pth"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder/weights.pth"


def interrupted(server, path, at=1_000_000):
    """What a download leaves whose connections all end at byte `at`."""
    server.cuts = [at] * module.ATTEMPTS
    with pytest.raises(DownloadError, match=r"cut at .*\. Try again, for the rest after 1,000,000 bytes"):
        download(server.url, path)
    server.asked.clear()


def test_a_whole_file_comes_with_nothing_beside_it(server, path):
    download(server.url, path, size=len(CONTENT), sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize("digits", [SHA256[:8], SHA256[:12].upper(), None])
def test_the_beginning_of_a_digest_is_enough(server, path, digits):
    download(server.url, path, sha256=digits)
    assert path.read_bytes() == CONTENT


def test_a_connection_that_is_cut_is_taken_up_again_where_it_ended(server, path):
    server.cuts = [700_000, 1_500_000]
    download(server.url, path, size=len(CONTENT), sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=700000-", "bytes=1500000-"]


def test_connections_may_be_cut_often_as_long_as_each_brings_something(server, path):
    server.cuts = list(range(100_000, 1_000_000, 100_000))
    download(server.url, path, sha256=SHA256)
    assert len(server.asked) == 10 > module.ATTEMPTS


def test_a_later_call_goes_on_where_the_first_one_gave_up(server, path):
    interrupted(server, path)
    assert not path.exists()
    download(server.url, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert server.asked == ["bytes=1000000-"]


def test_without_an_etag_the_date_tells_whether_it_is_the_same_file(server, path):
    server.etag, server.headers = None, {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
    server.also_takes = ["Wed, 21 Oct 2015 07:28:00 GMT"]
    interrupted(server, path)
    download(server.url, path, sha256=SHA256)
    assert server.asked == ["bytes=1000000-"]


@pytest.mark.parametrize("etag", [None, 'W/"1"'])
def test_a_server_that_does_not_tell_its_files_apart_is_asked_for_the_whole_again(server, path, etag):
    server.etag = etag
    server.cuts = [1_000_000]
    download(server.url, path, sha256=SHA256)
    assert server.asked == [None, None]


def test_a_server_that_knows_no_ranges_sends_the_whole_again(server, path):
    server.knows_ranges, server.cuts = False, [1_000_000]
    download(server.url, path, size=len(CONTENT), sha256=SHA256)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("ignores_if_range", [False, True])
def test_a_file_that_changed_meanwhile_is_begun_anew(server, path, ignores_if_range):
    interrupted(server, path)
    server.content, server.etag = CONTENT[::-1], '"2"'
    server.also_takes = ['"1"'] * ignores_if_range
    download(server.url, path)
    assert path.read_bytes() == CONTENT[::-1]


def test_a_call_that_was_killed_just_before_the_end_needs_nothing_more(server, path):
    interrupted(server, path)
    (path.parent / "weights.pth.part").write_bytes(CONTENT)
    download(server.url, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT


def test_a_server_that_is_busy_is_asked_again(server, path):
    server.failures = [503, 429]
    download(server.url, path, sha256=SHA256)
    assert len(server.asked) == 3


def test_a_corrupted_file_is_removed_and_both_digests_told(server, path):
    server.content = b"x" + CONTENT[1:]
    found = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(DownloadError, match=rf"SHA-256 is {found}, expected {SHA256}; it was removed"):
        download(server.url, path, sha256=SHA256)
    assert not path.exists()
    assert not (path.parent / "weights.pth.part").exists()
    server.content = CONTENT
    download(server.url, path, sha256=SHA256)


def test_a_download_that_fails_leaves_the_file_before_it(server, path):
    path.parent.mkdir()
    path.write_bytes(b"before")
    with pytest.raises(DownloadError):
        download(server.url, path, sha256="deadbeef")
    assert path.read_bytes() == b"before"


def test_a_file_of_another_size_is_refused_before_it_comes(server, path):
    with pytest.raises(DownloadError, match=r"the server has 2,097,152 bytes, expected 1,000; is it another"):
        download(server.url, path, size=1000)
    assert (path.parent / "weights.pth.part").stat().st_size == 0


def test_a_file_that_is_not_there_is_not_asked_for_again(server, path):
    server.failures = [404]
    with pytest.raises(DownloadError, match=r"weights\.pth: HTTP 404 Not Found"):
        download(server.url, path)
    assert len(server.asked) == 1


def test_without_a_network_it_says_which_file_to_put_where(server, path):
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError) as error:
        download(server.url, path)
    assert str(error.value).startswith(f"{server.url}: cannot be downloaded ([Errno {errno.ECONNREFUSED}]")
    assert str(error.value).endswith(
        f"Try when there is a network, or download it on another machine and copy it to {path}"
    )
    assert "\n" not in str(error.value)


def test_a_server_that_falls_silent_is_given_up(server, path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.05)
    release = threading.Event()
    monkeypatch.setattr(Handler, "do_GET", lambda self: release.wait())
    try:
        with pytest.raises(DownloadError, match=r"cannot be downloaded \(.*timed out"):
            download(server.url, path)
    finally:
        release.set()


def test_where_there_is_no_room_nothing_comes(server, path, monkeypatch):
    free = namedtuple("usage", "free")(2**20)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: free)
    with pytest.raises(DownloadError, match=r"no space left for .*weights\.pth: 2 MiB are to come, 1 MiB are free"):
        download(server.url, path)
    assert (path.parent / "weights.pth.part").stat().st_size == 0


def test_a_disk_that_fills_up_is_named(server, path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(DownloadError, match=r"folder/weights\.pth: cannot be written: no space left"):
        download(server.url, path)


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"file/weights\.pth: cannot be written"):
        download(server.url, tmp_path / "file/weights.pth")


def test_two_processes_do_not_write_to_one_file(server, path, tmp_path):
    path.parent.mkdir()
    reader, writer = os.pipe()
    holder = os.fork()  # a lock keeps other processes out, not its own
    if holder == 0:
        try:
            with module._occupied(path.parent / "weights.pth.part"):
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


def test_a_process_that_comes_as_another_finishes_leaves_the_file_alone(server, path, monkeypatch):
    path.parent.mkdir()

    def finish(file, flags) -> None:
        path.with_name("weights.pth.part").replace(path)
        path.write_bytes(b"whole")

    monkeypatch.setattr(module.fcntl, "lockf", finish)
    with pytest.raises(DownloadError, match=r"weights\.pth\.part: another process has just finished it"):
        download(server.url, path)
    assert path.read_bytes() == b"whole"
