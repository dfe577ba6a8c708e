"""detection/prepare/yolo.py: every box where it was, every defect with its file and line."""

import json
import os

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


@pytest.fixture
def refused(yolo, command):
    """Converts; the defects that it lists, having written nothing."""

    def refused(*arguments):
        code, printed, errors = command("convert", "yolo", yolo, *arguments)
        assert (code, len(errors)) == (2, 1)
        assert not (yolo / "annotations").exists()
        return printed + errors[0]

    return refused


def write(yolo, text, name="train/a"):
    (yolo / f"labels/{name}.txt").write_text(text)


# ---- boxes and outlines -------------------------------------------------------------------------------------------


def test_centres_and_sides_become_corners_in_pixels(yolo, command, train):
    assert command("convert", "yolo", yolo)[0] == 0
    assert train() == [("a.png", "dog", [10, 5, 20, 10], 0), ("b.png", "cat", [8, 8, 4, 4], 0)]


@pytest.mark.parametrize("words", [["layout"], ["check"], ["shrink", "--short-side", 8]], ids=lambda words: words[0])
def test_halves_with_images_and_labels_each_are_a_data_set_once_converted(yolo, command, words):
    for half, name in (("train", "train"), ("val", "valid")):  # as Roboflow's exports have them
        for folder in ("images", "labels"):
            (yolo / name).mkdir(exist_ok=True)
            (yolo / folder / half).rename(yolo / name / folder)
    (yolo / "data.yaml").write_text(DATA.replace("images/train", "train/images").replace("images/val", "valid/images"))
    command("convert", "yolo", yolo)
    code, _, errors = command(words[0], yolo, *words[1:])
    assert (code, errors) == (0, [])


def test_category_ids_are_yolos_own_for_all_classes(yolo, command):
    (yolo / "data.yaml").write_text(DATA.replace("dog", "dog, no, 010"))
    assert command("convert", "yolo", yolo)[0] == 0
    content = json.loads((yolo / "annotations/instances_val.json").read_text())
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(0, "cat"), (1, "dog"), (2, "no"), (3, "010")]
    assert [a["category_id"] for a in content["annotations"]] == [1]


def test_an_outline_gives_the_box_around_it_and_is_kept(yolo, command):
    write(yolo, "0 0.1 0.2 0.6 0.2 0.3 0.8\n")
    code, printed, _ = command("convert", "yolo", yolo)
    assert code == 0
    assert "outlines of which the box around them was taken: 1" in printed
    record = json.loads((yolo / "annotations/instances_train.json").read_text())["annotations"][0]
    assert record["bbox"] == [4, 4, 20, 12]
    assert record["segmentation"] == [[4, 4, 24, 4, 12, 16]]


def test_boxes_and_outlines_may_stand_in_one_file(yolo, command, train):
    write(yolo, "0 0.1 0.2 0.6 0.2 0.3 0.8\n1 0.5 0.5 0.5 0.5\n")
    assert command("convert", "yolo", yolo)[0] == 0
    assert [box for name, _, box, _ in train() if name == "a.png"] == [[4, 4, 20, 12], [10, 5, 20, 10]]


def test_a_box_over_the_edge_is_cut_and_counted(yolo, command, train):
    write(yolo, "0 0.0 0.5 0.5 0.5\n")
    code, printed, _ = command("convert", "yolo", yolo)
    assert code == 0
    assert "boxes cut at the edge of their image: 2" in printed  # and that of c
    assert train()[0][2] == [0, 5, 10, 10]


def test_rounding_at_the_edge_is_no_defect(yolo, command, train):
    write(yolo, "0 0.5 0.5 1.000001 1.000001\n")
    assert command("convert", "yolo", yolo)[0] == 0
    assert train()[0][2] == [0, 0, 40, 20]


