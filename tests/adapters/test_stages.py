"""The pyramid of a Swin's stages: shapes, norms, and weights into its trunk."""

import logging

import pytest
import torch

from adapters.stages import SwinStages, trunk_weights
from model import SWIN_VARIANTS, SwinTransformer


def test_maps_have_the_strides_and_channels_of_their_stages():
    stages = SwinStages("swin_slim", (2, 4))
    maps = stages(torch.randn(2, 3, 64, 100))
    assert stages.out_channels == [64, 256]
    assert [tuple(x.shape) for x in maps] == [(2, 64, 8, 13), (2, 256, 2, 4)]


def test_every_map_ends_in_a_norm_over_its_channels():
    for x in SwinStages("swin_slim", (1, 2, 3, 4)).eval()(5 * torch.randn(1, 3, 64, 64)):
        assert x.mean(dim=1).abs().max() < 1e-4
        torch.testing.assert_close(x.var(dim=1, correction=0), torch.ones(1, *x.shape[2:]), atol=0.05, rtol=0)


def test_what_lies_behind_the_last_stage_is_not_built():
    assert len(SwinStages("swin_slim", (1, 2)).trunk.layers) == 2


def test_a_classifiers_weights_load_into_the_trunk():
    classifier, stages = SwinTransformer(**SWIN_VARIANTS["swin_slim"]), SwinStages("swin_slim", (1, 2, 3, 4))
    stages.load_trunk(classifier.state_dict())
    assert all(torch.equal(tensor, classifier.state_dict()[key]) for key, tensor in stages.trunk.state_dict().items())


def test_it_is_said_that_tables_of_other_windows_were_resized(caplog):
    classifier = SwinTransformer(**SWIN_VARIANTS["swin_slim"] | {"window_size": 8})
    with caplog.at_level(logging.WARNING):
        SwinStages("swin_slim", (1, 2)).load_trunk(classifier.state_dict())
    assert "4 tables resized: layers.0.blocks.0.attn.relative_position_bias_table (225, 1) to (49, 1)" in caplog.text


def test_unknown_swin_is_refused():
    with pytest.raises(ValueError, match="Swin 'swin_x': expected one of swin_t, swin_s"):
        SwinStages("swin_x", (1, 2))


def test_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="tap 'stage5': expected one of stage1"):
        SwinStages("swin_slim", (4, 5))


def test_absent_weights_are_refused_with_the_way_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr("weights.registry.FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"weights 'imagenet1k' of swin_t: .*fetch torchvision_swin_t"):
        trunk_weights("imagenet1k", "swin_t")
