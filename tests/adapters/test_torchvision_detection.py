"""The Swin backbone of torchvision's detectors: maps, training, detecting, weights, the example."""

import runpy

import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from adapters.torchvision_detection import backbone
from model import SWIN_VARIANTS, SwinTransformer


def faster_rcnn() -> nn.Module:
    return FasterRCNN(backbone("swin_slim"), num_classes=4, min_size=128, max_size=160)


def retina_net() -> nn.Module:
    pyramid = backbone("swin_slim", stages=(2, 3, 4), extra_blocks=LastLevelP6P7(256, 256))
    return RetinaNet(pyramid, num_classes=4, min_size=128, max_size=160)


IMAGES = [torch.rand(3, 128, 128), torch.rand(3, 100, 130)]


def test_maps_are_ordered_by_resolution_and_of_equal_width():
    model = backbone("swin_t", out_channels=64)
    maps = model(torch.randn(1, 3, 96, 128))
    assert list(maps) == ["0", "1", "2", "3", "pool"]
    assert [x.shape[-2:] for x in maps.values()] == [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
    assert {x.shape[1] for x in maps.values()} == {model.out_channels} == {64}


@pytest.mark.parametrize("make", [faster_rcnn, retina_net])
def test_a_loss_of_torchvisions_detector_reaches_every_parameter(make):
    model = make().train()
    boxes = torch.tensor([[16.0, 16.0, 80.0, 80.0]])
    losses = model(IMAGES, [{"boxes": boxes, "labels": torch.tensor([2])}] * 2)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("make", [faster_rcnn, retina_net])
@torch.no_grad()
def test_torchvisions_detector_detects_on_images_of_any_size(make):
    detections = make().eval()(IMAGES)
    assert [detection.keys() for detection in detections] == [{"boxes", "scores", "labels"}] * 2


def test_named_weights_are_in_the_trunk(tmp_path):
    classifier = SwinTransformer(**SWIN_VARIANTS["swin_slim"])
    torch.save(classifier.state_dict(), tmp_path / "slim.pth")
    trunk = backbone("swin_slim", str(tmp_path / "slim.pth")).body.trunk
    assert torch.equal(trunk.layers[3].blocks[1].mlp.fc2.weight, classifier.layers[3].blocks[1].mlp.fc2.weight)


def test_weights_of_another_swin_are_refused(tmp_path):
    torch.save(SwinTransformer(**SWIN_VARIANTS["swin_slim"]).state_dict(), tmp_path / "slim.pth")
    with pytest.raises(ValueError, match="weights do not fit SwinTransformer, nothing was loaded"):
        backbone("swin_t", str(tmp_path / "slim.pth"))


def test_the_example_trains_both_detectors(capsys):
    runpy.run_module("examples.torchvision_detectors_with_swin")
    lines = capsys.readouterr().out.splitlines()
    for detector in ("FasterRCNN", "RetinaNet"):
        losses = [float(line.split()[-1]) for line in lines if line.startswith(detector)]
        assert losses[-1] < losses[0]