def test_a_line_that_stands_twice_counts_once(yolo, command, train):
    write(yolo, "0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.5\n")
    code, printed, _ = command("convert", "yolo", yolo)
    assert code == 0
    assert "lines that stand twice in a file, taken once: 1" in printed
    assert len(train()) == 2


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff", None])
def test_an_image_without_lines_is_one_without_objects(yolo, command, train, text):
    if text is None:
        (yolo / "labels/train/a.txt").unlink()
    else:
        write(yolo, text)
    code, printed, _ = command("convert", "yolo", yolo)
    assert code == 0
    assert len(json.loads((yolo / "annotations/instances_train.json").read_text())["images"]) == 2
    assert len(train()) == 1
    assert ("images without a file of labels, taken for images without objects: 1" in printed) == (text is None)


def test_windows_line_ends_and_a_byte_order_mark_are_read(yolo, command, train):
    (yolo / "labels/train/a.txt").write_bytes(b"\xef\xbb\xbf0 0.5 0.5 0.5 0.5\r\n1 0.5 0.5 0.25 0.25\r\n")
    assert command("convert", "yolo", yolo)[0] == 0
    assert len(train()) == 3


def test_the_size_is_that_of_the_image_turned_upright(yolo, command):
    exif = Image.Exif()
    exif[0x0112] = 6
    (yolo / "images/train/a.png").unlink()
    Image.new("RGB", (40, 20)).save(yolo / "images/train/a.jpg", exif=exif)
    assert command("convert", "yolo", yolo)[0] == 0
    record = json.loads((yolo / "annotations/instances_train.json").read_text())["images"][0]
    assert (record["width"], record["height"]) == (20, 40)


def test_the_result_passes_the_check(yolo, command):
    assert command("convert", "yolo", yolo)[0] == 0
    for half in ("train", "val"):
        path = yolo / f"annotations/instances_{half}.json"
        assert command("check", path, "--images", yolo / "images" / half, "--workers", 1)[0] == 0


# ---- where things lie ---------------------------------------------------------------------------------------------


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
def test_the_last_folder_called_images_becomes_labels(tmp_path, image, labels):
    path = type(tmp_path)
    assert labels_path(path(image)) == path(labels)


@pytest.mark.parametrize(
    "text",
    [
        "names: {0: cat, 1: dog}\ntrain: ../train/images\nval: ../valid/images\nroboflow: {license: MIT}\n",  # Roboflow
        "names: {0: cat, 1: dog}\n",
        "path: ../elsewhere\ntrain: [train/images]\nval: valid\nnc: 2\nnames: [cat, dog]\ndownload: |\n  import os\n",
    ],
)
def test_halves_lie_where_data_yaml_says_or_in_the_usual_folders(yolo, command, train, text):
    for half, name in (("train", "train"), ("val", "valid")):
        (yolo / name).mkdir()
        for folder in ("images", "labels"):
            (yolo / folder / half).rename(yolo / name / folder)
    (yolo / "data.yaml").write_text(text)
    assert command("convert", "yolo", yolo)[0] == 0
    assert len(train()) == 2


def test_halves_may_be_lists_of_images(yolo, command, objects):
    (yolo / "train.txt").write_text("./images/train/a.png\n")
    (yolo / "val.txt").write_text("./images/train/b.png\nimages/val/c.png\n")
    (yolo / "data.yaml").write_text("path: .\ntrain: train.txt\nval: val.txt\nnames: [cat, dog]\n")
    assert command("convert", "yolo", yolo)[0] == 0
    assert [name for name, *_ in objects(yolo / "annotations/instances_train.json")] == ["a.png"]
    assert [name for name, *_ in objects(yolo / "annotations/instances_val.json")] == ["train/b.png", "val/c.png"]


def test_an_image_that_is_listed_in_two_ways_counts_once(yolo, command, train):
    (yolo / "train.txt").write_text(f"images/train/a.png\nimages/val/../train/a.png\n{yolo}/images/train/a.png\n")
    (yolo / "data.yaml").write_text(DATA.replace("images/train", "train.txt"))
    assert command("convert", "yolo", yolo)[0] == 0
    assert len(train()) == 1


