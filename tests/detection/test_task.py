"""detection/task.py: a detector starts from trunk weights, or from a detector with the same or different classes."""

import json
import shutil

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from detection.coco.annotations import read_coco
from detection.network.anchor_scales import fit_scales
from detection.network.backbones import TRUNKS
from detection.network.ssd import ModelConfig, build_ssd
from detection.task import (
    DetectionConfig,
    DetectionTask,
    load_initial_detector,
    load_initial_weights,
    read_detector,
    with_fitted_scales,
)
from engine.checkpoint import CheckpointError, save_checkpoint
from engine.files import file_sha256
from model import SwinTransformer
from weights.release import PUBLISHED_WEIGHTS, save_release

CLASSES = ["cat", "dog", "horse"]
MODEL = {"backbone": "ResNet18SlimBackbone_B", "neck": "fpn", "neck_channels": 16, "input_size": 96}


def detector(num_classes: int, score_function="softmax", **changes) -> nn.Module:
    return build_ssd(ModelConfig(**{**MODEL, **changes}), num_classes, score_function)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """Build a detector with three classes."""
    return detector(3)


@pytest.fixture(scope="module")
def checkpoint(trained, tmp_path_factory):
    """Save a checkpoint of that detector, without a moving average."""
    path = tmp_path_factory.mktemp("run") / "step_000000007.pt"
    save_checkpoint(path, {"step": 7, "model": trained.state_dict(), "ema": None, "data": {"classes": CLASSES}})
    return path


@pytest.fixture
def task_of(folder, content):
    """Return a function that makes a task with two classes that starts from a file."""
    (folder / "val.json").write_text(json.dumps(content))
    val = read_coco(folder / "val.json", folder / "images")
    data = {name: {"images": "images", "annotations": "val.json"} for name in ("train", "val")}

    def make(path, field="start_from", **options) -> DetectionTask:
        config = {"data": {"root": str(folder), **data}, "train": {"epochs": 1, "batch_size": 1}}
        return DetectionTask(DetectionConfig(**config, model={**MODEL, field: str(path)}), None, val, **options)

    return make


@pytest.mark.parametrize("class_names", [["cat", "dog"], ["dog", "cat", "horse"], CLASSES])
def test_class_heads_are_loaded_only_for_the_same_classes_in_the_same_order(trained, checkpoint, class_names):
    model, total = detector(len(class_names)), len(trained.state_dict())
    heads = {key: tensor.clone() for key, tensor in model.state_dict().items() if key.startswith("class_head.")}
    record = load_initial_detector(model, str(checkpoint), class_names)
    assert (record.part, record.file) == ("detector", str(checkpoint))
    if class_names == CLASSES:
        heads = {}
        assert f"all {total} weights loaded" in record.note
    else:
        assert f"step 7: {total - 12} weights loaded; 12 class-head weights" in record.note
        assert record.note.endswith("cat, dog, horse")
    expected = trained.state_dict() | heads
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def modern(tmp_path_factory):
    """Save a checkpoint of a detector with towers and sigmoid scores."""
    path, model = tmp_path_factory.mktemp("modern") / "step_000000009.pt", detector(3, "sigmoid", head_tower=2)
    save_checkpoint(path, {"step": 9, "model": model.state_dict(), "ema": None, "data": {"classes": CLASSES}})
    return path


@pytest.mark.parametrize(
    ("score_function", "class_names", "reason"),
    [
        ("sigmoid", CLASSES, None),
        ("softmax", CLASSES, "a different score function than softmax"),
        ("sigmoid", ["cat"], "different classes"),
        ("softmax", ["cat", "dog"], "different classes"),  # as many logits per box as the checkpoint has
    ],
)
def test_class_heads_are_loaded_only_for_the_same_score_function(modern, score_function, class_names, reason):
    model = detector(len(class_names), score_function, head_tower=2)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    weights = read_detector(modern).weights
    note = load_initial_detector(model, str(modern), class_names).note
    for key, tensor in model.state_dict().items():
        is_loaded = reason is None or not key.startswith("class_head.")
        assert torch.equal(tensor, (weights if is_loaded else before)[key]), key
    if reason is None:
        assert f"all {len(weights)} weights loaded" in note
    else:
        assert f"{len(weights) - 12} weights loaded; 12 class-head weights" in note
        assert f"because the checkpoint has {reason}" in note


