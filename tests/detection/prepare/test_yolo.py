"""detection/prepare/yolo.py: every box where it was, every defect with its file and line."""

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
    """Two images of 40 x 20 pixels to train on and one to validate, as Ultralytics lays them out."""
    root = tmp_path / "pets"
    for half, labels in (
        ("train", {"a": "1 0.5 0.5 0.5 0.5\n", "b": "0 0.25 0.5 0.1 0.2\n"}),
        ("val", {"c": "1 0 0 1 1"}),
    ):
        for folder in ("images", "labels"):
            (root / folder / half).mkdir(parents=True)
        for name, text in labels.items():
            Image.new("RGB", (40, 20)).save(root / f"images/{half}/{name}.png")
            (root / f"labels/{half}/{name}.txt").write_text(text)
    (root / "data.yaml").write_text(DATA)
    return root


@pytest.fixture
def train(yolo, objects):
    """The objects to train on after the conversion."""
    return lambda: objects(yolo / "annotations/instances_train.json")


def write(yolo, text, name="train/a"):
    (yolo / f"labels/{name}.txt").write_text(text)


def move(yolo, **names):
    """Give each half folders of its own, as in NAME/images and NAME/labels."""
    for half, name in names.items():
        (yolo / name).mkdir()
        for folder in ("images", "labels"):
            (yolo / folder / half).rename(yolo / name / folder)


# ---- boxes and outlines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected", "note"),
    [
        ("1 0.5 0.5 0.5 0.5", [[10, 5, 20, 10]], ""),
        ("0 0.1 0.2 0.6 0.2 0.3 0.8", [[4, 4, 20, 12]], "outlines, replaced by the box around them: 1"),
        ("0 0.0 0.5 0.5 0.5", [[0, 5, 10, 10]], "boxes cut at the edge of their image: 2"),  # and that of c
        ("0 0.5 0.5 1.000001 1.000001", [[0, 0, 40, 20]], "boxes cut at the edge of their image: 1"),  # that of c
        ("0 0.5 0.5 0.5 0.5\n" * 2, [[10, 5, 20, 10]], ""),
        ("", [], ""),
        (None, [], "images without a file of labels, taken for images without objects: 1"),
        ("\ufeff0 0.5 0.5 0.5 0.5\r\n1 0.5 0.5 0.25 0.25\r\n", [[10, 5, 20, 10], [15, 7.5, 10, 5]], ""),
    ],
)
def test_a_box_is_where_it_was_and_a_change_is_counted(yolo, command, train, text, expected, note):
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


# ---- where things are ---------------------------------------------------------------------------------------------


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
def test_halves_are_where_data_yaml_says_or_in_the_usual_folders(yolo, command, train, text):
    move(yolo, train="train", val="valid")
    (yolo / "data.yaml").write_text(text)
    assert command("convert", "yolo", yolo)[0] == 0
    assert len(train()) == 2


def test_halves_may_be_lists_in_which_an_image_counts_once_however_it_is_spelled(yolo, command, objects):
    (yolo / "train.txt").write_text(f"./images/train/a.png\nimages/val/../train/a.png\n{yolo}/images/train/a.png\n")
    (yolo / "val.txt").write_text("./images/train/b.png\nimages/val/c.png\n")
    (yolo / "data.yaml").write_text("path: .\ntrain: train.txt\nval: val.txt\nnames: [cat, dog]\n")
    assert command("convert", "yolo", yolo)[0] == 0
    assert [name for name, *_ in objects(yolo / "annotations/instances_train.json")] == ["a.png"]
    assert [name for name, *_ in objects(yolo / "annotations/instances_val.json")] == ["train/b.png", "val/c.png"]


def test_the_yaml_file_may_have_another_name_or_be_named(yolo, command, train):
    (yolo / "data.yaml").rename(yolo / "pets.yaml")
    for source in (yolo, yolo / "pets.yaml"):
        assert command("convert", "yolo", source)[0] == 0
        assert len(train()) == 2


