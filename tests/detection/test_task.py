"""detection/task.py: trained detectors as a start, on the same classes and on others."""

import json
import re

import pytest
import torch
from torch import nn

from detection.annotations import read_coco
from detection.ssd import ModelConfig, build_ssd
from detection.task import DetectionConfig, DetectionTask, read_detector, start_from
from engine.checkpoint import CheckpointError, save_checkpoint
from engine.release import save_release

MODEL = {"backbone": "ResNet18SlimBackbone_B", "neck": "fpn", "neck_channels": 16, "input_size": 96}


def detector(num_classes: int, **changes) -> nn.Module:
    return build_ssd(ModelConfig(**{**MODEL, **changes}), num_classes)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A detector of three classes."""
    return detector(3)


@pytest.fixture(scope="module")
def checkpoint(trained, tmp_path_factory):
    """Its checkpoint, as a run without a moving average leaves it."""
    path = tmp_path_factory.mktemp("run") / "step_000000007.pt"
    save_checkpoint(path, {"step": 7, "model": trained.state_dict(), "ema": None})
    return path


@pytest.fixture
def task_of(folder, content):
    """Makes a task on two classes that starts from a file."""
    (folder / "val.json").write_text(json.dumps(content))
    val = read_coco(folder / "val.json", folder / "images")
    data = {name: {"images": "images", "annotations": "val.json"} for name in ("train", "val")}

    def make(path, **options) -> DetectionTask:
        config = {"data": {"root": str(folder), **data}, "train": {"epochs": 1, "batch_size": 1}}
        return DetectionTask(DetectionConfig(**config, model={**MODEL, "start_from": str(path)}), val, **options)

    return make


def test_on_another_number_of_classes_all_but_the_class_heads_is_loaded(trained, checkpoint):
    model = detector(2)
    heads = {key: tensor.clone() for key, tensor in model.state_dict().items() if key.startswith("class_head.")}
    start_from(model, checkpoint)
    expected = trained.state_dict() | heads
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())


def test_the_log_line_lists_what_was_loaded_and_what_was_not(trained, checkpoint):
    line = start_from(detector(2), checkpoint)
    total = len(trained.state_dict())
    assert f"step_000000007.pt, step 7: {total - 12} weights loaded, 12 not, for they are of another number" in line
    assert "class_head.0.bias (16,) instead of (12,)" in line  # 4 boxes a cell, of 3 and of 2 classes and background
    assert len(re.findall(r"class_head\.\d\.\w+ \(", line)) == 12
    assert "\n" not in line


def test_on_as_many_classes_everything_is_loaded(trained, checkpoint):
    model = detector(3)
    assert f"{len(trained.state_dict())} weights loaded, all there are, the class heads too" in start_from(
        model, checkpoint
    )
    assert all(torch.equal(tensor, trained.state_dict()[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"neck": "none"}, "unexpected: neck."),
        ({"neck_channels": 8}, "of another shape: neck."),
        ({"backbone": "ResNet18SlimBackbone_A"}, "missing: backbone."),
        ({"backbone": "SwinSlimBackbone_B"}, "missing: backbone."),
    ],
)
def test_a_detector_of_another_architecture_is_refused_with_what_differs(checkpoint, changes, named):
    with pytest.raises(CheckpointError, match=rf"step_000000007\.pt: weights do not fit SSD, nothing .*{named}"):
        start_from(detector(2, **changes), checkpoint)


def test_the_moving_average_is_what_is_read(tmp_path):
    average = {"weight": torch.ones(1)}
    save_checkpoint(tmp_path / "a.pt", {"step": 7, "model": {"weight": torch.zeros(1)}, "ema": {"weights": average}})
    assert read_detector(tmp_path / "a.pt").weights == average


def test_a_release_is_read_with_its_step_and_classes(tmp_path):
    save_release(tmp_path / "a.safetensors", {"weight": torch.ones(1)}, {"step": "7", "classes": '["dog"]'})
    assert read_detector(tmp_path / "a.safetensors") == ({"weight": torch.ones(1)}, 7, ["dog"])


@pytest.mark.parametrize("facts", [{}, {"step": "7"}, {"classes": "[]"}])
def test_a_release_of_something_else_is_named(tmp_path, facts):
    save_release(tmp_path / "a.safetensors", {"weight": torch.ones(1)}, facts)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: no detector; its metadata lack"):
        read_detector(tmp_path / "a.safetensors")


def test_weights_that_are_not_finite_are_not_scored(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {"step": 7, "model": {"x": torch.ones(2).log().log()}, "ema": None})
    with pytest.raises(CheckpointError, match=r"a\.pt: weights that are not finite: x; use an earlier"):
        read_detector(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [{"conv1.weight": torch.ones(1)}, {"model": {}}, [1]])
def test_a_checkpoint_of_something_else_is_named_with_the_cure(tmp_path, content):
    save_checkpoint(tmp_path / "resnet50.pt", content)
    with pytest.raises(CheckpointError, match=r"resnet50\.pt: no checkpoint of a detector; .* into model\.weights"):
        read_detector(tmp_path / "resnet50.pt")


def test_a_task_starts_from_the_file_that_its_config_names(task_of, trained, checkpoint):
    task = task_of(checkpoint)
    assert torch.equal(task.model.box_head[0].weight, trained.box_head[0].weight)
    assert task.started_from.startswith(f"started from {checkpoint}")


def test_a_task_that_a_checkpoint_will_fill_does_not_need_the_file(task_of):
    assert task_of("/gone/detector.pt", from_checkpoint=True).started_from is None


@pytest.mark.parametrize("name", ["detector.pt", "detector.safetensors"])
@pytest.mark.parametrize("written", [None, b"", b"<!DOCTYPE html>"])
def test_a_file_that_cannot_be_started_from_is_named_with_the_field(task_of, tmp_path, name, written):
    if written is not None:
        (tmp_path / name).write_bytes(written)
    with pytest.raises(CheckpointError, match=rf"^model\.start_from: .*/{name}: (no such|truncated,? or not a)"):
        task_of(tmp_path / name)
