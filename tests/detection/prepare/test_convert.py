"""detection/prepare/convert.py: which files are written, and which errors prevent it."""

import json
import os
import shlex
import shutil

import pytest
from PIL import Image


@pytest.fixture
def yolo(tmp_path):
    """Create a YOLO data set of one training and one validation image with an object each."""
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (tmp_path / folder / split).mkdir(parents=True)
        Image.new("RGB", (40, 20)).save(tmp_path / f"images/{split}/a.png")
        (tmp_path / f"labels/{split}/a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("猫\n")
    return tmp_path


def test_a_second_conversion_replaces_the_files_of_the_first(yolo, command):
    command("convert", "yolo", yolo)
    (yolo / "labels/train/a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    code, printed, _ = command("convert", "yolo", yolo)
    assert code == 0
    assert f"data.root={yolo} data.train.images=images/train" in printed
    content = json.loads((yolo / "annotations/instances_train.json").read_text())
    assert content["annotations"][0]["bbox"] == [18, 9, 4, 2]


@pytest.mark.parametrize("text", ["{}", "[]", "not JSON", '{"info": {"description": "COCO 2017 Dataset"}}'])
def test_annotations_of_a_different_program_are_never_overwritten(yolo, command, text):
    path = yolo / "annotations/instances_val.json"
    path.parent.mkdir()
    path.write_text(text)
    code, _, errors = command("convert", "yolo", yolo)
    assert (code, len(errors)) == (2, 1)
    assert f"{path}: not made by detection.data convert" in errors[0]
    assert "--to" in errors[0]
    assert path.read_text() == text
    assert not (yolo / "annotations/instances_train.json").exists()


def test_a_data_set_without_splits_is_split_by_the_printed_command(yolo, command, tmp_path):
    shutil.rmtree(yolo / "images/val")
    Image.new("RGB", (40, 20), "red").save(yolo / "images/train/b.png")
    code, printed, _ = command("convert", "yolo", yolo, "--to", tmp_path / "new")
    assert code == 0
    words = shlex.split(printed.partition("`python -m detection.data ")[2].partition("`")[0])
    assert command(*words)[0] == 0
    assert (tmp_path / "new/annotations/instances_val.json").exists()


def test_a_data_set_without_training_objects_is_an_error_and_nothing_is_written(yolo, command):
    (yolo / "labels/train/a.txt").write_text("")
    code, _, errors = command("convert", "yolo", yolo)
    assert (code, len(errors)) == (2, 1)
    assert "no objects to train on" in errors[0]
    assert not (yolo / "annotations").exists()


def test_an_image_name_that_is_not_utf_8_is_a_defect_and_nothing_is_written(yolo, command):
    path = os.fsencode(yolo / "images/val") + b"/\xff.png"
    os.rename(yolo / "images/val/a.png", path)
    os.rename(yolo / "labels/val/a.txt", path.replace(b"images", b"labels").replace(b"png", b"txt"))
    code, printed, errors = command("convert", "yolo", yolo)
    assert (code, len(errors)) == (2, 1)
    assert "not valid UTF-8" in printed
    assert not (yolo / "annotations").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "format"),
        (["coco", "x"], "coco"),
        (["yolo"], "FOLDER"),
        (["yolo", "x", "--zero-based"], "--zero-based"),
        (["voc", "gone"], "gone: no such folder"),
    ],
)
def test_an_invalid_command_line_is_a_one_line_error(command, words, part):
    code, _, errors = command("convert", *words)
    assert (code, len(errors)) == (2, 1)
    assert part in errors[0]
