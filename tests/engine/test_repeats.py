"""engine/repeats.py: images that are there twice."""

import os

import pytest

from engine import repeats as module
from engine.repeats import first_copies, repeated_bytes, repeated_names, shared_between


@pytest.fixture
def files(tmp_path):
    """Makes files of these contents, in order; returns their paths."""

    def make(**contents: bytes):
        paths = [tmp_path / name for name in contents]
        for path, content in zip(paths, contents.values(), strict=True):
            path.write_bytes(content)
        return paths

    return make


def test_each_file_has_the_position_of_its_first_copy(files):
    long = b"a" * 9000
    paths = files(a=long, b=b"short", c=b"b" + long[1:], d=long, e=b"short", f=b"other")
    assert first_copies(paths) == [0, 1, 2, 0, 1, 5]  # c differs from a in its first byte only


def test_links_to_one_file_are_copies_that_are_not_read(files, monkeypatch):
    a, b = files(a=b"pixels", b=b"others")
    link, hard = a.with_name("link"), a.with_name("hard")
    link.symlink_to(a)
    os.link(a, hard)
    monkeypatch.setattr(module, "content_sha256", None)
    assert first_copies([a, b, link, hard]) == [0, 1, 0, 0]


def test_only_files_of_one_size_are_read(files, monkeypatch):
    paths = files(a=b"1", b=b"22", c=b"333")
    monkeypatch.setattr(module, "_tail", None)
    assert shared_between(paths[:1], paths[1:]) is None


def test_validation_images_that_are_training_images_are_counted_and_named(files):
    a, b, c, d = files(a=b"one", b=b"two", c=b"one", d=b"six")
    found = shared_between([a, b], [b, c, d])
    assert (found.count, found.total, found.examples) == (2, 3, ["b", "c"])
    assert "2 of 3 validation images are also training images" in str(found)
    assert "such as b, c" in str(found)


def test_copies_within_a_half_do_not_count_as_shared_between_both(files):
    a, b, c, d = files(a=b"one", b=b"one", c=b"two", d=b"two")
    assert shared_between([a, b], [c, d]) is None


def test_copies_within_a_half_are_counted_once_however_often_they_are_named(files):
    a, b, c = files(a=b"one", b=b"one", c=b"one")
    assert repeated_bytes([a, b, b, c])[1:] == (2, 3, ["b", "c"])
    assert repeated_bytes([a, a]) is None


def test_names_that_occur_twice_are_counted_however_they_are_spelt():
    found = repeated_names(["a.jpg", "b.jpg", "./a.jpg", "a.jpg"])
    assert (found.count, found.examples) == (1, ["a.jpg"])
    assert repeated_names(["a.jpg", "x/a.jpg"]) is None
