"""Backbones: channels and sides of the maps, public checkpoints, and backbones that a user might add."""

import dataclasses

import pytest
import torch
import torchvision
from torch import nn

from detection.network.backbones import (
    BACKBONES,
    HALVE,
    HALVE_UNPADDED,
    SAME,
    VALID,
    BackboneSpec,
    L2Norm,
    build_backbone,
    load_backbone_weights,
    plan_extras,
)
from engine.compute.placement import set_train_mode

# name: (input size, channels, sides at that input size). Microsoft's Swin pads odd sides, so it merges 21 to 11.
REFERENCE = {
    "ResNet50Backbone_A": (300, [512, 1024, 2048, 512, 256, 256], [38, 19, 10, 5, 3, 1]),
    "ResNet50Backbone_B": (300, [1024, 512, 512, 256, 256, 256], [38, 19, 10, 5, 3, 1]),
    "SwinTBackbone_A": (336, [192, 384, 768, 512, 256, 256], [42, 21, 11, 6, 3, 1]),
    "SwinTBackbone_B": (336, [192, 512, 512, 256, 256, 256], [42, 21, 11, 6, 3, 1]),
    "ResNet50Backbone_C": (320, [512, 1024, 2048, 512, 256, 256], [40, 20, 10, 5, 3, 1]),
    "SwinTBackbone_C": (320, [192, 384, 768, 512, 256, 256], [40, 20, 10, 5, 3, 1]),
    "ResNet18SlimBackbone_A": (128, [64, 128, 256, 256, 128, 128], [16, 8, 4, 2, 1, 1]),
    "ResNet18SlimBackbone_B": (128, [128, 256, 256, 128, 128, 128], [16, 8, 4, 2, 1, 1]),
    "ResNet18SlimBackbone_C": (128, [64, 128, 256, 256, 128, 128], [16, 8, 4, 2, 1, 1]),
    "SwinSlimBackbone_B": (128, [64, 256, 256, 128, 128, 128], [16, 8, 4, 2, 1, 1]),
    "ResNet101Backbone_C5": (300, [2048, 512, 512, 512, 512, 512], [10, 5, 3, 2, 1, 1]),
    "SwinSBackbone_B": (336, [192, 512, 512, 256, 256, 256], [42, 21, 11, 6, 3, 1]),
    "SwinTBackbone_stages": (224, [96, 192, 384, 768, 256, 256], [56, 28, 14, 7, 4, 1]),
}
STAGES = ("stage1", "stage2", "stage3", "stage4")
USER_BACKBONES = {  # examples of what a user might add
    "ResNet101Backbone_C5": BackboneSpec("resnet101", 300, ("layer4",), extras=((256, 512),) * 5, steps=(HALVE,) * 5),
    "SwinSBackbone_B": dataclasses.replace(BACKBONES["SwinTBackbone_B"], trunk="swin_s"),
    "SwinTBackbone_stages": BackboneSpec(
        "swin_t", 224, STAGES, extras=((128, 256), (128, 256)), steps=(HALVE, HALVE_UNPADDED)
    ),
}
A_STEPS = (HALVE, HALVE, VALID)
B_STEPS = (HALVE, HALVE, HALVE, VALID, VALID)


def build_shapes_only(name: str) -> nn.Module:
    """Build a backbone on the meta device, where `forward` only computes shapes."""
    with torch.device("meta"):
        return build_backbone(name).eval()


def map_sides(backbone: nn.Module, input_size: int) -> list[int]:
    maps = backbone(torch.empty(2, 3, input_size, input_size, device="meta"))
    assert [tuple(x.shape) for x in maps] == [
        (2, channels, x.shape[-1], x.shape[-1]) for channels, x in zip(backbone.out_channels, maps, strict=True)
    ]
    return [x.shape[-1] for x in maps]


