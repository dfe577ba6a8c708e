from pathlib import Path

import pytest
import torch
from torchvision.models import swin_t

from classification.classifier import Classifier, load_classifier
from classification.data import imagenet_classes
from data import DatasetError
from engine.strict_yaml import ConfigError


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Change to a temporary directory with saved_weights/ in it, and return it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved_weights").mkdir()
    return tmp_path


@pytest.fixture
def public_swin(here) -> torch.nn.Module:
    """Return torchvision's Swin-T with random weights, saved under the file name of Microsoft's registry entry."""
    torch.manual_seed(0)
    model = swin_t().eval()
    torch.save(model.state_dict(), here / "saved_weights/swin_tiny_patch4_window7_224.pth")
    return model


def test_a_public_swin_has_imagenets_classes_and_the_logits_of_its_publisher(public_swin):
    classifier = load_classifier("microsoft_swin_t_224")
    assert (classifier.input_size, classifier.resize_size) == (224, 256)
    assert classifier.class_names[:2] == ["tench", "goldfish"]
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(classifier.model(images), public_swin(images), atol=1e-4, rtol=0)


def test_a_config_sets_the_input_size_of_public_weights(public_swin, config_path):
    overrides = ("model.name=swin_t", "model.weights=microsoft_swin_t_224", "model.input_size=96", "model.patch_size=4")
    classifier = load_classifier(str(config_path), overrides)
    assert (classifier.input_size, classifier.resize_size) == (96, 96)
    assert classifier.class_ids == list(imagenet_classes())


def test_a_config_without_weights_is_rejected(config_path):
    with pytest.raises(ConfigError, match=r"model\.weights is null.* model\.weights=imagenet1k"):
        load_classifier(str(config_path))


def test_the_error_about_weights_without_a_classifier_names_the_field(here, config_path):
    torch.save({"conv1.weight": torch.zeros(1)}, here / "r18.pth")
    with pytest.raises(ValueError, match=r"model\.weights 'r18\.pth': r18\.pth: not a classifier"):
        load_classifier(str(config_path), ["model.weights=r18.pth"])


@pytest.mark.parametrize("name", ["torchvision_swin_tt", "imagenet1k", "torchvision_resnet50_v1"])
def test_the_error_about_a_name_that_is_not_a_swins_suggests_names(here, name):
    with pytest.raises(ValueError, match=rf"{name}: .*torchvision_swin_t|{name}: .*such as"):
        load_classifier(name)


def test_overrides_need_a_config(public_swin):
    with pytest.raises(ConfigError, match=r"eval\.crop_fraction=1\.0.*microsoft_swin_t_224.*config"):
        load_classifier("microsoft_swin_t_224", ["eval.crop_fraction=1.0"])


def make_classifier(class_ids: list[str]) -> Classifier:
    return Classifier(Path("x.pth"), None, class_ids, 224, 256)


def test_classes_are_matched_to_outputs_by_name_or_in_order_if_the_outputs_are_unnamed():
    assert make_classifier(["a", "b", "c"]).output_indices(["c", "a"]).tolist() == [2, 0]
    assert make_classifier(["0", "1", "2"]).output_indices(["x", "y", "z"]).tolist() == [0, 1, 2]
    with pytest.raises(DatasetError, match=r"class x, y: .* 3 classes of x\.pth"):
        make_classifier(["0", "1", "2"]).output_indices(["x", "y"])
