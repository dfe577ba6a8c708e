"""engine/checkpoint.py: whole or not at all, and verified."""

import os
import pickle
import subprocess
import sys

import pytest
import torch

from engine.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    step_path,
)

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
