"""detection/prepare/yolo.py: boxes keep their place, and defects are reported with file and line."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from detection.prepare.yolo import labels_path

DATA = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


@pytest.fixture
def yolo(tmp_path):
    """Create two training images and one validation image of 40 x 20 pixels in Ultralytics' layout."""
    root = tmp_path / "pets"
    for split, labels in (
        ("train", {"a": "1 0.5 0.5 0.5 0.5\n", "b": "0 0.25 0.5 0.1 0.2\n"}),
        ("val", {"c": "1 0 0 1 1"}),
    ):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for name, text in labels.items():
            Image.new("RGB", (40, 20)).save(root / f"images/{split}/{name}.png")
            (root / f"labels/{split}/{name}.txt").write_text(text)
    (root / "data.yaml").write_text(DATA)
    return root


@pytest.fixture
def train(yolo, objects):
    """Return a function that reads the training objects after the conversion."""
    return lambda: objects(yolo / "annotations/instances_train.json")


def write(yolo, text, name="train/a"):
    (yolo / f"labels/{name}.txt").write_text(text)


def move(yolo, **names):
    """Move each split to folders of its own, NAME/images and NAME/labels."""
    for split, name in names.items():
        (yolo / name).mkdir()
        for folder in ("images", "labels"):
            (yolo / folder / split).rename(yolo / name / folder)


# ---- boxes and outlines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected", "note"),
    [
        ("1 0.5 0.5 0.5 0.5", [[10, 5, 20, 10]], ""),
        ("0 0.1 0.2 0.6 0.2 0.3 0.8", [[4, 4, 20, 12]], "outlines replaced by their bounding boxes: 1"),
        ("0 0.0 0.5 0.5 0.5", [[0, 5, 10, 10]], "boxes clipped at the edge of their image: 2"),  # a and c
        ("0 0.5 0.5 1.000001 1.000001", [[0, 0, 40, 20]], "boxes clipped at the edge of their image: 1"),  # c
        ("0 0.5 0.5 0.5 0.5\n" * 2, [[10, 5, 20, 10]], ""),
        ("", [], ""),
        (None, [], "as images without objects: 1"),
        ("\ufeff0 0.5 0.5 0.5 0.5\r\n1 0.5 0.5 0.25 0.25\r\n", [[10, 5, 20, 10], [15, 7.5, 10, 5]], ""),
    ],
)
def test_a_box_keeps_its_place_and_changes_are_counted(yolo, command, train, text, expected, note):
    (yolo / "labels/train/a.txt").unlink()
    if text is not None:
        write(yolo, text)
    code, printed, _ = command("convert", "yolo", yolo)
    assert code == 0
    assert note in printed
    assert [box for name, _, box, _ in train() if name == "a.png"] == expected
    content = json.loads((yolo / "annotations/instances_train.json").read_text())
    assert len(content["images"]) == 2
    if "outlines" in note:
        assert content["annotations"][0]["segmentation"] == [[4, 4, 24, 4, 12, 16]]


# ---- folders and lists --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("/x/images/train/a.b.jpg", "/x/labels/train/a.b.txt"),
        ("/images/x/images/a.jpg", "/images/x/labels/a.txt"),
        ("train/images/a.jpg", "train/labels/a.txt"),
        ("train/a.jpg", "train/a.txt"),
        ("train/images.jpg", "train/images.txt"),
    ],
)
def test_the_last_folder_called_images_becomes_labels(image, labels):
    assert labels_path(Path(image)) == Path(labels)


@pytest.mark.parametrize(
    "text",
    [
        "names: {0: cat, 1: dog}\ntrain: ../train/images\nval: ../valid/images\nroboflow: {license: MIT}\n",  # Roboflow
        "names: {0: cat, 1: dog}\n",
        "path: ../elsewhere\ntrain: [train/images]\nval: valid\nnc: 2\nnames: [cat, dog]\ndownload: |\n  import os\n",
    ],
)
def test_splits_are_found_by_data_yaml_or_in_the_usual_folders(yolo, command, train, text):
    move(yolo, train="train", val="valid")
    (yolo / "data.yaml").write_text(text)
    assert command("convert", "yolo", yolo)[0] == 0
    assert len(train()) == 2


