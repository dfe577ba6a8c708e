"""Public weights by name (saved_weights/registry.yaml), and reading weights that any training program saved.

A config names weights as `imagenet1k` or `imagenet22k` (the registry's default for its trunk), as an entry of the
registry, as a file, or as an experiment (its newest checkpoint). Only `python -m weights fetch` downloads anything.
"""

import functools
import os
import re
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from engine.checkpoint import is_checkpoint, load_checkpoint, trained_weights
from engine.config import Config, load_config
from engine.files import file_sha256, user_path
from engine.logbook import logger
from engine.text import did_you_mean, nearest
from model import SWIN_VARIANTS, swin_arguments
from records.experiment import table
from weights.download import download
from weights.release import SUFFIX, read_safetensors, weights_in

REGISTRY = Path(__file__).parent.parent / "saved_weights/registry.yaml"
FOLDER = Path("saved_weights")  # in the project's root, where commands are run
WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which training programs save weights, best first
# A weight that every ResNet has, every Swin under Microsoft's and timm's names, under torchvision's, every detector.
FIRST_LAYERS = ("conv1.weight", "patch_embed.proj.weight", "features.0.0.weight", "class_head.0.weight")
PROMISED = re.compile(r"-([0-9a-f]{8,64})\.")  # the hash in PyTorch's names of public checkpoints


class Source(Config):
    """Who publishes weights."""

    licence: str
    top1_from: str = Field(description="where the accuracies are stated")


class Entry(Config):
    """Public weights; the head of the registry explains the fields."""

    name: str
    trunk: str
    trained_on: tuple[Literal["imagenet1k", "imagenet22k"], ...] = Field(min_length=1)
    image_size: int = Field(gt=0)
    resize_size: int = Field(gt=0)
    window_size: int | None = Field(gt=0)
    source: str
    top1: float | None = Field(gt=0, lt=100)
    sha256: str | None = Field(pattern=r"^[0-9a-f]{8,64}$")
    file: str
    url: str = Field(pattern=r"^https://")


class Registry(Config):
    """All public weights."""

    sources: dict[str, Source]
    defaults: dict[str, dict[str, str]] = Field(description="data set -> trunk -> name")
    weights: tuple[Entry, ...]


@functools.cache
def read_registry() -> Registry:
    """Return the registry, read once. Raises ConfigError naming what is wrong in it."""
    return load_config(REGISTRY, (), Registry)


def entry_named(name: str) -> Entry:
    """Return an entry of the registry. Raises ValueError, suggesting a name, if there is none."""
    entries = {entry.name: entry for entry in read_registry().weights}
    if name not in entries:
        near = did_you_mean([entry for entry in entries if name in entry][:3] or nearest(name, entries))
        raise ValueError(f"{name!r}: no such name in {REGISTRY.name}{near} (python -m weights list)")
    return entries[name]


def find_weights(named: str, trunk: str) -> Path:
    """Return the file that a config's `weights` names.

    named: "imagenet1k", "imagenet22k", a name in the registry, a file, or a folder (see weights_in). trunk: the name
    of what they are for, such as "swin_t".
    Raises ValueError with the cure if there is no such file, or if its registry entry is of another trunk."""
    registry = read_registry()
    if named in registry.defaults:
        defaults = registry.defaults[named]
        if trunk not in defaults:
            raise ValueError(f"no default of trunk {trunk!r}, there are {', '.join(defaults)}; name a file, or null")
        named = defaults[trunk]
    if named in [entry.name for entry in registry.weights]:
        entry = entry_named(named)
        if entry.trunk != trunk:
            fitting = [other.name for other in registry.weights if other.trunk == trunk]
            raise ValueError(f"is a {entry.trunk}, expected a {trunk}: {', '.join(fitting) or 'none is known'}")
        return fetched_file(entry)
    path = weights_in(user_path(named, "weights"))
    if not path.is_file():
        names = [*registry.defaults, *(entry.name for entry in registry.weights)]
        raise ValueError(
            f"no such file or experiment, nor a name of public weights{did_you_mean(nearest(named, names))} "
            "(python -m weights list shows them); null starts from random weights"
        )
    return path


def fetched_file(entry: Entry) -> Path:
    """Return the file of an entry. Raises ValueError, with the way to get it, if it is not there."""
    path = FOLDER / entry.file
    if not path.is_file():
        raise ValueError(
            f"{path} is not there, in {Path.cwd()}: `python -m weights fetch {entry.name}`; for a machine "
            f"without network, download {entry.url} elsewhere and copy it to {path}"
        )
    return path


def fetch(name: str, folder: Path) -> Path:
    """Download an entry of the registry, unless it is there, and return its path.

    Raises ValueError if it cannot be downloaded, or is not a file of weights; it is removed then."""
    entry = entry_named(name)
    path = folder / entry.file
    if not path.is_file():
        download(entry.url, path, sha256=entry.sha256)
        try:
            read_weights(path)  # it may be a login page if the publisher states no checksum
        except Exception:
            path.unlink()
            raise
    return path


