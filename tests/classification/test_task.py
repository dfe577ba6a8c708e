import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from classification.data import read_split
from classification.task import (
    ClassificationConfig,
    ClassificationTask,
    Predictions,
    build_swin,
    compute_scores,
    constant_predictor_loss,
    predict_batch,
)
from data import normalize_images
from engine.checkpoint import save_checkpoint
from engine.config import load_config
from engine.files import file_sha256

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")


def make_task(config_path, *overrides, from_checkpoint=False) -> ClassificationTask:
    config = load_config(config_path, overrides, ClassificationConfig)
    train, val = read_split(config.data, "train"), read_split(config.data, "val")
    return ClassificationTask(config, train, val, from_checkpoint=from_checkpoint)


def make_batch(task, count=8) -> dict:
    return task.collate([task.train_set[0, index] for index in range(count)])


def test_scores_are_top_1_and_top_5_accuracy():
    classes = np.array([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [5, 4, 3, 2, 1], [2, 1, 0, 4, 5]])
    predictions = Predictions(np.arange(4), classes, np.zeros((4, 5), np.float32))
    assert compute_scores(predictions, np.array([0, 0, 0, 2]), num_classes=6) == {"top1": 0.5, "top5": 0.75}
    assert compute_scores(predictions, np.array([0, 0, 0, 2]), num_classes=5)["top5"] is None


def test_predictions_are_the_most_likely_classes_best_first():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0, -1.0, -2.0]])
    classes, probabilities = predict_batch(lambda images: logits, torch.zeros(1, 3, 8, 8))
    assert classes.tolist() == [[1, 3, 2, 0, 4]]
    torch.testing.assert_close(probabilities, logits.softmax(1)[:, [1, 3, 2, 0, 4]])


def test_no_constant_prediction_has_a_lower_loss_than_constant_predictor_loss():
    labels = torch.tensor([0, 0, 0, 1, 2])
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(logits.expand(5, 3), labels, label_smoothing=0.2)
        value.backward()
        return value

    optimizer.step(loss)
    assert constant_predictor_loss(labels.numpy(), 3, 0.2) == pytest.approx(loss().item(), abs=1e-5)


def test_the_loss_is_cross_entropy_summed_over_the_images(config_path):
    task = make_task(config_path)
    task.model.eval()
    batch = make_batch(task)
    losses, count = task.losses(task.model, batch)
    logits = task.model(normalize_images(batch["images"]))
    expected = F.cross_entropy(logits, batch["labels"], label_smoothing=0.1) * 8
    torch.testing.assert_close(losses["classification"], expected)
    assert count == 8


def test_mixed_images_give_a_finite_loss_and_gradients(config_path):
    task = make_task(config_path, "augment.mixup=0.8", "augment.cutmix=1.0", "augment.erase=0.5")
    losses, _ = task.losses(task.model, make_batch(task))
    losses["classification"].backward()
    assert losses["classification"].isfinite()
    assert all(parameter.grad is not None for parameter in task.model.parameters())


def test_every_validation_image_is_scored_once_and_the_model_stays_in_training_mode(config_path):
    task = make_task(config_path)
    task.model.train()
    scores, predictions = task.evaluate(task.model, CPU)
    assert predictions.image_ids.tolist() == list(range(14))
    assert scores["top1"] == pytest.approx((predictions.classes[:, 0] == task.val.labels).mean())
    assert all(module.training for module in task.model.modules())
    with pytest.raises(KeyboardInterrupt):  # raised between batches
        task.evaluate(task.model, CPU, lambda: signal.raise_signal(signal.SIGINT))


@pytest.fixture
def checkpoint(config_path, tmp_path) -> Path:
    """Return a checkpoint of a run on ten classes, whose moving average of the weights is all zeros."""
    config = load_config(config_path, [], ClassificationConfig)
    torch.manual_seed(99)
    weights = build_swin(config.model, 10).state_dict()
    average = {name: torch.zeros_like(value) for name, value in weights.items()}
    path = tmp_path / "ten.pt"
    classes = [f"class {number}" for number in range(10)]
    save_checkpoint(path, {"model": weights, "ema": {"count": 1, "weights": average}, "data": {"classes": classes}})
    return path


def test_a_task_starts_from_a_runs_average_except_a_head_for_different_classes(config_path, checkpoint):
    task = make_task(config_path, f"model.weights={checkpoint}")
    assert not any(weight.any() for name, weight in task.model.state_dict().items() if not name.startswith("head."))
    assert task.model.head.weight.any()
    assert (task.initial_weights.file, task.initial_weights.sha256) == (str(checkpoint), file_sha256(checkpoint))
    assert "random weights, because the classes differ" in task.initial_weights.note


@pytest.mark.parametrize("is_same", [True, False], ids=["same classes", "different classes"])
def test_a_head_for_as_many_classes_is_loaded_only_if_the_classes_are_the_same(config_path, tmp_path, is_same):
    task = make_task(config_path)
    zeros = {name: torch.zeros_like(value) for name, value in task.model.state_dict().items()}
    classes = task.train.class_ids if is_same else list("abcdef")
    save_checkpoint(tmp_path / "six.pt", {"model": zeros, "ema": None, "data": {"classes": classes}})
    task = make_task(config_path, f"model.weights={tmp_path / 'six.pt'}")
    assert bool(task.model.head.weight.any()) == (not is_same)
    assert ("head loaded" in task.initial_weights.note) == is_same


def test_missing_weights_are_an_error_unless_the_task_resumes_from_a_checkpoint(config_path):
    with pytest.raises(ValueError, match=r"model\.weights '/gone/swin\.pth': no such file"):
        make_task(config_path, "model.weights=/gone/swin.pth")
    assert make_task(config_path, "model.weights=/gone/swin.pth", from_checkpoint=True).initial_weights is None


CONFIGS = [
    path for path in sorted((ROOT / "configs").glob("[!dg]*.yaml")) if "backbone:" not in path.read_text()
]  # not detection_, diffusion_, grid_


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_its_classifier(path):
    config = load_config(path, [], ClassificationConfig)
    with torch.device("meta"):
        model = build_swin(config.model, 1000)
        size = config.model.input_size
        assert model(torch.empty(1, 3, size, size)).shape == (1, 1000)
