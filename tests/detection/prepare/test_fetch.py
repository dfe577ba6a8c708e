"""detection/prepare/fetch.py: against a server that cuts, and over what is there already."""

import hashlib
import io
import os
import re
import shutil
import threading
import zipfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data import DatasetError
from detection.coco.annotations import read_coco
from detection.data import parse_arguments
from detection.prepare import fetch as module
from detection.prepare.fetch import Archive, fetch
from detection.shapes import SHAPES
from weights.download import DownloadError

NAMES = {"train": "train2017.zip", "val": "val2017.zip"}
JSONS = ("annotations/instances_train2017.json", "annotations/instances_val2017.json")


class Handler(BaseHTTPRequestHandler):
    """Serves the `server` fixture's archives, from the byte that is asked for to where it cuts, and notes requests."""

    def do_GET(self):
        shop, name = self.server, self.path.rpartition("/")[2]
        shop.asked.append((name, self.headers.get("Range")))
        content, wanted = shop.archives[name], re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(content[start : shop.cuts.pop(0) if shop.cuts else len(content)])

    def log_message(self, *_):
        pass


def zipped(members):
    """A zip file of {name: bytes}."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def archives(drawn):
    """COCO 2017 of nine images: what its server has, by name."""
    texts, images = {}, {}
    for half in ("train", "val"):
        text = (drawn / f"annotations/instances_{half}.json").read_text()
        texts[f"annotations/instances_{half}2017.json"] = re.sub(r'"(\d{6})\.jpg"', r'"000000\1.jpg"', text)
        files = sorted((drawn / "images" / half).iterdir())
        images[f"{half}2017.zip"] = zipped({f"{half}2017/000000{f.name}": f.read_bytes() for f in files})
    texts["annotations/captions_val2017.json"] = "{}"
    return {"annotations_trainval2017.zip": zipped(texts), **images}


@pytest.fixture
def server(monkeypatch, archives):
    """The server of COCO 2017, in small; `cuts`: the bytes at which the next connections end; `asked`: what was."""
    monkeypatch.setattr("weights.download.WAIT_SECONDS", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.archives, server.asked, server.cuts = dict(archives), [], []
    server.handle_error = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    known = {
        name: Archive(f"x/{name}", len(content), hashlib.sha256(content).hexdigest(), len(content))
        for name, content in archives.items()
    }
    monkeypatch.setattr(module, "HOST", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(module, "ANNOTATIONS", known["annotations_trainval2017.zip"])
    monkeypatch.setattr(module, "IMAGES", {half: known[name] for half, name in NAMES.items()})
    monkeypatch.setattr(module, "NUM_IMAGES", {"train": 6, "val": 3})
    monkeypatch.setattr(module, "NUM_CLASSES", len(SHAPES))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "datasets/coco"


@pytest.fixture
def fetched(server, root):
    """A folder that was fetched, and a server that has forgotten it."""
    fetch(root)
    server.asked.clear()
    return root


def is_whole(root, images="{}2017"):
    counts = {
        half: len(read_coco(root / f"annotations/instances_{half}2017.json", root / images.format(half)).images)
        for half in ("train", "val")
    }
    return counts == {"train": 6, "val": 3} and not list(root.rglob("*.part*"))


def names(server):
    return [name for name, _ in server.asked]


def test_an_empty_folder_gets_the_layout_of_the_configs(server, root, command):
    code, printed, _ = command("fetch", "coco2017", root)
    assert code == 0
    assert is_whole(root)
    assert sorted(path.name for path in root.iterdir()) == ["annotations", "train2017", "val2017"]
    assert f"{module.RECIPE} data.root={root} data.train.images=train2017" in printed


def test_only_the_annotations_that_are_read_are_unpacked(fetched):
    assert sorted(path.name for path in (fetched / "annotations").iterdir()) == [
        "instances_train2017.json",
        "instances_val2017.json",
    ]


def test_a_connection_that_is_cut_is_taken_up_where_it_ended(server, root):
    server.cuts = [1000, 2000]
    fetch(root)
    assert is_whole(root)
    assert [asked for name, asked in server.asked if name.startswith("ann")] == [None, "bytes=1000-", "bytes=2000-"]


def test_a_call_that_gave_up_is_gone_on_with(server, root):
    server.cuts = [10**9, 5000, 5000, 5000]
    with pytest.raises(DownloadError, match=r"val2017\.zip: cannot be downloaded .* for the rest after 5,000 bytes"):
        fetch(root)
    server.asked.clear()
    fetch(root)
    assert is_whole(root)
    assert server.asked == [("val2017.zip", "bytes=5000-"), ("train2017.zip", None)]


def test_called_again_it_asks_for_nothing(fetched, server, command):
    code, printed, _ = command("fetch", "coco2017", fetched)
    assert code == 0
    assert "COCO's archives unpacked into one folder" in printed
    assert not server.asked


def interrupt_unpacking(root, after, monkeypatch):
    """End a call, as Ctrl-C does, when so many files of an archive are out."""

    def stop(members, desc, **options):
        for number, member in enumerate(members):
            if number == after and "annotations" not in desc:
                raise KeyboardInterrupt
            yield member

    with monkeypatch.context() as patch:
        patch.setattr(module, "progress_bar", stop)
        with pytest.raises(KeyboardInterrupt):
            fetch(root)


def test_an_unpacking_that_was_interrupted_is_gone_on_with_from_the_archive_that_is_there(server, root, monkeypatch):
    interrupt_unpacking(root, 2, monkeypatch)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.jpg")}
    assert len(times) == 2
    server.asked.clear()
    fetch(root)
    assert is_whole(root)
    assert names(server) == ["train2017.zip"]
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_a_process_killed_in_the_middle_of_an_image_leaves_it_missing_not_short(fetched):
    images = sorted((fetched / "val2017").iterdir())
    content = images[0].read_bytes()
    killed = os.fork()
    if killed == 0:
        try:
            images[0].unlink()
            shutil.copyfileobj = lambda source, copy, _: (copy.write(b"half"), copy.flush(), os.kill(os.getpid(), 9))
            fetch(fetched)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(killed, 0)[1]) == -9
    assert images[0].with_name(f"{images[0].name}.part").read_bytes() == b"half"
    assert not images[0].exists()
    fetch(fetched)
    assert images[0].read_bytes() == content
    assert is_whole(fetched)


def test_two_processes_do_not_unpack_the_same_archive(server, root):
    root.mkdir(parents=True)
    archive = root / "annotations_trainval2017.zip"
    archive.write_bytes(server.archives[archive.name])
    with module._occupied(archive), pytest.raises(DatasetError, match=r"2017\.zip: another process is unpacking it"):
        fetch(root)


def test_an_archive_that_a_killed_call_left_behind_is_swept(fetched, server):
    (fetched / "downloads").mkdir()
    (fetched / "downloads/val2017.zip").write_bytes(server.archives["val2017.zip"])
    fetch(fetched)
    assert not (fetched / "downloads").exists()


def test_an_image_that_is_missing_or_empty_comes_and_the_others_stay(fetched, server):
    first, second, *others = sorted((fetched / "train2017").iterdir())
    size = first.stat().st_size
    first.unlink()
    second.write_bytes(b"")
    times = [path.stat().st_mtime_ns for path in others]
    fetch(fetched)
    assert is_whole(fetched)
    assert first.stat().st_size == size
    assert names(server) == ["train2017.zip"]
    assert [path.stat().st_mtime_ns for path in others] == times


def test_an_archive_that_was_brought_is_used_and_left_there(server, root):
    root.mkdir(parents=True)
    for name, content in server.archives.items():
        (root / name).write_bytes(content)
    fetch(root)
    assert is_whole(root)
    assert not server.asked
    assert all((root / name).is_file() for name in server.archives)


def test_an_archive_that_was_brought_in_part_is_an_error(server, root):
    root.mkdir(parents=True)
    (root / "val2017.zip").write_bytes(server.archives["val2017.zip"][:-1])
    with pytest.raises(DatasetError, match=r"coco/val2017\.zip: .* bytes, expected .*; remove it"):
        fetch(root)


def test_an_archive_that_was_brought_with_a_flipped_bit_is_not_unpacked(server, root):
    content = bytearray(server.archives["val2017.zip"])
    content[500] ^= 1  # in the first image
    root.mkdir(parents=True)
    (root / "val2017.zip").write_bytes(content)
    with pytest.raises(DatasetError, match=r"coco/val2017\.zip: damaged: its SHA-256 is \w+, expected \w+; remove it"):
        fetch(root)
    assert not (root / "val2017").exists()


def test_a_downloaded_archive_that_was_damaged_since_is_named_and_leaves_no_image(server, root):
    content = bytearray(server.archives["val2017.zip"])
    content[500] ^= 1
    (root / "downloads").mkdir(parents=True)
    (root / "downloads/val2017.zip").write_bytes(content)
    with pytest.raises(DatasetError, match=r"s/val2017\.zip: damaged \(Bad CRC-32 for file .*\); remove it"):
        fetch(root)
    assert not list(root.rglob("*.jpg*"))


def test_what_is_no_archive_is_named(server, root):
    (root / "downloads").mkdir(parents=True)
    (root / "downloads/val2017.zip").write_bytes(bytes(len(server.archives["val2017.zip"])))
    with pytest.raises(DatasetError, match=r"s/val2017\.zip: damaged \(File is not a zip file\)"):
        fetch(root)


def test_a_download_with_another_checksum_is_not_unpacked(server, root):
    server.archives["val2017.zip"] = bytes(len(server.archives["val2017.zip"]))
    with pytest.raises(DownloadError, match=r"val2017\.zip: damaged on the way, or another file: its SHA-256"):
        fetch(root)
    assert not list(root.rglob("*.jpg"))
    assert not list((root / "downloads").glob("*.zip"))


def test_names_in_an_archive_lead_nowhere(server, root, monkeypatch):
    with zipfile.ZipFile(io.BytesIO(server.archives["val2017.zip"])) as file:
        members = {name: file.read(name) for name in file.namelist()}
    content = zipped(members | {"../evil.jpg": b"x", "/evil.jpg": b"x", "val2017/../../evil.jpg": b"x"})
    root.mkdir(parents=True)
    (root / "val2017.zip").write_bytes(content)
    evil = module.IMAGES["val"]._replace(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(module.IMAGES, "val", evil)
    fetch(root)
    assert is_whole(root)
    assert not list(root.parent.parent.rglob("evil*"))


@pytest.mark.parametrize("name", ["../evil.jpg", "/tmp/evil.jpg", "more/000000000001.jpg", "cat.jpg"])
def test_a_list_of_other_images_than_cocos_is_an_error_before_anything_comes(fetched, server, name):
    path = fetched / JSONS[1]
    path.write_text(path.read_text().replace("000000000002.jpg", name))
    with pytest.raises(ValueError, match=r"instances_val2017\.json: .*(neither there nor an image of|2 images of)"):
        module.main(parse_arguments(["fetch", "coco2017", str(fetched)]))
    assert not server.asked


def test_a_list_with_an_image_that_the_archive_lacks_is_an_error(fetched):
    path = fetched / JSONS[1]
    path.write_text(path.read_text().replace("000000000002.jpg", "000000999999.jpg"))
    with pytest.raises(DatasetError, match=r"'val2017/000000999999\.jpg' is not in it"):
        fetch(fetched)


def test_annotations_that_are_cut_off_are_to_be_removed(fetched, server):
    path = fetched / JSONS[0]
    path.write_text(path.read_text()[:-100])
    with pytest.raises(DatasetError, match=r"instances_train2017\.json: not JSON: .*; remove the file"):
        fetch(fetched)
    path.unlink()
    fetch(fetched)
    assert is_whole(fetched)
    assert names(server) == ["annotations_trainval2017.zip"]


def test_where_there_is_no_room_nothing_is_asked_for(server, root, monkeypatch):
    free = namedtuple("usage", "free")(20_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    with pytest.raises(DatasetError, match=r"coco: no space left for COCO 2017: .* are needed, .* are free; make room"):
        fetch(root)
    assert not server.asked
    assert not root.exists()


def test_room_is_counted_for_what_is_still_to_come(server, root, monkeypatch):
    interrupt_unpacking(root, 2, monkeypatch)  # of val: one image of three is left
    sizes = {half: len(server.archives[name]) for half, name in NAMES.items()}
    needed = sizes["val"] / 3 - sizes["val"] + 2 * sizes["train"]  # the archive of val goes before train's comes
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(needed - 100))
    with pytest.raises(DatasetError, match="no space left"):
        fetch(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(needed + 100))
    fetch(root)
    assert is_whole(root)


# ---- over what is there already ---------------------------------------------------------------------------------


def test_a_yolo_distribution_gets_the_annotations_it_lacks(fetched, server):
    (fetched / "images").mkdir()
    for half in ("train", "val"):
        (fetched / f"{half}2017").rename(fetched / f"images/{half}2017")
    (fetched / JSONS[0]).unlink()
    fetch(fetched)
    assert is_whole(fetched, "images/{}2017")
    assert names(server) == ["annotations_trainval2017.zip"]


def test_an_export_of_fiftyone_is_filled_up_where_it_lies(fetched, server):
    for half, name in (("train", "train"), ("val", "validation")):
        (fetched / name).mkdir()
        (fetched / f"{half}2017").rename(fetched / name / "data")
        (fetched / f"annotations/instances_{half}2017.json").rename(fetched / name / "labels.json")
    next((fetched / "validation/data").iterdir()).unlink()
    layout, surveys = fetch(fetched)
    assert layout.name == "an export of FiftyOne"
    assert [len(survey.files) for survey in surveys] == [6, 3]
    assert names(server) == ["val2017.zip"]


@pytest.mark.parametrize(("name", "value"), [("NUM_IMAGES", {"train": 118_287, "val": 5_000}), ("NUM_CLASSES", 80)])
def test_another_data_set_is_an_error_before_anything_comes(drawn, server, command, monkeypatch, name, value):
    monkeypatch.setattr(module, name, value)
    code, _, errors = command("fetch", "coco2017", drawn)
    assert (code, len(errors)) == (2, 1)
    assert "6 images of 6 classes, expected COCO 2017's" in errors[0]
    assert f"{drawn} holds another data set; choose another folder" in errors[0]
    assert not server.asked


def test_shrunken_copies_are_not_mixed_with_originals(fetched, server):
    (fetched / "train2017/shrunk.json").write_text('{"short_side": 48}')
    next((fetched / "train2017").glob("*.jpg")).unlink()
    with pytest.raises(DatasetError, match=r"train2017: .* is missing among shrunken copies"):
        fetch(fetched)
    assert not server.asked


def test_another_name_is_one_line(root, command):
    code, _, errors = command("fetch", "coco2014", root)
    assert (code, len(errors)) == (2, 1)
    assert "coco2017" in errors[0]