def test_splits_may_be_lists_and_different_spellings_of_a_path_count_once(yolo, command, objects):
    (yolo / "train.txt").write_text(f"./images/train/a.png\nimages/val/../train/a.png\n{yolo}/images/train/a.png\n")
    (yolo / "val.txt").write_text("./images/train/b.png\nimages/val/c.png\n")
    (yolo / "data.yaml").write_text("path: .\ntrain: train.txt\nval: val.txt\nnames: [cat, dog]\n")
    assert command("convert", "yolo", yolo)[0] == 0
    assert [name for name, *_ in objects(yolo / "annotations/instances_train.json")] == ["a.png"]
    assert [name for name, *_ in objects(yolo / "annotations/instances_val.json")] == ["train/b.png", "val/c.png"]


def test_the_yaml_file_may_have_any_name_and_can_be_given_as_the_source(yolo, command, train):
    (yolo / "data.yaml").rename(yolo / "pets.yaml")
    for source in (yolo, yolo / "pets.yaml"):
        assert command("convert", "yolo", source)[0] == 0
        assert len(train()) == 2


def test_a_split_can_be_given_by_its_folder(yolo, command, train):
    for folder in ("images", "labels"):
        (yolo / folder / "train").rename(yolo / folder / "part_1")
    assert command("convert", "yolo", yolo, "--train", "images/part_1")[0] == 0
    assert len(train()) == 2


def test_hidden_files_and_folders_are_ignored(yolo, command):
    for split, name in (("train", "a"), ("val", "c")):
        folder = yolo / "images" / split / ".ipynb_checkpoints"
        folder.mkdir()
        shutil.copy(yolo / f"images/{split}/{name}.png", folder / f"{name}-checkpoint.png")
        (yolo / f"images/{split}/._{name}.png").write_bytes(b"\0\5\x16\7")
        (yolo / f"labels/{split}/._{name}.txt").write_bytes(b"\0\5\x16\7")
    (yolo / "._data.yaml").write_bytes(b"\0\5\x16\7")
    assert command("convert", "yolo", yolo)[0] == 0
    for split, names in (("train", ["a.png", "b.png"]), ("val", ["c.png"])):
        content = json.loads((yolo / f"annotations/instances_{split}.json").read_text())
        assert [image["file_name"] for image in content["images"]] == names


# ---- without splits -----------------------------------------------------------------------------------------------