def test_the_yaml_file_may_have_another_name_or_be_named(yolo, command, train):
    (yolo / "data.yaml").rename(yolo / "pets.yaml")
    for source in (yolo, yolo / "pets.yaml"):
        assert command("convert", "yolo", source)[0] == 0
        assert len(train()) == 2


@pytest.mark.parametrize("place", ["classes.txt", "labels/classes.txt"])
def test_classes_txt_names_the_classes_where_there_is_no_yaml_file(yolo, command, train, place):
    (yolo / "data.yaml").unlink()
    (yolo / place).write_text("cat\ndog\n")
    assert command("convert", "yolo", yolo)[0] == 0
    assert [name for _, name, *_ in train()] == ["dog", "cat"]


def test_halves_can_be_named(yolo, command, train):
    (yolo / "labels/train").rename(yolo / "labels/part_1")
    (yolo / "images/train").rename(yolo / "images/part_1")
    assert command("convert", "yolo", yolo, "--train", "images/part_1")[0] == 0
    assert len(train()) == 2


# ---- what cannot be converted -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", "4 numbers, expected 5: class cx cy w h"),
        ("0 0.5 0.5 0.5 0.5 0.9", "6 numbers, expected 5: class cx cy w h, or an outline of pairs (the last may be a"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "8 numbers, expected 5"),
        ("cat 0.5 0.5 0.5 0.5", "cat 0.5 0.5 0.5 0.5: expected numbers"),
        ("2 0.5 0.5 0.5 0.5", "class 2, expected 0 to 1, for there are 2 names"),
        ("-1 0.5 0.5 0.5 0.5", "class -1, expected 0 to 1"),
        ("0.5 0.5 0.5 0.5 0.5", "class 0.5, expected 0 to 1"),
        ("0 20 10 20 10", "20, expected fractions of the image's sides, from 0 to 1; are these pixels?"),
        ("0 0.5 nan 0.5 0.5", "nan, expected fractions"),
        ("0 -0.1 0.5 0.5 0.5", "-0.1, expected fractions"),
        ("0 0.5 0.5 -0.0005 0.5", "width -0.0005, height 0.5, expected 0 to 1"),
    ],
)
def test_a_bad_line_is_named_with_its_number(yolo, refused, line, message):
    write(yolo, f"0 0.5 0.5 0.5 0.5\n\n{line}\n")
    text = refused()
    assert "train/a.txt" in text
    assert f"line 3  {message}" in text
    assert "1 defect, listed above; nothing was written" in text


@pytest.mark.parametrize("suffix", [".avif", ".ppm"])
def test_an_image_of_a_rarer_kind_belongs_to_its_labels(yolo, command, train, suffix):
    path = yolo / "images/train/b.png"
    Image.open(path).save(path.with_suffix(suffix))
    path.unlink()
    assert command("convert", "yolo", yolo)[0] == 0
    assert train()[1] == (f"b{suffix}", "cat", [8, 8, 4, 4], 0)


def test_all_defects_come_at_once(yolo, refused):
    write(yolo, "7 0.5 0.5 0.5 0.5\n0 5 5 5 5\n")
    write(yolo, "0 0.5 0.5 0.5 0.5\n", name="train/gone")
    (yolo / "labels/train/b.txt").write_bytes(b"\xff\xfe")
    (yolo / "images/val/c.png").write_bytes(b"<html>")
    text = refused()
    assert "class 7" in text
    assert "5, expected fractions" in text
    assert "gone.txt" in text
    assert "no image of this name in" in text
    assert "not UTF-8 text" in text
    assert "cannot be decoded" in text
    assert "5 defects, listed above; nothing was written" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train\n", "no names of classes"),
        (DATA.replace("[cat, dog]", "{0: cat, 2: dog}"), "names: expected the numbers 0 to 1, got 0, 2"),
        (DATA.replace("[cat, dog]", "[cat, cat]"), "names: 'cat' is the name of more than one class"),
        (DATA.replace("[cat, dog]", "[]"), "names: expected a list of the classes' names"),
        (DATA.replace("images/val", "{a: b}"), "val: expected a folder, a text file, or a list of such"),
        (DATA + "path: {a: b}\n", "path: expected a folder"),
        (DATA + "nc: 3\n", "nc: 3 classes, but 2 names"),
        (DATA + "kpt_shape: [17, 3]\n", "kpt_shape: labels of key points"),
        (DATA.replace("images/val", "images/gone"), "val: images/gone: no such folder or file; tried"),
        (DATA.replace("images/val", "labels/val"), "labels/val: no images in it"),
        (DATA.replace("images/val", "none.txt"), "none.txt: no images in it"),
        ("[1, 2]", "expected lines of `name: value`"),
        ("a: [", "not YAML: while parsing"),
        ("a: " + "x" * 2_000_000, "2 MB, expected a short YAML file"),
    ],
)
def test_a_bad_yaml_file_is_one_line(yolo, refused, text, message):
    (yolo / "data.yaml").write_text(text)
    (yolo / "none.txt").write_text("\n")
    assert message in refused()


