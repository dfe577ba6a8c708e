"""engine/checkpoint.py: atomic writes and verified reads."""

import errno
import os
import pickle
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.checkpoint import (
    CheckpointError,
    DamagedCheckpointError,
    check_disk_space,
    delete_temporary_files,
    list_checkpoints,
    load_checkpoint,
    load_newest_intact,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    step_path,
)

STATE = {"step": 7, "model": {"weight": torch.arange(5000.0)}, "names": ["a"], "best": {}}


def test_a_checkpoint_is_loaded_as_it_was_saved(tmp_path):
    save_checkpoint(tmp_path / "x" / "a.pt", STATE)
    loaded = load_checkpoint(tmp_path / "x" / "a.pt")
    assert torch.equal(loaded["model"]["weight"], STATE["model"]["weight"])
    assert loaded["step"] == 7
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a.pt"]
    assert torch.load(tmp_path / "x" / "a.pt", weights_only=True)["step"] == 7  # plain PyTorch can load it


def test_a_flipped_bit_at_any_byte_is_detected(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"step": 7, "weight": torch.arange(3.0)})
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in range(8) if position < 80 else [position % 8]:  # all bits of the first bytes, then one per byte
            path.write_bytes(content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :])
            with pytest.raises(DamagedCheckpointError, match=r"a\.pt: "):
                load_checkpoint(path)


def test_a_file_truncated_at_any_byte_is_detected(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"step": 7})
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(DamagedCheckpointError, match=r"a\.pt: truncated, or not a checkpoint"):
            load_checkpoint(path)


def test_a_checkpoint_is_not_renamed_if_loading_runs_out_of_memory(tmp_path, monkeypatch):
    def load(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    save_checkpoint(step_path(tmp_path, 1), STATE)
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(CheckpointError, match="cannot be loaded: DefaultCPUAllocator"):
        load_newest_intact(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001.pt"]


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_code_in_a_checkpoint_does_not_run_and_there_is_no_fallback_to_an_older_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(step_path(tmp_path, 1), STATE)
    save_checkpoint(step_path(tmp_path, 2), {"step": Trap()})
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match=r"step_000000002\.pt: refused"):
        load_newest_intact(tmp_path)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "b.pt")
    assert not (tmp_path / "trapped").exists()


def test_a_process_killed_at_any_byte_of_a_checkpoint_leaves_the_previous_one(tmp_path):
    save_checkpoint(step_path(tmp_path, 1), STATE)
    size = step_path(tmp_path, 1).stat().st_size
    for byte in (*range(0, size, size // 40), None):
        child = os.fork()
        if child == 0:
            if byte is None:  # everything is written, but not synced to the disk
                os.fsync = lambda _: os.kill(os.getpid(), signal.SIGXFSZ)
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (byte, byte))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # a write beyond the limit kills the process
            save_checkpoint(step_path(tmp_path, 2), STATE)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGXFSZ
        assert load_newest_intact(tmp_path)[0] == step_path(tmp_path, 1)
    delete_temporary_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001.pt"]


def test_checkpoints_are_sorted_by_step_and_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step in (1000, 20, 3):
        save_checkpoint(step_path(tmp_path, step), STATE)
    save_checkpoint(tmp_path / "best.pt", STATE)
    assert newest_checkpoint(tmp_path) == step_path(tmp_path, 1000)
    assert list_checkpoints(tmp_path) == [step_path(tmp_path, step) for step in (3, 20, 1000)]
    prune_checkpoints(tmp_path, keep=2)
    assert list_checkpoints(tmp_path) == [step_path(tmp_path, step) for step in (20, 1000)]
    assert (tmp_path / "best.pt").exists()


@pytest.fixture
def three(tmp_path) -> Path:
    """Return a folder with the checkpoints after steps 1, 2 and 3."""
    for step in (1, 2, 3):
        save_checkpoint(step_path(tmp_path, step), STATE | {"step": step})
    return tmp_path


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-9], lambda content: b"<html>"])
def test_a_damaged_checkpoint_is_renamed_and_the_previous_one_is_loaded(three, damage, caplog):
    broken = step_path(three, 3)
    broken.write_bytes(damage(broken.read_bytes()))
    path, state = load_newest_intact(three)
    assert path == step_path(three, 2)
    assert state["step"] == 2
    assert caplog.text.count("step_000000003.pt: ") == 1
    assert "step_000000003.pt.damaged, falling back to step_000000002.pt" in caplog.text
    assert (three / "step_000000003.pt.damaged").exists()
    assert not broken.exists()


def test_if_all_checkpoints_are_damaged_none_is_loaded_or_renamed(three):
    for step in (1, 2, 3):
        step_path(three, step).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step_000000003\.pt: truncated.*; all 3 checkpoints are damaged"):
        load_newest_intact(three)
    with pytest.raises(CheckpointError, match="no checkpoint in it"):
        newest_checkpoint(three / "checkpoints")
    assert list_checkpoints(three) == [step_path(three, step) for step in (1, 2, 3)]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Quota")])
def test_a_full_disk_is_an_error_that_leaves_the_previous_file_intact(three, monkeypatch, error):
    before = step_path(three, 3).read_bytes()

    def fail(state, file):  # like torch.save on a full disk
        try:
            file.write(b"half")
            raise error
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match=r"step_000000003\.pt: cannot be written: no space left; .* intact"):
        save_checkpoint(step_path(three, 3), STATE)
    assert step_path(three, 3).read_bytes() == before
    assert len(list(three.iterdir())) == 3


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """Mount a file system of one megabyte."""
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=False)
    if mount.returncode:
        pytest.skip("only root can mount a small file system")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_really_full_disk_keeps_the_previous_checkpoint(small_disk):
    save_checkpoint(step_path(small_disk, 1), STATE)
    with pytest.raises(CheckpointError, match=r"step_000000002\.pt: cannot be written: no space left"):
        save_checkpoint(step_path(small_disk, 2), {"model": torch.zeros(1_000_000)})
    assert [path.name for path in small_disk.iterdir()] == ["step_000000001.pt"]
    assert load_newest_intact(small_disk)[1]["step"] == 7
    with pytest.raises(CheckpointError, match="they need 7 MiB, but only 0 MiB are free"):
        check_disk_space(small_disk, 4_000_000)
