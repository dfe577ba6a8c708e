"""Find public weights by name (saved_weights/registry.yaml), and read weights files of any training program.

`model.weights` is a name in the registry, a file, an experiment (newest checkpoint), `imagenet1k` or `imagenet22k` (the
registry's default for the trunk, the classification network in a backbone). For a trunk of timm it may also be a tag,
or `timm` for the default tag (weights/timm_weights.py). Only `python -m weights fetch` downloads anything.
"""

import functools
import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

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
from records.results import InitialWeights
from weights.download import HASH_IN_NAME, download, stated_sha256
from weights.release import SUFFIX, read_safetensors, weights_in
from weights.timm_weights import DEFAULT, PREFIX, TimmWeights, tags_of, timm_rows, timm_weights

REGISTRY = Path(__file__).parent.parent / "saved_weights/registry.yaml"
FOLDER = Path("saved_weights")  # in the project's root, where commands are run
# What tags of timm call the data sets that have defaults in the registry. Tags with "_ft_" name two data sets.
TAG_PARTS = {"imagenet1k": "in1k", "imagenet22k": "in2[12]k"}
WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which training programs save weights, by priority
# Names of parameters that identify known models: ResNet, Swin (Microsoft's or timm's names), torchvision's Swin, SSD.
FIRST_LAYERS = ("conv1.weight", "patch_embed.proj.weight", "features.0.0.weight", "class_head.0.weight")


class Source(Config):
    """A publisher of weights."""

    licence: str
    top1_from: str = Field(description="source of the accuracies")


class Entry(Config):
    """Public weights; the comment at the top of the registry explains the fields."""

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
    defaults: dict[str, dict[str, str]] = Field(description="name of the default weights by data set and trunk")
    weights: tuple[Entry, ...]


@functools.cache
def read_registry() -> Registry:
    """Read the registry; later calls return the same object. Raises ConfigError if the registry is invalid."""
    return load_config(REGISTRY, (), Registry)


class FoundWeights(NamedTuple):
    """The weights file that `model.weights` of a config names."""

    path: Path
    name: str | None = None  # registry entry, or "timm/MODEL.TAG"; None for any other file
    url: str | None = None  # where the named weights are published; None if `model.weights` is a path


def entry_named(name: str) -> Entry | TimmWeights:
    """Return the registry entry of this name, or the weights of timm for "timm/MODEL" or "timm/MODEL.TAG".

    Raises ValueError, suggesting a similar name, if there are none."""
    if name.startswith(PREFIX):
        model, _, tag = name.removeprefix(PREFIX).partition(".")
        return timm_weights(model, tag or None)
    entries = {entry.name: entry for entry in read_registry().weights}
    if name not in entries:
        near = did_you_mean([entry for entry in entries if name in entry][:3] or nearest(name, entries))
        raise ValueError(f"{name!r}: no such name in {REGISTRY.name}{near} (python -m weights list)")
    return entries[name]


def find_weights(name_or_path: str, trunk: str) -> FoundWeights:
    """Return the weights file that `model.weights` of a config names.

    name_or_path: "imagenet1k", "imagenet22k", a name that `python -m weights list` shows, "timm", a tag of a trunk of
    timm, a file, or a folder (see weights_in). A name wins over a file or folder of the same name; `./NAME` is a path.
    trunk: the trunk that the weights must fit, such as "swin_t" or "timm/convnext_tiny".
    Raises ValueError with the cure if the file is missing, or if the named weights are for a different trunk."""
    tags = tags_of(trunk.removeprefix(PREFIX)) if trunk.startswith(PREFIX) else []
    if entry := _named_for_trunk(name_or_path, trunk, tags):
        return FoundWeights(local_file(entry), entry.name, entry.url)
    path = weights_in(user_path(name_or_path, "weights"))
    if not path.is_file():
        registry = read_registry()
        if trunk.startswith(PREFIX):
            names, where = [DEFAULT, *tags], f"tags of {trunk}: {', '.join(tags) or 'none'}"
        else:
            names = [*registry.defaults, *(entry.name for entry in registry.weights)]
            where = "python -m weights list shows all names"
        raise ValueError(
            f"no such file, experiment or name of public weights{did_you_mean(nearest(name_or_path, names))} "
            f"({where}); null starts from random weights"
        )
    model, tag = re.match(r"(\w*)\.?(\w*)", path.name).groups()
    is_fetched = PREFIX + model == trunk and tag in tags  # the tag matters, because it determines the normalisation
    return FoundWeights(path, f"{trunk}.{tag}" if is_fetched else None)


