"""engine/checkpoint.py: whole or not at all, and verified."""

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

STATE = {"step": 7, "model": {"weight": torch.arange(5000.0)}, "names": ["a"], "best": {}}


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    save_checkpoint(tmp_path / "x" / "a.pt", STATE)
    loaded = load_checkpoint(tmp_path / "x" / "a.pt")
    assert torch.equal(loaded["model"]["weight"], STATE["model"]["weight"])
    assert loaded["step"] == 7
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a.pt"]
    assert torch.load(tmp_path / "x" / "a.pt", weights_only=True)["step"] == 7  # PyTorch reads it by itself


def test_a_flipped_bit_at_any_byte_is_found(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"step": 7, "weight": torch.arange(3.0)})
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in range(8) if position < 80 else [position % 8]:  # every bit of the checksum in front
            path.write_bytes(content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :])
            with pytest.raises(DamagedCheckpointError, match=r"a\.pt: "):
                load_checkpoint(path)


def test_a_file_cut_at_any_byte_is_found(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"step": 7})
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(DamagedCheckpointError, match=r"a\.pt: truncated, or not a checkpoint"):
            load_checkpoint(path)


def test_running_out_of_memory_is_no_damage(tmp_path, monkeypatch):
    def load(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    save_checkpoint(step_path(tmp_path, 1), STATE)
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(CheckpointError, match="cannot be loaded: DefaultCPUAllocator"):
        load_newest_whole(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001.pt"]


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_code_in_a_checkpoint_does_not_run_and_none_is_passed_over_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(step_path(tmp_path, 1), STATE)
    save_checkpoint(step_path(tmp_path, 2), {"step": Trap()})
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match=r"step_000000002\.pt: refused"):
        load_newest_whole(tmp_path)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "b.pt")
    assert not (tmp_path / "trapped").exists()


def test_a_process_that_dies_at_any_byte_of_a_checkpoint_leaves_the_one_before(tmp_path):
    save_checkpoint(step_path(tmp_path, 1), STATE)
    size = step_path(tmp_path, 1).stat().st_size
    for byte in (*range(0, size, size // 40), None):
        child = os.fork()
        if child == 0:
            if byte is None:  # all is written, but not yet on the disk
                os.fsync = lambda _: os.kill(os.getpid(), signal.SIGXFSZ)
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (byte, byte))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the system kills who writes beyond the limit
            save_checkpoint(step_path(tmp_path, 2), STATE)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGXFSZ
        assert load_newest_whole(tmp_path)[0] == step_path(tmp_path, 1)
    sweep_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001.pt"]


def test_the_newest_is_found_by_step_not_by_time_and_pruning_keeps_it_and_the_best(tmp_path):
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
    """A folder with the checkpoints after steps 1, 2 and 3."""
    for step in (1, 2, 3):
        save_checkpoint(step_path(tmp_path, step), STATE | {"step": step})
    return tmp_path


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-9], lambda content: b"<html>"])
def test_where_the_newest_is_damaged_the_one_before_is_taken_and_nothing_is_deleted(three, damage, caplog):
    broken = step_path(three, 3)
    broken.write_bytes(damage(broken.read_bytes()))
    path, state = load_newest_whole(three)
    assert path == step_path(three, 2)
    assert state["step"] == 2
    assert caplog.text.count("step_000000003.pt: ") == 1
    assert "kept as step_000000003.pt.damaged, going back to step_000000002.pt" in caplog.text
    assert (three / "step_000000003.pt.damaged").exists()
    assert not broken.exists()


def test_where_all_are_damaged_there_is_nothing_to_go_on_from(three):
    for step in (1, 2, 3):
        step_path(three, step).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step_000000003\.pt: truncated.*; none of the 3 checkpoints is whole"):
        load_newest_whole(three)
    with pytest.raises(CheckpointError, match="no checkpoint in it"):
        newest_checkpoint(three / "checkpoints")
    assert list_checkpoints(three) == [step_path(three, step) for step in (1, 2, 3)]


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
    with pytest.raises(CheckpointError, match="no space left for two checkpoints, which take 7 MiB, 0 are free"):
        check_room(small_disk, 4_000_000)