def test_code_in_a_yaml_file_does_not_run(yolo, tmp_path, command):
    (yolo / "data.yaml").write_text(DATA + f"x: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n")
    command("convert", "yolo", yolo)
    assert not (tmp_path / "ran").exists()


def test_labels_that_lie_elsewhere_are_missed(yolo, refused):
    (yolo / "labels").rename(yolo / "annotations_txt")
    assert "train: none of the 2 images has a file of labels; the first would be" in refused()


@pytest.mark.parametrize("line", ["val: images/val", "val: images/gone", ""])
def test_a_half_that_is_not_there_is_told_what_is(yolo, refused, line):
    (yolo / "data.yaml").write_text(DATA.replace("val: images/val", line))
    (yolo / "images/val").rename(yolo / "images/part")
    assert refused().endswith("give --val images/part|images/train")


def test_a_half_may_be_given_by_the_name_of_its_folder_alone(yolo, command, objects):
    assert command("convert", "yolo", yolo, "--train", "val")[0] == 0
    assert objects(yolo / "annotations/instances_train.json") == objects(yolo / "annotations/instances_val.json")


def test_without_halves_it_says_where_it_looked(yolo, refused):
    (yolo / "data.yaml").write_text("names: [cat, dog]\n")
    (yolo / "images/val").rename(yolo / "images/part")
    assert "images/val2017, val2017/images, val2017, " in refused()


# ---- real data ----------------------------------------------------------------------------------------------------


def test_real_boxes_come_back_as_they_went(shared_data, tmp_path, command, objects):
    source, root = shared_data / "coco80", tmp_path / "set"
    for half in ("train", "val"):
        content = json.loads((source / f"annotations/instances_{half}.json").read_text())
        index_of = {c["id"]: k for k, c in enumerate(content["categories"])}
        (root / "labels" / half).mkdir(parents=True)
        (root / "images").mkdir(exist_ok=True)
        os.symlink((source / "images" / half).absolute(), root / "images" / half)
        for image in content["images"]:
            size = image["width"], image["height"]
            lines = [
                f"{index_of[a['category_id']]} {(x + w / 2) / size[0]:.6f} {(y + h / 2) / size[1]:.6f} "
                f"{w / size[0]:.6f} {h / size[1]:.6f}"
                for a in content["annotations"]
                if a["image_id"] == image["id"]
                for x, y, w, h in [a["bbox"]]
            ]
            (root / "labels" / half / image["file_name"]).with_suffix(".txt").write_text("\n".join(lines))
    names = [category["name"] for category in content["categories"]]
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {json.dumps(names)}\n")
    assert command("convert", "yolo", root)[0] == 0
    for half in ("train", "val"):
        name = f"annotations/instances_{half}.json"
        converted, original = sorted(objects(root / name)), sorted(objects(source / name))
        assert [row[:2] for row in converted] == [row[:2] for row in original]
        for one, other in zip(converted, original, strict=True):
            assert one[2] == pytest.approx(other[2], abs=2e-3)
