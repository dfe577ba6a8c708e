"""Feature maps of Swin stages: shapes, norms, weights, and the models of other libraries in docs/extending.md."""

import logging
import re
from pathlib import Path

import pytest
import torch

from adapters.stages import SwinStages
from model import SWIN_VARIANTS, SwinTransformer

PAGE = Path(__file__).parents[2] / "docs/extending.md"


def run_example(word: str) -> dict:
    """Run the page's Python example that contains `word`, with the smallest Swin, and return the names it defines."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (code,) = [block for block in blocks if word in block]
    names = {}
    exec(code.replace("swin_t", "swin_slim"), names)
    return names


@pytest.fixture
def classifier_file(tmp_path):
    """Return a function that saves a classifier's weights and returns the file's path and the weights."""

    def save(**changes):
        classifier = SwinTransformer(**SWIN_VARIANTS["swin_slim"] | changes)
        torch.save(classifier.state_dict(), tmp_path / "slim.pth")
        return str(tmp_path / "slim.pth"), classifier.state_dict()

    return save


def test_maps_have_the_strides_and_channels_of_their_stages():
    stages = SwinStages("swin_slim", (2, 4))
    maps = stages(torch.randn(2, 3, 64, 100))
    assert stages.out_channels == [64, 256]
    assert {name: tuple(x.shape) for name, x in maps.items()} == {"0": (2, 64, 8, 13), "1": (2, 256, 2, 4)}


def test_every_map_is_normalised_over_its_channels():
    for x in SwinStages("swin_slim").eval()(5 * torch.randn(1, 3, 64, 64)).values():
        assert x.mean(dim=1).abs().max() < 1e-4
        torch.testing.assert_close(x.var(dim=1, correction=0), torch.ones(1, *x.shape[2:]), atol=0.05, rtol=0)


def test_a_classifiers_weights_load_into_the_trunk_and_resized_tables_are_reported(classifier_file, caplog):
    path, weights = classifier_file(window_size=8)
    with caplog.at_level(logging.WARNING):
        trunk = SwinStages("swin_slim", (1, 2), path).trunk
    assert len(trunk.layers) == 2
    assert torch.equal(trunk.patch_embed.proj.weight, weights["patch_embed.proj.weight"])
    assert re.search(r"resized 4 .*relative_position_bias_table \(225, 1\) to \(49, 1\)", caplog.text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("swin_x",), "'swin_x'.*swin_t, swin_s"),
        (("swin_slim", (4, 5)), "'stage5'.*stage1"),
        (("swin_t", (1, 2), "imagenet1k"), "'imagenet1k'.*swin_t.*fetch torchvision_swin_t"),
    ],
)
def test_unknown_names_and_missing_weights_are_errors(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr("weights.registry.FOLDER", tmp_path)
    with pytest.raises(ValueError, match=message):
        SwinStages(*arguments)


@pytest.mark.parametrize("name", ["faster_rcnn", "retina_net"])
def test_documented_torchvision_detectors_train_and_detect(name):
    model = run_example("torchvision.models.detection")[name]
    images = [torch.rand(3, 128, 128), torch.rand(3, 100, 130)]
    targets = {"boxes": torch.tensor([[16.0, 16.0, 80.0, 80.0]]), "labels": torch.tensor([2])}
    model.transform.min_size, model.transform.max_size = (128,), 160
    sum(model(images, [targets] * 2).values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():
        assert [output.keys() for output in model.eval()(images)] == [{"boxes", "scores", "labels"}] * 2


def test_documented_segmentation_model_trains():
    pytest.importorskip("segmentation_models_pytorch")
    model = run_example("segmentation_models_pytorch")["model"]
    masks = model(torch.rand(2, 3, 64, 96))
    assert masks.shape == (2, 21, 64, 96)
    masks.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
