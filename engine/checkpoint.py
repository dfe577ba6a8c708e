"""Checkpoints: written whole or not at all, verified when read.

A checkpoint is a `torch.save` file of plain tensors, numbers, strings, lists and dicts, so that it loads with
`weights_only=True` and no code in it can run. It is written beside its final name, flushed, then renamed: a
process killed at any byte leaves the previous file whole. torch.save writes a zip archive that holds a CRC-32
of every entry; torch.load does not look at it, `load_checkpoint` does (a flipped bit would load silently).

    checkpoints/step_000001234.pt             the last few, by optimizer step
    checkpoints/best.pt                       the best by the task's metric
    checkpoints/step_000001300.pt.damaged     one that could not be read when it was to be gone on from
"""

import errno
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import torch

from engine.logbook import logger

STEP_FILE = re.compile(r"step_(\d+)\.pt")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used or written; the message names the file and the cure."""


class DamagedCheckpointError(CheckpointError):
    """One that is not whole, or not as it was written."""


def step_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps lives."""
    return folder / f"step_{step:09d}.pt"


def save_checkpoint(path: Path, state: dict) -> None:
    """Write `state` to `path` atomically. Raises CheckpointError where there is no room, or no right to write."""
    write_whole(path, lambda file: torch.save(state, file))


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have `write` fill a file that takes the place of `path` when it is complete. Raises CheckpointError likewise."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides what went wrong below it
        if not isinstance(cause, OSError):
            raise
        reason = "no space left" if cause.errno in (errno.ENOSPC, errno.EDQUOT) else cause.strerror
        raise CheckpointError(f"{path}: cannot be written: {reason}; the checkpoints before it are whole") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict:
    """The state in `path`, on the CPU, after its checksums were verified.

    Raises CheckpointError if the file is missing, damaged, or holds anything but plain data."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise DamagedCheckpointError(f"{path}: damaged (checksum of {damaged}); use an earlier checkpoint")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except (zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise DamagedCheckpointError(f"{path}: truncated or not a checkpoint ({error})") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: refused, holds more than plain tensors and numbers") from error


def check_room(folder: Path, size: int) -> None:
    """Make the folder, and refuse one that cannot be written to, or has no room for two checkpoints of `size` bytes.

    Raises CheckpointError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        raise CheckpointError(f"{folder}: checkpoints cannot be written there: {error.strerror}") from None
    if free < 2 * size:
        mib = 2**20
        raise CheckpointError(
            f"{folder}: {free // mib} MiB are free, two checkpoints take {2 * size // mib}: make room or go elsewhere"
        )


def list_checkpoints(folder: Path) -> list[Path]:
    """The step checkpoints in `folder`, oldest step first."""
    found = [(int(match[1]), path) for path in folder.glob("*.pt") if (match := STEP_FILE.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` step checkpoints."""
    for path in list_checkpoints(folder)[:-keep]:
        path.unlink()


def newest_checkpoint(folder: Path) -> Path:
    """The step checkpoint of the highest step. Raises CheckpointError if there is none."""
    paths = list_checkpoints(folder)
    if not paths:
        raise CheckpointError(f"{folder}: no checkpoint to go on from; git keeps none, so train from config.yaml again")
    return paths[-1]


def load_newest_whole(folder: Path) -> tuple[Path, dict]:
    """The newest step checkpoint that is whole, and its state. The damaged ones above it are put aside and reported.

    Raises CheckpointError if none is whole, or if the newest holds more than plain data."""
    while True:
        path = newest_checkpoint(folder)
        try:
            return path, load_checkpoint(path)
        except DamagedCheckpointError as error:
            aside = path.with_name(f"{path.name}.damaged")
            os.replace(path, aside)
            logger.warning("%s; kept as %s, going back to the one before", error, aside.name)


def sweep_temporaries(experiment: Path) -> None:
    """Delete what a process left that was killed while it wrote. Only for the one that holds the experiment's lock."""
    for path in (*experiment.glob("*.tmp"), *experiment.glob("checkpoints/*.tmp")):
        path.unlink()
