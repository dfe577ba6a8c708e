"""detection/show.py and inspection.py: pictures match training, measurements match the assignment of boxes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_convert

from detection import inspection, show
from detection.anchor_fit import best_boxes, fit_anchors
from detection.coco.annotations import read_coco
from detection.coco.dataset import collate
from detection.coco.transforms import distort_colours
from detection.drawing.boxes import UNMATCHED
from detection.inspection import find_levels, level_of_anchor, match_panel, truth_panel
from detection.network.ssd import ModelConfig, build_ssd
from detection.task import DetectionConfig, with_fitted_scales
from engine.config import load_config

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"


@pytest.fixture(scope="module")
def model():
    return build_ssd(ModelConfig(backbone="ResNet18SlimBackbone_B", input_size=160), num_classes=6)


@pytest.fixture(scope="module")
def task(sample_root):
    return inspection.build_task(
        load_config(QUICKSTART, [f"data.root={sample_root}", "augment.photometric=true"], DetectionConfig)
    )


@pytest.fixture
def command(run_in_process, tmp_path, sample_root):
    """Return a function that runs `python -m detection.show` and returns (exit code, output, error lines)."""
    return lambda *words: run_in_process(
        show, QUICKSTART, f"data.root={sample_root}", *words, "--output", tmp_path / "show"
    )


@pytest.fixture
def panels(monkeypatch) -> list:
    """Collect the panels that a command would draw in a list."""
    drawn = []
    monkeypatch.setattr(inspection, "draw_panels", lambda path, panels, **_: drawn.extend(panels))
    return drawn


# ---- measurements ---------------------------------------------------------------------------------------------


def test_every_default_box_is_found_on_its_level(model):
    levels = find_levels(model)
    sizes = np.diff(levels[1][2][5, 5].reshape(-1, 2, 2), axis=1)[:2, 0]  # of 160: 0.2, and sqrt(0.2 x 0.375)
    assert sizes == pytest.approx(160 * np.array([[0.2] * 2, [(0.2 * 0.375) ** 0.5] * 2]), rel=1e-4)
    boxes_xyxy = np.concatenate([boxes.reshape(-1, 4) for _, _, boxes in levels])
    assert boxes_xyxy == pytest.approx(box_convert(model.anchors_cxcywh, "cxcywh", "xyxy").numpy() * 160)
    assert [torch.sum(level_of_anchor(levels) == number) for number in range(6)] == [b.size / 4 for *_, b in levels]


def test_the_best_box_does_not_depend_on_the_chunk_size(model, monkeypatch):
    boxes_xyxy = torch.rand(50, 2, 2).sort(dim=1).values.flatten(1)
    together = best_boxes(boxes_xyxy, model.anchors_cxcywh)
    monkeypatch.setattr("detection.anchor_fit.MAX_IOUS_AT_ONCE", 7 * len(model.anchors_cxcywh))
    for all_at_once, in_parts in zip(together, best_boxes(boxes_xyxy, model.anchors_cxcywh), strict=True):
        assert torch.equal(all_at_once, in_parts)


# ---- pictures -------------------------------------------------------------------------------------------------


def test_crowds_are_dashed_and_boxes_are_scaled_with_the_image(content, folder, monkeypatch):
    monkeypatch.setattr(inspection, "LARGEST_SIDE", 20)
    content["annotations"][2]["iscrowd"] = 1
    (folder / "a.json").write_text(json.dumps(content))
    coco = read_coco(folder / "a.json", folder / "images")
    panel = truth_panel(coco, 0)
    assert panel.image.shape == (15, 20, 3)
    assert panel.marks[0].box_xyxy.tolist() == [5.25, 5, 15.25, 10]
    marks = truth_panel(coco, 1).marks
    assert [(mark.label, mark.is_dashed) for mark in marks] == [("Kätzchen 猫", False), ("dog (crowd)", True)]


def match(task, *boxes_xyxy):
    """Return the panel of objects with these boxes, fractions of the image side."""
    side, boxes_xyxy = task.model.input_size, torch.tensor(boxes_xyxy).view(-1, 4)
    sample = (np.zeros((side, side, 3), np.uint8), boxes_xyxy, torch.ones(len(boxes_xyxy), dtype=torch.int64))
    return match_panel(task, sample, level_of_anchor(find_levels(task.model)), "id 1")


def test_objects_are_drawn_with_their_default_boxes_or_in_red_if_none_fits(task):
    panel = match(task)
    assert (panel.caption, panel.marks) == ("id 1, no objects", [])
    item, *boxes = match(task, [0.34, 0.34, 0.54, 0.54]).marks
    assert (item.colour, item.label) == (inspection.WHITE, f"circle x{len(boxes)}")
    assert len(boxes) > 1  # the centre of a cell of the second level is there
    item, box = match(task, [0.5, 0.5, 0.52, 0.52]).marks
    overlap = (0.02 * task.model.input_size) ** 2 / np.prod(box.box_xyxy[2:] - box.box_xyxy[:2])
    assert (item.colour, item.label) == (UNMATCHED, f"circle x1, {overlap:.2f}")


def test_augmented_images_have_the_colours_of_training(command, panels, task):
    words = ("--what", "augment", "--ids", task.train.images[3].id, "augment.photometric=true")  # overrides come last
    assert command(*words)[0] == 0
    batch = collate([task.train_set[4, 3]])
    images = distort_colours(batch["images"], batch["colours"])
    assert np.array_equal(panels[5].image, images[0].permute(1, 2, 0))


@pytest.mark.parametrize("policy", ["lsj", "mosaic"])
def test_every_policy_is_drawn_and_measured(command, panels, monkeypatch, policy):
    monkeypatch.setattr(inspection, "EPOCHS", 2)
    for what in ("augment", "matches"):
        code, out, _ = command("--what", what, "--images", 1, f"augment.policy={policy}")
        assert code == 0
    (row,) = [line.split() for line in out.splitlines() if line.strip().startswith("(all)")]
    assert row[1] != row[3]  # objects without and with augmentation
    assert [panel.caption.partition(",")[0] for panel in panels[1:3]] == ["epoch 1", "epoch 2"]


def test_training_has_mosaic_in_its_share_of_the_epochs(sample_root):
    overrides = [f"data.root={sample_root}", "augment.policy=mosaic", "augment.mosaic_share=0.5", "train.epochs=6"]
    train_set = inspection.build_task(load_config(QUICKSTART, overrides, DetectionConfig)).train_set
    assert [len(train_set.plan((epoch, 0)).indices) for epoch in range(6)] == [4, 4, 4, 1, 1, 1]


def test_requested_images_are_drawn_in_the_requested_order(command, panels, task):
    ids = [task.train.images[index].id for index in (5, 2)]
    assert command("--what", "data", "--ids", ",".join(map(str, ids)))[0] == 0
    assert [panel.caption.partition(":")[0] for panel in panels] == [f"id {image_id}" for image_id in ids]


# ---- the command ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", show.SHOWS)
def test_all_pictures_are_written(command, monkeypatch, tmp_path, what):
    monkeypatch.setattr(inspection, "EPOCHS", 2)
    command("--what", what, "--images", 1)
    code, out, _ = command("--what", what, "--images", 1)  # a second run replaces its own pictures
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "show").iterdir()) == sorted(inspection.DRAW_FUNCTIONS[what][1])
    for path in (tmp_path / "show").iterdir():
        assert str(path) in out
        with Image.open(path) as image:
            assert image.width >= 900


def test_matches_prints_the_recall_of_the_default_boxes(command, panels, task):
    _, out, _ = command("--what", "matches", "--images", 1)
    (row,) = [line.split() for line in out.splitlines() if line.strip().startswith("(all)")]
    assert int(row[1]) == task.train.class_counts.sum()
    assert float(row[2]) == pytest.approx(task.anchor_fit.recall, abs=5e-3)


def test_fitted_default_boxes_are_drawn_and_measured(command, panels, task):
    fitted = with_fitted_scales(
        task.config.model_copy(update={"model": task.config.model.model_copy(update={"anchor_scales": "auto"})}),
        task.train,
    )
    code, _, _ = command("--what", "anchors", "--images", 1, "model.anchor_scales=auto")
    assert code == 0
    for panel, scale in zip(panels[:3], fitted.model.anchor_scales, strict=False):
        left, top, right, bottom = panel.marks[0].box_xyxy
        assert right - left == pytest.approx(bottom - top)
        assert right - left == pytest.approx(scale * task.model.input_size, rel=1e-4)
    _, out, _ = command("--what", "matches", "--images", 1, "model.anchor_scales=auto")
    (row,) = [line.split() for line in out.splitlines() if line.strip().startswith("(all)")]
    fit = fit_anchors(task.train, build_ssd(fitted.model, 6), 0.5)
    assert float(row[2]) == pytest.approx(fit.recall, abs=5e-5)


def test_a_file_of_a_different_program_is_not_overwritten(command, tmp_path):
    path = tmp_path / "show/data_val.png"
    path.parent.mkdir()
    Image.new("RGB", (8, 8)).save(path)
    before = path.read_bytes()
    code, _, [error] = command("--what", "data")
    assert code == 2
    assert str(path) in error
    assert [file.read_bytes() for file in path.parent.iterdir()] == [before]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--what", "data", "--ids", 123456], "--ids 123456"),
        (["--what", "data", "--ids", "3,"], "'3,'"),
        (["--what", "data", "--images", 49], "49 images"),
        (["--what", "data", "model.nek=fpn"], "model.nek"),
        (["--what", "matches", "data.val.images=nowhere"], "nowhere"),
    ],
)
def test_invalid_input_is_a_one_line_error_and_nothing_is_written(command, tmp_path, arguments, message):
    code, _, errors = command(*arguments)
    assert code == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "show").exists()
