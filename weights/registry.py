"""Weights to start from: what they are called, where they lie, how they come here and what they hold.

A config names weights as `imagenet1k` or `imagenet22k` (the registry's default for its trunk), as an entry of the
registry, as a file, or as an experiment (its newest checkpoint). Nothing is downloaded but by `weights.__main__ fetch`.
"""

import argparse
import functools
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.checkpoint import is_checkpoint, load_checkpoint, trained_weights
from engine.config import Config, load_config
from engine.files import file_sha256, user_path
from engine.text import did_you_mean, nearest
from model import SWIN_VARIANTS, swin_arguments
from weights.download import download
from weights.release import SUFFIX, load_release, weights_in

REGISTRY = Path(__file__).parent.parent / "saved_weights/registry.yaml"
FOLDER = Path("saved_weights")  # of the project's root, where commands are run
WRAPPERS = ("state_dict", "model", "model_state_dict")  # under which training programs save the weights, first best
# A weight that every ResNet has, every Swin under Microsoft's and timm's names, under torchvision's, every detector.
FIRST_LAYERS = ("conv1.weight", "patch_embed.proj.weight", "features.0.0.weight", "class_head.0.weight")
PROMISED = re.compile(r"-([0-9a-f]{8,64})\.")  # PyTorch's names of public checkpoints hold a hash


class Source(Config):
    """Who publishes weights."""

    licence: str
    top1_from: str = Field(description="where the accuracies are stated")


class Entry(Config):
    """Public weights; the head of the registry says what the fields mean."""

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
    """All of them."""

    sources: dict[str, Source]
    defaults: dict[str, dict[str, str]] = Field(description="data set -> trunk -> name")
    weights: tuple[Entry, ...]


@functools.cache
def read_registry() -> Registry:
    """The registry, read once. Raises ConfigError naming what is wrong in it."""
    return load_config(REGISTRY, (), Registry)


def entry_named(name: str) -> Entry:
    """Raises ValueError suggesting another name if there is none of this."""
    entries = {entry.name: entry for entry in read_registry().weights}
    if name not in entries:
        near = did_you_mean([entry for entry in entries if name in entry][:3] or nearest(name, entries))
        raise ValueError(f"{name!r}: no such name in {REGISTRY.name}{near} (python -m weights list)")
    return entries[name]


# ---- what a config names --------------------------------------------------------------------------------------


def find_weights(named: str, trunk: str) -> Path:
    """The file that a config's `weights` names.

    named: "imagenet1k", "imagenet22k", a name in the registry, a file, or a folder, see weights_in. trunk: the name of
    what they are for, such as "swin_t".
    Raises ValueError if there is no such file, with the way to get it, or if it is of another trunk."""
    registry = read_registry()
    if named in registry.defaults:
        if trunk not in registry.defaults[named]:
            known = ", ".join(registry.defaults[named])
            raise ValueError(f"no default of trunk {trunk!r}, there are {known}; name a file, or null")
        return _fetched(entry_named(registry.defaults[named][trunk]))
    if named in [entry.name for entry in registry.weights]:
        entry = entry_named(named)
        if entry.trunk != trunk:
            fitting = [other.name for other in registry.weights if other.trunk == trunk]
            raise ValueError(f"is a {entry.trunk}, expected a {trunk}: {', '.join(fitting) or 'none is known'}")
        return _fetched(entry)
    path = weights_in(user_path(named, "weights"))
    if not path.is_file():
        names = [*registry.defaults, *(entry.name for entry in registry.weights)]
        raise ValueError(
            f"no such file or experiment, nor a name of public weights{did_you_mean(nearest(named, names))} "
            "(python -m weights list shows them); null starts from random weights"
        )
    return path


def _fetched(entry: Entry) -> Path:
    path = FOLDER / entry.file
    if not path.is_file():
        raise ValueError(
            f"{path} is not there, in {Path.cwd()}: `python -m weights fetch {entry.name}`; for a machine "
            f"without network, download {entry.url} elsewhere and copy it to {path}"
        )
    return path


def identified(path: Path) -> str:
    """The file and the beginning of its SHA-256, for a log."""
    return f"{path} (SHA-256 {file_sha256(path)[:8]})"


# ---- what a file holds ----------------------------------------------------------------------------------------


def read_weights(path: Path, average: bool = True) -> dict[str, Tensor]:
    """The weights in a file, on the CPU: `read_weights_with_note` without the note."""
    return read_weights_with_note(path, average)[0]


