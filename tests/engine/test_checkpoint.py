"""engine/checkpoint.py: whole or not at all, and verified."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.checkpoint import (
    CheckpointError,
    check_room,
    list_checkpoints,
    load_checkpoint,
    load_newest_whole,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    step_path,
    sweep_temporaries,
)
from engine.logbook import logger

STATE = {"step": 7, "model": {"weight": torch.arange(5000.0)}, "names": ["a"], "best": {}}


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    save_checkpoint(tmp_path / "x" / "a.pt", STATE)
    loaded = load_checkpoint(tmp_path / "x" / "a.pt")
    assert torch.equal(loaded["model"]["weight"], STATE["model"]["weight"])
    assert loaded["step"] == 7
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a.pt"]


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # inside the weights, where torch.load alone sees nothing
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
def test_another_file_is_named_as_not_a_checkpoint(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pt: truncated or not a checkpoint"):
        load_checkpoint(tmp_path / "a.pt")


def test_half_a_file_is_named_as_truncated(tmp_path):
    save_checkpoint(tmp_path / "a.pt", STATE)
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        load_checkpoint(tmp_path / "a.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.pt: no such checkpoint"):
        load_checkpoint(tmp_path / "a.pt")


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_code_in_a_checkpoint_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"step": Trap()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="refused"):
        load_checkpoint(tmp_path / "a.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "b.pt")
    assert not (tmp_path / "trapped").exists()


def test_a_process_killed_while_writing_leaves_the_previous_file(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, STATE)
    code = (
        "import os, signal, sys, torch, pathlib\n"
        "from engine import checkpoint\n"
        "checkpoint.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoint.save_checkpoint(pathlib.Path(sys.argv[1]), {'step': 8})\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert killed.returncode == -9
    assert load_checkpoint(path)["step"] == 7


def test_the_newest_is_found_by_step_not_by_time(tmp_path):
    for step in (1000, 20, 3):
        save_checkpoint(step_path(tmp_path, step), STATE)
    save_checkpoint(tmp_path / "best.pt", STATE)
    assert newest_checkpoint(tmp_path) == step_path(tmp_path, 1000)
    assert list_checkpoints(tmp_path) == [step_path(tmp_path, step) for step in (3, 20, 1000)]


@pytest.fixture
def three(tmp_path) -> Path:
    """A folder with the checkpoints after steps 1, 2 and 3."""
    for step in (1, 2, 3):
        save_checkpoint(step_path(tmp_path, step), STATE | {"step": step})
    return tmp_path


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-9], lambda content: b"<html>"])
def test_where_the_newest_is_damaged_the_one_before_is_taken_and_nothing_is_deleted(three, damage, caplog, monkeypatch):
    broken = step_path(three, 3)
    broken.write_bytes(damage(broken.read_bytes()))
    monkeypatch.setattr(logger, "propagate", True)
    path, state = load_newest_whole(three)
    assert path == step_path(three, 2)
    assert state["step"] == 2
    assert caplog.text.count("step_000000003.pt: ") == 1
    assert "kept as step_000000003.pt.damaged, going back to the one before" in caplog.text
    assert (three / "step_000000003.pt.damaged").exists()
    assert not broken.exists()


def test_where_all_are_damaged_there_is_nothing_to_go_on_from(three):
    for step in (1, 2, 3):
        step_path(three, step).write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint to go on from"):
        load_newest_whole(three)


def test_a_checkpoint_that_holds_code_is_not_passed_over(three):
    torch.save({"step": Trap()}, step_path(three, 4))
    with pytest.raises(CheckpointError, match=r"step_000000004\.pt: refused"):
        load_newest_whole(three)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Quota")])
def test_a_disk_that_fills_leaves_the_file_before_and_says_so(three, monkeypatch, error):
    before = step_path(three, 3).read_bytes()

    def fail(state, file):  # as torch.save does it
        try:
            file.write(b"half")
            raise error
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match=r"step_000000003\.pt: cannot be written: no space left; .* are whole"):
        save_checkpoint(step_path(three, 3), STATE)
    assert step_path(three, 3).read_bytes() == before
    assert len(list(three.iterdir())) == 3


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of one megabyte."""
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=False)
    if mount.returncode:
        pytest.skip("only root can mount a small file system")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_disk_that_really_fills_keeps_the_checkpoint_before(small_disk):
    save_checkpoint(step_path(small_disk, 1), STATE)
    with pytest.raises(CheckpointError, match=r"step_000000002\.pt: cannot be written: no space left"):
        save_checkpoint(step_path(small_disk, 2), {"model": torch.zeros(1_000_000)})
    assert [path.name for path in small_disk.iterdir()] == ["step_000000001.pt"]
    assert load_newest_whole(small_disk)[1]["step"] == 7
    with pytest.raises(CheckpointError, match="0 MiB are free, two checkpoints take 7"):
        check_room(small_disk, 4_000_000)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/a\.pt: cannot be written: "):
        save_checkpoint(tmp_path / "file" / "a.pt", STATE)


def test_too_little_room_for_two_checkpoints_is_found_before_training(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_room(tmp_path / "checkpoints", free // 4)
    with pytest.raises(CheckpointError, match=r"checkpoints: \d+ MiB are free, two checkpoints take \d+: make room"):
        check_room(tmp_path / "checkpoints", free)


def test_what_killed_writers_left_is_swept(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("results.json.tmp", "checkpoints/step_000000003.pt.77.tmp", "checkpoints/best.pt", "train.log"):
        (tmp_path / name).touch()
    sweep_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["best.pt", "train.log"]


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 4):
        save_checkpoint(step_path(tmp_path, step), STATE)
    save_checkpoint(tmp_path / "best.pt", STATE)
    prune_checkpoints(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.pt",
        "step_000000003.pt",
        "step_000000004.pt",
    ]


def test_nothing_to_resume_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint to go on from"):
        newest_checkpoint(tmp_path)