def _named_for_trunk(name: str, trunk: str, tags: list[str]) -> Entry | TimmWeights | None:
    """Return the public weights that a name selects for a trunk; None if it is not a name of public weights.

    tags: tags of a timm trunk; empty for other trunks."""
    registry = read_registry()
    if name == DEFAULT:
        name = trunk if trunk.startswith(PREFIX) else _timm_name(trunk)
    elif name in tags:
        name = f"{trunk}.{name}"
    elif name in registry.defaults:
        name = _default_name(name, trunk, tags)
    elif not name.startswith(PREFIX) and name not in [entry.name for entry in registry.weights]:
        return None
    entry = entry_named(name)
    if entry.trunk != trunk:
        fitting = tags or [each.name for each in registry.weights if each.trunk == trunk]
        raise ValueError(f"fits {entry.trunk}, not {trunk}; use {', '.join(fitting) or 'a file of weights'}")
    return entry


def _default_name(data: str, trunk: str, tags: list[str]) -> str:
    """Return the name of the registry's default weights for a trunk. Raises ValueError if it has none.

    data: the data set that they were trained on, a key of `defaults` in the registry."""
    defaults = read_registry().defaults[data]
    if trunk in defaults:
        return defaults[trunk]
    if trunk.startswith(PREFIX):
        fitting = [tag for tag in tags if "_ft_" not in tag and re.search(TAG_PARTS[data], tag)] or tags
        choices = f"{', '.join(fitting)}, or timm for the default tag" if tags else "a file, an experiment, or null"
        raise ValueError(f"not a name of weights for {trunk}; use {choices}")
    raise ValueError(f"no default for trunk {trunk!r}, only for {', '.join(defaults)}; use a file, or null")


def _timm_name(trunk: str) -> str:
    """Return the name of the only weights of timm in the registry for a trunk that were trained on ImageNet-1k alone.

    Raises ValueError if there are none, or several."""
    entries = [entry for entry in read_registry().weights if entry.trunk == trunk]
    found = [entry for entry in entries if entry.source == "timm" and entry.trained_on == ("imagenet1k",)]
    if len(found) != 1:
        names = ", ".join(entry.name for entry in found or entries) or "a file, an experiment, or null"
        raise ValueError(f"{len(found)} weights of timm in {REGISTRY.name} fit {trunk}, expected 1; use {names}")
    return found[0].name


def local_file(entry: Entry | TimmWeights) -> Path:
    """Return the downloaded file of an entry. Raises ValueError, with the download command, if the file is missing."""
    path = FOLDER / entry.file
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file in {Path.cwd()}; run `python -m weights fetch {entry.name}`, or without a network "
            f"download {entry.url} on another machine and copy it to {path}"
        )
    return path


def fetch(entry: Entry | TimmWeights, folder: Path) -> Path:
    """Download the file of an entry, unless it exists, and return its path.

    Raises ValueError if the download fails or the file does not contain weights. A file without weights is removed."""
    path = folder / entry.file
    if not path.is_file():
        download(entry.url, path, sha256=entry.sha256 or stated_sha256(entry.url))
        try:
            read_weights(path)  # without a checksum, the file may be a login page
        except Exception:
            path.unlink()
            raise
    return path


def listing(folder: Path, pattern: str | None = None) -> str:
    """Return the registry as a table, or all weights of timm that match a pattern such as "timm/convnext_tiny*".

    folder: where to search for downloaded files. Raises ValueError if nothing matches the pattern."""
    if pattern is not None:
        return table(timm_rows(pattern, folder))
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
                "downloaded": "yes" if (folder / entry.file).is_file() else "no",
            }
        )
    return table(rows)


# ---- reading a weights file -----------------------------------------------------------------------------------


def read_weights(path: Path, average: bool = True) -> dict[str, Tensor]:
    """Read a dict from name to weight from a file, on the CPU.

    path: a checkpoint of a run, released weights, or a public checkpoint (written by torch.save or safetensors). Only
    plain data is loaded, so no code runs. Wrappers, as in {"state_dict": ...}, and a common prefix, as in
    "module.conv1.weight", are removed from a public checkpoint and logged.
    average: return the moving average of a run's weights, if there is one.
    Raises ValueError if the file is corrupt or has a different format."""
    if path.suffix == SUFFIX:
        return strip_common_prefix(read_safetensors(path)[0])
    if is_checkpoint(path):
        return trained_weights(load_checkpoint(path), average)
    expected = HASH_IN_NAME.search(path.name)
    if expected and not file_sha256(path).startswith(expected[1]):
        raise ValueError(f"{path}: corrupt: its SHA-256 does not begin with {expected[1]}; download it again")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types, from unpickling and from reading zip files
        raise ValueError(
            f"{path}: expected plain data written by torch.save, but the file is corrupt, has a different format, or "
            "holds code. Download it again; if it holds a pickled model, save model.state_dict() instead"
        ) from error
    return strip_common_prefix(unwrap(content, path))