def draw(folder, labels):
    """Write six different images to `folder`, and for each the same label line to `labels`."""
    for path in (folder, labels):
        path.mkdir(parents=True, exist_ok=True)
    for number in range(6):
        Image.new("RGB", (40, 20), (number, 0, 99)).save(folder / f"{number}.png")
        (labels / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")


def as_tool(root):
    draw(root / "images", root / "labels")
    (root / "classes.txt").write_text("cat\n")
    (root / "notes.json").write_text('{"categories": [{"id": 0, "name": "cat"}], "info": {}}')


def as_single_split(root):
    draw(root / "train/images", root / "train/labels")
    (root / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnames: [cat]\n")


def as_darknet(root):
    draw(root / "obj_train_data", root / "obj_train_data")
    (root / "obj.names").write_text("cat\n")
    (root / "obj.data").write_text("classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    (root / "train.txt").write_text("".join(f"data/obj_train_data/{number}.png\n" for number in range(6)))


@pytest.mark.parametrize("lay_out", [as_tool, as_single_split, as_darknet])
def test_a_data_set_without_splits_is_recognised_converted_and_split(tmp_path, command, lay_out):
    root = tmp_path / "export"
    lay_out(root)
    (error,) = command("layout", root)[2]
    assert ("darknet" in error) == (lay_out is as_darknet)
    for _ in range(2):  # exactly the commands that `layout` and then `convert` suggest
        words = shlex.split(error.partition("`python -m detection.data ")[2].partition("`")[0])
        code, error, _ = command(*words)
        assert code == 0
    splits = [json.loads((root / f"annotations/instances_{split}.json").read_text()) for split in ("train", "val")]
    assert [len(split["images"]) for split in splits] == [5, 1]
    assert command("check", root)[0] == 0


def test_the_validation_list_of_darknet_is_read(tmp_path, command, objects):
    as_darknet(tmp_path)
    with (tmp_path / "obj.data").open("a") as file:
        file.write("valid = data/valid.txt\n")
    (tmp_path / "train.txt").write_text("data/obj_train_data/1.png\n")
    (tmp_path / "valid.txt").write_text("data/obj_train_data/4.png\n")
    assert command("convert", "yolo", tmp_path)[0] == 0
    (row,) = objects(tmp_path / "annotations/instances_val.json")
    assert row == ("4.png", "cat", [10, 5, 20, 10], 0)


@pytest.mark.parametrize("words", [["--train", "images", "--val", "images"], []])
def test_the_same_images_for_train_and_val_are_refused_with_a_cure(tmp_path, conversion_error, words):
    as_tool(tmp_path)
    if not words:
        (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [cat]\n")
    text = conversion_error("yolo", tmp_path, *words)
    assert "all 6 files of val are also in train" in text
    assert "`python -m detection.data split`" in text


def test_a_missing_split_is_an_error_that_lists_the_candidates(yolo, conversion_error):
    for folder in ("images", "labels"):
        (yolo / folder / "val").rename(yolo / folder / "part")
    for line in ("val: images/val", "val: images/gone", ""):
        (yolo / "data.yaml").write_text(DATA.replace("val: images/val", line))
        assert conversion_error("yolo", yolo).endswith("val not found or empty; give --val part")  # not train
    assert "nope not found or empty; give --val part" in conversion_error("yolo", yolo, "--val", "nope")


# ---- what cannot be converted -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", "4 numbers, expected 5 (class cx cy w h)"),
        ("0 0.5 0.5 0.5 0.5 0.9", "6 numbers, expected 5 (class cx cy w h)"),
        ("cat 0.5 0.5 0.5 0.5", "cat 0.5 0.5 0.5 0.5: expected numbers"),
        ("2 0.5 0.5 0.5 0.5", "class 2, expected 0 to 1"),
        ("0 20 10 20 10", "coordinate 20, expected fractions"),
        ("0 0.5 nan 0.5 0.5", "coordinate nan, expected fractions"),
        ("0 0.5 0.5 -0.0005 0.5", "width -0.0005, height 0.5, expected 0 to 1"),
    ],
)
def test_an_invalid_line_is_reported_with_its_number(yolo, conversion_error, line, message):
    write(yolo, f"0 0.5 0.5 0.5 0.5\n\n{line}\n")
    text = conversion_error("yolo", yolo)
    assert f"train/a.txt: line 3: {message}" in text
    assert "1 defect," in text


def test_all_defects_are_listed_at_once(yolo, conversion_error):
    write(yolo, "7 0.5 0.5 0.5 0.5\n")
    write(yolo, "0 0.5 0.5 0.5 0.5\n", name="train/gone")
    (yolo / "labels/train/b.txt").write_bytes(b"\xff\xfe")
    (yolo / "images/val/c.png").write_bytes(b"<html>")
    text = conversion_error("yolo", yolo)
    parts = ("class 7", "gone.txt: no image with this name in", "b.txt: not UTF-8 text")
    for part in (*parts, "c.png: cannot be decoded", "4 defects,"):
        assert part in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train\n", "no class names"),
        (DATA.replace("[cat, dog]", "{0: cat, 2: dog}"), "names: expected a list of names"),
        (DATA.replace("[cat, dog]", "[cat, cat]"), "names: duplicate class name 'cat'"),
        (DATA.replace("images/val", "{a: b}"), "val: expected a folder"),
        (DATA + "nc: 3\n", "nc: 3 classes, but 2 names"),
        (DATA + "kpt_shape: [17, 3]\n", "kpt_shape: the labels are key points"),
        (DATA.replace("images/val", "labels/val"), "labels/val: contains no images"),
        ("a: [", "data.yaml: cannot be read as YAML"),
    ],
)
def test_an_invalid_yaml_file_is_an_error(yolo, conversion_error, text, message):
    (yolo / "data.yaml").write_text(text)
    assert message in conversion_error("yolo", yolo)


def test_a_yaml_file_cannot_execute_code_and_its_values_stay_text(yolo, tmp_path, command):
    (yolo / "data.yaml").write_text(
        DATA.replace("dog", "dog, no, 010") + f"x: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n"
    )
    command("convert", "yolo", yolo)
    assert not (tmp_path / "ran").exists()
    content = json.loads((yolo / "annotations/instances_val.json").read_text())
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(0, "cat"), (1, "dog"), (2, "no"), (3, "010")]
    assert [a["category_id"] for a in content["annotations"]] == [1]
