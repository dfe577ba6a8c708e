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
    """A folder to work in, with saved_weights/ in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved_weights").mkdir()
    return tmp_path


@pytest.fixture
def public_swin(here) -> torch.nn.Module:
    """torchvision's Swin-T with random weights, and a file of them under the registered name of Microsoft's."""
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


def test_a_config_says_how_public_weights_are_asked(public_swin, config_path):
    names = ("model.name=swin_t", "model.weights=microsoft_swin_t_224", "model.input_size=96", "model.patch_size=4")
    classifier = load_classifier(str(config_path), names)
    assert (classifier.input_size, classifier.resize_size) == (96, 96)
    assert classifier.class_ids == list(imagenet_classes())


def test_a_config_without_weights_is_refused(config_path):
    with pytest.raises(ConfigError, match=r"no model\.weights in it; add model\.weights=imagenet1k"):
        load_classifier(str(config_path))


def test_weights_that_are_no_classifier_are_refused_with_the_field(here, config_path):
    torch.save({"conv1.weight": torch.zeros(1)}, here / "r18.pth")
    with pytest.raises(ValueError, match=r"model\.weights 'r18\.pth': r18\.pth: not a classifier"):
        load_classifier(str(config_path), ["model.weights=r18.pth"])


@pytest.mark.parametrize("named", ["torchvision_swin_tt", "imagenet1k", "torchvision_resnet50_v1"])
def test_names_that_are_of_no_swin_are_refused_with_those_there_are(here, named):
    with pytest.raises(ValueError, match=rf"{named}: .*torchvision_swin_t|{named}: .*such as"):
        load_classifier(named)


def test_overrides_need_a_config(public_swin):
    with pytest.raises(ConfigError, match=r"eval\.crop_fraction=1\.0: microsoft_swin_t_224 has no config"):
        load_classifier("microsoft_swin_t_224", ["eval.crop_fraction=1.0"])


def classifier_of(class_ids: list[str]) -> Classifier:
    return Classifier(Path("x.pth"), None, class_ids, 224, 256)


def test_classes_are_found_by_name_or_in_order_if_the_outputs_have_no_names():
    assert classifier_of(["a", "b", "c"]).outputs_of(["c", "a"]).tolist() == [2, 0]
    assert classifier_of(["0", "1", "2"]).outputs_of(["x", "y", "z"]).tolist() == [0, 1, 2]
    with pytest.raises(DatasetError, match=r"class x, y: not among the 3 of x\.pth"):
        classifier_of(["0", "1", "2"]).outputs_of(["x", "y"])
