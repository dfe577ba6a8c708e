"""Swin: equality with torchvision and timm, any input size, ablation switches, taps, loading."""

import functools

import pytest
import torch
import torchvision
from torch import nn

from model import (
    SWIN_VARIANTS,
    PatchExpanding,
    SwinBlock,
    SwinTransformer,
    load_swin_weights,
    swin_arguments,
)

TINY = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4), "num_classes": 5}


def add_noise(module: nn.Module) -> nn.Module:
    """Add noise to every parameter, so that no norm is the identity, no bias is zero and logits are of order one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return module.eval()


@functools.cache  # initialising a full-size Swin takes seconds
def torchvision_peer(variant: str) -> tuple[SwinTransformer, nn.Module]:
    """Return our model, loaded with torchvision's weights, and torchvision's model."""
    peer = add_noise(torchvision.models.get_model(variant, weights=None))
    model = SwinTransformer(**SWIN_VARIANTS[variant]).eval()
    load_swin_weights(model, peer.state_dict())
    return model, peer


@torch.no_grad()
def assert_same_logits(model: nn.Module, peer: nn.Module, *size: int) -> None:
    images = torch.randn(1, 3, *size)
    expected = peer(images)
    assert expected.std() > 0.1  # otherwise a tolerance of 1e-4 would be meaningless
    torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------- equality with peers


# At (336, 336) and (180, 148), windows and patch merging need padding.
@pytest.mark.parametrize(
    ("variant", "size"),
    [("swin_t", (224, 224)), ("swin_s", (224, 224)), ("swin_t", (336, 336)), ("swin_t", (180, 148))],
)
def test_logits_equal_torchvisions(variant, size):
    assert_same_logits(*torchvision_peer(variant), *size)


def test_logits_equal_timms():
    timm = pytest.importorskip("timm", reason="timm is not installed (pip install -e '.[dev]')")
    peer = add_noise(timm.create_model("swin_tiny_patch4_window7_224", pretrained=False))
    model = SwinTransformer(**SWIN_VARIANTS["swin_t"]).eval()
    load_swin_weights(model, peer.state_dict())
    assert_same_logits(model, peer, 224, 224)


TAPS = ("stage1", "merge1", "stage2", "merge2", "stage3", "merge3", "stage4")


# Sides are 75, 38, 19, 10 tokens for 300 pixels, and 84, 42, 21, 11 for 336. Whole maps are compared, also at borders,
# because torchvision also pads windows, and odd sides before merging.
@pytest.mark.parametrize("size", [300, 336])
@torch.no_grad()
def test_taps_equal_torchvisions_features(size):
    model, peer = torchvision_peer("swin_t")
    images = torch.randn(1, 3, size, size)
    maps = model.features(images, TAPS)
    x = peer.features[0](images)
    for tap, part in zip(TAPS, peer.features[1:], strict=True):
        x = part(x)
        torch.testing.assert_close(maps[tap].permute(0, 2, 3, 1), x, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [("swin_t", 28_288_354), ("swin_s", 49_606_258), ("swin_b", 87_768_224), ("swin_l", 196_532_476)],
)
def test_parameter_counts_equal_published_counts(variant, parameters):
    with torch.device("meta"):
        model = SwinTransformer(**SWIN_VARIANTS[variant])
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


# --------------------------------------------------------------------------------------------- small parts


def test_block_with_drop_path_1_is_the_identity_in_training():
    block = SwinBlock(8, 2, window_size=4, shift_size=2, mlp_ratio=4.0, drop_path=1.0, relative_position=True)
    x = torch.randn(2, 8, 8, 8)
    assert torch.equal(block.train()(x), x)
    assert not torch.equal(block.eval()(x), x)


def test_drop_path_grows_linearly_over_depth():
    model = SwinTransformer(**TINY, drop_path_rate=0.7)
    rates = [block.drop_path.probability for layer in model.layers for block in layer.blocks]
    assert rates == pytest.approx([0.1 * index for index in range(8)])


def test_patch_expanding_expands_each_token_to_2x2_tokens():
    assert PatchExpanding(8, scale=4)(torch.randn(1, 8, 2, 5)).shape == (1, 4, 8, 20)
    expanding = PatchExpanding(8)
    x = torch.randn(2, 8, 3, 5)
    expanded = expanding(x)
    assert expanded.shape == (2, 4, 6, 10)
    tokens = expanding.expand(expanding.norm(x[1, :, 2, 4]))
    torch.testing.assert_close(expanded[1, :, 4:, 8:].flatten(), tokens)


# ------------------------------------------------------------------------------------------------ switches


def input_gradient(model: SwinTransformer, row: int, column: int) -> torch.Tensor:
    """Return the absolute gradient of stage 1's token at (row, column) by each of 12x12 input pixels, (12, 12)."""
    images = torch.randn(1, 3, 12, 12, requires_grad=True)
    model.features(images, ["stage1"])["stage1"][0, :, row, column].square().sum().backward()
    return images.grad.abs().sum(dim=(0, 1))