def test_a_detector_with_sigmoid_scores_can_start_from_one_with_softmax_scores(trained, checkpoint):
    model = detector(3, "sigmoid")
    note = load_initial_detector(model, str(checkpoint), CLASSES).note
    assert "a different score function than sigmoid" in note
    assert torch.equal(model.box_head[0].weight, trained.box_head[0].weight)
    assert len(model.class_head[0].bias.unique()) == 1  # still the prior


@pytest.mark.parametrize("depth", [0, 4])
def test_a_detector_with_a_different_tower_is_refused_with_the_field_to_set(modern, depth):
    model = detector(3, "sigmoid", head_tower=depth)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"head_tower is {depth}, .*set model\.head_tower=2$") as error:
        load_initial_detector(model, str(modern), CLASSES)
    assert "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_the_trunk_can_start_from_that_of_a_detector_with_towers(modern):
    weights = read_detector(modern).weights
    loaded = started(modern).state_dict()
    assert all(torch.equal(tensor, weights[f"backbone.trunk.{key}"]) for key, tensor in loaded.items())


def started(weights, **changes) -> nn.Module:
    """Return the trunk of a new detector that starts from `weights`."""
    config = ModelConfig(**{**MODEL, "weights": str(weights), **changes})
    model = build_ssd(config, num_classes=2)
    load_initial_weights(model, config)
    return model.backbone.trunk


def test_the_trunk_can_start_from_the_classifier_of_an_experiment(tmp_path):
    weights = SwinTransformer(**TRUNKS["swin_slim"][1], num_classes=10).state_dict()
    save_checkpoint(tmp_path / "checkpoints/step_000000001.pt", {"model": weights, "ema": None})
    loaded = started(tmp_path, backbone="SwinSlimBackbone_B").state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in loaded.items())


@pytest.mark.parametrize("backbone", ["ResNet18SlimBackbone_B", "SwinSlimBackbone_B"])
def test_the_trunk_can_start_from_that_of_a_detector_with_a_different_neck(tmp_path, backbone):
    weights = detector(5, backbone=backbone, neck="none").state_dict()
    save_checkpoint(tmp_path / "checkpoints/step_000000001.pt", {"model": weights, "ema": None})
    loaded = started(tmp_path, backbone=backbone, neck="pan").state_dict()
    assert all(torch.equal(tensor, weights[f"backbone.trunk.{key}"]) for key, tensor in loaded.items())


@pytest.mark.parametrize(("average", "value"), [(True, 2.0), (False, 1.0)])
def test_the_trunk_starts_from_the_moving_average_or_the_raw_weights(trained, tmp_path, average, value):
    weights = trained.backbone.trunk.state_dict()
    raw, averaged = ({"bn1.bias": torch.full((32,), bias)} for bias in (1.0, 2.0))
    save_checkpoint(tmp_path / "a.pt", {"model": weights | raw, "ema": {"weights": weights | averaged}})
    assert (started(tmp_path / "a.pt", average_weights=average).bn1.bias == value).all()


def test_position_tables_of_a_different_window_size_are_resized_and_logged(tmp_path):
    weights = SwinTransformer(**TRUNKS["swin_slim"][1] | {"window_size": 7}).state_dict()
    torch.save(weights, tmp_path / "a.pth")
    config = ModelConfig(backbone="SwinSlimBackbone_B", input_size=96, weights=str(tmp_path / "a.pth"))
    note = load_initial_weights(build_ssd(config, num_classes=2), config).note
    assert "10 position tables resized" in note
    assert "layers.0.blocks.0.attn.relative_position_bias_table (169, 1) to" in note


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ("/nowhere/resnet50.pth", "'/nowhere/resnet50.pth': no such file"),
        ("imagenet1k", "'imagenet1k': no default .*'resnet18_slim'"),
        ("torchvision_resnet50_v1", "'torchvision_resnet50_v1': .*resnet50.*resnet18_slim"),
        ("html.pth", "'html.pth': .*torch.save"),
    ],
)
def test_the_error_for_unusable_trunk_weights_names_field_and_file(checkpoint, weights, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(checkpoint, "detector.pt")
    (tmp_path / "html.pth").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ValueError, match=f"^model.weights {named}"):
        started(weights)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"neck": "none"}, "unexpected: neck."),
        ({"neck_channels": 8}, "of a different shape: neck."),
        ({"backbone": "SwinSlimBackbone_B"}, "missing: backbone."),
    ],
)
def test_a_detector_of_a_different_architecture_is_refused_with_the_differences(checkpoint, changes, named):
    with pytest.raises(CheckpointError, match=rf"step_000000007\.pt: weights do not fit SSD, nothing .*{named}"):
        load_initial_detector(detector(2, **changes), str(checkpoint), ["cat", "dog"])


