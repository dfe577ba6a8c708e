"""Trunks from timm, the library of image classifiers (https://github.com/huggingface/pytorch-image-models).

`model.backbone: timm/NAME` uses any model of timm that returns feature maps of stride 8, 16 and 32. timm is an optional
extra. It is imported only for these backbones, because the import takes seconds.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.loading import load_exactly
from engine.text import did_you_mean, nearest
from weights.timm_weights import PREFIX, import_timm

STRIDES = (8, 16, 32)
TAPS = tuple(f"stride{stride}" for stride in STRIDES)
LISTING = "`python -m detection.show backbones 'convnext*'` lists the models that fit a pattern"
CLASSIFIERS = ("head.fc.weight", "head.weight", "fc.weight", "classifier.weight")  # weights that have a row per class
SUGGESTED_SIZES = (224, 256, 320, 384, 512)  # pixels; an error about an unsuitable size lists those that work
# Errors of timm's models: unsupported image size, missing feature maps, unknown option, weights that do not fit.
TIMM_ERRORS = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


class TimmLevels(NamedTuple):
    """What a detector needs to know about a model of timm."""

    indices: tuple[int, ...]  # positions of the maps of stride 8, 16 and 32 in timm's list of feature maps
    channels: tuple[int, ...]  # of these maps
    strides: tuple[int, ...]
    parameters: int  # number of parameters up to the last of these maps
    takes_image_size: bool  # whether weights or windows depend on the image size
    takes_drop_path: bool  # whether the model has LayerNorm or GroupNorm; others are trained without stochastic depth


class UnsuitableModelError(ValueError):
    """A model of timm does not have the feature maps that a detector needs.

    reason: what it has instead; the same text for all models with the same problem."""

    def __init__(self, name: str, reason: str, details: str = "") -> None:
        """Create the error for the model `name`."""
        self.reason = reason
        found = f"{reason} ({details})" if details else reason
        needed = ", ".join(map(str, STRIDES))
        super().__init__(f"backbone 'timm/{name}': has {found}; a detector needs maps of stride {needed}; {LISTING}")


def check_timm_name(name: str) -> None:
    """Raise ValueError, suggesting a similar name, if timm has no model `name` (without the prefix "timm/")."""
    timm = import_timm()
    model, _, tag = name.partition(".")
    known = timm.models.is_model(model)
    if known and tag:
        raise ValueError(f"backbone 'timm/{name}': set model.backbone to timm/{model} and model.weights to {tag}")
    if not known:
        near = did_you_mean(PREFIX + each for each in nearest(name, timm.list_models()))
        raise ValueError(f"backbone 'timm/{name}': timm {timm.__version__} has no such model; {LISTING}{near}")


@functools.cache
def timm_levels(name: str) -> TimmLevels:
    """Return the feature maps of stride 8, 16 and 32 of a model, without allocating its weights.

    Raises ValueError if timm has no such model, and UnsuitableModelError if the model does not have feature maps of
    these strides."""
    check_timm_name(name)
    try:
        model = _create_empty(name)
    except TIMM_ERRORS as error:
        raise UnsuitableModelError(name, "no feature maps", _reason(error)) from error
    strides = model.feature_info.reduction()
    if not set(STRIDES) <= set(strides):
        found = ", ".join(map(str, sorted(set(strides))))
        raise UnsuitableModelError(name, f"feature maps of stride {found}")
    last = dict(zip(strides, model.feature_info.out_indices, strict=True))  # the last map of each stride
    indices = tuple(last[stride] for stride in STRIDES)
    try:
        model, takes_image_size = _create_empty(name, out_indices=indices, img_size=320), True
    except TypeError:
        model, takes_image_size = _create_empty(name, out_indices=indices), False
    return TimmLevels(
        indices,
        tuple(model.feature_info.channels()),
        tuple(model.feature_info.reduction()),
        sum(parameter.numel() for parameter in model.parameters()),
        takes_image_size,
        any(isinstance(module, nn.LayerNorm | nn.GroupNorm) for module in model.modules()),
    )


def _create_empty(name: str, **options: Any) -> nn.Module:
    """Create a feature extractor on the meta device, where tensors have shapes but no values."""
    with torch.device("meta"):
        return import_timm().create_model(name, features_only=True, **options)


@torch.inference_mode(False)  # because the caller may have disabled gradients
@torch.enable_grad()
def _create(name: str, levels: TimmLevels, input_size: int, drop_path_rate: float = 0.0) -> nn.Module:
    """Create a feature extractor with random weights, and run it on a blank image of this size.

    Parameters that the maps do not depend on are frozen, because DDP expects a gradient for each trainable parameter.
    Gradients are enabled for this, because they show which parameters the maps depend on.
    Raises one of TIMM_ERRORS if the model cannot process images of this size."""
    options: dict[str, Any] = {"img_size": input_size} if levels.takes_image_size else {}
    if levels.takes_drop_path:
        options["drop_path_rate"] = drop_path_rate
    model = import_timm().create_model(name, features_only=True, out_indices=levels.indices, **options)
    maps = model.eval()(torch.zeros(1, 3, input_size, input_size))
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(sum(x.sum() for x in maps), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    return model.train()


def _works(name: str, levels: TimmLevels, input_size: int) -> bool:
    try:
        _create(name, levels, input_size)
        return True
    except TIMM_ERRORS:
        return False


def _reason(error: Exception) -> str:
    """Return the message of an error of timm as one short line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


