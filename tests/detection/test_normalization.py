"""Every use of a detector normalises images with the statistics that are saved with its weights."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from data import IMAGENET_MEAN, IMAGENET_STD
from detection import load
from detection.coco.annotations import read_split
from detection.coco.dataset import CocoDetection, collate
from detection.coco.evaluation import detect
from detection.coco.transforms import eval_transform
from detection.deployment import formats
from detection.detector import Detector
from detection.network.postprocess import postprocess
from detection.network.ssd import ModelConfig, build_ssd
from detection.task import DetectionTask, load_initial_detector, load_initial_weights
from engine.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from weights import publish

CPU = torch.device("cpu")
HALF = (0.5, 0.5, 0.5)
STATISTICS = ("pixel_mean", "pixel_std")


def for_imagenet(images: Tensor) -> Tensor:
    """Return images that ImageNet's statistics normalise to the same values as HALF normalises `images`.

    images: (B, 3, S, S) uint8 or float, from 0 to 255. Returns (B, 3, S, S) float64."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return 255 * (mean + std * (images.double() / 255 - 0.5) / 0.5)


def change_checkpoint(experiment, change) -> None:
    """Call `change` with the weights of the only checkpoint of an experiment, and save the result."""
    path = newest_checkpoint(experiment / "checkpoints")
    state = load_checkpoint(path)
    change(state["model"])
    save_checkpoint(path, state)


def set_half(weights: dict[str, Tensor]) -> None:
    for name in STATISTICS:
        weights[name] = torch.tensor(HALF)


def delete_statistics(weights: dict[str, Tensor]) -> None:
    for name in STATISTICS:
        del weights[name]


@pytest.fixture(scope="module")
def half_experiment(finished_detector, tmp_path_factory):
    """Copy the finished experiment; the copy has the same weights and the statistics HALF."""
    folder = shutil.copytree(finished_detector, tmp_path_factory.mktemp("half") / "experiment_8")
    change_checkpoint(folder, set_half)
    return folder


def load_fp32(experiment) -> Detector:
    """Load a detector that computes in fp32 on every CPU."""
    detector = load(experiment, "cpu")
    train = detector.config.train.model_copy(update={"precision": "fp32"})
    return replace(detector, config=detector.config.model_copy(update={"train": train}))


@pytest.fixture(scope="module")
def half(half_experiment) -> Detector:
    return load_fp32(half_experiment)


@pytest.fixture(scope="module")
def imagenet(finished_detector) -> Detector:
    return load_fp32(finished_detector)


@pytest.fixture(scope="module")
def val(half):
    return read_split(half.config.data, "val")


@pytest.fixture(scope="module")
def batch(val, half) -> dict[str, Tensor]:
    """Return the first three validation images and their objects."""
    dataset = CocoDetection(val, eval_transform(half.model.input_size))
    return collate([dataset[0, index] for index in range(3)])


