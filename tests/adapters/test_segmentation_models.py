"""Swins as encoders of segmentation_models_pytorch: its decoders, preprocessing, weights without a download."""

import runpy

import huggingface_hub
import pytest
import torch
import torchvision

from data import IMAGENET_MEAN, IMAGENET_STD

smp = pytest.importorskip(
    "segmentation_models_pytorch",
    reason="segmentation_models_pytorch is not installed (pip install -e '.[smp]')",
)

from adapters import segmentation_models  # noqa: E402

PUBLISHED_FPA = segmentation_models.SmallMapFPA.__base__


@pytest.fixture(autouse=True)
def _registered():
    segmentation_models.register_swins()


def encoder(name: str = "swin_t", **arguments) -> segmentation_models.SwinEncoder:
    return smp.encoders.get_encoder(name, **arguments)


# --------------------------------------------------------------------------------------------------- decoders


@pytest.mark.parametrize("size", [224, pytest.param(512, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("architecture", "arguments"), [(smp.PAN, {"encoder_output_stride": 32}), (smp.Unet, {}), (smp.FPN, {})]
)
def test_the_image_makes_a_mask_of_its_size_whose_loss_reaches_every_parameter(architecture, arguments, size):
    model = architecture(encoder_name="swin_t", encoder_weights=None, classes=3, **arguments).eval()
    masks = model(torch.randn(1, 3, size, size))
    assert masks.shape == (1, 3, size, size)
    masks.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_the_encoder_gives_the_image_an_empty_map_and_four_stages():
    images = torch.randn(2, 3, 64, 96)
    model = encoder()
    maps = model(images)
    assert torch.equal(maps[0], images)
    assert [tuple(x.shape[2:]) for x in maps] == [(64, 96), (32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    assert [x.shape[1] for x in maps] == model.out_channels == [3, 0, 96, 192, 384, 768]


@torch.no_grad()
def test_a_depth_of_three_ends_at_stride_eight():
    model = encoder(depth=3)
    assert [x.shape[1] for x in model(torch.randn(1, 3, 64, 64))] == model.out_channels == [3, 0, 96, 192]
    assert model.output_stride == 8


@pytest.mark.parametrize(("name", "width"), [("swin_t", 96), ("swin_s", 96), ("swin_b", 128), ("swin_l", 192)])
def test_every_published_size_is_registered(name, width):
    with torch.device("meta"):
        assert encoder(name).out_channels == [3, 0, width, 2 * width, 4 * width, 8 * width]


@torch.no_grad()
def test_images_may_have_another_number_of_channels():
    model = encoder(in_channels=5)
    assert [x.shape[1] for x in model(torch.randn(1, 5, 64, 64))] == model.out_channels == [5, 0, 96, 192, 384, 768]


def test_an_output_stride_of_16_is_refused():
    with pytest.raises(ValueError, match="encoder_output_stride 16 of swin_t: expected 32"):
        smp.PAN(encoder_name="swin_t", encoder_weights=None)


def test_a_depth_of_one_is_refused():
    with pytest.raises(ValueError, match="encoder_depth 1 of swin_t: expected 2 to 5"):
        encoder(depth=1)


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
def test_pan_is_unchanged_where_smps_own_works(size):
    ours, theirs = segmentation_models.SmallMapFPA(6, 4).eval(), PUBLISHED_FPA(6, 4).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, *size)
    assert torch.equal(ours(x), theirs(x))


def test_smps_own_pan_still_needs_the_larger_map():
    # Once this fails, smp has mended it, and SmallMapFPA can go.
    with pytest.raises(RuntimeError, match="Output size is too small"):
        PUBLISHED_FPA(6, 4).eval()(torch.randn(2, 6, 7, 7))


# ---------------------------------------------------------------------------------------------------- weights


def test_preprocessing_is_imagenets():
    settings = smp.encoders.get_preprocessing_params("swin_t", pretrained="imagenet")
    assert settings == {
        "input_space": "RGB",
        "input_range": [0, 1],
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
    }


def test_pretrained_settings_tell_where_the_weights_come_from():
    settings = smp.encoders.encoders["swin_t"]["pretrained_settings"]["imagenet"]
    assert settings["url"] == torchvision.models.Swin_T_Weights.IMAGENET1K_V1.url


def test_imagenet_is_the_file_in_saved_weights(tmp_path, monkeypatch):
    published = torchvision.models.swin_t(weights=None).state_dict()
    torch.save(published, tmp_path / "swin_t.pth")
    asked = []
    monkeypatch.setattr("adapters.stages.find_weights", lambda *what: asked.append(what) or tmp_path / "swin_t.pth")
    trunk = encoder(weights="imagenet").stages.trunk
    assert asked == [("imagenet1k", "swin_t")]
    assert torch.equal(trunk.layers[2].blocks[0].attn.qkv.weight, published["features.5.0.attn.qkv.weight"])


def test_absent_weights_are_refused_with_the_way_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr("weights.registry.FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"weights 'imagenet1k' of swin_t: .*fetch torchvision_swin_t"):
        smp.Unet(encoder_name="swin_t", encoder_weights="imagenet")


def test_other_encoders_still_ask_the_hub(tmp_path, monkeypatch):
    def hub(repo_id: str, filename: str, revision: str) -> str:
        path = tmp_path / filename
        path.write_text(f'{{"mean": [0.1], "std": [0.2], "input_space": "{repo_id}"}}')
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    assert smp.encoders.get_preprocessing_params("resnet18")["input_space"] == "smp-hub/resnet18.imagenet"


def test_an_encoder_loads_its_own_weights():
    model, copy = encoder(depth=3), encoder(depth=3)
    copy.load_state_dict(model.state_dict())
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in copy.state_dict().items())


# --------------------------------------------------------------------------------------------------- example


def test_the_example_lowers_its_loss(capsys):
    runpy.run_module("examples.segmentation_with_swin")
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < losses[0] - 0.1
