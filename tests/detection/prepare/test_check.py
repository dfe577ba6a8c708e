"""detection/prepare/check.py: all defects of a data set are found in one pass."""

import json
import shutil

import pytest
from PIL import Image


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def check(command):
    """Return a function that runs `python -m detection.data check ...` and returns (exit code, output, error lines)."""
    return lambda *arguments: command("check", *arguments, "--workers", "2")


def write(folder, annotations):
    (folder / "annotations.json").write_text(json.dumps(annotations))
    return folder / "annotations.json", "--images", folder / "images"


def test_boxes_and_images_that_training_changes_or_ignores_are_counted(folder, content, check):
    content["annotations"] = [
        {"id": 1, "image_id": 20, "category_id": 3, "bbox": [30, 2, 30, 4]},
        {"id": 2, "image_id": 20, "category_id": 7, "bbox": [10, 10, 0, 10]},
        {"id": 3, "image_id": 50, "category_id": 7, "bbox": [0, 0, 40, 30], "iscrowd": 1},
    ]
    code, printed, errors = check(*write(folder, content), "--json", folder / "report.json")
    assert (code, errors) == (0, [])
    assert printed.startswith(f"{folder}/annotations.json: 2 images (2 objects), 2 classes; ")
    assert "; boxes that extend beyond their image: 1; boxes without area: 1; crowds: 1; images without obj" in printed
    assert printed.endswith("2 images decoded, no defects\n")
    (report,) = json.loads((folder / "report.json").read_text())
    assert report["counts"] == {
        "images": 2, "objects": 2, "classes": 2, "boxes_cut": 1, "boxes_left_out": 1, "crowds": 1,
        "images_without_objects": 1,
    }  # fmt: skip


@pytest.fixture
def leaky(folder, content, tmp_path):
    """Create a data set whose validation images are the training images, one of them under a different name."""
    for split in ("train", "val"):
        shutil.copytree(folder / "images", tmp_path / "set/images" / split)
        (tmp_path / "set/annotations").mkdir(exist_ok=True)
        if split == "val":
            (tmp_path / "set/images/val/a.png").rename(tmp_path / "set/images/val/z.png")
            content["images"][0]["file_name"] = "z.png"
        (tmp_path / "set/annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return tmp_path / "set"


def test_validation_images_that_are_also_training_images_are_counted(leaky, check, command):
    code, printed, _ = check(leaky)
    assert code == 0
    assert "instances_val.json: 2 of 2 validation images" in printed
    code, printed, _ = command("layout", leaky)
    assert code == 0
    assert "warning: 2 of 2 validation images" in printed


def test_duplicate_images_are_found_by_name_and_by_content(folder, content, check):
    shutil.copy(folder / "images/a.png", folder / "images/copy.png")
    content["images"] += [
        content["images"][0] | {"id": 900},
        content["images"][0] | {"id": 901, "file_name": "copy.png"},
    ]
    code, printed, _ = check(*write(folder, content))
    assert code == 0
    assert "1 of 3 file names" in printed
    assert "such as a.png" in printed
    assert "1 of 3 images" in printed
    assert "such as copy.png" in printed


def test_defects_of_annotations_and_images_are_found_in_one_pass(folder, content, check):
    content["annotations"][0]["category_id"] = 99
    del content["images"][0]["width"]
    for name in ("a.png", "more/b.png"):
        truncate(folder / "images" / name)
    code, printed, errors = check(*write(folder, content), "--json", folder / "report.json")
    assert code == 2
    assert errors == [f"error: {folder / 'annotations.json'}: 4 defects, listed above"]
    (report,) = json.loads((folder / "report.json").read_text())
    assert [(defect["file"].removeprefix(f"{folder}/"), defect["record"]) for defect in report["defects"]] == [
        ("annotations.json", "images[0] (id 50)"),
        ("annotations.json", "annotations[0] (id 1)"),
        ("images/a.png", "image id 50"),
        ("images/more/b.png", "image id 20"),
    ]
    for line, defect in zip(printed.splitlines()[1:5], report["defects"], strict=True):
        assert all(text in line for text in defect.values())


def test_blank_images_are_counted_and_do_not_fail_the_check(folder, content, check):
    for grey, name in enumerate(("a.png", "more/b.png")):
        Image.new("L", (40, 30), grey).save(folder / "images" / name)
    code, printed, errors = check(*write(folder, content), "--json", folder / "report.json")
    assert (code, errors) == (0, [])
    (line,) = [line for line in printed.splitlines() if "same colour" in line or "black" in line]
    assert str(folder / "images/a.png") in line
    assert "first of 2" in line
    (report,) = json.loads((folder / "report.json").read_text())
    assert [warning["record"] for warning in report["warnings"]] == ["image id 50", "image id 20"]


def test_boxes_without_area_to_score_on_are_a_warning_with_the_highest_score(config, check):
    root = config.parent / "sample"
    for split in ("train", "val"):
        path = root / f"annotations/instances_{split}.json"
        content = json.loads(path.read_text())
        empty = {"id": 900, "image_id": content["images"][0]["id"], "category_id": 1, "bbox": [0, 0, 0, 0]}
        path.write_text(json.dumps(content | {"annotations": [*content["annotations"], empty]}))
    code, printed, errors = check(root)
    assert (code, errors) == (0, [])
    (line,) = [line for line in printed.splitlines() if line.startswith("warning: ")]
    assert "instances_val.json: 1 box without area counts as missed: mAP cannot exceed 0." in line


def test_train_and_val_of_a_config_are_checked(config, check):
    root = config.parent / "sample"
    truncate(root / "images/train/000001.jpg")
    (root / "images/val/000002.jpg").unlink()
    code, printed, errors = check(config, f"data.root={root}")
    assert code == 2
    assert errors == [f"error: {config}: 2 defects, listed above"]
    assert "image id 1 " in printed
    assert "images[0] (id 2)" in printed


@pytest.mark.parametrize("override", ["dat.root=x", "data.rot=x", "model.neck=fpn"])
def test_an_override_of_a_field_outside_data_is_refused(config, check, override):
    code, _, errors = check(config, override)
    assert code == 2
    assert len(errors) == 1
    assert override.partition("=")[0] in errors[0]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("README.md", "expected a config (.yaml)"),
        ("gone", "no such file"),
        ("", "`python -m detection.data convert yolo"),
    ],
)
def test_a_source_that_is_not_a_data_set_is_an_error_with_a_cure(tmp_path, check, name, what):
    (tmp_path / "README.md").write_text("**Hello**\n")
    (tmp_path / "labels").mkdir()
    code, _, errors = check(tmp_path / name)
    assert (code, len(errors)) == (2, 1)
    assert what in errors[0]
    assert str(tmp_path / name) in errors[0]


def test_a_file_whose_annotations_all_have_defects_is_not_reported_as_without_objects(config, check):
    path = config.parent / "sample" / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
    path.write_text(json.dumps(content))
    code, printed, errors = check(config.parent / "sample")
    assert code == 2
    assert "write it without quotes" in printed
    assert "to learn from" not in printed
    assert f"{len(content['annotations'])} defects" in errors[0]