class TimmTrunk(nn.Module):
    """A model of timm as a trunk, with random weights. Its taps are TAPS, the maps of stride 8, 16 and 32.

    name: a model of timm, without prefix and tag. input_size: side of the images in pixels.
    drop_path_rate: stochastic depth rate of the last block; ignored by a model without LayerNorm, such as a ResNet.
    Raises ValueError if the model does not exist, does not fit, or cannot process images of this size."""

    def __init__(self, name: str, input_size: int, drop_path_rate: float):
        super().__init__()
        self.name = name
        self.levels = timm_levels(name)
        self.options = {"img_size": input_size} if self.levels.takes_image_size else {}
        try:
            self.model = _create(self.name, self.levels, input_size, drop_path_rate)
        except TIMM_ERRORS as error:
            sizes = [size for size in SUGGESTED_SIZES if _works(name, self.levels, size)]
            raise ValueError(
                f"backbone 'timm/{name}': cannot process images of {input_size} pixels ({_reason(error)}); "
                + (
                    f"set model.input_size to a different value, such as {', '.join(map(str, sizes))}"
                    if sizes
                    else f"no other size works either (tried {', '.join(map(str, SUGGESTED_SIZES))}); {LISTING}"
                )
            ) from error
        self.has_channels_last_maps = getattr(self.model, "output_fmt", None) == import_timm().layers.Format.NHWC

    def out_channels(self, tap: str) -> int:
        """Return the number of channels of the feature map at a tap."""
        return self.levels.channels[TAPS.index(tap)]

    def features(self, images: Tensor, taps: tuple[str, ...]) -> dict[str, Tensor]:
        """Return a dict from tap to feature map (B, C, H', W'). images: (B, 3, H, W) float."""
        maps = dict(zip(TAPS, self.model(images), strict=True))
        return {tap: maps[tap].permute(0, 3, 1, 2) if self.has_channels_last_maps else maps[tap] for tap in taps}

    @property
    def stem_prefixes(self) -> tuple[str, ...]:
        """Name prefixes of the parameters before the first stage, as timm groups them for layer-wise learning rates.

        Raises ValueError if timm has no groups for this model."""
        timm = import_timm()
        with torch.device("meta"):
            classifier = timm.create_model(self.name, **self.options)
        groups = classifier.group_matcher(coarse=False) if hasattr(classifier, "group_matcher") else {}
        pattern = groups.get("stem") if isinstance(groups, dict) else None  # of a few models, it is a function
        if not isinstance(pattern, str):
            raise ValueError(f"model.freeze stem: timm does not define the stem of timm/{self.name}; use none or trunk")
        own_names = {key.replace("_", "."): key for key in self.model.state_dict()}
        prefixes = []
        for name, _ in classifier.named_parameters():
            if re.match(pattern, name):
                own = own_names[(self._prefix + name).replace("_", ".")]
                module, _, _ = own.rpartition(".")
                is_in_module = module != self._prefix.rstrip(".")
                prefixes.append(f"model.{module}." if is_in_module else f"model.{own}")
        return tuple(dict.fromkeys(prefixes))

    @property
    def _prefix(self) -> str:
        """What timm's feature extractor puts before the names of the classifier's weights: "model.", "body." or ""."""
        children = [name for name, _ in self.model.named_children()]
        return f"{children[0]}." if children in (["model"], ["body"]) else ""

    def load_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the weights of this trunk in a detector, or of a classifier of this architecture.

        state_dict: weights under this module's names, under timm's names, or under the original names of a checkpoint
        that timm can convert. For a classifier, timm resizes position tables.
        Raises ValueError, and loads nothing, if weights are missing, unexpected or of a different shape."""
        if state_dict.keys() == self.state_dict().keys():
            load_exactly(self, state_dict)
            return
        timm = import_timm()
        names = timm.models.get_pretrained_cfg(self.name).classifier or ()
        names = [f"{name}.weight" for name in ([names] if isinstance(names, str) else names)]
        classes = next((len(state_dict[name]) for name in (*names, *CLASSIFIERS) if name in state_dict), 0)
        overlay = {"state_dict": dict(state_dict), "num_classes": classes, "label_offset": 0}
        try:
            classifier = timm.create_model(
                self.name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes, **self.options
            )
        except TIMM_ERRORS as error:
            raise ValueError(
                f"weights do not fit timm/{self.name}, nothing was loaded: {_reason(error)}; "
                f"`python -m weights list {PREFIX}{self.name}` lists weights that fit"
            ) from error
        # timm's feature extractors rename "stages.0.bias" to "stages_0.bias", "model.stages.0.bias" or similar.
        weights = {(self._prefix + key).replace("_", "."): tensor for key, tensor in classifier.state_dict().items()}
        self.model.load_state_dict({key: weights[key.replace("_", ".")] for key in self.model.state_dict()})
