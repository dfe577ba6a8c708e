"""engine/inputs.py: which data sets are the same, and which are not."""

import os
import shutil

import pytest

from engine import inputs as module
from engine.inputs import ImageSet, Inputs, identify_images, read_inputs

NAMES = [f"{number:02}.jpg" for number in range(12)]


@pytest.fixture
def folder(tmp_path):
    """Twelve files of equal size."""
    folder = tmp_path / "rgb"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(bytes([number]) * 50)
    return folder


@pytest.fixture
def few_are_read(monkeypatch):
    """As if twelve images were many: the content of three is read."""
    monkeypatch.setattr(module, "MOST_READ", 11)
    monkeypatch.setattr(module, "SAMPLE", 3)


def test_a_copy_with_other_times_is_the_same(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    os.utime(copy / NAMES[0], (1, 1))
    assert identify_images(copy, NAMES).sha256 == identify_images(folder, reversed(NAMES)).sha256


@pytest.mark.parametrize("name", NAMES)
def test_one_image_replaced_by_another_of_its_size_makes_another_set(folder, name):
    before = identify_images(folder, NAMES)
    (folder / name).write_bytes(b"x" * 50)
    assert identify_images(folder, NAMES).sha256 != before.sha256


def test_an_image_more_less_or_renamed_makes_another_set(folder):
    whole = identify_images(folder, NAMES).sha256
    (folder / NAMES[3]).rename(folder / "other.jpg")
    assert len({whole, *(identify_images(folder, n).sha256 for n in (NAMES[:3], [*NAMES[:3], "other.jpg"]))}) == 3


def test_of_many_images_some_are_read_and_all_are_measured(folder, few_are_read):
    before = identify_images(folder, NAMES)
    assert (before.count, before.names) == (12, ["00.jpg", "04.jpg", "08.jpg"])
    (folder / NAMES[5]).write_bytes(b"longer" * 50)
    assert identify_images(folder, NAMES).sha256 != before.sha256


def test_another_modality_is_seen_in_the_sample_of_many_images_of_one_size(folder, few_are_read):
    before = identify_images(folder, NAMES)
    for name in NAMES:
        (folder / name).write_bytes(b"t" * 50)
    assert identify_images(folder, NAMES).contents != before.contents


def test_a_missing_image_is_named(folder):
    with pytest.raises(OSError, match=r"gone\.jpg"):
        identify_images(folder, ["gone.jpg"])


@pytest.fixture
def known(folder, tmp_path) -> Inputs:
    (tmp_path / "val.json").write_text("boxes")
    files = {str(tmp_path / "val.json"): module.content_sha256(tmp_path / "val.json")}
    return Inputs(str(tmp_path), files, {"val": identify_images(folder, NAMES)})


def test_inputs_are_read_back(known, tmp_path):
    known.write(tmp_path)
    assert read_inputs(tmp_path) == known
    assert isinstance(read_inputs(tmp_path).images["val"], ImageSet)
    assert read_inputs(tmp_path / "rgb") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"root": "a", "files": {}, "images": {"val": {"folder": "b"}}}'])
def test_damaged_inputs_are_named(tmp_path, text):
    (tmp_path / "inputs.json").write_text(text)
    with pytest.raises(ValueError, match=r"inputs\.json: damaged"):
        read_inputs(tmp_path)


def test_what_has_not_changed_is_not_told_where_it_was_nor_where_it_is_now(known, tmp_path):
    shutil.copytree(tmp_path, tmp_path.parent / "moved")
    assert not list(known.changes())
    assert not list(known.changes(tmp_path.parent / "moved"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: (root / "val.json").write_text("others"), "val.json has other content"),
        (lambda root: (root / "val.json").unlink(), "val.json is gone"),
        (lambda root: (root / "rgb/03.jpg").write_bytes(b"y" * 50), "rgb has other val images"),
        (lambda root: (root / "rgb/03.jpg").unlink(), "03.jpg is gone"),
        (lambda root: shutil.rmtree(root / "rgb"), "00.jpg is gone"),
    ],
)
def test_a_change_is_told_by_its_file_or_folder(known, tmp_path, change, said):
    change(tmp_path)
    (found,) = known.changes()
    assert str(found).endswith(said)