def test_a_half_can_be_named_by_its_folder(yolo, command, train):
    for folder in ("images", "labels"):
        (yolo / folder / "train").rename(yolo / folder / "part_1")
    assert command("convert", "yolo", yolo, "--train", "images/part_1")[0] == 0
    assert len(train()) == 2


def test_hidden_files_and_folders_are_ignored(yolo, command):
    for half, name in (("train", "a"), ("val", "c")):
        folder = yolo / "images" / half / ".ipynb_checkpoints"
        folder.mkdir()
        shutil.copy(yolo / f"images/{half}/{name}.png", folder / f"{name}-checkpoint.png")
        (yolo / f"images/{half}/._{name}.png").write_bytes(b"\0\5\x16\7")
        (yolo / f"labels/{half}/._{name}.txt").write_bytes(b"\0\5\x16\7")
    (yolo / "._data.yaml").write_bytes(b"\0\5\x16\7")
    assert command("convert", "yolo", yolo)[0] == 0
    for half, names in (("train", ["a.png", "b.png"]), ("val", ["c.png"])):
        content = json.loads((yolo / f"annotations/instances_{half}.json").read_text())
        assert [image["file_name"] for image in content["images"]] == names


# ---- without halves -----------------------------------------------------------------------------------------------


def draw(folder, labels):
    """Six different images in `folder`, each with the same line of labels in `labels`."""
    for path in (folder, labels):
        path.mkdir(parents=True, exist_ok=True)
    for number in range(6):
        Image.new("RGB", (40, 20), (number, 0, 99)).save(folder / f"{number}.png")
        (labels / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")


def as_tool(root):
    draw(root / "images", root / "labels")
    (root / "classes.txt").write_text("cat\n")
    (root / "notes.json").write_text('{"categories": [{"id": 0, "name": "cat"}], "info": {}}')


def as_single_half(root):
    draw(root / "train/images", root / "train/labels")
    (root / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnames: [cat]\n")


def as_darknet(root):
    draw(root / "obj_train_data", root / "obj_train_data")
    (root / "obj.names").write_text("cat\n")
    (root / "obj.data").write_text("classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    (root / "train.txt").write_text("".join(f"data/obj_train_data/{number}.png\n" for number in range(6)))


@pytest.mark.parametrize("lay_out", [as_tool, as_single_half, as_darknet])
def test_a_data_set_without_halves_is_recognised_converted_and_split(tmp_path, command, lay_out):
    root = tmp_path / "export"
    lay_out(root)
    (error,) = command("layout", root)[2]
    assert ("darknet" in error) == (lay_out is as_darknet)
    for _ in range(2):  # each cure to the letter: of layout that converts, of convert that splits
        words = shlex.split(error.partition("`python -m detection.data ")[2].partition("`")[0])
        code, error, _ = command(*words)
        assert code == 0
    halves = [json.loads((root / f"annotations/instances_{half}.json").read_text()) for half in ("train", "val")]
    assert [len(half["images"]) for half in halves] == [5, 1]
    assert command("check", root)[0] == 0


def test_darknets_list_of_val_is_read(tmp_path, command, objects):
    as_darknet(tmp_path)
    with (tmp_path / "obj.data").open("a") as file:
        file.write("valid = data/valid.txt\n")
    (tmp_path / "train.txt").write_text("data/obj_train_data/1.png\n")
    (tmp_path / "valid.txt").write_text("data/obj_train_data/4.png\n")
    assert command("convert", "yolo", tmp_path)[0] == 0
    (row,) = objects(tmp_path / "annotations/instances_val.json")
    assert row == ("4.png", "cat", [10, 5, 20, 10], 0)


@pytest.mark.parametrize("words", [["--train", "images", "--val", "images"], []])
def test_the_same_images_for_both_halves_are_refused_with_a_cure_that_splits_them(tmp_path, refused, words):
    as_tool(tmp_path)
    if not words:
        (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [cat]\n")
    text = refused("yolo", tmp_path, *words)
    assert "all 6 files of val are also in train" in text
    assert "`python -m detection.data split`" in text


def test_a_half_that_is_not_found_is_answered_with_what_could_be_it(yolo, refused):
    for folder in ("images", "labels"):
        (yolo / folder / "val").rename(yolo / folder / "part")
    for line in ("val: images/val", "val: images/gone", ""):
        (yolo / "data.yaml").write_text(DATA.replace("val: images/val", line))
        assert refused("yolo", yolo).endswith("no val found, or it is empty; give --val part")  # not train
    assert "no nope found, or it is empty; give --val part" in refused("yolo", yolo, "--val", "nope")


# ---- what cannot be converted -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", "4 numbers, expected 5: class cx cy w h"),
        ("0 0.5 0.5 0.5 0.5 0.9", "6 numbers, expected 5: class cx cy w h, or an outline of pairs"),
        ("cat 0.5 0.5 0.5 0.5", "cat 0.5 0.5 0.5 0.5: expected numbers"),
        ("2 0.5 0.5 0.5 0.5", "class 2, expected 0 to 1: there are 2 names"),
        ("0 20 10 20 10", "20, expected fractions of the image's sides, from 0 to 1; are these pixels?"),
        ("0 0.5 nan 0.5 0.5", "nan, expected fractions"),
        ("0 0.5 0.5 -0.0005 0.5", "width -0.0005, height 0.5, expected 0 to 1"),
    ],
)
def test_a_bad_line_is_named_with_its_number(yolo, refused, line, message):
    write(yolo, f"0 0.5 0.5 0.5 0.5\n\n{line}\n")
    text = refused("yolo", yolo)
    assert f"train/a.txt: line 3: {message}" in text
    assert "1 defect, listed above; nothing was written" in text


def test_all_defects_come_at_once(yolo, refused):
    write(yolo, "7 0.5 0.5 0.5 0.5\n")
    write(yolo, "0 0.5 0.5 0.5 0.5\n", name="train/gone")
    (yolo / "labels/train/b.txt").write_bytes(b"\xff\xfe")
    (yolo / "images/val/c.png").write_bytes(b"<html>")
    text = refused("yolo", yolo)
    parts = ("class 7", "gone.txt: no image of this name in", "b.txt: not UTF-8 text")
    for part in (*parts, "c.png: cannot be decoded", "4 defects, listed above; nothing was written"):
        assert part in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train\n", "no names of classes"),
        (DATA.replace("[cat, dog]", "{0: cat, 2: dog}"), "names: expected a list of names, or a name for each number"),
        (DATA.replace("[cat, dog]", "[cat, cat]"), "names: 'cat' is the name of more than one class"),
        (DATA.replace("images/val", "{a: b}"), "val: expected a folder, a text file, or a list of such"),
        (DATA + "nc: 3\n", "nc: 3 classes, but 2 names"),
        (DATA + "kpt_shape: [17, 3]\n", "kpt_shape: labels of key points"),
        (DATA.replace("images/val", "labels/val"), "labels/val: no images in it"),
        ("a: [", "data.yaml: cannot be read as YAML"),
    ],
)
def test_a_bad_yaml_file_is_one_line(yolo, refused, text, message):
    (yolo / "data.yaml").write_text(text)
    assert message in refused("yolo", yolo)


def test_a_yaml_file_is_text_that_is_not_run(yolo, tmp_path, command):
    (yolo / "data.yaml").write_text(
        DATA.replace("dog", "dog, no, 010") + f"x: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n"
    )
    command("convert", "yolo", yolo)
    assert not (tmp_path / "ran").exists()
    content = json.loads((yolo / "annotations/instances_val.json").read_text())
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(0, "cat"), (1, "dog"), (2, "no"), (3, "010")]
    assert [a["category_id"] for a in content["annotations"]] == [1]
