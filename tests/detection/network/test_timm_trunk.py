"""Models of timm as trunks: maps, gradients, weights, and equality with the project's own trunks."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

timm = pytest.importorskip("timm")

from detection.network import timm_trunk  # noqa: E402
from detection.network.backbones import build_backbone, load_backbone_weights  # noqa: E402
from detection.network.necks import NECKS, build_neck  # noqa: E402
from detection.network.ssd import ModelConfig, build_ssd  # noqa: E402
from detection.network.timm_trunk import STRIDES, timm_levels  # noqa: E402
from engine.compute.placement import place_model  # noqa: E402
from engine.config import load_config  # noqa: E402
from engine.optim import parameter_groups  # noqa: E402
from engine.strict_yaml import ConfigError  # noqa: E402

# Small models of each family, in all forms that timm's feature extractors have.
FAMILIES = {
    "resnet": ("resnet10t", "resnet18"),
    "regnet": ("regnetx_002", "regnety_002"),
    "efficientnet": ("tf_efficientnet_lite0", "tinynet_e"),
    "mobilenet": ("mobilenetv3_small_050", "mobilenetv4_conv_small_050", "lcnet_035"),
    "convnext": ("convnext_atto", "convnextv2_atto", "inception_next_atto"),
    "swin": ("swin_tiny_patch4_window7_224", "swinv2_cr_tiny_ns_224"),
    "maxvit": ("maxvit_rmlp_pico_rw_256", "coatnet_pico_rw_224"),
    "pvt": ("pvt_v2_b0",),
    "metaformer": ("poolformer_s12",),
    "edgenext": ("edgenext_xx_small",),
    "fastvit": ("fastvit_t8",),
    "efficientvit": ("efficientvit_b0",),
    "tiny_vit": ("tiny_vit_5m_224",),
    "gcvit": ("gcvit_xxtiny",),
    "visformer": ("visformer_tiny",),
    "mambaout": ("mambaout_femto",),
    "densenet": ("densenet121",),
    "hrnet": ("hrnet_w18_small",),
    "dla": ("dla46_c",),
    "ghostnet": ("ghostnet_050",),
    "byobnet": ("repvgg_a0", "mobileone_s0", "mobilevit_xxs"),
    "starnet": ("starnet_s1",),
    "vgg": ("vgg11",),
}
MODELS = [name for names in FAMILIES.values() for name in names]
FAST = ("resnet10t", "tf_efficientnet_lite0", "convnext_atto", "swinv2_cr_tiny_ns_224", "visformer_tiny")
PARAMETERS = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


def test_the_list_has_at_least_25_models_of_10_families():
    assert len(MODELS) >= 25
    assert len(FAMILIES) >= 10


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_map_has_its_stride_and_every_neck_trains_every_parameter(name):
    assert timm_levels(name).strides == STRIDES
    for side in (128, 224):
        backbone = build_backbone(f"timm/{name}", input_size=side)
        maps = backbone(torch.rand(2, 3, side, side))
        assert [x.shape[-1] for x in maps[:3]] == [side // stride for stride in STRIDES]
        assert maps[-1].shape[-1] == 1
        assert [x.shape[1] for x in maps] == backbone.out_channels
        outputs = [build_neck(neck, backbone.out_channels, 16)(maps) for neck in NECKS]
        sum(x.square().mean() for neck_maps in outputs for x in neck_maps).backward()
        without_gradient = [
            key for key, value in backbone.named_parameters() if value.requires_grad and value.grad is None
        ]
        assert not without_gradient
        assert all(value.grad.isfinite().all() for value in backbone.parameters() if value.requires_grad)


@pytest.mark.parametrize(
    ("timm_name", "own"), [("resnet50", "ResNet50Backbone_C"), ("swin_tiny_patch4_window7_224", "SwinTBackbone_C")]
)
def test_a_model_of_timm_equals_the_own_trunk_with_the_same_weights(timm_name, own):
    torch.manual_seed(0)
    classifier = timm.create_model(timm_name)
    with torch.no_grad():  # random statistics and scales, so that no norm is the identity
        for tensor in classifier.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.02 * torch.rand_like(tensor))
    theirs, ours = build_backbone(f"timm/{timm_name}", input_size=224), build_backbone(own, input_size=224)
    for backbone in (theirs, ours):
        load_backbone_weights(backbone, classifier.state_dict())
    ours.extras.load_state_dict(theirs.extras.state_dict())
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        for got, expected in zip(theirs.eval()(images), ours.eval()(images), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PARAMETERS)
def test_loaded_weights_give_the_feature_maps_of_timm(name):
    backbone = build_backbone(f"timm/{name}", input_size=128)
    weights = timm.create_model(name, **backbone.trunk.options).state_dict()
    load_backbone_weights(backbone, weights)
    reference = timm.create_model(
        name,
        features_only=True,
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": weights},
        out_indices=timm_levels(name).indices,
        **backbone.trunk.options,
    )
    images = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        expected = reference.eval()(images)
        maps = backbone.eval().trunk.features(images, backbone.taps).values()
    for got, other in zip(maps, expected, strict=True):
        assert torch.equal(got, other if got.shape == other.shape else other.permute(0, 3, 1, 2))


def test_weights_of_a_different_model_are_refused_and_nothing_is_loaded():
    backbone = build_backbone("timm/resnet10t", input_size=128)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=r"fit timm/resnet10t.*weights list timm/resnet10t"):
        load_backbone_weights(backbone, timm.create_model("resnet18").state_dict())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("convnext_tinny", "convnext_tiny"),
        ("convnext_tiny.in12k_ft_in1k", "model.weights to in12k_ft_in1k"),
    ],
)
def test_an_unknown_name_is_an_error_of_the_config(name, facts, tmp_path):
    (tmp_path / "model.yaml").write_text("{}")
    with pytest.raises(ConfigError, match=facts) as error:
        load_config(tmp_path / "model.yaml", [f"backbone=timm/{name}"], ModelConfig)
    assert str(error.value).count(f"'timm/{name}'") == 1


@pytest.mark.parametrize(("name", "found"), [("vit_tiny_patch16_224", "stride 16"), ("levit_128s", "16, 32, 64")])
def test_a_model_without_the_three_strides_is_refused_with_its_strides(name, found):
    with pytest.raises(ValueError, match=f"{found}.*8, 16, 32.*detection.show backbones"):
        build_backbone(f"timm/{name}")


@pytest.mark.parametrize(
    ("tried", "cure"),
    [((224, 256, 300), "model.input_size .*such as 224, 256$"), ((300,), "tried 300.*detection.show backbones")],
)
def test_an_impossible_image_size_is_refused_with_sizes_that_work_or_other_models(monkeypatch, tried, cure):
    monkeypatch.setattr(timm_trunk, "SUGGESTED_SIZES", tried)
    with pytest.raises(ValueError, match=rf"maxvit_rmlp_pico_rw_256.*300 pixels.*{cure}"):
        build_backbone("timm/maxvit_rmlp_pico_rw_256", input_size=300)


@pytest.mark.parametrize(
    "name", ["resnet10t", "convnext_atto", "swinv2_cr_tiny_ns_224", "visformer_tiny", "densenet121"]
)
def test_a_frozen_stem_is_what_timm_calls_the_stem_and_stays_in_evaluation_mode(name):
    backbone = build_backbone(f"timm/{name}", freeze="stem", input_size=128)
    classifier = timm.create_model(name, **backbone.trunk.options)
    pattern = classifier.group_matcher(coarse=True)["stem"]
    stem = sum(value.numel() for key, value in classifier.named_parameters() if re.match(pattern, key))
    frozen = {key for key, value in backbone.named_parameters() if not value.requires_grad}
    assert sum(backbone.get_parameter(key).numel() for key in frozen) == stem > 0
    assert all(key.startswith("trunk.model.") for key in frozen)
    statistics = {key: value.clone() for key, value in backbone.named_buffers()}
    backbone.train()(torch.rand(2, 3, 128, 128))
    changed = {key.rpartition(".")[0] for key, value in backbone.named_buffers() if not value.equal(statistics[key])}
    owners = {key.rpartition(".")[0] for key in frozen}
    assert not changed & owners


def test_the_stem_of_a_model_without_groups_of_stages_can_be_frozen():
    backbone = build_backbone("timm/rdnet_tiny", freeze="stem", input_size=128)
    frozen = {key for key, value in backbone.trunk.model.named_parameters() if not value.requires_grad}
    assert frozen == {f"stem_{layer}.{name}" for layer in (0, 1) for name in ("weight", "bias")}


@pytest.mark.parametrize("name", ["poolformer_s12", "inception_v3", "inception_resnet_v2"])
def test_freezing_the_stem_of_a_model_without_one_is_refused(name):
    trunk = SimpleNamespace(name=name, options={}, model=None)  # building the real one takes seconds
    with pytest.raises(ValueError, match=rf"{name}.*none or trunk") as error:
        timm_trunk.TimmTrunk.stem_prefixes.fget(trunk)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_trunk_is_the_same_if_it_is_built_without_gradients(context):
    with context():
        trunk = timm_trunk.TimmTrunk("hrnet_w18_small", 128, 0.0)
    expected = timm_trunk.TimmTrunk("hrnet_w18_small", 128, 0.0)
    needs_gradient = [value.requires_grad for value in trunk.parameters()]
    assert needs_gradient == [value.requires_grad for value in expected.parameters()]
    assert {True, False} == set(needs_gradient)  # it has parameters that the maps do not depend on
    assert not any(value.is_inference() for value in trunk.parameters())


def test_parameters_without_influence_on_the_maps_are_not_trained():
    backbone = build_backbone("timm/hrnet_w18_small", input_size=128)
    frozen = [key for key, value in backbone.named_parameters() if not value.requires_grad]
    maps = backbone.eval()(images := torch.rand(1, 3, 128, 128))
    assert frozen
    with torch.no_grad():
        for key in frozen:
            backbone.get_parameter(key).fill_(1e6)
    assert all(torch.equal(got, expected) for got, expected in zip(backbone(images), maps, strict=True))


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "maxvit_rmlp_pico_rw_256", "tf_efficientnet_lite0"])
def test_every_parameter_is_in_exactly_one_group_of_the_optimizer(name):
    model = build_ssd(ModelConfig(backbone=f"timm/{name}", neck="fpn", neck_channels=16, input_size=128), 2)
    groups = [group["params"] for group in parameter_groups(model, 0.05, model.backbone.trunk)]
    in_groups = [id(parameter) for group in groups for parameter in group]
    assert len(in_groups) == len(set(in_groups))
    assert set(in_groups) == {id(parameter) for parameter in model.parameters()}
    assert {*map(id, groups[2] + groups[3])} == {*map(id, model.backbone.trunk.parameters())}


def test_sync_batch_norm_keeps_the_activations_of_timm():
    backbone = build_backbone("timm/tf_efficientnet_lite0", input_size=128).eval()
    images = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        expected = backbone(images)
        converted = place_model(backbone, torch.device("cpu"), "sync", channels_last=False).eval()
        assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
        for got, before in zip(converted(images), expected, strict=True):
            torch.testing.assert_close(got, before)


def test_stochastic_depth_is_used_with_layer_norm_only():
    def rates(name: str) -> list[float]:
        backbone = build_backbone(f"timm/{name}", drop_path_rate=0.3, input_size=128)
        return [module.drop_prob for module in backbone.modules() if isinstance(module, timm.layers.DropPath)]

    assert max(rates("convnext_atto")) == pytest.approx(0.3)
    assert not any(rates("tf_efficientnet_lite0"))
