"""List backbones for `model.backbone`: the project's own, and the models of timm that fit a detector.

python -m detection.show backbones                 the project's own backbones
python -m detection.show backbones 'convnext*'     models of timm whose names match the pattern
python -m detection.show backbones convnext_tiny   one model of timm, with all its weights
"""

from collections import Counter

import torch

from detection.network.backbones import BACKBONES, build_backbone
from detection.network.timm_trunk import STRIDES, UnsuitableModelError, timm_levels
from engine.logbook import progress_bar
from engine.terminal import counted
from engine.text import did_you_mean, nearest
from records.experiment import table
from weights.registry import FOLDER, entry_named, read_registry
from weights.timm_weights import PREFIX, import_timm, read_timm_top1, tags_of, timm_rows

UNKNOWN = "-"


def list_backbones(pattern: str | None) -> str:
    """Return the listing for the terminal.

    pattern: a name of BACKBONES, or a pattern for names of timm's models, such as 'convnext*', with or without the
    prefix timm/; None lists BACKBONES. Raises ValueError if timm is not installed or has no matching model."""
    if pattern is None or pattern in BACKBONES:
        return list_own([pattern] if pattern else list(BACKBONES))
    return list_timm(pattern.removeprefix(PREFIX).lower())


# ---- the project's backbones ----------------------------------------------------------------------------------


def list_own(names: list[str]) -> str:
    """Return the table of these BACKBONES, and how to search in timm."""
    registry = read_registry()
    rows = []
    for name in names:
        spec = BACKBONES[name]
        strides, parameters = measure(name)
        default = registry.defaults["imagenet1k"].get(spec.trunk)
        top1 = entry_named(default).top1 if default else None
        number = sum(entry.trunk == spec.trunk for entry in registry.weights)
        weights = {"default weights": default or UNKNOWN, "weights": number}
        rows.append(trunk_cells(name, parameters, strides, top1) | weights)
    return (
        f"{table(rows)}\n\n"
        "all weights: python -m weights list\n"
        "more backbones, from timm: python -m detection.show backbones 'convnext*'"
    )


def measure(name: str, side: int = 256) -> tuple[tuple[int, ...], int]:
    """Return the strides of the maps of the trunk of BACKBONES[name], and its number of parameters.

    The backbone is built without memory for its weights. side: input side in pixels, divisible by all strides."""
    with torch.device("meta"):
        backbone = build_backbone(name).eval()
        maps = backbone(torch.zeros(1, 3, side, side))[: len(backbone.taps)]
    parameters = sum(parameter.numel() for parameter in backbone.trunk.parameters())
    return tuple(side // each.shape[-1] for each in maps), parameters


# ---- timm -----------------------------------------------------------------------------------------------------


def list_timm(pattern: str) -> str:
    """Return the table of the matching timm models that fit, and how many others do not fit, with reasons.

    If only one model matches, its weights are listed as well. Raises ValueError if no model matches."""
    timm = import_timm()
    names = timm.list_models(pattern)
    if not names:
        raise ValueError(f"backbone {pattern!r}: no such model in timm {timm.__version__}{similar_patterns(pattern)}")
    rows, misfits = [], Counter()
    for name in progress_bar(names, desc="building models", unit="model", leave=False):
        try:
            rows.append(timm_row(name))
        except UnsuitableModelError as error:
            misfits[error.reason] += 1
    if not rows:
        return summarize(len(names), misfits)
    if len(names) == 1:
        weights = table(timm_rows(PREFIX + names[0], FOLDER)) if tags_of(names[0]) else "no published weights"
        return f"{table(rows)}\n\n{weights}"
    return f"{table(rows)}\n\n{summarize(len(names), misfits)}"


def timm_row(name: str) -> dict[str, str | int]:
    """Return the row of a model of timm. Raises UnsuitableModelError if it does not fit a detector."""
    levels, tags = timm_levels(name), tags_of(name)
    top1 = read_timm_top1().get(f"{name}.{tags[0]}") if tags else None
    weights = {"default tag": tags[0] if tags else UNKNOWN, "tags": len(tags)}
    return trunk_cells(PREFIX + name, levels.parameters, levels.strides, top1) | weights


def similar_patterns(pattern: str) -> str:
    """Suggest a pattern that matches models of timm, or a model."""
    timm = import_timm()
    if "." in pattern:
        return f"; tags belong to model.weights; did you mean '{pattern.partition('.')[0]}'?"
    if timm.list_models(f"*{pattern}*"):
        return did_you_mean([f"*{pattern}*"])
    return did_you_mean(nearest(pattern, timm.list_models()))


def summarize(matching: int, misfits: Counter[str]) -> str:
    """Return how many of the matching models do not fit, with a line for each reason."""
    models = counted(matching, "matching model", "matching models")
    if not misfits:
        return f"{models}; all fit"
    *most, last = map(str, STRIDES)
    needed = f"feature maps of stride {', '.join(most)} and {last}"
    lines = [f"unsuitable: {misfits.total():,} of {models}; a detector needs {needed}:"]
    for reason, number in misfits.most_common():
        lines.append(f"{number:>6,} with {reason}")
    return "\n".join(lines)


# ---- rows -----------------------------------------------------------------------------------------------------


def trunk_cells(name: str, parameters: int, strides: tuple[int, ...], top1: float | None) -> dict[str, str]:
    """Return the first cells of a row. top1: ImageNet-1k accuracy of the default weights in percent, if known."""
    return {
        "model.backbone": name,
        "params (M)": f"{parameters / 1e6:10.1f}",  # as wide as the title, so that numbers are aligned right
        "strides": " ".join(map(str, strides)),
        "top-1 %": UNKNOWN if top1 is None else f"{top1:.1f}",
    }
