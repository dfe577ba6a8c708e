"""detection/prepare/fetch.py: lost connections, corrupt archives, and incomplete folders."""

import hashlib
import io
import re
import shutil
import zipfile
from types import SimpleNamespace

import pytest

from data import DatasetError
from detection.coco.annotations import read_coco
from detection.prepare import fetch as module
from detection.prepare.fetch import Archive, fetch
from weights.download import DownloadError

JSONS = ("annotations/instances_train2017.json", "annotations/instances_val2017.json")


def zipped(members):
    """Return a zip file, as bytes, of {name: content}."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def archives(drawn):
    """Return the archives of a COCO 2017 with nine images: {name: bytes}."""
    texts, images = {}, {}
    for split in ("train", "val"):
        text = (drawn / f"annotations/instances_{split}.json").read_text()
        texts[f"annotations/instances_{split}2017.json"] = re.sub(r'"(\d{6})\.jpg"', r'"000000\1.jpg"', text)
        files = sorted((drawn / "images" / split).iterdir())
        images[f"{split}2017.zip"] = zipped({f"{split}2017/000000{f.name}": f.read_bytes() for f in files})
    texts["annotations/captions_val2017.json"] = "{}"
    return {"annotations_trainval2017.zip": zipped(texts), **images}


@pytest.fixture
def server(file_server, monkeypatch, archives):
    """Replace the COCO server by a local one with the small archives."""
    file_server.files = dict(archives)
    known = {
        name: Archive(f"x/{name}", len(content), hashlib.sha256(content).hexdigest(), len(content))
        for name, content in archives.items()
    }
    monkeypatch.setattr(module, "HOST", file_server.url)
    monkeypatch.setattr(module, "ANNOTATIONS", known["annotations_trainval2017.zip"])
    monkeypatch.setattr(module, "IMAGES", {split: known[f"{split}2017.zip"] for split in ("val", "train")})
    return file_server


@pytest.fixture
def root(tmp_path):
    return tmp_path / "datasets/coco"


@pytest.fixture
def fetched(server, root):
    """Fetch into a folder, then clear the request log of the server."""
    fetch(root)
    server.requests.clear()
    return root


def is_complete(root):
    counts = [
        len(read_coco(root / path, root / f"{split}2017").images)
        for split, path in zip(("train", "val"), JSONS, strict=True)
    ]
    return counts == [6, 3] and not list(root.rglob("*.part*"))


def names(server):
    return [name for name, _ in server.requests]


def flipped(content):
    """Return the archive with one bit of its first image flipped."""
    return content[:500] + bytes([content[500] ^ 1]) + content[501:]


def test_an_empty_folder_gets_the_layout_that_the_configs_expect(server, root, command):
    code, printed, _ = command("fetch", "coco2017", root)
    assert code == 0
    assert is_complete(root)
    assert sorted(path.name for path in root.iterdir()) == ["annotations", "train2017", "val2017"]
    assert sorted(str(path.relative_to(root)) for path in root.glob("annotations/*")) == [*JSONS]
    assert f"{module.RECIPE} data.root={root} data.train.images=train2017" in printed
    server.requests.clear()
    assert command("fetch", "coco2017", root)[0] == 0
    assert not server.requests


def test_a_failed_download_is_resumed_by_the_next_call(server, root):
    server.cuts = [10**9, 5000, 5000, 5000]
    with pytest.raises(DownloadError, match=r"val2017\.zip: .*5,000 bytes"):
        fetch(root)
    server.requests.clear()
    fetch(root)
    assert is_complete(root)
    assert server.requests == [("val2017.zip", "bytes=5000-"), ("train2017.zip", "bytes=0-")]


def test_interrupted_unpacking_continues_with_missing_and_empty_images(server, root, monkeypatch):
    def stop_after_two_images(members, desc, **options):
        for number, member in enumerate(members):
            if number == 2 and "annotations" not in desc:
                raise KeyboardInterrupt
            yield member

    with monkeypatch.context() as patch:
        patch.setattr(module, "progress_bar", stop_after_two_images)
        with pytest.raises(KeyboardInterrupt):
            fetch(root)
    empty, complete = root.rglob("*.jpg")
    empty.write_bytes(b"")
    time = complete.stat().st_mtime_ns
    server.requests.clear()
    fetch(root)
    assert is_complete(root)
    assert empty.stat().st_size > 0
    assert names(server) == ["train2017.zip"]
    assert complete.stat().st_mtime_ns == time


def test_archives_that_the_user_provides_are_used_and_kept(server, root):
    root.mkdir(parents=True)
    for name, content in server.files.items():
        (root / name).write_bytes(content)
    fetch(root)
    assert is_complete(root)
    assert not server.requests
    assert all((root / name).is_file() for name in server.files)


@pytest.mark.parametrize(
    ("place", "damage", "message"),
    [
        (".", lambda content: content[:-1], r"coco/val2017\.zip: corrupt: .* bytes, expected .*; remove"),
        (".", flipped, r"coco/val2017\.zip: corrupt: SHA-256 is \w+, expected \w+; remove"),
        ("downloads", flipped, r"s/val2017\.zip: corrupt \(Bad CRC-32 for file .*\); remove"),
        ("downloads", lambda content: bytes(len(content)), r"s/val2017\.zip: corrupt \(File is not a zip file\)"),
    ],
)
def test_a_corrupt_archive_is_named_and_leaves_no_image(server, root, place, damage, message):
    (root / place).mkdir(parents=True)
    (root / place / "val2017.zip").write_bytes(damage(server.files["val2017.zip"]))
    with pytest.raises(DatasetError, match=message):
        fetch(root)
    assert not list(root.rglob("*.jpg*"))


def test_names_in_an_archive_cannot_write_outside_the_folder(server, root, monkeypatch):
    with zipfile.ZipFile(io.BytesIO(server.files["val2017.zip"])) as file:
        members = {name: file.read(name) for name in file.namelist()}
    content = zipped(members | {"../evil.jpg": b"x", "/evil.jpg": b"x", "val2017/../../evil.jpg": b"x"})
    root.mkdir(parents=True)
    (root / "val2017.zip").write_bytes(content)
    evil = module.IMAGES["val"]._replace(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(module.IMAGES, "val", evil)
    fetch(root)
    assert is_complete(root)
    assert not list(root.parent.parent.rglob("evil*"))


@pytest.mark.parametrize("name", ["../evil.jpg", "cat.jpg", "000000999999.jpg"])
def test_an_annotated_image_that_is_not_in_coco_is_an_error(fetched, command, name):
    path = fetched / JSONS[1]
    path.write_text(path.read_text().replace("000000000002.jpg", name))
    code, _, errors = command("fetch", "coco2017", fetched)
    assert (code, len(errors)) == (2, 1)
    assert name in errors[0]
    assert not list(fetched.rglob(name.removeprefix("../")))


def test_truncated_annotations_are_downloaded_again_once_removed(fetched, server):
    path = fetched / JSONS[0]
    path.write_text(path.read_text()[:-100])
    with pytest.raises(DatasetError, match=r"instances_train2017\.json: not JSON: .*; remove the file"):
        fetch(fetched)
    path.unlink()
    fetch(fetched)
    assert is_complete(fetched)
    assert names(server) == ["annotations_trainval2017.zip"]


def test_a_full_disk_is_an_error_and_nothing_is_downloaded(server, root, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=20_000))
    with pytest.raises(DatasetError, match=r"coco: not enough disk space .* needed, .* free"):
        fetch(root)
    assert not server.requests
    assert not root.exists()


def test_shrunken_copies_are_not_mixed_with_originals(fetched, server):
    (fetched / "train2017/shrunk.json").write_text('{"short_side": 48}')
    next((fetched / "train2017").glob("*.jpg")).unlink()
    with pytest.raises(DatasetError, match=r"train2017: .*shrunken copies"):
        fetch(fetched)
    assert not server.requests