def add_noise(module: nn.Module) -> nn.Module:
    """Add noise to weights and running statistics, so that no norm is the identity."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * tensor.std().nan_to_num(1.0).clamp(0.1) * torch.rand_like(tensor))
    return module.eval()


# ---------------------------------------------------------------------------------------- channels and grids


@pytest.mark.parametrize("name", [*BACKBONES, *USER_BACKBONES])
def test_channels_and_sides_at_the_reference_input(name, monkeypatch):
    if name in USER_BACKBONES:
        monkeypatch.setitem(BACKBONES, name, USER_BACKBONES[name])
    input_size, channels, reference_sides = REFERENCE[name]
    backbone = build_shapes_only(name)
    assert BACKBONES[name].input_size == input_size
    assert backbone.out_channels == channels
    assert map_sides(backbone, input_size) == reference_sides


@pytest.mark.parametrize(
    ("input_size", "expected"),
    [
        (96, [12, 6, 3, 2, 1, 1]),
        (128, [16, 8, 4, 2, 1, 1]),
        (320, [40, 20, 10, 5, 3, 1]),
        (512, [64, 32, 16, 8, 4, 1]),
        (640, [80, 40, 20, 10, 4, 1]),
    ],
)
@pytest.mark.parametrize("name", BACKBONES)
def test_last_map_has_one_cell_at_other_input_sizes(name, input_size, expected):
    assert map_sides(build_shapes_only(name), input_size) == expected


@pytest.mark.parametrize(("height", "width"), [(95, 95), (128, 160)])
def test_small_and_oblong_images_are_errors(height, width):
    backbone = build_shapes_only("ResNet18SlimBackbone_B")
    with pytest.raises(ValueError, match=f"{width}x{height} pixels.*96 pixels"):
        backbone(torch.empty(1, 3, height, width, device="meta"))


# -------------------------------------------------------------------------------------------------- planning


@pytest.mark.parametrize(
    ("side", "steps", "plan", "last"),
    [
        (10, A_STEPS, A_STEPS, 1),  # a backbone's own steps at its reference input size
        (38, B_STEPS, B_STEPS, 1),
        (16, B_STEPS, (HALVE, HALVE, HALVE, HALVE, SAME), 1),  # 8 4 2 1 1
        (24, B_STEPS, (HALVE, HALVE, HALVE, VALID, SAME), 1),  # 12 6 3 1 1
        (64, B_STEPS, (HALVE, HALVE, HALVE, HALVE, HALVE_UNPADDED), 1),  # 32 16 8 4 1
        (4, A_STEPS, (HALVE, HALVE, SAME), 1),  # 2 1 1
        (1, A_STEPS, (SAME, SAME, SAME), 1),
        (2, (VALID,), (HALVE,), 1),  # an unpadded convolution needs 3 cells
        (128, (HALVE,), (HALVE_UNPADDED,), 63),  # 1 cannot be reached: the smallest possible side
        (5, (), (), 5),
    ],
)
def test_plan_of_extra_levels(side, steps, plan, last):
    assert plan_extras(side, steps) == (plan, last)


@pytest.mark.parametrize(("steps", "largest"), [(A_STEPS, 640 // 32), (B_STEPS, 640 // 8)])
def test_last_map_has_one_cell_at_every_input_size_up_to_640(steps, largest):
    assert [side for side in range(1, largest + 1) if plan_extras(side, steps)[1] != 1] == []


# ----------------------------------------------------------------------------------------- parts of a backbone


def test_l2_norm_scales_each_channel_by_its_own_factor():
    norm = L2Norm(2)
    norm.scale.data = torch.tensor([10.0, 100.0])
    x = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(norm(x).flatten(), torch.tensor([6.0, 80.0]))


@pytest.mark.parametrize(
    ("name", "norm"),
    [("ResNet50Backbone_B", nn.BatchNorm2d), ("SwinTBackbone_A", nn.BatchNorm2d), ("SwinTBackbone_B", nn.LayerNorm)],
)
def test_extra_levels_have_the_norm_of_their_spec_and_xavier_weights_without_bias(name, norm):
    backbone = build_backbone(name, drop_path_rate=0.0)
    if name.startswith("Swin"):
        assert all(block.drop_path.probability == 0 for layer in backbone.trunk.layers for block in layer.blocks)
    for level in backbone.extras:
        assert isinstance(level.norm1, norm)
        assert isinstance(level.norm2, norm)
        for conv in (level.conv1, level.conv2):
            fan = (conv.in_channels + conv.out_channels) * conv.kernel_size[0] ** 2
            assert conv.bias is None
            assert conv.weight.abs().max().item() == pytest.approx((6 / fan) ** 0.5, rel=0.01)


# ----------------------------------------------------------------------------------------- public checkpoints


@pytest.mark.parametrize("name", ["ResNet50Backbone_A", "ResNet50Backbone_B"])
def test_resnet_trunk_equals_torchvisions(name):
    peer = add_noise(torchvision.models.resnet50(weights=None))
    backbone = build_backbone(name).eval()
    load_backbone_weights(backbone, peer.state_dict())
    if name.endswith("B"):  # layer3 at stride 1: ResNet v1.5 has strides in the 3x3 convolution and the shortcut
        peer.layer3[0].conv2.stride = peer.layer3[0].downsample[0].stride = (1, 1)

    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        x = peer.maxpool(peer.relu(peer.bn1(peer.conv1(images))))
        maps = backbone.trunk.features(images, backbone.taps)
        for layer in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(peer, layer)(x)
            if layer in maps:
                torch.testing.assert_close(maps.pop(layer), x)
    assert not maps


@pytest.mark.parametrize("name", ["SwinTBackbone_A", "SwinTBackbone_B"])
def test_swin_trunk_with_torchvisions_weights_equals_torchvisions(name):
    peer = add_noise(torchvision.models.swin_t(weights=None))
    backbone = build_backbone(name).eval()
    load_backbone_weights(backbone, peer.state_dict())
    images = torch.randn(1, 3, 96, 96)
    depth, tap = (6, "stage3") if name.endswith("B") else (7, "merge3")
    with torch.no_grad():
        ours = backbone.trunk.features(images, backbone.taps)[tap]
        torch.testing.assert_close(ours.permute(0, 2, 3, 1), peer.features[:depth](images))


def test_checkpoint_without_batch_norm_step_counter_loads():
    weights = torchvision.models.resnet50(weights=None).state_dict()
    old = {key: tensor for key, tensor in weights.items() if not key.endswith("num_batches_tracked")}
    load_backbone_weights(build_backbone("ResNet50Backbone_B"), old)


def test_mismatched_checkpoint_is_an_error_and_changes_nothing():
    backbone = build_backbone("ResNet50Backbone_B")
    before = backbone.trunk.conv1.weight.clone()
    weights = torchvision.models.resnet101(weights=None).state_dict()
    del weights["layer1.0.conv1.weight"]
    weights["bn1.bias"] = torch.zeros(32)
    with pytest.raises(ValueError, match=r"layer1\.0\.conv1\.weight") as error:
        load_backbone_weights(backbone, weights)
    assert all(text in str(error.value) for text in ("bn1.bias (32,)", "(64,)"))
    assert "layer3.6.conv1.weight" in str(error.value)
    assert torch.equal(backbone.trunk.conv1.weight, before)


# ------------------------------------------------------------------------------------------------ frozen parts

STEM_SIZES = {  # number of parameters before the first stage, from the papers' kernel sizes
    "resnet50": 7 * 7 * 3 * 64 + 2 * 64,
    "resnet18_slim": 7 * 7 * 3 * 32 + 2 * 32,
    "swin_t": 4 * 4 * 3 * 96 + 96 + 2 * 96,
    "swin_slim": 4 * 4 * 3 * 32 + 32 + 2 * 32,
}


def size(module: nn.Module, *, trained: bool) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trained)


@pytest.mark.parametrize("name", BACKBONES)
def test_only_the_parameters_of_the_frozen_part_are_not_trained(name):
    with torch.device("meta"):
        whole, stem, trunk = (build_backbone(name, freeze=freeze) for freeze in ("none", "stem", "trunk"))
    assert size(whole, trained=True) == size(whole, trained=False)
    assert size(stem, trained=True) == size(whole, trained=True) - STEM_SIZES[BACKBONES[name].trunk]
    assert size(trunk, trained=True) == size(whole, trained=True) - size(whole.trunk, trained=True)
    assert size(trunk.trunk, trained=True) == 0


@pytest.mark.parametrize(
    ("name", "norm"), [("ResNet18SlimBackbone_B", "trunk.bn1"), ("SwinSlimBackbone_B", "trunk.patch_embed.norm")]
)
@pytest.mark.parametrize("wrap", [lambda model: model, torch.compile], ids=["eager", "compiled"])
@pytest.mark.parametrize("batch_norm", ["local", "frozen"])
def test_the_frozen_part_stays_in_evaluation_mode(name, norm, wrap, batch_norm):
    for freeze in ("stem", "trunk"):
        with torch.device("meta"):
            backbone = build_backbone(name, freeze=freeze)
        model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(backbone))  # replaces the modules
        for _ in range(2):
            set_train_mode(wrap(model), batch_norm)
            frozen = {name for name, module in backbone.named_modules() if not module.training}
            assert norm in frozen
            assert ("trunk" in frozen) == (freeze == "trunk")
            if freeze == "trunk":
                assert {f"trunk.{name}" for name, _ in backbone.trunk.named_modules() if name} <= frozen
            elif batch_norm == "local":
                assert all(name.startswith(("trunk.conv1", "trunk.bn1", "trunk.patch_embed")) for name in frozen)
            assert backbone.extras.training
            model.eval()
            assert not any(module.training for module in model.modules())


def test_a_frozen_trunk_has_no_stochastic_depth():
    images = torch.randn(4, 3, 96, 96)
    for freeze, differs in (("trunk", False), ("stem", True)):
        backbone = build_backbone("SwinSlimBackbone_B", drop_path_rate=0.9, freeze=freeze).train()
        first, second = (backbone.trunk.features(images, ("stage3",))["stage3"] for _ in range(2))
        assert torch.equal(first, second) != differs


@pytest.mark.filterwarnings("error:Dynamo detected")
@pytest.mark.slow
def test_backbone_compiles_to_one_graph():
    torch._dynamo.reset()
    backbone = build_backbone("ResNet18SlimBackbone_B").eval()
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        compiled = torch.compile(backbone, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(images), backbone(images))
