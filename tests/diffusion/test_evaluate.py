import json
import sys

import numpy as np
import pytest
import torch

from classification.classifier import load_classifier
from classification.data import read_split
from classification.task import ClassificationConfig, ClassificationTask
from diffusion import evaluate as command
from diffusion import quality
from diffusion.quality import compute_fid, frechet_distance, kernel_distance
from engine.checkpoint import save_checkpoint
from engine.config import load_config

CLASSIFIER = """
data: {{root: {root}, format: mnist, workers: 0}}
model: {{name: swin_slim, input_size: 16, patch_size: 4, window_size: 2}}
augment: {{rand_augment: null}}
train: {{epochs: 1, batch_size: 8, precision: fp32}}
eval: {{crop_fraction: 1.0}}
"""


@pytest.fixture(scope="module")
def classifier(mnist_root, tmp_path_factory):
    """Return an experiment with the checkpoint of an untrained classifier."""
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "config.yaml").write_text(CLASSIFIER.format(root=mnist_root))
    config = load_config(folder / "config.yaml", [], ClassificationConfig)
    task = ClassificationTask(config, read_split(config.data, "train"), read_split(config.data, "val"))
    state = {"model": task.model.state_dict(), "ema": None, "data": task.data}
    save_checkpoint(folder / "checkpoints/step_000000001.pt", state)
    return folder


def run(monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["diffusion.evaluate", *map(str, words)])
    command.main(command.parse_arguments(sys.argv[1:]), torch.device("cpu"))


def test_samples_and_real_images_are_scored(experiment, classifier, monkeypatch, capsys):
    words = (experiment, "--classifier", classifier, "--samples", 15, "--steps", 2, "--batch-size", 8)
    run(monkeypatch, *words)
    record = json.loads((experiment / "score.json").read_text())
    scores = record["scores"]
    assert (record["samples"], record["real_images"]) == (15, 15)
    assert 0 <= scores["agreement"] <= 1
    assert scores["agreement"] == pytest.approx(
        np.average(list(record["agreement_by_class"].values()), weights=[2] * 5 + [1] * 5)
    )
    assert scores["frechet_distance"] > scores["frechet_distance_of_real"] >= 0  # the samples are still noise
    assert scores["kernel_distance"] > scores["kernel_distance_of_real"]
    assert scores["fid"] is None
    assert f"agreement {scores['agreement']:.4f}" in capsys.readouterr().out
    for name in ("score.json", "score_samples.png"):
        (experiment / name).unlink()


def test_agreement_is_the_share_of_samples_predicted_as_their_class(experiment, classifier, monkeypatch):
    def fake(classifier, x, batch_size, device):
        return quality.Features(torch.randn(len(x), 4), np.array([0, 1, 2, 9, 9, 5, 6, 7, 8, 9] * 3)[: len(x)])

    monkeypatch.setattr(quality, "extract_features", fake)
    run(monkeypatch, experiment, "--classifier", classifier, "--samples", 20, "--steps", 1)
    record = json.loads((experiment / "score.json").read_text())
    assert record["scores"]["agreement"] == 0.8
    assert record["agreement_by_class"]["3"] == 0
    for name in ("score.json", "score_samples.png"):
        (experiment / name).unlink()


def test_features_are_the_input_of_the_last_layer(classifier):
    loaded = load_classifier(str(classifier))
    images = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
    extracted = quality.extract_features(loaded, images, 2, torch.device("cpu"))
    with torch.inference_mode():
        logits = loaded.model.head(extracted.features)
    assert extracted.features.shape == (3, 256)
    assert np.array_equal(logits.argmax(dim=1).numpy(), extracted.predictions)


def test_the_frechet_distance_between_gaussians_has_its_closed_form():
    """Expect 2^2 + (2 - 1)^2 = 5: in one feature, the mean differs by 2 and the standard deviations are 1 and 2."""
    torch.manual_seed(0)
    real, fake = torch.randn(20_000, 3), torch.randn(20_000, 3)
    fake[:, 0] = 2 * fake[:, 0] + 2
    assert frechet_distance(real, fake) == pytest.approx(5, rel=0.05)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-3)


def test_the_kernel_distance_equals_the_unbiased_estimate_by_hand():
    generator = np.random.default_rng(0)
    real, fake = generator.normal(0, 1, (30, 4)), generator.normal(0.5, 1, (30, 4))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / 4 + 1) ** 3

    def off_diagonal(k: np.ndarray) -> float:
        return (k.sum() - np.trace(k)) / (30 * 29)

    expected = off_diagonal(kernel(real, real)) + off_diagonal(kernel(fake, fake)) - 2 * kernel(real, fake).mean()
    found = kernel_distance(torch.from_numpy(real).float(), torch.from_numpy(fake).float())
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.fixture
def inception(monkeypatch, tmp_path):
    """Write a weights file of the Inception network with random values, and fail on any download."""
    network = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with monkeypatch.context() as patch:
        patch.setattr(network, "load_state_dict_from_url", lambda *arguments, **options: None)
        patch.setattr(network.FeatureExtractorInceptionV3, "load_state_dict", lambda *arguments: None)
        torch.manual_seed(0)
        weights = network.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).state_dict()
    torch.save(weights, tmp_path / "inception.pth")
    monkeypatch.setattr(network, "load_state_dict_from_url", pytest.fail)
    monkeypatch.setattr(quality, "INCEPTION", tmp_path / "inception.pth")


def test_fid_is_computed_for_grey_images_if_the_weights_are_present(inception, monkeypatch):
    monkeypatch.setattr(quality, "frechet_distance", lambda real, fake: float((real.mean(0) - fake.mean(0)).norm()))
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randint(0, top, (2, 1, 32, 32), dtype=torch.uint8, generator=generator) for top in (256, 80))
    assert compute_fid(real, fake, 4, torch.device("cpu")) > 0
