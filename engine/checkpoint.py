"""Write checkpoints atomically, and verify them when they are read.

A checkpoint is a `torch.save` file of plain tensors, numbers, strings, lists and dicts. So it loads with
`weights_only=True`, which never runs code from the file. torch.load does not detect flipped bits. Therefore
`save_checkpoint` ends the file with a SHA-256 of its content, as the comment of the zip archive.

    checkpoints/step_000001234.pt             the newest checkpoints, named by optimizer step
    checkpoints/best.pt                       the best checkpoint by the task's metric
    checkpoints/step_000001300.pt.damaged     a corrupt checkpoint, renamed when a run was resumed
"""

import hashlib
import os
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from engine.files import describe_write_errors, rename_damaged, write_atomically
from engine.logbook import logger

MARK = b"sha256:"
SEAL_SIZE = len(MARK) + 64  # bytes: the mark and a SHA-256 as 64 hexadecimal digits


class CheckpointError(ValueError):
    """A checkpoint that cannot be used or written. The message names the file and the problem."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that is truncated or corrupt."""


def step_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint after `step` optimizer steps."""
    return folder / f"step_{step:09d}.pt"


def save_checkpoint(path: Path, state: dict) -> None:
    """Write `state` to `path` atomically. Raises CheckpointError if it cannot be written."""

    def write(file: BinaryIO) -> None:
        torch.save(state, file)
        file.seek(-2, os.SEEK_END)  # the last two bytes are the length of the comment, which is empty so far
        file.write(SEAL_SIZE.to_bytes(2, "little"))
        file.write(MARK + _sha256(file, file.tell()))

    try:
        with describe_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except OSError as error:
        raise CheckpointError(f"{error}; earlier checkpoints are intact") from error


def load_checkpoint(path: Path) -> dict:
    """Verify the checksum of a checkpoint; return its state on the CPU.

    Raises DamagedCheckpointError if the file is truncated or corrupt.
    Raises CheckpointError if the file is missing or unreadable, or contains more than plain data."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END) - SEAL_SIZE
            file.seek(max(size, 0))
            seal = file.read()
            if not seal.startswith(MARK):
                raise DamagedCheckpointError(f"{path}: truncated, or not a checkpoint of this program")
            if seal != MARK + _sha256(file, size):
                raise DamagedCheckpointError(f"{path}: corrupt: checksum mismatch")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: refused: contains more than plain tensors and numbers; delete it") from error
    except (OSError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{path}: cannot be loaded: {error}") from error


def is_checkpoint(path: Path) -> bool:
    """Return whether a file ends with a checksum from `save_checkpoint`. Does not verify the checksum."""
    with open(path, "rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - SEAL_SIZE, 0))
        return file.read(len(MARK)) == MARK


def trained_weights(state: dict, average: bool = True) -> dict[str, Tensor]:
    """Return the weights that a run evaluates: the moving average if the checkpoint has one.

    average: if False, return the weights that the optimizer updates."""
    return state["ema"]["weights"] if average and state["ema"] else state["model"]


def _sha256(file: BinaryIO, size: int) -> bytes:
    """Return the SHA-256 of the first `size` bytes as hexadecimal digits; leave the file position after them."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0:
        part = file.read(min(size, 2**20))
        digest.update(part)
        size -= len(part)
    return digest.hexdigest().encode()


def check_disk_space(folder: Path, size: int) -> None:
    """Raise CheckpointError if a folder is not writable, or has no space for two checkpoints of `size` bytes.

    The folder need not exist yet, and is not created."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            free = shutil.disk_usage(nearest).free
    except OSError as error:
        raise CheckpointError(f"{folder}: checkpoints cannot be written there: {error.strerror}") from None
    if free < 2 * size:
        need = f"{2 * size >> 20} MiB, but only {free >> 20} MiB are free"
        raise CheckpointError(f"{folder}: no space left for two checkpoints: they need {need}; free some space")


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the step checkpoints in `folder`, lowest step first."""
    return sorted(folder.glob(f"step_{9 * '[0-9]'}.pt"))


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` step checkpoints."""
    for path in list_checkpoints(folder)[:-keep]:
        path.unlink()


def newest_checkpoint(folder: Path) -> Path:
    """Return the checkpoint with the highest step. Raises CheckpointError if there is none."""
    if paths := list_checkpoints(folder):
        return paths[-1]
    raise CheckpointError(f"{folder}: no checkpoint in it (git ignores checkpoints); train again with ../config.yaml")


def load_newest_intact(folder: Path) -> tuple[Path, dict]:
    """Return path and state of the newest undamaged step checkpoint. Log and rename the damaged ones that are newer.

    Raises CheckpointError, and renames nothing, if there is no undamaged checkpoint or if the newest one of them cannot
    be loaded."""
    newest_checkpoint(folder)
    damaged = []
    for path in reversed(list_checkpoints(folder)):
        try:
            state = load_checkpoint(path)
        except DamagedCheckpointError as error:
            damaged.append((path, error))
            continue
        for broken, error in damaged:
            logger.warning("%s; renamed to %s, falling back to %s", error, rename_damaged(broken).name, path.name)
        return path, state
    raise CheckpointError(f"{damaged[0][1]}; all {len(damaged)} checkpoints are damaged: start a new run")


def delete_temporary_files(experiment: Path) -> None:
    """Delete unfinished files of processes that were killed. The caller must hold the experiment's lock."""
    for path in (*experiment.glob("*.tmp"), *experiment.glob("checkpoints/*.tmp")):
        path.unlink()
