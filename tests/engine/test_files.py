"""engine/files.py: paths from users, renamed files, and locks."""

from pathlib import Path

import pytest

from engine.files import is_locked, locked, rename_damaged, user_path


def test_a_tilde_is_expanded_to_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    assert user_path("~/data", "data.root") == Path("/home/ann/data")


@pytest.mark.parametrize("text", ["~nosuchuser/x", "a\0b", "x" * 300, "FILE/data"])
def test_an_unusable_path_is_a_one_line_error_that_names_field_and_value(tmp_path, text):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^data\.root '.*': not a usable path: ") as error:
        user_path(text.replace("FILE", str(tmp_path / "file")), "data.root")
    assert str(error.value).isprintable()


def test_a_renamed_damaged_file_replaces_an_earlier_one(tmp_path):
    for text in ("first", "second"):
        (tmp_path / "a.json").write_text(text)
        renamed = rename_damaged(tmp_path / "a.json")
    assert renamed == tmp_path / "a.json.damaged"
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