def assert_near(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


def test_the_statistics_change_the_outputs(half, imagenet, batch):
    steps = half.preprocessing["done_by_the_model"]
    assert steps["mean"] == steps["std"] == [0.5, 0.5, 0.5]
    assert (half.model(batch["images"])[1] - imagenet.model(batch["images"])[1]).abs().max() > 0.1


def test_training_normalises_with_the_statistics_of_the_detector(half, imagenet, val, batch):
    task = DetectionTask(half.config, None, val)
    images = {half: batch["images"], imagenet: for_imagenet(batch["images"]).float()}
    (losses, count), (expected, expected_count) = (
        task.losses(detector.model, batch | {"images": given}) for detector, given in images.items()
    )
    assert count == expected_count > 0
    assert losses.keys() == {"classification", "box"}
    for name, loss in losses.items():
        assert_near(loss, expected[name])


def test_evaluation_normalises_with_the_statistics_of_the_detector(half, imagenet, val, batch):
    run = partial(detect, coco=val, device=CPU, settings=[half.config.eval])
    [found] = run(half.model, [batch])
    [expected] = run(imagenet.model, [batch | {"images": for_imagenet(batch["images"]).float()}])
    assert len(found) > 10
    assert np.allclose(found, expected, atol=0.01)


def test_prediction_normalises_with_the_statistics_of_the_detector(half, imagenet, val, batch):
    [expected, *_] = postprocess(
        *imagenet.model(for_imagenet(batch["images"]).float()),
        imagenet.model.anchors_cxcywh,
        **half.config.eval.model_dump(),
    )
    found = half(val.file(0).path)
    assert len(found) > 10
    assert np.allclose(found.scores, expected.scores, atol=1e-4)
    assert np.allclose(found.boxes_xyxy, expected.boxes_xyxy * 160, atol=0.01)  # the images have 160 x 160 pixels


@pytest.mark.parametrize("name", ["onnx", "torch-export"])
def test_an_exported_file_contains_the_statistics_of_the_detector(half, imagenet, batch, name):
    if name == "onnx":
        pytest.importorskip("onnxruntime")
    network = formats.FORMATS[name].load(formats.export(half.model, name, formats.export_facts(half, None)))
    expected = formats.DecodedSSD(imagenet.model)(for_imagenet(batch["images"]).float())
    for actual, output in zip(network(batch["images"].float()), expected, strict=True):
        assert_near(actual, output)


def test_a_published_detector_has_the_statistics_of_its_experiment(
    half_experiment, half, val, tmp_path, run_in_process
):
    assert run_in_process(publish, half_experiment, "--output", tmp_path / "published")[0] == 0
    published, path = load_fp32(tmp_path / "published"), val.file(0).path
    assert published.preprocessing == half.preprocessing
    assert np.array_equal(published(path).boxes_xyxy, half(path).boxes_xyxy)


def test_fine_tuning_starts_with_the_statistics_of_the_loaded_detector(half_experiment, imagenet, val):
    model = DetectionTask(imagenet.config, None, val).model
    load_initial_detector(model, str(half_experiment), ["a different class", *val.class_names[1:]])
    assert {name: tuple(getattr(model, name).tolist()) for name in STATISTICS} == dict.fromkeys(STATISTICS, HALF)


# ---- weights of the trunk ----------------------------------------------------------------------------------------


def initial_statistics(weights, **changes) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of a new detector whose trunk starts from `weights`."""
    config = ModelConfig(weights=str(weights), input_size=96, drop_path_rate=0, **changes)
    model = build_ssd(config, num_classes=2)
    load_initial_weights(model, config)
    return model.pixel_mean.tolist(), model.pixel_std.tolist()


def as_float32(values) -> list[float]:
    return torch.tensor(values).tolist()


IMAGENET = (as_float32(IMAGENET_MEAN), as_float32(IMAGENET_STD))
MIIL = ([0.0] * 3, [1.0] * 3)  # of some weights of MobileNetV3 in timm


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("miil_in21k_ft_in1k", MIIL),
        ("saved_weights/mobilenetv3_large_100.miil_in21k_ft_in1k.safetensors", MIIL),
        ("mine.safetensors", IMAGENET),  # those of the default tag
    ],
)
def test_weights_of_timm_bring_the_statistics_of_their_tag(weights, expected, tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    state = timm.create_model("mobilenetv3_large_100").state_dict()
    Path("saved_weights").mkdir()
    for path in ("mine.safetensors", "saved_weights/mobilenetv3_large_100.miil_in21k_ft_in1k.safetensors"):
        safetensors.torch.save_file(state, path)
    assert initial_statistics(weights, backbone="timm/mobilenetv3_large_100") == expected


@pytest.mark.parametrize(
    ("statistics", "expected"),
    [({name: torch.tensor(HALF) for name in STATISTICS}, (list(HALF), list(HALF))), ({}, IMAGENET)],
    ids=["new", "old"],
)
@pytest.mark.parametrize("backbone", ["ResNet18SlimBackbone_B", "timm/tf_efficientnet_lite0"])
def test_the_trunk_of_a_detector_brings_the_statistics_of_the_detector(tmp_path, backbone, statistics, expected):
    if backbone.startswith("timm/"):
        pytest.importorskip("timm")
    weights = build_ssd(ModelConfig(backbone=backbone, input_size=96), num_classes=2).state_dict()
    weights = {name: value for name, value in weights.items() if name not in STATISTICS} | statistics
    save_checkpoint(tmp_path / "step_000000001.pt", {"model": weights, "ema": None})
    assert initial_statistics(tmp_path / "step_000000001.pt", backbone=backbone, neck="fpn") == expected


# ---- files without statistics ------------------------------------------------------------------------------------


def statistics(weights: dict[str, Tensor]) -> list[Tensor]:
    return [weights[name] for name in STATISTICS]


@pytest.mark.parametrize("is_published", [False, True])
def test_a_checkpoint_or_release_without_statistics_has_those_of_imagenet(
    finished_detector, imagenet, val, tmp_path, run_in_process, is_published
):
    folder = shutil.copytree(finished_detector, tmp_path / "experiment_9")
    change_checkpoint(folder, delete_statistics)
    if is_published:
        assert run_in_process(publish, folder, "--output", tmp_path / "published")[0] == 0
        folder = tmp_path / "published"
    old, path = load_fp32(folder), val.file(0).path
    assert old.preprocessing == imagenet.preprocessing
    assert np.array_equal(old(path).boxes_xyxy, imagenet(path).boxes_xyxy)


@pytest.mark.parametrize("wrapper", [lambda model: model, AveragedModel, torch.nn.DataParallel])
def test_a_state_dict_without_statistics_sets_those_of_imagenet_also_in_a_wrapped_model(imagenet, val, wrapper):
    model = DetectionTask(imagenet.config, None, val).model
    model.set_normalization(HALF, HALF)
    wrapped = wrapper(model)
    weights = {name: value for name, value in wrapped.state_dict().items() if not name.endswith(STATISTICS)}
    before = list(weights)
    wrapped.load_state_dict(weights)
    loaded = {name.removeprefix("module."): value for name, value in wrapped.state_dict().items()}
    assert [values.tolist() for values in statistics(loaded)] == [
        torch.tensor(values).tolist() for values in (IMAGENET_MEAN, IMAGENET_STD)
    ]
    assert list(weights) == before