def test_without_shift_a_token_depends_on_its_own_window_only():
    model = SwinTransformer(**TINY, window_size=4, patch_size=1, shift=False).eval()
    gradient = input_gradient(model, 0, 0)
    assert gradient[:4, :4].min() > 0
    assert gradient[4:].max() == 0
    assert gradient[:, 4:].max() == 0


@pytest.mark.parametrize(
    ("position", "absolute", "relative"),
    [("none", 0, 0), ("abs", 1, 0), ("rel", 0, 8), ("abs+rel", 1, 8)],
)
def test_position_switch_decides_which_parameters_exist(position, absolute, relative):
    model = SwinTransformer(**TINY, position=position)
    names = list(model.state_dict())
    assert sum(name == "absolute_pos_embed" for name in names) == absolute
    assert sum(name.endswith("relative_position_bias_table") for name in names) == relative
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# -------------------------------------------------------------------------------------------- any size, taps


@pytest.mark.parametrize("patch_size", [2, 4])
@pytest.mark.parametrize("size", [(32, 32), (90, 70), (33, 47)])
def test_sides_are_rounded_up_at_any_input_size(size, patch_size):
    model = SwinTransformer(**TINY, window_size=4, patch_size=patch_size)
    taps = [f"{kind}{number}" for number in (1, 2, 3) for kind in ("stage", "merge")] + ["stage4"]
    maps = model.features(torch.randn(2, 3, *size), taps)
    assert list(maps) == taps
    for tap in taps:
        halvings = int(tap[-1]) - tap.startswith("stage")
        sides = [-(-side // patch_size) for side in size]
        for _ in range(halvings):
            sides = [-(-side // 2) for side in sides]
        assert maps[tap].shape == (2, model.out_channels(tap), *sides)
        assert model.out_channels(tap) == 8 * 2**halvings


def test_unknown_tap_is_an_error():
    with pytest.raises(ValueError, match=r"tap 'merge4'.*stage1, merge1, stage2"):
        SwinTransformer(**TINY).features(torch.randn(1, 3, 32, 32), ["merge4"])


@pytest.mark.parametrize("taps", [("stage1",), ("merge1", "merge2"), ("stage2", "merge3"), ("stage4",)])
def test_cut_keeps_features_and_leaves_no_unused_parameter(taps):
    model = SwinTransformer(**TINY).eval()
    images = torch.randn(2, 3, 64, 64)
    before = model.features(images, taps)
    maps = model.cut(taps).features(images, taps)
    for tap in taps:
        assert torch.equal(maps[tap], before[tap])
    sum(x.square().sum() for x in maps.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_mask_cached_in_inference_mode_can_be_used_in_training():
    model = SwinTransformer(**TINY, window_size=3)  # no other test uses this window size and fills the cache
    images = torch.randn(2, 3, 60, 60)
    with torch.inference_mode():
        model(images)
    model(images).sum().backward()


def test_bfloat16_autocast_is_close_to_float32():
    model = add_noise(SwinTransformer(**TINY))
    images = torch.randn(2, 3, 120, 120)
    with torch.no_grad():
        expected = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
    torch.testing.assert_close(logits.float(), expected, atol=0.05 * expected.abs().max().item(), rtol=0)


@pytest.mark.filterwarnings("error:Dynamo detected")
@pytest.mark.slow
def test_model_compiles_to_one_graph():
    torch._dynamo.reset()
    model = SwinTransformer(**TINY).eval()
    images = torch.randn(1, 3, 60, 60)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")(images)
        torch.testing.assert_close(compiled, model(images))


# ------------------------------------------------------------------------------------------------- loading


def microsoft_checkpoint(model: SwinTransformer) -> dict:
    """Return a checkpoint in Microsoft's format: a wrapper dict, including buffers."""
    weights = dict(model.state_dict())
    for stage in range(4):
        weights[f"layers.{stage}.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
        weights[f"layers.{stage}.blocks.1.attn_mask"] = torch.zeros(4, 49, 49)
    return {"model": weights}


def test_microsofts_checkpoint_loads():
    published = add_noise(SwinTransformer(**TINY))
    model = SwinTransformer(**TINY).eval()
    assert load_swin_weights(model, microsoft_checkpoint(published)) == ([], [])
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(images), published(images))


def test_mismatched_checkpoint_is_an_error_that_lists_all_problems_and_changes_nothing():
    model = SwinTransformer(**TINY)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = dict(add_noise(SwinTransformer(**TINY)).state_dict())
    del weights["norm.weight"]
    weights["layers.0.blocks.7.norm1.weight"] = torch.zeros(8)
    weights["head.weight"] = torch.zeros(1000, 64)
    with pytest.raises(ValueError) as error:
        load_swin_weights(model, weights)
    for fact in (
        "1 missing: norm.weight", "1 unexpected: layers.0.blocks.7.norm1.weight",
        "1 of a different shape: head.weight (1000, 64) instead of (5, 64)",
    ):  # fmt: skip
        assert fact in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ---------------------------------------------------------------------------------- loading different sizes


def test_relative_bias_of_a_different_window_size_is_resized_as_in_timm():
    layers = pytest.importorskip("timm.layers", reason="timm is not installed (pip install -e '.[dev]')")
    published = add_noise(SwinTransformer(**TINY, window_size=7))
    model = SwinTransformer(**TINY, window_size=12)
    load_swin_weights(model, published.state_dict())
    for layer, from_layer in zip(model.layers, published.layers, strict=True):
        for block, from_block in zip(layer.blocks, from_layer.blocks, strict=True):
            table = block.attn.relative_position_bias_table
            expected = layers.resize_rel_pos_bias_table_simple(
                from_block.attn.relative_position_bias_table, (12, 12), tuple(table.shape)
            )
            torch.testing.assert_close(table, expected)


def test_absolute_position_is_resized_on_loading_as_in_the_forward_pass():
    published = add_noise(SwinTransformer(**TINY, position="abs", image_size=32))
    model = SwinTransformer(**TINY, position="abs", image_size=52).eval()
    load_swin_weights(model, published.state_dict())
    images = torch.randn(1, 3, 52, 52)
    torch.testing.assert_close(model(images), published(images))


def test_loading_returns_what_it_resized():
    published = SwinTransformer(**TINY, position="abs+rel", image_size=32, window_size=7)
    model = SwinTransformer(**TINY, position="abs+rel", image_size=64, window_size=12)
    resized, skipped = load_swin_weights(model, published.state_dict())
    assert len(resized) == 9
    assert resized[0] == "absolute_pos_embed (1, 64, 8) to (1, 256, 8)"
    assert resized[1] == "layers.0.blocks.0.attn.relative_position_bias_table (169, 1) to (529, 1)"
    assert skipped == []


def test_bias_tables_for_a_different_number_of_heads_are_an_error():
    published = SwinTransformer(**TINY | {"num_heads": (1, 2, 2, 8)}, window_size=12)
    with pytest.raises(ValueError, match=r"2 of a different shape: layers\.3\..*bias_table \(529, 8\).*\(169, 4\)"):
        load_swin_weights(SwinTransformer(**TINY), published.state_dict())


# ----------------------------------------------------------------------- arguments inferred from a checkpoint


@pytest.mark.parametrize("variant", SWIN_VARIANTS)
def test_arguments_of_every_variant_are_inferred(variant):
    with torch.device("meta"):
        weights = SwinTransformer(**SWIN_VARIANTS[variant]).state_dict()
    arguments = swin_arguments(weights)
    assert SWIN_VARIANTS[variant].items() <= arguments.items()


def test_all_other_arguments_are_inferred():
    expected = {
        "num_classes": 5, "window_size": 6, "patch_size": 2, "in_channels": 1, "mlp_ratio": 2.0,
        "position": "abs+rel", "image_size": 40,
    }  # fmt: skip
    weights = SwinTransformer(**TINY | expected, shift=False, drop_path_rate=0.5).state_dict()
    assert swin_arguments(weights) == TINY | expected


@pytest.mark.parametrize("library", ["microsoft", "torchvision", "timm"])
def test_arguments_are_inferred_from_checkpoints_of_all_libraries(library):
    if library == "microsoft":
        weights, expected = microsoft_checkpoint(SwinTransformer(**TINY)), TINY
    elif library == "torchvision":
        weights, expected = torchvision.models.swin_t(weights=None).state_dict(), SWIN_VARIANTS["swin_t"]
    else:
        timm = pytest.importorskip("timm", reason="timm is not installed (pip install -e '.[dev]')")
        with torch.device("meta"):
            weights = timm.create_model("swin_large_patch4_window12_384", pretrained=False).state_dict()
        expected = SWIN_VARIANTS["swin_l"] | {"window_size": 12}
    assert expected.items() <= swin_arguments(weights).items()


BIAS_TABLE = "layers.3.blocks.0.attn.relative_position_bias_table"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda: SwinTransformer(**TINY, position="abs").state_dict(), "relative position bias"),
        (
            lambda: SwinTransformer(**TINY).state_dict() | {BIAS_TABLE: torch.zeros(9, 4)},
            r"\[7, 7, 7, 2\]",
        ),
        (lambda: {"fc.weight": torch.zeros(2, 2)}, r"patch_embed\.proj\.weight"),
        (lambda: {"epoch": 3}, r"patch_embed\.proj\.weight"),
    ],
)
def test_weights_with_unknown_arguments_are_an_error(weights, message):
    with pytest.raises(ValueError, match=message):
        swin_arguments(weights())
