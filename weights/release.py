"""Released weights: a safetensors file whose metadata describes the model.

Safetensors files (https://huggingface.co/docs/safetensors) contain no code and can be read by many programs, but have
no checksum. A release therefore has a metadata entry `sha256`, computed over the tensors and all other entries.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from engine.checkpoint import CheckpointError, DamagedCheckpointError, newest_checkpoint
from engine.config import ConfigClass
from engine.files import write_atomically
from engine.strict_yaml import dump_yaml, read_value
from records.experiment import commit_of, read_environments

SUFFIX = ".safetensors"
PUBLISHED_WEIGHTS = f"model{SUFFIX}"  # in a folder made by weights.publish


def release_metadata(
    experiment: Path,
    config: dict[str, Any],
    *,
    task: str,
    classes: Sequence[str],
    category_ids: Sequence[int] | None,
    scores: dict[str, float | None],
    step: int,
) -> dict[str, str]:
    """Return the metadata of an experiment's weights, for `save_release`.

    config: the experiment's config. category_ids: category ids of a detector's classes; None omits this entry."""
    metadata = {
        "task": task,
        "config": dump_yaml(strip_local_paths(config)),
        "classes": json.dumps(classes, ensure_ascii=False),
        "scores": json.dumps(scores),
        "step": str(step),
        "commit": commit_of((read_environments(experiment) or [{}])[-1]),
    }
    return metadata | ({"category_ids": json.dumps(category_ids)} if category_ids else {})


def strip_local_paths(data: Any) -> Any:
    """Return a copy of nested plain data in which every local path is shortened to its last part."""
    if isinstance(data, dict):
        return {key: strip_local_paths(value) for key, value in data.items()}
    if isinstance(data, list):
        return [strip_local_paths(value) for value in data]
    return Path(data).name if isinstance(data, str) and data.startswith(("/", "~", "..")) else data


def weights_in(path: Path) -> Path:
    """Return the weights file of a published folder, or the newest checkpoint of an experiment.

    A path that is not a folder is returned unchanged. Raises CheckpointError if a folder contains no weights."""
    if (path / PUBLISHED_WEIGHTS).is_file():
        return path / PUBLISHED_WEIGHTS
    return newest_checkpoint(path / "checkpoints") if path.is_dir() else path


def save_release(path: Path, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write weights and metadata to `path` atomically. Raises OSError if the file cannot be written."""
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}  # training may use channels_last
    content = save(weights, metadata | {"sha256": _sha256(weights, metadata)})
    write_atomically(path, lambda file: file.write(content))


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """Read the tensors in a file, on the CPU, and its verified metadata (None if the file is not a release).

    Raises CheckpointError if the file is missing or unreadable, DamagedCheckpointError if it is corrupt."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such weights file") from None
    except SafetensorError as error:
        problem = f"truncated or not a safetensors file ({error})"
        raise DamagedCheckpointError(f"{path}: {problem}; download or copy it again") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if "sha256" not in metadata:
        return weights, None
    if metadata.pop("sha256") != _sha256(weights, metadata):
        raise DamagedCheckpointError(f"{path}: corrupt: checksum mismatch; download or copy it again")
    return weights, metadata


def released_config(path: Path, metadata: dict[str, str], config_class: type[ConfigClass]) -> ConfigClass:
    """Return the config that the released weights in `path` were trained with.

    Raises CheckpointError if the metadata contains no valid config of this class."""
    try:
        return config_class.model_validate_json(json.dumps(read_value(metadata["config"])))
    except (KeyError, ValidationError) as error:
        problem = f"{error.error_count()} invalid fields" if isinstance(error, ValidationError) else "none"
        raise CheckpointError(
            f"{path}: no {config_class.__name__} in its metadata ({problem}): its task is "
            f"{metadata.get('task', 'unknown')}, or a different version of this project wrote the file"
        ) from None


def _sha256(weights: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Hash names, shapes, types and values of the weights in sorted order, and the metadata."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