@pytest.mark.parametrize("prefix", ["", "module.backbone."])
def test_a_trunk_can_start_from_a_wrapped_resnet_and_the_log_names_the_removed_prefix(tmp_path, prefix, caplog):
    caplog.set_level("INFO")
    config = ModelConfig(backbone="ResNet50Backbone_B", weights=str(tmp_path / "resnet50.pth"))
    model = build_ssd(config, num_classes=2)
    with torch.device("meta"):
        names = torchvision.models.resnet50().state_dict()
    weights = {name: torch.full(value.shape, 0.5, dtype=value.dtype) for name, value in names.items()}
    torch.save({"state_dict": {prefix + name: value for name, value in weights.items()}}, config.weights)
    load_initial_weights(model, config)
    assert (model.backbone.trunk.conv1.weight == 0.5).all()
    assert "'state_dict'" in caplog.text
    assert (f"{prefix!r}" in caplog.text) == bool(prefix)


def test_released_weights_and_a_published_folder_have_a_step_and_classes(tmp_path):
    for path in (tmp_path / "a.safetensors", tmp_path / PUBLISHED_WEIGHTS):
        save_release(path, {"weight": torch.ones(1)}, {"step": "7", "classes": '["dog"]'})
    for path in (tmp_path / "a.safetensors", tmp_path):
        assert read_detector(path)[:3] == ({"weight": torch.ones(1)}, 7, ["dog"])


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"conv1.weight": torch.ones(1)}, "use model.weights"),
        ([1], "use model.weights"),
        ({"step": 7, "model": {"x": torch.full((2,), torch.nan)}, "ema": None}, "not finite: x; use an earlier"),
        (None, "missing in its metadata"),
    ],
)
def test_the_error_for_a_file_that_is_not_a_detector_has_its_name_and_the_cure(tmp_path, content, named):
    path = tmp_path / ("a.safetensors" if content is None else "a.pt")
    if content is None:
        save_release(path, {"weight": torch.ones(1)}, {"step": "7"})
    else:
        save_checkpoint(path, content)
    with pytest.raises(CheckpointError, match=f"{path}: .*{named}"):
        read_detector(path)


def test_a_task_starts_from_the_file_in_its_config_and_reports_it(task_of, trained, checkpoint, tmp_path):
    task, path = task_of(checkpoint), tmp_path / "trunk.pth"
    assert torch.equal(task.model.box_head[0].weight, trained.box_head[0].weight)
    assert task.initial_weights.describe().startswith(f"detector from {checkpoint} (SHA-256 ")
    torch.save(trained.backbone.trunk.state_dict(), path)
    started_from = task_of(path, "weights").initial_weights.describe()
    assert started_from == f"trunk from {path} (SHA-256 {file_sha256(path)[:8]})"


@pytest.mark.parametrize(
    ("name", "written"), [("a.pt", None), ("a.pt", b"<!DOCTYPE html>"), ("a.safetensors", None), ("a.safetensors", b"")]
)
def test_the_error_for_an_unusable_detector_names_field_and_file(task_of, tmp_path, name, written):
    if written is not None:
        (tmp_path / name).write_bytes(written)
    with pytest.raises(CheckpointError, match=rf"^model\.start_from: .*/{name}: (no such|truncated,? or not a)"):
        task_of(tmp_path / name)