def unwrap(content: object, path: Path) -> dict[str, Tensor]:
    """Return the dict of weights in a public checkpoint, without the dicts around it.

    If several inner dicts contain tensors, the dict under the first key in WRAPPERS is used.
    Raises ValueError if there are no weights, or if several inner dicts contain tensors but none is under a key in
    WRAPPERS."""
    while isinstance(content, dict):
        inner = [key for key, value in content.items() if isinstance(value, dict) and _has_tensors(value)]
        key = next((key for key in WRAPPERS if key in inner), None)
        if key is None and len(inner) == 1 and not any(isinstance(value, Tensor) for value in content.values()):
            key = inner[0]
        if key is None:
            break
        logger.info("%s: using the weights under the key %r", path, key)
        content = content[key]
    expected = "expected a dictionary of tensors by name: torch.save(model.state_dict(), FILE)"
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, {expected}")
    if wrong := [name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]:
        raise ValueError(f"{path}: {wrong[0]!r} is not a tensor; {expected}")
    return content


def _has_tensors(value: dict) -> bool:
    """Return whether a dict contains tensors or a key in WRAPPERS, unlike the state of an optimizer."""
    return any(isinstance(each, Tensor) for each in value.values()) or any(key in value for key in WRAPPERS)


def strip_common_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix that all names share, such as "module." of DataParallel.

    The prefix is removed only if the shorter names include a parameter in FIRST_LAYERS."""
    prefix = os.path.commonprefix([*weights])  # noqa: RUF071 (names, not paths)
    prefix = prefix[: prefix.rfind(".") + 1]
    if not any(prefix + first in weights for first in FIRST_LAYERS):
        return weights
    if prefix:
        logger.info("removed the prefix %r from the names of all weights", prefix)
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}


def initial_weights(part: str, name: str, found: FoundWeights, note: str = "") -> InitialWeights:
    """Return the record of weights that were loaded.

    part: part of the model, such as "trunk". name: value in the config. note: what was adapted or left out."""
    path = str(found.path)
    digest = file_sha256(found.path)
    return InitialWeights(
        part=part, name=name, entry=found.name, source=found.url or path, file=path, sha256=digest, note=note
    )


# ---- describing a weights file --------------------------------------------------------------------------------


def describe(path: Path) -> dict[str, str]:
    """Return a dict from label to text that describes a weights file. Raises the errors of `read_weights`."""
    weights, digest = read_weights(path), file_sha256(path)
    if path.suffix == SUFFIX:
        facts = read_safetensors(path)[1]
        kind = f"release of this project: {', '.join(sorted(facts))}" if facts else "public checkpoint, safetensors"
    else:
        kind = "checkpoint of a run of this project" if is_checkpoint(path) else "public checkpoint"
    names = [
        entry.name
        for entry in read_registry().weights
        if (digest.startswith(entry.sha256) if entry.sha256 else path.name == entry.file)  # the checksum may be unknown
    ]
    return {
        "file": f"{path}, {path.stat().st_size / 1e6:.1f} MB",
        "SHA-256": digest,
        "registry": ", ".join(names) or "no entry",
        "kind": kind,
        "family": _family(weights),
        "values": f"{sum(tensor.numel() for tensor in weights.values()):,} in {len(weights)} tensors",
    }


def _family(weights: dict[str, Tensor]) -> str:
    """Return the variant and sizes of a Swin, or the top-level modules of any other model."""
    try:
        arguments = swin_arguments(weights)
    except ValueError:
        return f"not a Swin classifier, with modules {', '.join(sorted({name.partition('.')[0] for name in weights}))}"
    sizes = ("embed_dim", "depths", "num_heads")
    variants = [name for name, row in SWIN_VARIANTS.items() if all(row[size] == arguments[size] for size in sizes)]
    details = ", ".join(f"{name} {value}" for name, value in arguments.items())
    return f"Swin Transformer, {' '.join(variants) or 'unknown variant'}, {details}"
