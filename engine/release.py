"""Released weights: a safetensors file of the tensors, with what a stranger must know in its metadata.

Safetensors (https://huggingface.co/docs/safetensors) cannot hold code, and other programs read it, but it keeps no
checksum: ours is one more entry of the metadata, over the tensors and all other entries.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from engine.checkpoint import CheckpointError, DamagedCheckpointError
from engine.files import write_whole

SUFFIX = ".safetensors"


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


def _sha256(weights: dict[str, Tensor], facts: dict[str, str]) -> str:
    """Of names, shapes, types and values, and of the facts, in an order of their own."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
