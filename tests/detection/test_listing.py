"""detection/listing.py: tables of backbones, and the file with accuracies of timm's weights."""

import sys

import pytest
import torch
from torchvision.models import resnet50

from detection import show
from detection.network.backbones import BACKBONES, backbone_spec
from detection.network.timm_trunk import timm_levels


@pytest.fixture
def command(run_in_process):
    """Return a function that runs `python -m detection.show backbones` and returns (exit code, output, error lines)."""
    return lambda *words: run_in_process(show, "backbones", *words)


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


def cells(output: str) -> dict[str, list[str]]:
    """Return the cells after the first one in each line, by the first one. Columns are two spaces apart."""
    lines = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in output.splitlines()]
    return {line[0]: line[1:] for line in lines if line}


def test_without_a_pattern_the_own_backbones_are_listed(command):
    code, out, _ = command()
    rows = cells(out)
    assert code == 0
    assert BACKBONES.keys() <= rows.keys()
    trunk = torch.nn.Sequential(*list(resnet50().children())[:-1])  # without the classifier
    parameters = sum(each.numel() for each in trunk.parameters())
    expected = [f"{parameters / 1e6:.1f}", "8 16 32", "76.1", "torchvision_resnet50_v1"]
    assert rows["ResNet50Backbone_A"][:4] == expected
    assert rows["SwinSlimBackbone_B"][1:] == ["8", "-", "-", "0"]


def test_an_own_backbone_with_a_trunk_of_timm_is_listed_too(command, timm, monkeypatch):
    monkeypatch.setitem(BACKBONES, "LCNetBackbone_C", backbone_spec("timm/lcnet_035"))
    code, out, _ = command()
    assert code == 0
    assert cells(out)["LCNetBackbone_C"] == [*cells(command("lcnet_035")[1])["timm/lcnet_035"][:2], "-", "-", "0"]


def test_one_of_the_own_backbones_is_listed_alone(command):
    assert [name for name in cells(command("SwinTBackbone_C")[1]) if name in BACKBONES] == ["SwinTBackbone_C"]


@pytest.mark.parametrize("pattern", ["resnet18*", "timm/ResNet18*"])
def test_matching_models_of_timm_are_listed_in_the_order_of_timm(command, timm, pattern):
    code, out, _ = command(pattern)
    rows = cells(out)
    assert code == 0
    assert [name for name in rows if "/" in name] == [f"timm/{name}" for name in timm.list_models("resnet18*")]
    number = len(timm.list_pretrained("resnet18.*"))
    assert rows["timm/resnet18"] == ["11.2", "8 16 32", "73.2", "a1_in1k", str(number)]


def test_models_that_do_not_fit_are_counted_by_reason(command, timm):
    code, out, _ = command("vit_[bt]*_patch16_clip_224")  # a plain vision transformer has one map size
    assert code == 0
    assert [name for name in cells(out) if "/" in name] == []
    names = timm.list_models("vit_[bt]*_patch16_clip_224")
    assert [line.split()[index] for line, index in zip(out.splitlines(), (1, 0), strict=True)] == [str(len(names))] * 2
    assert out.splitlines()[1].endswith("stride 16")


def test_models_that_fit_are_listed_before_the_number_of_others(command, timm):
    _, out, _ = command("efficientvit_[bm]0")  # m0 begins with a patch of 16 x 16 pixels
    assert out.split("\n\n")[0].splitlines()[1].startswith("timm/efficientvit_b0")
    assert out.split("\n\n")[1].startswith("unsuitable: 1 of 2 ")


def test_a_model_without_feature_maps_is_counted(command, timm, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("features_only not implemented")

    timm_levels.cache_clear()
    monkeypatch.setattr(timm, "create_model", fail)
    _, out, _ = command("resnet18")
    assert out.split()[1:4] == ["1", "of", "1"]
    assert out.splitlines()[1].split() == ["1", "with", "no", "feature", "maps"]
    timm_levels.cache_clear()


def test_one_model_is_listed_with_its_weights(command, timm):
    _, out, _ = command("convnext_tiny")
    rows = cells(out)
    tags = [name.partition(".")[2] for name in timm.list_pretrained("convnext_tiny.*")]
    assert rows.keys() >= {f"timm/convnext_tiny.{tag}" for tag in tags}
    assert rows["timm/convnext_tiny.in12k_ft_in1k"][4:6] == ["84.5", "apache-2.0"]
    assert rows["timm/convnext_tiny.in12k"][4] == "-"


def test_a_model_without_weights_is_listed_without_accuracy(command, timm):
    assert cells(command("convnextv2_small")[1])["timm/convnextv2_small"][2:] == ["-", "-", "0"]


@pytest.mark.parametrize(
    ("pattern", "named"), [("convnext", "'*convnext*'"), ("resnt50", "'resnet50'"), ("resnet50.a1_in1k", "'resnet50'")]
)
def test_a_pattern_without_a_match_is_an_error_with_a_suggestion(command, timm, pattern, named):
    code, out, [error] = command(pattern)
    assert (code, out) == (2, "")
    assert named in error


def test_without_timm_the_error_names_the_install_command(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    code, out, [error] = command("resnet18*")
    assert (code, out) == (2, "")
    assert "pip install -e '.[timm]'" in error
