"""engine/files.py: paths that users write, and locks."""

import os
from pathlib import Path

import pytest

from engine.files import is_locked, locked, set_aside, user_path


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    assert user_path("~/data", "data.root") == Path("/home/ann/data")


def test_there_need_be_nothing_at_a_path(tmp_path):
    assert user_path(str(tmp_path / "not/yet"), "data.root") == tmp_path / "not/yet"


@pytest.fixture
def odd(tmp_path) -> Path:
    """A folder with a file, two links in a circle, and a link to itself."""
    (tmp_path / "file").touch()
    for link, target in (("one", "other"), ("other", "one"), ("self", "self")):
        (tmp_path / link).symlink_to(tmp_path / target)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("~nosuchuser/x", "~nosuchuser"),
        ("a\0b", "NUL"),
        ("x" * 300, os.strerror(36)),
        ("x/" * 5000, os.strerror(36)),
        ("ODD/file/data", os.strerror(20)),
        ("ODD/one/data", os.strerror(40)),
        ("ODD/self", os.strerror(40)),
    ],
)
def test_what_can_be_no_path_is_refused_in_one_line_that_names_field_and_value(odd, text, reason):
    text = text.replace("ODD", str(odd))
    with pytest.raises(ValueError, match=r"^data\.root '") as error:
        user_path(text, "data.root")
    assert reason in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 200


def test_a_damaged_file_takes_the_place_of_one_that_was_put_aside_before(tmp_path):
    for text in ("first", "second"):
        (tmp_path / "a.json").write_text(text)
        aside = set_aside(tmp_path / "a.json")
    assert aside == tmp_path / "a.json.damaged"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["second"]


def test_a_lock_excludes_a_second_holder_until_it_is_released(tmp_path):
    path = tmp_path / "x.lock"
    assert is_locked(path) is False
    with locked(path, ValueError("busy")):
        assert is_locked(path)
        with pytest.raises(ValueError, match="busy"), locked(path, ValueError("busy")):
            pass
        assert is_locked(path)
    assert is_locked(path) is False


def test_a_file_system_without_locks_excludes_nobody(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("engine.files.fcntl.flock", flock)
    with locked(tmp_path / "x.lock", ValueError("busy")), locked(tmp_path / "x.lock", ValueError("busy")):
        assert is_locked(tmp_path / "x.lock") is None