def test_fitted_scales_do_not_change_the_initial_weights_and_replace_auto_in_the_config(folder, content):
    (folder / "a.json").write_text(json.dumps(content))
    coco = read_coco(folder / "a.json", folder / "images")
    split = {"images": "images", "annotations": "a.json"}
    data = {"root": str(folder), "train": split, "val": split}

    def task_with(scales, seed=0) -> DetectionTask:
        train = {"epochs": 1, "batch_size": 1, "seed": seed}
        return DetectionTask(
            DetectionConfig(data=data, model=MODEL | {"anchor_scales": scales}, train=train), coco, coco
        )

    fitted = task_with("auto")
    scales = fitted.config.model.anchor_scales
    assert task_with("auto", seed=1).config.model.anchor_scales == scales
    listed = task_with(scales)
    assert listed.config == fitted.config
    assert torch.equal(listed.model.anchors_cxcywh, fitted.model.anchors_cxcywh)
    assert all(torch.equal(one, other) for one, other in zip(
        listed.model.state_dict().values(), fitted.model.state_dict().values(), strict=True
    ))  # fmt: skip


@pytest.mark.parametrize("match_iou", [0.4, 0.7])
def test_scales_are_fitted_to_the_training_objects_at_match_iou(sample_root, match_iou):
    coco = read_coco(sample_root / "annotations/instances_train.json", sample_root / "images/train")
    split = {"images": "images/train", "annotations": "annotations/instances_train.json"}
    config = DetectionConfig(
        data={"root": str(sample_root), "train": split, "val": split}, model=MODEL | {"anchor_scales": "auto"},
        loss={"match_iou": match_iou}, train={"epochs": 1, "batch_size": 1},
    )  # fmt: skip
    grid_sizes = detector(1).grid_sizes(MODEL["input_size"])
    expected = fit_scales(torch.from_numpy(coco.fractions_xyxy), grid_sizes, match_iou)
    assert with_fitted_scales(config, coco).model.anchor_scales == expected


def test_scales_cannot_be_fitted_without_training_objects(folder, content):
    content["annotations"] = []
    (folder / "a.json").write_text(json.dumps(content))
    coco = read_coco(folder / "a.json", folder / "images")
    split = {"images": "images", "annotations": "a.json"}
    data = {"root": str(folder), "train": split, "val": split}
    config = DetectionConfig(data=data, model=MODEL | {"anchor_scales": "auto"}, train={"epochs": 1, "batch_size": 1})
    for train, message in ((coco, "no objects to train on"), (None, r"model\.anchor_scales auto")):
        with pytest.raises(ValueError, match=message):
            DetectionTask(config, train, coco)


# ---- trunks of timm ----------------------------------------------------------------------------------------------

LITE0 = {"backbone": "timm/tf_efficientnet_lite0", "input_size": 96}
HALF = [0.5, 0.5, 0.5]


def start_lite0(weights) -> nn.Module:
    """Return a detector whose trunk of timm starts from `weights`."""
    config = ModelConfig(**{**MODEL, **LITE0, "weights": str(weights)})
    model = build_ssd(config, num_classes=2)
    load_initial_weights(model, config)
    return model


@pytest.mark.parametrize("weights", ["./lite0.pth", "timm", "in1k"])
def test_weights_of_timm_bring_the_statistics_of_their_training_images(tmp_path, monkeypatch, weights):
    timm = pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    classifier = timm.create_model("tf_efficientnet_lite0")
    torch.save(classifier.state_dict(), "lite0.pth")
    (tmp_path / "saved_weights").mkdir()
    save_file(classifier.state_dict(), "saved_weights/tf_efficientnet_lite0.in1k.safetensors")
    model = start_lite0(weights)
    assert torch.equal(model.backbone.trunk.model.conv_stem.weight, classifier.conv_stem.weight)
    assert model.pixel_mean.tolist() == model.pixel_std.tolist() == HALF


def test_a_timm_trunk_can_start_from_that_of_a_detector_and_takes_over_its_statistics(tmp_path):
    pytest.importorskip("timm")
    trained = detector(5, **LITE0, neck="none")
    trained.set_normalization([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    weights = trained.state_dict()
    save_checkpoint(tmp_path / "checkpoints/step_000000001.pt", {"model": weights, "ema": None})
    loaded = start_lite0(tmp_path).state_dict()
    names = [name for name in weights if name.startswith(("backbone.trunk.", "pixel_"))]
    assert len(names) > 100
    assert all(torch.equal(loaded[name], weights[name]) for name in names)
