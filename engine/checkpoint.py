"""Checkpoints: written whole or not at all, verified when read.

A checkpoint is a `torch.save` file of plain tensors, numbers, strings, lists and dicts, so that it loads with
`weights_only=True` and no code in it can run. It is written beside its final name, flushed, then renamed: a
process killed at any byte leaves the previous file whole. torch.save writes a zip archive that holds a CRC-32
of every entry; torch.load does not look at it, `load_checkpoint` does (a flipped bit would load silently).

    checkpoints/step_000001234.pt     the last few, by optimizer step
    checkpoints/best.pt               the best by the task's metric
"""

import os
import pickle
import re
import zipfile
from pathlib import Path

import torch

STEP_FILE = re.compile(r"step_(\d+)\.pt")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the cure."""


def step_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps lives."""
    return folder / f"step_{step:09d}.pt"


def save_checkpoint(path: Path, state: dict) -> None:
    """Write `state` to `path` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict:
    """The state in `path`, on the CPU, after its checksums were verified.

    Raises CheckpointError if the file is missing, damaged, or holds anything but plain data."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise CheckpointError(f"{path}: damaged (checksum of {damaged}); use an earlier checkpoint")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except (zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise CheckpointError(f"{path}: truncated or not a checkpoint ({error})") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: refused, holds more than plain tensors and numbers") from error


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
