"""Looking at data: what is shown is what training sees, what is measured agrees with matching, nothing is lost."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.mask import iou
from torchvision.ops import box_convert

from detection import inspection, show
from detection.anchor_fit import best_boxes
from detection.coco.annotations import read_coco
from detection.coco.dataset import CocoDetection, collate
from detection.coco.transforms import distort_colours, eval_transform
from detection.drawing.boxes import UNMATCHED
from detection.inspection import Fit, find_levels, fit_objects, match_panel, truth_panel
from detection.network.ssd import ModelConfig, build_ssd
from detection.task import DetectionConfig
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
def command(run_in_process, monkeypatch, tmp_path, sample_root):
    """Run `python -m detection.show` on the sample set; returns its exit code, what it printed and its errors."""
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)

    return lambda *words: run_in_process(
        show, QUICKSTART, f"data.root={sample_root}", *words, "--output", tmp_path / "show"
    )


@pytest.fixture
def panels(monkeypatch) -> list:
    """The panels that a command draws, by way of a list in place of a picture."""
    drawn = []
    monkeypatch.setattr(inspection, "draw_panels", lambda path, panels, **_: drawn.extend(panels))
    return drawn


# ---- what is measured -----------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_scales_and_matching_ones_differ_by_the_root_of_the_threshold(model):
    levels, _ = find_levels(model, 0.64)
    # Of 160 pixels: scale 0.2, and between it and the next, 0.375, the root of their product.
    sizes = 0.2 * 160, (0.2 * 0.375) ** 0.5 * 160
    assert levels[1].box_sizes == pytest.approx(sizes, rel=1e-5)
    assert levels[1].object_sizes == pytest.approx((0.8 * sizes[0], sizes[1] / 0.8), rel=1e-5)


def test_the_shown_cell_has_boxes_of_its_level(model):
    levels, level_of_anchor = find_levels(model, 0.5)
    anchors_xyxy = box_convert(model.anchors_cxcywh, "cxcywh", "xyxy") * 160
    counts = [level.rows * level.columns * len(level.cell_xyxy) for level in levels]
    assert torch.bincount(level_of_anchor).tolist() == counts
    for number, level in enumerate(levels):
        ious, best = best_boxes(torch.from_numpy(level.cell_xyxy) / 160, model.anchors_cxcywh)
        assert ious.numpy() == pytest.approx(1, abs=1e-5)
        assert set(level_of_anchor[best].tolist()) == {number}
        assert torch.equal(anchors_xyxy[best], torch.from_numpy(level.cell_xyxy))


def test_the_best_box_is_found_whatever_the_number_at_once(model, monkeypatch):
    boxes_xyxy = torch.rand(50, 2, 2).sort(dim=1).values.flatten(1)
    together = best_boxes(boxes_xyxy, model.anchors_cxcywh)
    monkeypatch.setattr("detection.anchor_fit.IOUS_AT_ONCE", 7 * len(model.anchors_cxcywh))
    for all_at_once, in_parts in zip(together, best_boxes(boxes_xyxy, model.anchors_cxcywh), strict=True):
        assert torch.equal(all_at_once, in_parts)


def test_recall_is_the_share_of_objects_that_a_box_fits():
    fit = Fit(np.ones(4), np.array([1, 1, 2, 2]), np.array([0.4, 0.5, 0.6, 0.7]), np.zeros(4, int))
    assert fit.recall(0.5) == 0.75
    assert fit.of_class(1).recall(0.5) == 0.5
    assert fit.of_class(3).recall(0.5) is None


def test_recall_agrees_with_the_overlaps_of_pycocotools(task):
    side = task.model.input_size
    dataset = CocoDetection(task.train, eval_transform(side))
    fit = fit_objects(dataset, task.model.anchors_cxcywh, find_levels(task.model, 0.6)[1], side)
    boxes_xyxy = torch.cat([dataset[0, index]["boxes_xyxy"] for index in range(len(dataset))])
    boxes_xywh, anchors_xywh = (
        box_convert(boxes.double(), kind, "xywh").numpy()
        for boxes, kind in ((boxes_xyxy, "xyxy"), (task.model.anchors_cxcywh, "cxcywh"))
    )
    best_iou = iou(anchors_xywh, boxes_xywh, [0] * len(boxes_xywh)).max(axis=0)
    assert fit.best_iou == pytest.approx(best_iou, abs=1e-5)
    assert 0 < fit.recall(0.6) == (best_iou >= 0.6).mean() < 1


def test_objects_are_measured_as_training_shows_them(task):
    side = task.model.input_size
    fit = fit_objects(task.train_set, task.model.anchors_cxcywh, find_levels(task.model, 0.5)[1], side)
    samples = [task.train_set[0, index] for index in range(len(task.train_set))]
    boxes_xyxy = torch.cat([sample["boxes_xyxy"] for sample in samples])
    assert fit.labels.tolist() == torch.cat([sample["labels"] for sample in samples]).tolist()
    assert fit.sizes == pytest.approx((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1).sqrt().numpy() * side, rel=1e-3)


# ---- what is shown --------------------------------------------------------------------------------------------


def test_crowds_are_dashed_and_boxes_follow_an_image_that_is_shown_smaller(content, folder, monkeypatch):
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
    """The panel of objects with these boxes, in fractions."""
    side, boxes_xyxy = task.model.input_size, torch.tensor(boxes_xyxy).view(-1, 4)
    sample = (np.zeros((side, side, 3), np.uint8), boxes_xyxy, torch.ones(len(boxes_xyxy), dtype=torch.int64))
    return match_panel(task, sample, find_levels(task.model, 0.5)[1], "id 1")


def test_an_object_that_a_default_box_fits_is_shown_with_its_boxes(task):
    panel = match(task)
    assert (panel.caption, panel.marks) == ("id 1, no objects", [])
    item, *boxes = match(task, [0.34, 0.34, 0.54, 0.54]).marks
    assert item.colour == inspection.WHITE
    assert item.label == f"circle x{len(boxes)}"
    assert len(boxes) > 1  # a cell of the second level has its centre there


def test_an_object_that_none_fits_is_red_and_tells_the_best_overlap(task):
    item, box = match(task, [0.5, 0.5, 0.52, 0.52]).marks
    assert item.colour == UNMATCHED
    assert (
        item.label
        == f"circle x1, {0.02**2 * task.model.input_size**2 / np.prod(box.box_xyxy[2:] - box.box_xyxy[:2]):.2f}"
    )


def test_an_epoch_is_shown_with_the_colours_of_training(command, panels, task):
    words = ("--what", "augment", "--ids", task.train.images[3].id, "augment.photometric=true")  # overrides come last
    assert command(*words)[0] == 0
    batch = collate([task.train_set[4, 3]])
    images = distort_colours(batch["images"], batch["colours"])
    assert np.array_equal(panels[5].image, images[0].permute(1, 2, 0))


def test_the_images_asked_for_are_shown_in_that_order(command, panels, task):
    ids = [task.train.images[index].id for index in (5, 2)]
    assert command("--what", "data", "--ids", ",".join(map(str, ids)))[0] == 0
    assert [panel.caption.partition(":")[0] for panel in panels] == [f"id {image_id}" for image_id in ids]


# ---- the command ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", show.SHOWS)
def test_all_pictures_are_written(command, monkeypatch, tmp_path, what):
    monkeypatch.setattr(inspection, "EPOCHS", 2)
    command("--what", what, "--images", 1)
    code, out, _ = command("--what", what, "--images", 1)  # again: its own pictures are replaced
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "show").iterdir()) == sorted(inspection.DRAWN[what][1])
    for path in (tmp_path / "show").iterdir():
        assert str(path) in out
        with Image.open(path) as image:
            assert image.width >= 900


def test_matches_prints_the_recall_of_the_default_boxes(command, panels, task):
    _, out, _ = command("--what", "matches", "--images", 1)
    (row,) = [line.split() for line in out.splitlines() if line.strip().startswith("(all)")]
    assert int(row[1]) == task.train.class_counts.sum()
    assert 0.5 < float(row[2]) <= 1


def test_default_boxes_on_a_blank_input_take_no_data(command, panels):
    assert command("--what", "anchors", "--blank", "data.train.annotations=none.json")[0] == 0
    assert [len(panel.marks) for panel in panels] == [4, 6, 6, 6, 4, 4]


@pytest.mark.parametrize("name", ["data_train.png", "data_val.png"])
def test_a_file_of_someone_else_is_left_alone(command, tmp_path, name):
    path = tmp_path / "show" / name
    path.parent.mkdir()
    Image.new("RGB", (8, 8)).save(path)
    before = path.read_bytes()
    code, _, [error] = command("--what", "data")
    assert code == 2
    assert str(path) in error
    assert [file.read_bytes() for file in path.parent.iterdir()] == [before]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--what", "data", "--ids", 123456], "--ids 123456"),
        (["--what", "data", "--ids", "3,"], "'3,'"),
        (["--what", "data", "--images", 49], "49 images"),
        (["--what", "augment", "--blank"], "--blank"),
        (["--what", "data", "model.nek=fpn"], "model.nek"),
        (["--what", "matches", "data.val.images=nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_said_in_one_line_and_leaves_nothing(command, tmp_path, arguments, said):
    code, _, errors = command(*arguments)
    assert code == 2
    assert len(errors) == 1
    assert said in errors[0]
    assert not (tmp_path / "show").exists()


@pytest.mark.parametrize(
    ("display", "option", "opened"), [("", [], 0), (":0", [], 1), (":0", ["--no-open"], 0), ("", ["--open"], 1)]
)
def test_pictures_are_opened_with_a_display(command, panels, monkeypatch, display, option, opened):
    urls = []
    monkeypatch.setattr("webbrowser.open", lambda url: urls.append(url) or True)
    monkeypatch.setenv("DISPLAY", display)
    assert command("--what", "anchors", "--blank", *option)[0] == 0
    assert [url.rpartition("/")[2] for url in urls] == ["anchors.png"] * opened
