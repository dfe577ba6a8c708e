"""Swins as encoders of segmentation_models_pytorch (github.com/qubvel-org/segmentation_models.pytorch, 0.5 and 0.6).

    from adapters.segmentation_models import register_swins

    register_swins()
    smp.Unet(encoder_name="swin_t", encoder_weights=None, classes=21)
    smp.PAN(encoder_name="swin_t", encoder_weights="imagenet", encoder_output_stride=32)

`encoder_weights="imagenet"` is the trunk's `imagenet1k` of saved_weights/registry.yaml, and "imagenet22k" the one of
that name: files on this machine, never a download. See examples/segmentation_with_swin.py; the package comes with
`pip install -e '.[smp]'`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import huggingface_hub
import safetensors.torch
import segmentation_models_pytorch as smp
from segmentation_models_pytorch.decoders.pan import decoder as pan
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import Tensor, nn

from adapters.stages import SwinStages, trunk_weights
from weights.registry import entry_named, read_registry

ENCODERS = ("swin_t", "swin_s", "swin_b", "swin_l")
DATA_SETS = {"imagenet": "imagenet1k", "imagenet22k": "imagenet22k"}  # smp's name for pretrained weights, and ours
PREPROCESSING = Path(__file__).with_name("imagenet_preprocessing.json")


class SwinEncoder(nn.Module, EncoderMixin):
    """Maps of strides 1, 2, 4, ... up to 2^depth, as smp's decoders expect of an encoder.

    The image itself stands for stride 1. A Swin has no stride 2: there, as in smp's own transformer encoders, is a map
    without channels.
    name: a key of SWIN_VARIANTS. depth: 2 to 5, of which a Swin's stages make the last depth - 1 maps.
    Raises ValueError for another depth, and for an output stride other than 32.
    """

    _is_torch_scriptable = False

    def __init__(self, name: str, depth: int = 5, output_stride: int = 32):
        super().__init__()
        if not 2 <= depth <= 5:
            raise ValueError(f"encoder_depth {depth} of {name}: expected 2 to 5; a Swin's first map has stride 4")
        if output_stride != 32:
            raise ValueError(
                f"encoder_output_stride {output_stride} of {name}: expected 32; patch merging cannot be dilated"
            )
        self.stages = SwinStages(name, tuple(range(1, depth)))
        self._depth, self._in_channels, self._output_stride = depth, 3, output_stride  # EncoderMixin's own
        self._out_channels = [3, 0, *self.stages.out_channels]

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, 3, H, W) float, normalised, sides multiples of 32. Returns depth + 1 maps."""
        batch, _, height, width = images.shape
        return [images, images.new_empty(batch, 0, height // 2, width // 2), *self.stages(images)]

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args, **kwargs):
        """Load the encoder's own weights or, into its trunk, those of a classifier (what `encoder_weights` names)."""
        if any(key.startswith("stages.") for key in state_dict):
            return super().load_state_dict(state_dict, *args, **kwargs)
        return self.stages.load_trunk(state_dict)


class SmallMapPool(nn.MaxPool2d):
    """Pooling that leaves a map of a single row or column as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return x if min(x.shape[-2:]) < self.kernel_size else super().forward(x)


class SmallMapFPA(pan.FPABlock):
    """The attention of smp's PAN, for maps of 4 cells a side and more.

    It halves the last map three times: 8 cells, or an image of 256 pixels at stride 32, are the least that smp's own
    takes. From there on both are the same.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.down3[0] = SmallMapPool(kernel_size=2)


def register_swins() -> None:
    """Make smp know `encoder_name="swin_t"` and its like.

    smp takes pretrained weights and their preprocessing from the Hugging Face hub alone, by two functions that it
    imports. They are replaced by ones that answer for the Swins with files of this machine, and leave the rest to
    the originals. The attention of its PAN is replaced by one that takes images of 224 pixels.
    """
    for name in ENCODERS:
        smp.encoders.encoders[name] = {
            "encoder": SwinEncoder,
            "params": {"name": name},
            "pretrained_settings": _pretrained_settings(name),
        }
    smp.encoders.hf_hub_download = _find_file
    smp.encoders.load_file = _load_file
    pan.FPABlock = SmallMapFPA


def _pretrained_settings(name: str) -> dict[str, dict]:
    """What smp shows and reads of an encoder's weights. The repository is of no hub: `_load_file` knows it."""
    preprocessing = json.loads(PREPROCESSING.read_text())
    defaults = read_registry().defaults
    return {
        theirs: {
            "repo_id": f"{name}/{ours}",
            "revision": None,
            "url": entry_named(defaults[ours][name]).url,
            **preprocessing,
        }
        for theirs, ours in DATA_SETS.items()
        if name in defaults[ours]
    }


def _is_swin(repository: str) -> bool:
    return repository.split("/")[0] in ENCODERS


def _find_file(repo_id: str, filename: str, **options) -> str:
    """Path of a file of the hub; of a Swin, path of its preprocessing or, for `_load_file`, its repository's name."""
    if not _is_swin(repo_id):
        return huggingface_hub.hf_hub_download(repo_id, filename=filename, **options)
    return str(PREPROCESSING) if filename == "config.json" else repo_id


def _load_file(filename: str, **options) -> dict[str, Tensor]:
    """Weights in a file of the hub; of a Swin, those that saved_weights/ has of it."""
    if not _is_swin(filename):
        return safetensors.torch.load_file(filename, **options)
    name, data_set = filename.split("/")
    return trunk_weights(data_set, name)