def read_weights_with_note(path: Path, average: bool = True) -> tuple[dict[str, Tensor], str]:
    """The weights in a file, on the CPU, by name, and what was taken off around them, for a log.

    path: a public checkpoint (torch.save's or safetensors), a checkpoint of a run, or released weights. Plain data
    only: a downloaded file must not run code. A public checkpoint may wrap its weights in a dictionary, as in
    {"state_dict": ...}, and its names may share a prefix, as in "module.conv1.weight": see `unwrapped` and
    `without_prefix`. average: of a run that kept a moving average, that.
    Returns the weights and a note such as ", from its 'state_dict', without the prefix 'module.'", empty as a rule.
    Raises ValueError if the file is damaged or of another kind."""
    if path.suffix == SUFFIX:
        weights, facts = read_safetensors(path)
        return (weights, "") if facts else without_prefix(weights)
    if is_checkpoint(path):
        state = load_checkpoint(path)
        if not isinstance(state, dict) or not {"model", "ema"} <= state.keys():
            raise ValueError(
                f"{path}: a checkpoint of this program, but without a model in it; name another of that experiment"
            )
        return trained_weights(state, average), ""
    weights, unwrapping = unwrapped(_read_public(path), path)
    weights, renaming = without_prefix(weights)
    return weights, unwrapping + renaming


