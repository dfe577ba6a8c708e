"""Released weights: a safetensors file of the tensors, with what a stranger must know in its metadata.

Safetensors (https://huggingface.co/docs/safetensors) cannot hold code, and other programs read it, but it keeps no
checksum: ours is one more entry of the metadata, over the tensors and all other entries.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
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
    """What weights of an experiment say of themselves, as text: for `save_release`.

    config: with which they were scored; in it paths of this machine are cut to their last part. category_ids: of a
    detector's classes, by label; None leaves them out. scores: name to value."""
    facts = {
        "task": task,
        "config": dump_yaml(renamed(config, local_paths(config))),
        "classes": json.dumps(classes, ensure_ascii=False),
        "scores": json.dumps(scores),
        "step": str(step),
        "commit": commit_of((read_environments(experiment) or [{}])[-1]),
    }
    return facts | ({"category_ids": json.dumps(category_ids)} if category_ids else {})


def local_paths(config: dict[str, Any]) -> dict[str, str]:
    """The paths of this machine among the texts of a config, each with its last part: what others may know of it."""
    return {text: Path(text).name for text in _texts(config) if text.startswith(("/", "~", ".."))}


def renamed(data: Any, names: dict[str, str]) -> Any:
    """Nested plain data with some of its texts replaced."""
    if isinstance(data, dict):
        return {key: renamed(value, names) for key, value in data.items()}
    return [renamed(value, names) for value in data] if isinstance(data, list) else names.get(data, data)


def _texts(data: Any) -> Iterator[str]:
    """Every text in nested plain data."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict | list):
        for value in data.values() if isinstance(data, dict) else data:
            yield from _texts(value)


def weights_in(path: Path) -> Path:
    """The file of weights that a user names: of a published folder its own, of an experiment the newest checkpoint.

    Anything else, there or not, is taken for a file. Raises CheckpointError if a folder holds no weights."""
    if (path / PUBLISHED_WEIGHTS).is_file():
        return path / PUBLISHED_WEIGHTS
    return newest_checkpoint(path / "checkpoints") if path.is_dir() else path


def save_release(path: Path, weights: dict[str, Tensor], facts: dict[str, str]) -> None:
    """Write `weights` to `path` atomically, `facts` in its metadata. Raises OSError where it cannot be."""
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}  # training may have had channels_last
    content = save(weights, facts | {"sha256": _sha256(weights, facts)})
    write_whole(path, lambda file: file.write(content))


def load_release(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights in `path`, on the CPU, and the facts, after their checksum was verified.

    Raises CheckpointError if the file is missing or damaged, or was not written by `save_release`."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file of weights") from None
    except SafetensorError as error:
        raise DamagedCheckpointError(f"{path}: truncated or not a safetensors file ({error})") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if "sha256" not in facts:
        raise CheckpointError(f"{path}: no checksum in its metadata, so it was not released by this project")
    if facts.pop("sha256") != _sha256(weights, facts):
        raise DamagedCheckpointError(f"{path}: damaged (its checksum is another); get it again")
    return weights, facts


def released_config(path: Path, facts: dict[str, str], config_class: type[ConfigClass]) -> ConfigClass:
    """The config that the released weights in `path` were trained with.

    Raises CheckpointError if the facts hold no config of this class."""
    try:
        return config_class.model_validate_json(json.dumps(read_value(facts["config"])))
    except (KeyError, ValidationError) as error:
        what = f"{error.error_count()} fields unknown or wrong" if isinstance(error, ValidationError) else "none"
        raise CheckpointError(
            f"{path}: no {config_class.__name__} in its metadata ({what}): it is of task "
            f"{facts.get('task', 'unknown')}, or another version released it"
        ) from None


def _sha256(weights: dict[str, Tensor], facts: dict[str, str]) -> str:
    """Of names, shapes, types and values, and of the facts, in an order of their own."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
