"""detection/detector.py: every kind of weights file and image gives the detections that were scored."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from data import DatasetError
from detection import Detections, load
from detection.coco.annotations import read_split
from detection.deployment.formats import export_facts
from detection.network.ssd import ModelConfig, build_ssd
from detection.task import DetectionConfig
from engine.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from engine.config import dump_config
from records.experiment import read_experiment_config
from weights import publish
from weights.release import save_release

PUBLISHED = Path(__file__).parents[2] / "experiments/published"


@pytest.fixture(scope="module")
def detector(finished_detector):
    return load(finished_detector, "cpu")


@pytest.fixture(scope="module")
def val(detector):
    return read_split(detector.config.data, "val")


@pytest.fixture(scope="module")
def pixels(val):
    """Return one non-square image, (H, W, 3) uint8."""
    return np.array(Image.open(val.file(0).path))[:, :120]


def are_equal(a: Detections, b: Detections) -> bool:
    return len(a) > 0 and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in Detections.__dataclass_fields__
    )


# ---- detections ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", ["finished_detector", "modern_detector"])
def test_the_detections_are_those_that_were_scored(experiment, request):
    experiment = request.getfixturevalue(experiment)
    detector = load(experiment, "cpu")
    val = read_split(detector.config.data, "val")
    found = detector([val.file(index).path for index in range(len(val.images))])
    records = [record for image, each in zip(val.images, found, strict=True) for record in each.to_coco(image.id)]
    assert len(records) > 100
    assert records == json.loads((experiment / "detections.json").read_text())


def test_boxes_are_in_pixels_of_the_original_and_classes_are_those_of_the_annotation_file(detector, val, pixels):
    found = detector(pixels)
    assert detector.category_ids != list(range(1, len(val.class_names) + 1))
    assert found.class_names == [val.class_names[label - 1] for label in found.labels]
    assert found.category_ids.tolist() == [val.category_ids[label - 1] for label in found.labels]
    assert found.boxes_xyxy[:, 2].max() > 96 > found.boxes_xyxy[:, 0].min()  # wider than the network's input
    assert (found.boxes_xyxy >= 0).all()
    assert (found.boxes_xyxy <= (120, 160, 120, 160)).all()


def test_exported_files_say_how_scores_are_computed(detector, modern_detector):
    modern = load(modern_detector, "cpu")
    assert [export_facts(each, None)["score_function"] for each in (detector, modern)] == ["softmax", "sigmoid"]


def test_a_score_threshold_replaces_that_of_the_experiment(detector, pixels):
    few, many = detector(pixels, score_threshold=0.6), detector(pixels)
    assert 0 < len(few) < len(many)
    assert few.scores.min() >= 0.6 > many.scores.min() >= 0.3
    none = detector(pixels, score_threshold=0.9999)
    assert (len(none), none.boxes_xyxy.shape, none.to_coco(1)) == (0, (0, 4), [])
    assert re.fullmatch(r"Detections\(\d+: (\w+ 0\.\d\d, ){5}\.\.\.\)", repr(many))


def test_several_images_of_different_sizes_give_a_list(detector, pixels):
    found = detector([pixels, pixels[:90]])
    assert [type(each) for each in found] == [Detections, Detections]
    assert np.allclose(found[0].boxes_xyxy, detector(pixels).boxes_xyxy, atol=0.01)
    assert found[1].boxes_xyxy[:, 3].max() <= 90
    assert detector([]) == []


def test_supervision_gets_the_same_detections_with_class_ids_from_0(detector, pixels, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=dict))  # the real one needs scipy
    found = detector(pixels)
    converted = found.to_supervision()
    assert converted.keys() == {"xyxy", "confidence", "class_id", "data"}
    assert np.allclose(converted["xyxy"], found.boxes_xyxy)
    assert np.allclose(converted["confidence"], found.scores)
    assert [detector.class_names[index] for index in converted["class_id"]] == found.class_names
    assert converted["data"]["class_name"].tolist() == found.class_names
    assert detector(pixels, score_threshold=0.9999).to_supervision()["xyxy"].shape == (0, 4)
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        found.to_supervision()


# ---- input images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "text", "PIL", "tensor", "float tensor", "alpha"])
def test_an_image_may_have_any_supported_type(detector, pixels, tmp_path, kind):
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    image = {
        "path": path,
        "text": str(path),
        "PIL": Image.open(path),
        "tensor": tensor,
        "float tensor": tensor / 255,
        "alpha": np.dstack([pixels, np.full(pixels.shape[:2], 7, np.uint8)]),
    }[kind]
    assert are_equal(detector(image), detector(pixels))


def test_a_photo_with_an_exif_rotation_is_turned_upright(detector, pixels, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "a.png", exif=exif)
    assert are_equal(detector(tmp_path / "a.png"), detector(pixels))
    assert are_equal(detector(Image.open(tmp_path / "a.png")), detector(pixels))


def test_8_bit_and_16_bit_grey_images_give_the_same_detections(detector, pixels, tmp_path):
    grey = pixels[..., 0]
    Image.fromarray(grey.astype(np.uint16) * 256).save(tmp_path / "a.png")
    expected = detector(np.repeat(grey[..., None], 3, axis=2))
    assert are_equal(detector(grey), expected)
    assert are_equal(detector(grey.astype(np.uint16) * 256), expected)
    assert are_equal(detector(tmp_path / "a.png"), expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), r"shape \(4, 4, 3\) and type float64: expected \(height, width, 3\) uint8"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (torch.zeros(2, 3, 8, 8), r"shape \(2, 3, 8, 8\).*list\(batch\)"),
        (torch.full((3, 8, 8), 200.0), "type torch.float32, from 200 to 200"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), "type torch.int32"),
        ("nowhere.jpg", r"nowhere\.jpg: no such file"),
        (None, "got NoneType, expected a path"),
        (b"ab", "got bytes, expected a path"),
    ],
)
def test_an_invalid_image_is_refused_and_in_a_list_its_position_is_named(detector, pixels, image, message):
    with pytest.raises((DatasetError, TypeError), match=message):
        detector(image)
    with pytest.raises((DatasetError, TypeError), match=f"image 2 of 2: .*{message}"):
        detector([pixels, image])


# ---- loading -------------------------------------------------------------------------------------------------


def test_a_checkpoint_a_published_folder_and_its_weights_file_can_be_loaded(
    finished_detector, detector, pixels, tmp_path, run_in_process
):
    checkpoint = newest_checkpoint(finished_detector / "checkpoints")
    run_in_process(publish, finished_detector, "--output", tmp_path / "cells")
    shutil.copy(tmp_path / "cells/model.safetensors", tmp_path / "a.safetensors")
    for path in (checkpoint, tmp_path / "cells", str(tmp_path / "a.safetensors")):
        again = load(path, "cpu")
        assert are_equal(again(pixels), detector(pixels))
        assert (again.category_ids, again.step) == (detector.category_ids, 3)


def test_the_documented_preprocessing_gives_the_input_of_the_network(detector, pixels):
    steps = detector.preprocessing
    square = Image.fromarray(pixels).resize((steps["input_size"],) * 2, Image.Resampling.BILINEAR)  # also antialiased
    inner = steps["done_by_the_model"]
    expected = {"model": np.asarray(square, np.float32)}
    expected["backbone"] = (expected["model"] * inner["scale"] - inner["mean"]) / inner["std"]
    seen = {}
    modules = {"model": detector.model, "backbone": detector.model.backbone}
    handles = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
        for name, module in modules.items()
    ]
    detector(pixels)
    for handle in handles:
        handle.remove()
    for name, tolerance in (("model", 1), ("backbone", 0.02)):  # one grey level is 0.017 after normalisation
        assert seen[name].shape == (1, 3, 96, 96)
        assert np.abs(seen[name][0].permute(1, 2, 0).numpy() - expected[name]).max() <= tolerance


@pytest.fixture
def moved(finished_detector, tmp_path):
    """Return a function that copies the experiment and replaces a text in its config."""

    def move(old, new):
        shutil.copytree(finished_detector, tmp_path / "experiment_1")
        text = (finished_detector / "config.yaml").read_text()
        (tmp_path / "experiment_1/config.yaml").write_text(text.replace(old, new))
        return tmp_path / "experiment_1"

    return move


def test_category_ids_come_from_the_record_or_are_counted_from_1_with_a_warning(moved, detector, caplog):
    folder = moved("sample", "elsewhere")
    assert load(folder, "cpu").category_ids == detector.category_ids
    (folder / "results.json").unlink()
    assert load(folder, "cpu").category_ids == list(range(1, len(detector.class_names) + 1))
    assert "category ids are 1 to" in caplog.text


def test_an_experiment_that_is_older_than_the_heads_with_towers_can_be_loaded(moved, detector, pixels):
    folder = moved("  head_tower: 0\n", "")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("  classification: multibox\n", ""))
    names = ("head_tower", "classification")
    assert not any(name in (folder / "config.yaml").read_text() for name in names)
    assert are_equal(load(folder, "cpu")(pixels), detector(pixels))


def test_a_different_tower_is_refused_with_the_field_to_set(moved):
    with pytest.raises(ValueError, match=r"step_000000003\.pt: .*set model\.head_tower=0$") as error:
        load(moved("head_tower: 0", "head_tower: 4"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("experiments/nowhere", "no such file or folder; expected an experiment directory"),
        ("", r"neither config\.yaml nor model\.safetensors"),
        ("weights.pt", r"config\.yaml"),
        ("model.safetensors", "no DetectionConfig in its metadata"),
        (PUBLISHED / "experiment_47", r"experiment_47/config\.yaml: a config of a different"),  # has no weights
    ],
)
def test_loading_anything_else_is_an_error_of_one_line(finished_detector, tmp_path, name, expected):
    if name == "weights.pt":
        shutil.copy(newest_checkpoint(finished_detector / "checkpoints"), tmp_path / name)
    if name == "model.safetensors":
        save_release(tmp_path / name, {"a": torch.zeros(1)}, {"step": "1", "classes": "[1]", "config": "model: {}"})
    with pytest.raises(ValueError, match=expected) as error:
        load(tmp_path / name)
    assert "\n" not in str(error.value)


def test_weights_of_a_different_architecture_are_refused(moved):
    with pytest.raises(ValueError, match=r"step_000000003\.pt: weights do not fit SSD"):
        load(moved("neck: fpn", "neck: none"))


def test_importing_the_package_does_not_import_torch():
    code = "import sys, detection; assert 'torch' not in sys.modules, 'torch'; assert 'load' in detection.__all__"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_detector_with_a_trunk_of_timm_can_be_loaded_without_gradients(finished_detector, pixels, tmp_path):
    pytest.importorskip("timm")
    experiment = shutil.copytree(finished_detector, tmp_path / "experiment_9")
    config = ModelConfig(backbone="timm/resnet10t", neck_channels=16, input_size=96)
    state = load_checkpoint(newest_checkpoint(experiment / "checkpoints"))
    state["model"] = build_ssd(config, len(state["data"]["classes"])).state_dict()
    save_checkpoint(newest_checkpoint(experiment / "checkpoints"), state | {"ema": None})
    text = dump_config(read_experiment_config(experiment, DetectionConfig).model_copy(update={"model": config}))
    (experiment / "config.yaml").write_text(text)
    expected = load(experiment, "cpu")(pixels)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            loaded = load(experiment, "cpu")
        assert loaded.model.backbone.trunk.name == "resnet10t"
        assert np.array_equal(loaded(pixels).scores, expected.scores)
