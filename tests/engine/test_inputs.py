"""engine/inputs.py: identity of data sets, and duplicate images."""

import os
import shutil

import pytest

from engine import inputs as module
from engine.inputs import ImageSet, Inputs, copies, find_repeated_names, find_shared_files, identify_images, read_inputs

NAMES = [f"{number:02}.jpg" for number in range(12)]


@pytest.fixture
def folder(tmp_path):
    """Return a folder with twelve files of equal size."""
    folder = tmp_path / "rgb"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(bytes([number]) * 50)
    return folder


def test_a_copy_with_different_modification_times_is_the_same_set(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    os.utime(copy / NAMES[0], (1, 1))
    assert identify_images(copy, NAMES).sha256 == identify_images(folder, reversed(NAMES)).sha256


def test_a_replaced_missing_or_renamed_image_makes_a_different_set(folder):
    digests = {identify_images(folder, NAMES).sha256, identify_images(folder, NAMES[:11]).sha256}
    (folder / NAMES[5]).write_bytes(b"x" * 50)
    digests.add(identify_images(folder, NAMES).sha256)
    (folder / NAMES[11]).rename(folder / "other.jpg")
    digests.add(identify_images(folder, [*NAMES[:11], "other.jpg"]).sha256)
    assert len(digests) == 4


def test_in_a_large_set_all_sizes_and_some_contents_are_read(folder, monkeypatch):
    monkeypatch.setattr(module, "MAX_READ", 11)
    monkeypatch.setattr(module, "SAMPLE", 3)
    before = identify_images(folder, NAMES)
    assert (before.count, before.names) == (12, ["00.jpg", "04.jpg", "08.jpg"])
    (folder / NAMES[5]).write_bytes(b"longer" * 50)
    longer = identify_images(folder, NAMES)
    assert (longer.sha256 == before.sha256, longer.contents == before.contents) == (False, True)
    (folder / NAMES[4]).write_bytes(b"t" * 50)
    assert identify_images(folder, NAMES).contents != before.contents


def test_a_missing_image_is_named(folder):
    with pytest.raises(OSError, match=r"gone\.jpg"):
        identify_images(folder, ["gone.jpg"])


@pytest.fixture
def known(folder, tmp_path) -> Inputs:
    (tmp_path / "val.json").write_text("boxes")
    files = {str(tmp_path / "val.json"): module.content_sha256(tmp_path / "val.json")}
    return Inputs(str(tmp_path), files, {"val": identify_images(folder, NAMES)})


def test_inputs_are_read_as_they_were_written(known, tmp_path):
    known.write(tmp_path)
    assert read_inputs(tmp_path) == known
    assert isinstance(read_inputs(tmp_path).images["val"], ImageSet)
    assert read_inputs(tmp_path / "rgb") is None
    (tmp_path / "inputs.json").write_text("{")
    with pytest.raises(ValueError, match=r"inputs\.json: corrupt"):
        read_inputs(tmp_path)


def test_a_data_set_that_was_moved_has_no_changes(known, tmp_path):
    shutil.copytree(tmp_path, tmp_path.parent / "moved")
    assert not list(known.changes())
    assert not list(known.changes(tmp_path.parent / "moved"))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda root: (root / "val.json").write_text("others"), "val.json has changed"),
        (lambda root: (root / "val.json").unlink(), "val.json is missing"),
        (lambda root: (root / "rgb/03.jpg").write_bytes(b"y" * 50), "rgb has different val images"),
        (lambda root: (root / "rgb/03.jpg").unlink(), "03.jpg is missing"),
    ],
)
def test_a_change_names_its_file_or_folder(known, tmp_path, edit, message):
    edit(tmp_path)
    (change,) = known.changes()
    assert str(change).endswith(message)


# ---- duplicate images


@pytest.fixture
def files(tmp_path):
    """Return a function that writes files with the given contents and returns their paths."""

    def make(**contents: bytes):
        paths = [tmp_path / name for name in contents]
        for path, content in zip(paths, contents.values(), strict=True):
            path.write_bytes(content)
        return paths

    return make


def test_each_copy_is_paired_with_the_first_file_of_the_same_content(files):
    long = b"a" * 9000
    a, b, c, d, e, f = files(a=long, b=b"short", c=b"b" + long[1:], d=long, e=b"short", f=b"other")
    assert copies([a, b, c, d, e, f]) == {d: a, e: b}  # c differs from a in its first byte only


def test_validation_images_that_are_training_images_are_counted_and_named(files):
    a, b, c, d = files(a=b"one", b=b"two", c=b"one", d=b"six")
    found = find_shared_files([a, b], [b, c, d])
    assert found[1:] == (2, 3, ["b", "c"])
    assert "2 of 3 validation images are also training images" in str(found)
    assert "such as b, c" in str(found)


def test_copies_within_a_split_are_not_shared_between_splits(files):
    a, b, c, d = files(a=b"one", b=b"one", c=b"two", d=b"two")
    assert find_shared_files([a, b], [c, d]) is None


def test_repeated_names_are_counted_after_normalising_the_path():
    found = find_repeated_names(["a.jpg", "b.jpg", "./a.jpg", "a.jpg"])
    assert (found.count, found.examples) == (1, ["a.jpg"])
    assert find_repeated_names(["a.jpg", "x/a.jpg"]) is None