def listing(folder: Path) -> str:
    """Return the registry as a table. folder: where to look for the files."""
    registry = read_registry()
    rows = []
    for entry in registry.weights:
        default = [data for data, names in registry.defaults.items() if names.get(entry.trunk) == entry.name]
        rows.append(
            {
                "name": entry.name,
                "trunk": entry.trunk,
                "trained on": ", ".join(entry.trained_on),
                "pixels": str(entry.image_size),
                "window": str(entry.window_size or "-"),
                "top-1": "-" if entry.top1 is None else f"{entry.top1:.1f}",
                "licence": registry.sources[entry.source].licence,
                "default": " ".join(default) or "-",
                "here": "yes" if (folder / entry.file).is_file() else "no",
            }
        )
    return table(rows)


# ---- reading a file of weights --------------------------------------------------------------------------------


def read_weights(path: Path, average: bool = True) -> dict[str, Tensor]:
    """Return the weights in a file, on the CPU, by name, and log what was removed around them.

    path: a public checkpoint (torch.save's or safetensors), a checkpoint of a run, or released weights. Only plain
    data is loaded, so no code runs. A public checkpoint may wrap its weights in a dictionary, as in
    {"state_dict": ...}, and its names may share a prefix, as in "module.conv1.weight".
    average: return the moving average of a run that kept one.
    Raises ValueError if the file is corrupt or of another kind."""
    if path.suffix == SUFFIX:
        return without_prefix(read_safetensors(path)[0])
    if is_checkpoint(path):
        return trained_weights(load_checkpoint(path), average)
    promised = PROMISED.search(path.name)
    if promised and not file_sha256(path).startswith(promised[1]):
        raise ValueError(f"{path}: corrupt: its SHA-256 does not begin with {promised[1]}; download it again")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types, from unpickling and from reading zip files
        raise ValueError(
            f"{path}: expected plain data as torch.save wrote it; the file is corrupt, of another format, or holds "
            "code: download it again, or, of a whole model, save its state_dict() instead"
        ) from error
    return without_prefix(unwrapped(content, path))


def unwrapped(content: object, path: Path) -> dict[str, Tensor]:
    """Return the tensors by name in what a training program has saved, out of the dictionaries around them.

    Of several dictionaries of tensors, the one under the first key of WRAPPERS is used. Raises ValueError, with the
    cure, if there is none, or if there are several under other keys."""
    while isinstance(content, dict):
        inner = [key for key, value in content.items() if isinstance(value, dict) and _has_tensors(value)]
        key = next((key for key in WRAPPERS if key in inner), None)
        if key is None and len(inner) == 1 and not any(isinstance(value, Tensor) for value in content.values()):
            key = inner[0]
        if key is None:
            break
        logger.info("%s: weights of its %r", path, key)
        content = content[key]
    wanted = "expected a dictionary of tensors by name: torch.save(model.state_dict(), FILE)"
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, {wanted}")
    if others := [name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]:
        raise ValueError(f"{path}: {others[0]!r} is not a tensor; {wanted}")
    return content


def _has_tensors(value: dict) -> bool:
    """Whether it is a model's weights by name, or wraps some; an optimizer's state is neither."""
    return any(isinstance(each, Tensor) for each in value.values()) or any(key in value for key in WRAPPERS)


def without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that all names share, such as "module." of DataParallel.

    The names stay as they are if this does not lead to the names of a known model (FIRST_LAYERS)."""
    prefix = os.path.commonprefix([*weights])  # noqa: RUF071 (names, not paths)
    prefix = prefix[: prefix.rfind(".") + 1]
    if not any(prefix + first in weights for first in FIRST_LAYERS):
        return weights
    if prefix:
        logger.info("weights without the prefix %r of all their names", prefix)
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}


def identified(path: Path) -> str:
    """Return the file and the beginning of its SHA-256, for a log."""
    return f"{path} (SHA-256 {file_sha256(path)[:8]})"


# ---- describing a file of weights -----------------------------------------------------------------------------


def describe(path: Path) -> dict[str, str]:
    """Return what a file of weights is, for people: label to value. Raises ValueError as `read_weights` does."""
    weights, digest = read_weights(path), file_sha256(path)
    if path.suffix == SUFFIX:
        facts = read_safetensors(path)[1]
        kind = (
            f"release of this project, with {', '.join(sorted(facts))}" if facts else "public checkpoint, safetensors"
        )
    else:
        kind = "checkpoint of a run of this project" if is_checkpoint(path) else "public checkpoint"
    names = [
        entry.name
        for entry in read_registry().weights
        if (digest.startswith(entry.sha256) if entry.sha256 else path.name == entry.file)  # not every publisher has one
    ]
    return {
        "file": f"{path}, {path.stat().st_size / 1e6:.1f} MB",
        "SHA-256": digest,
        "registry": ", ".join(names) or "not in it",
        "kind": kind,
        "family": _family(weights),
        "numbers": f"{sum(tensor.numel() for tensor in weights.values()):,} in {len(weights)} tensors",
    }


def _family(weights: dict[str, Tensor]) -> str:
    """Return the variant and the sizes of a Swin; of anything else the parts that it has."""
    try:
        arguments = swin_arguments(weights)
    except ValueError:
        return f"no Swin classifier; its parts: {', '.join(sorted({name.partition('.')[0] for name in weights}))}"
    sizes = ("embed_dim", "depths", "num_heads")
    variants = [name for name, row in SWIN_VARIANTS.items() if all(row[size] == arguments[size] for size in sizes)]
    listed = ", ".join(f"{name} {value}" for name, value in arguments.items())
    return f"Swin Transformer, {' '.join(variants) or 'of no published size'}, {listed}"
