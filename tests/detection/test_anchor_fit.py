"""detection/anchor_fit.py: the recall of the default boxes is exact, and a low recall is a warning."""

import json
import logging

import numpy as np
import pytest
import torch
from torchvision.ops import box_convert, box_iou

from detection import anchor_fit
from detection.anchor_fit import fit_anchors, report_fit, sample_boxes, try_settings
from detection.coco.annotations import read_coco
from detection.network.anchor_scales import fit_scales
from detection.network.ssd import ModelConfig, build_ssd

CONFIG = ModelConfig(backbone="ResNet18SlimBackbone_B", input_size=160)


@pytest.fixture(scope="module")
def model():
    return build_ssd(CONFIG, num_classes=2)


@pytest.fixture(scope="module")
def sample(sample_root):
    return read_coco(sample_root / "annotations/instances_train.json", sample_root / "images/train")


@pytest.fixture
def objects_of(folder, content):
    """Return a function that annotates two images of 40 x 30 pixels with square objects of these sides, and a crowd."""

    def make(*sides):
        rng = np.random.default_rng(0)
        content["annotations"] = [
            {"id": 0, "image_id": 50, "category_id": 7, "bbox": [0, 0, 40, 30], "iscrowd": 1},
            *(
                {
                    "id": number, "image_id": (50, 20)[number % 2], "category_id": 3,
                    "bbox": [*(rng.random(2) * (40 - side, 30 - side)).tolist(), side, side],
                }
                for number, side in enumerate(sides, start=1)
            ),
        ]  # fmt: skip
        (folder / "a.json").write_text(json.dumps(content))
        return read_coco(folder / "a.json", folder / "images")

    return make


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_recall_equals_that_of_torchvisions_iou_matrix(model, sample, threshold):
    boxes = []
    for index, record in enumerate(sample.images):
        boxes_xyxy, _, is_crowd = sample.objects(index)
        boxes.append(torch.from_numpy(boxes_xyxy[~is_crowd]) / torch.tensor([record.width, record.height] * 2))
    iou = box_iou(torch.cat(boxes), box_convert(model.anchors_cxcywh, "cxcywh", "xyxy"))
    expected = float((iou.amax(dim=1) >= threshold).double().mean())
    fit = fit_anchors(sample, model, threshold)
    assert fit.recall == expected
    assert fit.objects == fit.measured == len(iou)


def test_crowds_do_not_count_and_sizes_are_in_pixels_of_the_input(model, objects_of):
    assert fit_anchors(objects_of(1, 1, 1), model, 0.5).recall == 0
    fit = fit_anchors(objects_of(10, 10, 20), model, 0.5)
    assert fit.objects == 3
    assert fit.median_size == pytest.approx(160 * 10 / (40 * 30) ** 0.5)


def test_if_there_are_many_objects_a_deterministic_sample_is_measured(model, sample, monkeypatch, caplog):
    caplog.set_level("INFO")
    boxes_xyxy = torch.from_numpy(sample.fractions_xyxy)
    assert torch.equal(sample_boxes(boxes_xyxy, 7), sample_boxes(boxes_xyxy, 7))
    assert len(sample_boxes(boxes_xyxy, 7).unique(dim=0)) == 7
    monkeypatch.setattr(anchor_fit, "MAX_MEASURED", 7)
    report_fit(fit_anchors(sample, model, 0.5), sample, model)
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    assert f"% of a sample of 7 of {len(boxes_xyxy)} training objects" in caplog.text


def test_tiny_objects_cause_a_warning_with_their_size_and_better_settings(model, objects_of, caplog):
    coco = objects_of(*[2] * 40, *[3] * 5)  # sides of 9 to 14 input pixels; the smallest default box has 16
    report_fit(fit_anchors(coco, model, 0.5), coco, model)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    for text in ("of 45 training objects", "9 pixels", "default box 16", "model.anchor_scales", "input_size"):
        assert text in caplog.text
    assert "79% of" in str(fit_anchors(coco, model, 0.5)._replace(recall=0.7999))  # not rounded up to 80%


def test_the_reported_recall_of_alternative_settings_is_that_of_a_model_built_with_them(model, sample):
    settings = try_settings(sample, model, 0.6)
    assert len(settings) == 3
    for setting, recall in settings.items():
        changes = dict(change.removeprefix("model.").split("=") for change in setting.split())
        config = CONFIG.model_copy(update={"input_size": int(changes.get("input_size", 160))})
        if changes.get("anchor_scales") == "auto":
            grid_sizes = build_ssd(config, 2).grid_sizes(config.input_size)
            scales = fit_scales(torch.from_numpy(sample.fractions_xyxy), grid_sizes, 0.6)
            config = config.model_copy(update={"anchor_scales": scales})
        assert fit_anchors(sample, build_ssd(config, 2), 0.6).recall == recall
