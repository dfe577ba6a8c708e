"""Released weights: a safetensors file with what a stranger must know in its metadata.

Safetensors (https://huggingface.co/docs/safetensors) cannot contain code, and other programs read it, but it has no
checksum. The metadata entry `sha256` is one, over the tensors and all other entries.
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
from engine.files import write_whole
from engine.strict_yaml import dump_yaml, read_value
from records.experiment import commit_of, read_environments

SUFFIX = ".safetensors"
PUBLISHED_WEIGHTS = f"model{SUFFIX}"  # in a folder made by weights.publish


def release_facts(
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

    config: with which they were scored. category_ids: of a detector's classes, by label; None leaves them out."""
    facts = {
        "task": task,
        "config": dump_yaml(without_local_paths(config)),
        "classes": json.dumps(classes, ensure_ascii=False),
        "scores": json.dumps(scores),
        "step": str(step),
        "commit": commit_of((read_environments(experiment) or [{}])[-1]),
    }
    return facts | ({"category_ids": json.dumps(category_ids)} if category_ids else {})


def without_local_paths(data: Any) -> Any:
    """Return nested plain data with each path of this machine cut to its last part."""
    if isinstance(data, dict):
        return {key: without_local_paths(value) for key, value in data.items()}
    if isinstance(data, list):
        return [without_local_paths(value) for value in data]
    return Path(data).name if isinstance(data, str) and data.startswith(("/", "~", "..")) else data


def weights_in(path: Path) -> Path:
    """Return a published folder's weights, an experiment's newest checkpoint, or else `path`, which need not exist.

    Raises CheckpointError if a folder holds no weights."""
    if (path / PUBLISHED_WEIGHTS).is_file():
        return path / PUBLISHED_WEIGHTS
    return newest_checkpoint(path / "checkpoints") if path.is_dir() else path


def save_release(path: Path, weights: dict[str, Tensor], facts: dict[str, str]) -> None:
    """Write `weights` to `path` atomically, `facts` in its metadata. Raises OSError if it cannot be written."""
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}  # training may use channels_last
    content = save(weights, facts | {"sha256": _sha256(weights, facts)})
    write_whole(path, lambda file: file.write(content))


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """Return the tensors in a file, on the CPU, and the verified facts of a release; None if it is not a release.

    Raises CheckpointError if the file is missing or unreadable, DamagedCheckpointError if it is corrupt."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file of weights") from None
    except SafetensorError as error:
        problem = f"truncated or not a safetensors file ({error})"
        raise DamagedCheckpointError(f"{path}: {problem}; download or copy it again") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if "sha256" not in facts:
        return weights, None
    if facts.pop("sha256") != _sha256(weights, facts):
        raise DamagedCheckpointError(f"{path}: corrupt: checksum mismatch; download or copy it again")
    return weights, facts


def released_config(path: Path, facts: dict[str, str], config_class: type[ConfigClass]) -> ConfigClass:
    """Return the config that the released weights in `path` were trained with.

    Raises CheckpointError if the facts hold no config of this class."""
    try:
        return config_class.model_validate_json(json.dumps(read_value(facts["config"])))
    except (KeyError, ValidationError) as error:
        what = f"{error.error_count()} fields unknown or wrong" if isinstance(error, ValidationError) else "none"
        raise CheckpointError(
            f"{path}: no {config_class.__name__} in its metadata ({what}): its task is "
            f"{facts.get('task', 'unknown')}, or another version released it"
        ) from None


def _sha256(weights: dict[str, Tensor], facts: dict[str, str]) -> str:
    """Hash names, shapes, types, values and facts, in sorted order."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
