"""Checkpoints: written completely or not at all, verified when read.

A checkpoint is a `torch.save` file of plain tensors, numbers, strings, lists and dicts, so that it loads with
`weights_only=True` and no code in it can run. torch.save writes a zip archive, and torch.load does not notice a flipped
bit, so the archive's comment, which is the end of the file, holds the SHA-256 of everything before it.

    checkpoints/step_000001234.pt             the last few, by optimizer step
    checkpoints/best.pt                       the best by the task's metric
    checkpoints/step_000001300.pt.damaged     one that was corrupt when a run was resumed
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

from engine.files import set_aside, write_whole, writing
from engine.logbook import logger

MARK = b"sha256:"
SEAL_SIZE = len(MARK) + 64  # bytes


class CheckpointError(ValueError):
    """A checkpoint that cannot be used or written; the message names the file and the cure."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that is truncated or corrupt."""


def step_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint after `step` optimizer steps."""
    return folder / f"step_{step:09d}.pt"


def save_checkpoint(path: Path, state: dict) -> None:
    """Write `state` to `path` atomically. Raises CheckpointError if it cannot be written."""

    def write(file: BinaryIO) -> None:
        torch.save(state, file)
        file.seek(-2, os.SEEK_END)  # the length of the comment, which torch.save leaves empty
        file.write(SEAL_SIZE.to_bytes(2, "little"))
        file.write(MARK + _sha256(file, file.tell()))

    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
    except OSError as error:
        raise CheckpointError(f"{error}; the checkpoints before it are whole") from error


def load_checkpoint(path: Path) -> dict:
    """Return the state in `path`, on the CPU, after verifying its checksum.

    Raises DamagedCheckpointError if it is truncated or corrupt, CheckpointError if the file is missing, cannot be read,
    or holds anything but plain data."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END) - SEAL_SIZE
            file.seek(max(size, 0))
            seal = file.read()
            if not seal.startswith(MARK):
                raise DamagedCheckpointError(f"{path}: truncated, or not a checkpoint of this program")
            if seal != MARK + _sha256(file, size):
                raise DamagedCheckpointError(f"{path}: damaged: checksum mismatch")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: refused, holds more than plain tensors and numbers: remove it") from error
    except (OSError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{path}: cannot be loaded: {error}") from error


def is_checkpoint(path: Path) -> bool:
    """Return whether `save_checkpoint` wrote the file, by its end; `load_checkpoint` verifies the rest."""
    with open(path, "rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - SEAL_SIZE, 0))
        return file.read(len(MARK)) == MARK


def trained_weights(state: dict, average: bool = True) -> dict[str, Tensor]:
    """Return the weights in a run's checkpoint that were scored: the moving average if it has one.

    average: False for the raw weights."""
    return state["ema"]["weights"] if average and state["ema"] else state["model"]


def _sha256(file: BinaryIO, size: int) -> bytes:
    """Hash the first `size` bytes, and leave the file's position after them. Returns hexadecimal digits."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0:
        part = file.read(min(size, 2**20))
        digest.update(part)
        size -= len(part)
    return digest.hexdigest().encode()


def check_room(folder: Path, size: int) -> None:
    """Raise CheckpointError if a folder is not writable, or has no room for two checkpoints of `size` bytes.

    It need not exist yet, and is not created."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            free = shutil.disk_usage(nearest).free
    except OSError as error:
        raise CheckpointError(f"{folder}: checkpoints cannot be written there: {error.strerror}") from None
    if free < 2 * size:
        need = f"{2 * size >> 20} MiB, {free >> 20} are free"
        raise CheckpointError(f"{folder}: no space left for two checkpoints, which take {need}: make room")


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the step checkpoints in `folder`, lowest step first."""
    return sorted(folder.glob(f"step_{9 * '[0-9]'}.pt"))


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` step checkpoints."""
    for path in list_checkpoints(folder)[:-keep]:
        path.unlink()


def newest_checkpoint(folder: Path) -> Path:
    """Return the checkpoint of the highest step. Raises CheckpointError if there is none."""
    if paths := list_checkpoints(folder):
        return paths[-1]
    raise CheckpointError(f"{folder}: no checkpoint in it; git keeps none: train from its config.yaml again")


def load_newest_whole(folder: Path) -> tuple[Path, dict]:
    """Return the newest step checkpoint that is not damaged, and its state; rename and report damaged ones after it.

    Raises CheckpointError, and changes nothing, if there is none, or if it cannot be used."""
    newest_checkpoint(folder)
    damaged = []
    for path in reversed(list_checkpoints(folder)):
        try:
            state = load_checkpoint(path)
        except DamagedCheckpointError as error:
            damaged.append((path, error))
            continue
        for broken, error in damaged:
            logger.warning("%s; kept as %s, going back to %s", error, set_aside(broken).name, path.name)
        return path, state
    raise CheckpointError(f"{damaged[0][1]}; none of the {len(damaged)} checkpoints is whole: start a new run")


def sweep_temporaries(experiment: Path) -> None:
    """Delete what a process left when it was killed while writing. Call it only while holding the experiment's lock."""
    for path in (*experiment.glob("*.tmp"), *experiment.glob("checkpoints/*.tmp")):
        path.unlink()