def unwrapped(content: object, path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors by name in what a training program has saved, and a note on the dictionaries around them.

    Of several dictionaries of tensors the one under a key of WRAPPERS is taken. Raises ValueError, with the cure, if
    there is none, or if it is not clear which."""
    keys = []
    while isinstance(content, dict):
        inner = [key for key, value in content.items() if isinstance(value, dict) and _holds_tensors(value)]
        found = [key for key in WRAPPERS if key in inner]
        if not found and not any(isinstance(value, Tensor) for value in content.values()):
            found = inner
            if len(inner) > 1:
                raise ValueError(
                    f"{path}: several models, {', '.join(map(repr, inner))}; save the one that is meant by itself: "
                    "torch.save(content[NAME], FILE)"
                )
        if not found:
            break
        keys.append(found[0])
        content = content[found[0]]
    wanted = "expected a dictionary of tensors by name: torch.save(model.state_dict(), FILE)"
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, {wanted}")
    if others := [name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]:
        raise ValueError(f"{path}: {others[0]!r} is no tensor; {wanted}")
    return content, f", from its {' in '.join(map(repr, reversed(keys)))}" if keys else ""


def _holds_tensors(value: dict) -> bool:
    """Whether it is a model's weights by name, or wraps some; an optimizer's state does neither."""
    return any(isinstance(each, Tensor) for each in value.values()) or any(key in value for key in WRAPPERS)


def without_prefix(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Take off the prefixes that all names share, such as "module." of DataParallel, and say so in a note.

    Only as far as it leads to the names of a model that is known here (FIRST_LAYERS); else the names stay."""
    names, prefix = list(weights), ""
    while names and not set(FIRST_LAYERS) & set(names):
        shared = names[0].partition(".")[0] + "."
        if not all(name.startswith(shared) for name in names):
            return dict(weights), ""
        prefix, names = prefix + shared, [name.removeprefix(shared) for name in names]
    note = f", without the prefix {prefix!r} of all its names" if prefix else ""
    return dict(zip(names, weights.values(), strict=True)), note


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors in a file, on the CPU, and what it says of itself: nothing, unless it is a release of this project.

    Raises ValueError if the file is damaged or of another kind."""
    try:
        with safe_open(path, framework="pt") as file:
            if "sha256" in (file.metadata() or {}):
                return load_release(path)
            return {name: file.get_tensor(name) for name in file.keys()}, {}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: truncated, or not a safetensors file ({error}); download it again") from error


def _read_public(path: Path) -> object:
    promised = PROMISED.search(path.name)
    if promised and not file_sha256(path).startswith(promised[1]):
        raise ValueError(f"{path}: damaged, its SHA-256 does not begin with what its name says; download it again")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of unpickling, of zip files and of what stands in for them
        raise ValueError(
            f"{path}: expected plain data as torch.save wrote it; the file is damaged, of another format, or holds "
            "code: download it again, or, of a whole model, save its state_dict() instead"
        ) from error
    if isinstance(checkpoint, dict) and {"model", "ema", "scheduler"} <= checkpoint.keys():
        raise ValueError(
            f"{path}: a checkpoint of this program that lost its end, which holds its checksum; copy it again"
        )
    return checkpoint


def describe(path: Path) -> dict[str, str]:
    """What a file of weights is, for people: label to value. Raises ValueError as `read_weights` does."""
    (weights, note), digest = read_weights_with_note(path), file_sha256(path)
    return {
        "file": f"{path}, {path.stat().st_size / 1e6:.1f} MB",
        "SHA-256": digest,
        "registry": _registered(path, digest),
        "kind": _kind(path) + note,
        **_architecture(weights),
        "numbers": f"{sum(tensor.numel() for tensor in weights.values()):,} in {len(weights)} tensors",
    }


def _registered(path: Path, digest: str) -> str:
    for entry in read_registry().weights:
        if entry.sha256 and digest.startswith(entry.sha256):
            return entry.name
        if entry.sha256 is None and path.name == entry.file:
            return f"{entry.name}, by the file's name; its publisher states no checksum"
    return "not in it"


def _kind(path: Path) -> str:
    if path.suffix == SUFFIX:
        facts = read_safetensors(path)[1]
        if not facts:
            return "public checkpoint, safetensors"
        step = f", step {facts['step']}" if "step" in facts else ""
        return f"release of this project{step}; its metadata hold {', '.join(sorted(facts))}"
    if is_checkpoint(path):
        state = load_checkpoint(path)
        average = "raw weights and their moving average" if state["ema"] else "no moving average"
        return f"checkpoint of a run of this project, step {state.get('step')}; {average}"
    return "public checkpoint"


def _architecture(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Family, sizes, classes and the naming scheme, as the names and shapes tell them."""
    if "layer1.0.conv1.weight" in weights:
        return _resnet(weights)
    try:
        arguments = swin_arguments(weights)
    except ValueError as error:
        parts = ", ".join(sorted({name.partition(".")[0] for name in weights}))
        if "class_head.0.weight" in weights:
            return {"family": f"detector of this project, with the parts {parts}"}
        return {"family": f"unknown, with the parts {parts}: {error}"}
    sizes = ("embed_dim", "depths", "num_heads")
    variants = [name for name, row in SWIN_VARIANTS.items() if all(row[size] == arguments[size] for size in sizes)]
    return {
        "family": f"Swin Transformer, {' '.join(variants) or 'of no published size'}",
        "sizes": ", ".join(f"{name} {value}" for name, value in arguments.items() if name != "num_classes"),
        "classes": str(arguments["num_classes"]),
        "names": _swin_naming(weights),
    }


def _swin_naming(weights: Mapping[str, Tensor]) -> str:
    if "features.0.0.weight" in weights:
        return "torchvision's"
    return "Microsoft's, and this project's" if "layers.0.downsample.norm.weight" in weights else "timm's"


def _resnet(weights: Mapping[str, Tensor]) -> dict[str, str]:
    blocks = Counter(match[1] for key in weights if (match := re.fullmatch(r"layer(\d)\.\d+\.conv1\.weight", key)))
    depths = tuple(blocks[layer] for layer in sorted(blocks))
    convolutions = 3 if "layer1.0.conv3.weight" in weights else 2  # per block; the name counts the stem and fc, too
    return {
        "family": f"ResNet-{sum(depths) * convolutions + 2}",
        "sizes": f"width {len(weights['conv1.weight'])}, depths {depths}",
        "classes": str(len(weights["fc.weight"])) if "fc.weight" in weights else "no classifier",
        "names": "torchvision's",
    }


# ---- what `python -m weights` does ------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> None:
    """List, fetch or inspect, as the command line says."""
    if arguments.command == "list":
        print(listing(arguments.folder))
        return
    path = arguments.file if arguments.command == "inspect" else fetch(arguments.name, arguments.folder)
    if str(path) in [entry.name for entry in read_registry().weights]:
        path = _fetched(entry_named(str(path)))
    path = weights_in(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    for label, value in describe(path).items():
        print(f"{label + ':':<10}{value}")


def listing(folder: Path) -> str:
    """The registry as a table. folder: where to look for the files."""
    registry = read_registry()
    rows = [("name", "trunk", "trained on", "pixels", "window", "top-1", "licence", "default", "here")]
    for entry in registry.weights:
        default = [data for data, names in registry.defaults.items() if names.get(entry.trunk) == entry.name]
        rows.append(
            (
                entry.name,
                entry.trunk,
                ", ".join(entry.trained_on),
                str(entry.image_size),
                str(entry.window_size or "-"),
                "-" if entry.top1 is None else f"{entry.top1:.1f}",
                registry.sources[entry.source].licence,
                " ".join(default) or "-",
                "yes" if (folder / entry.file).is_file() else "no",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def fetch(name: str, folder: Path) -> Path:
    """Download an entry of the registry, unless it is there.

    Returns its path. Raises ValueError if it cannot be had, or holds no weights: it is removed then."""
    entry = entry_named(name)
    path = folder / entry.file
    if path.is_file():
        return path
    download(entry.url, path, sha256=entry.sha256)
    try:
        read_weights(path)  # a publisher that states no checksum, or a portal that asks for a password
    except Exception:
        path.unlink()
        raise
    return path
