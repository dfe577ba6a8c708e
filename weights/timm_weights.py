"""Names, sources and normalisation of timm's pretrained weights. timm is an optional extra, imported only when needed.

The trunk "timm/convnext_tiny" is timm's model convnext_tiny. Its weights have tags that say what they were trained on:
"timm/convnext_tiny.in12k_ft_in1k". timm lists the tags, most of them with a repository on the Hugging Face hub.
"""

import csv
import fnmatch
import functools
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from data import IMAGENET_MEAN, IMAGENET_STD
from engine.text import UnknownNameError, did_you_mean, nearest
from weights.download import HASH_IN_NAME

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

PREFIX = "timm/"  # of trunks and weights
DEFAULT = "timm"  # as model.weights: the default tag of the trunk
TOP1 = Path(__file__).parent.parent / "saved_weights/timm_top1.csv"
EXTRA = "pip install -e '.[timm]'"
HUB = "https://huggingface.co"  # the environment variable HF_ENDPOINT selects a mirror
Rgb = tuple[float, float, float]


class TimmWeights(NamedTuple):
    """Weights that timm publishes."""

    name: str  # "timm/MODEL.TAG"
    trunk: str  # "timm/MODEL"
    url: str
    file: str  # file name in saved_weights
    sha256: str | None  # first digits from the file name of the URL


def import_timm() -> ModuleType:
    """Return the timm package. Raises ValueError with the command that installs it if it is missing."""
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"timm: not installed ({error}); run {EXTRA}") from error
    return timm


def tags_of(model: str) -> list[str]:
    """Return the tags of a model's published weights, the default tag first. Raises ValueError for an unknown model."""
    timm = import_timm()
    if not timm.is_model(model):
        near = did_you_mean(nearest(model, timm.list_models()))
        raise ValueError(
            f"{PREFIX}{model}: no such model in timm {timm.__version__}; `python -m weights list 'timm/convnext*'` "
            f"lists weights by name{near}"
        )
    tags = [name.partition(".")[2] for name in timm.list_models(f"{model}.*", pretrained=True)]
    default = timm.models.get_pretrained_cfg(model).tag if tags else None
    return sorted(tags, key=lambda tag: tag != default)


def timm_weights(model: str, tag: str | None = None) -> TimmWeights:
    """Return the weights of a model with this tag; None: the default tag.

    Raises ValueError if timm publishes no such weights, or only in a format that this project cannot read."""
    tags = tags_of(model)
    if not tags:
        raise ValueError(f"{PREFIX}{model}: timm publishes no weights of it; use a file, an experiment, or null")
    if tag is not None and tag not in tags:
        raise UnknownNameError(f"{PREFIX}{model}: tag", tag, tags)
    name = f"{model}.{tag or tags[0]}"
    config = import_timm().models.get_pretrained_cfg(name)
    if not is_readable(config):
        raise ValueError(
            f"{PREFIX}{name}: published in a format that only timm reads; use a different tag "
            f"(`python -m weights list {PREFIX}{model}`), or load them with timm and save model.state_dict() as a file"
        )
    if config.hf_hub_id:
        hub = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
        url = f"{hub}/{config.hf_hub_id}/resolve/main/{config.hf_hub_filename or 'model.safetensors'}"
    else:
        url = config.url
    found = HASH_IN_NAME.search(url.rpartition("/")[2])
    # A hash in the file name is checked whenever the file is read.
    file = f"{name}{f'-{found[1]}' if found else ''}{Path(url).suffix}"
    return TimmWeights(PREFIX + name, PREFIX + model, url, file, found and found[1])


def is_readable(config: "PretrainedCfg") -> bool:
    """Return whether the published file is a single file with a state dict."""
    if config.hf_hub_id:
        return config.custom_load != "hf"  # otherwise, the hub has a converted copy of foreign formats
    return isinstance(config.url, str) and not config.custom_load and not config.url.endswith(".npz")


def normalization(model: str, weights: str | None = None) -> tuple[Rgb, Rgb]:
    """Return mean and standard deviation of the pixels, from 0 to 1, that a model's weights were trained with.

    weights: a tag. Anything else, such as a file or None: the values of the default tag."""
    timm = import_timm()
    name = f"{model}.{weights}" if weights in tags_of(model) else model
    config = timm.models.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    return config.mean, config.std


@functools.cache
def read_timm_top1() -> dict[str, float]:
    """Return a dict from the name of timm's weights, MODEL.TAG, to their ImageNet-1k top-1 accuracy in percent."""
    with TOP1.open(newline="") as file:
        return {line["name"]: float(line["top1"]) for line in csv.DictReader(file)}


def timm_rows(pattern: str, folder: Path) -> list[dict[str, str]]:
    """Return a table row for all published weights that match a pattern, such as "timm/convnext_tiny*".

    The pattern may match a name with or without the tag. folder: where to search for downloaded files.
    Raises ValueError if nothing matches."""
    timm = import_timm()
    wanted, rows = pattern.removeprefix(PREFIX), []
    for name in timm.list_models(pretrained=True):
        model, _, tag = name.partition(".")
        config = timm.models.get_pretrained_cfg(name)
        if not any(fnmatch.fnmatchcase(each, wanted) for each in (model, name)) or not is_readable(config):
            continue
        default = timm.models.get_pretrained_cfg(model).tag
        rows.append(
            {
                "name": PREFIX + name,
                "default": "yes" if tag == default else "-",
                "pixels": str(config.input_size[-1]),
                "mean": _shown(config.mean, IMAGENET_MEAN),
                "std": _shown(config.std, IMAGENET_STD),
                "top-1": f"{read_timm_top1()[name]:.1f}" if name in read_timm_top1() else "-",
                "licence": config.license or "unknown",
                "downloaded": "yes" if (folder / timm_weights(model, tag).file).is_file() else "no",
            }
        )
    if not rows:
        near = did_you_mean(nearest(wanted, timm.list_models()))
        raise ValueError(f"{pattern}: matches no published weights of timm {timm.__version__}{near}")
    return rows


def _shown(values: Rgb, of_imagenet: Rgb) -> str:
    return "ImageNet" if values == of_imagenet else " ".join(f"{value:.3g}" for value in values)
