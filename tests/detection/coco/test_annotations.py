"""Reading and checking annotation files."""

import json
import os

import pytest

from data import DatasetError
from detection.coco.annotations import (
    pair_defects,
    read_coco,
    survey_coco,
)


def read(folder, annotations):
    (folder / "annotations.json").write_text(json.dumps(annotations), encoding="utf-8")
    return read_coco(folder / "annotations.json", folder / "images")


def survey(folder, annotations):
    (folder / "annotations.json").write_text(json.dumps(annotations), encoding="utf-8")
    return survey_coco(folder / "annotations.json", folder / "images")


def first_line(folder, annotations):
    with pytest.raises(DatasetError) as raised:
        read(folder, annotations)
    assert str(folder / "annotations.json") in str(raised.value)
    return str(raised.value).splitlines()[0]


# ---- what a good file gives -------------------------------------------------------------------------------------


def test_labels_follow_the_order_of_the_category_ids(folder, content):
    coco = read(folder, content)
    assert coco.category_ids == [3, 7]
    assert coco.class_names == ["Kätzchen 猫", "dog"]


def test_objects_come_with_their_image(folder, content):
    coco = read(folder, content)
    boxes_xyxy, labels, is_crowd = coco.objects(0)
    assert coco.images[0].id == 50
    assert boxes_xyxy.tolist() == [[10.5, 10, 30.5, 20]]
    assert labels.tolist() == [2]
    boxes_xyxy, labels, is_crowd = coco.objects(1)
    assert coco.images[1].file_name == "more/b.png"
    assert boxes_xyxy.tolist() == [[1, 2, 4, 6], [0, 0, 40, 30]]
    assert labels.tolist() == [1, 2]
    assert is_crowd.tolist() == [False, False]


def test_a_box_over_the_edge_is_cut_and_counted(folder, content):
    annotations = content
    annotations["annotations"][0]["bbox"] = [-5, 20, 10, 50]
    annotations["annotations"][1]["bbox"] = [30, 20, 10.25, 10]  # within a pixel: cut without a word
    coco = read(folder, annotations)
    assert coco.objects(1)[0][0].tolist() == [0, 20, 5, 30]
    assert coco.objects(0)[0].tolist() == [[30, 20, 40, 30]]
    assert coco.num_cut == 1


def test_a_box_without_area_is_left_out_and_counted(folder, content):
    annotations = content
    annotations["annotations"][0]["bbox"] = [8, 9, 1.03, 0]  # as annotation 918 of COCO's train2017
    coco = read(folder, annotations)
    assert coco.objects(1)[1].tolist() == [2]
    assert coco.num_left_out == 1


# ---- what is wrong with a bad one -------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"nothing\.json: cannot be read: No such file"):
        read_coco(tmp_path / "nothing.json", tmp_path)


def test_a_missing_image_folder_is_said_once(folder, content):
    (folder / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"image folder .*elsewhere: no such folder"):
        read_coco(folder / "annotations.json", folder / "elsewhere")


@pytest.mark.parametrize("data", [b"", b'{"images": [', b"<html>", b"\xff\xfe\xfa", b"[" * 100_000])
def test_what_is_not_json_is_refused(folder, data):
    (folder / "annotations.json").write_bytes(data)
    with pytest.raises(DatasetError, match=r"annotations\.json: not JSON"):
        read_coco(folder / "annotations.json", folder / "images")


@pytest.mark.parametrize("name", ["categories", "images", "annotations"])
def test_a_missing_list_is_named(folder, content, name):
    annotations = content
    del annotations[name]
    assert f"no list '{name}'" in first_line(folder, annotations)
    assert f"no list '{name}'" in first_line(folder, annotations | {name: {}})


NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("categories", {"id": None}, "categories[1] (id None): expected a whole number"),
        ("categories", {"id": 7}, "categories[1] (id 7): an earlier one has this id"),
        ("categories", {"name": "dog"}, "name 'dog' is that of category 7, too"),
        ("images", {"id": 50}, "images[1] (id 50): an earlier one has this id"),
        ("images", {"id": "20"}, "images[1] (id '20'): expected a whole number"),
        ("images", {"width": 0}, "images[1] (id 20): width 0, height 30"),
        ("images", {"file_name": 7}, "file_name 7, expected text"),
        ("images", {"file_name": "caf\udce9.png"}, "file_name 'caf\\udce9.png', expected text"),
        ("images", {"file_name": "c.png"}, "images[1] (id 20): file_name 'c.png': no such file in"),
        ("images", {"file_name": "a\0.png"}, "no such file"),
        ("images", {"file_name": "../a.json"}, "images[1] (id 20): file_name '../a.json' leads out"),
        ("images", {"file_name": "/etc/passwd"}, "leads out"),
        ("annotations", {"id": 1}, "annotations[1] (id 1): an earlier one has this id"),
        ("annotations", {"id": True}, "expected a whole number"),
        ("annotations", {"image_id": 99}, "annotations[1] (id 2): image_id 99: no such image"),
        ("annotations", {"category_id": 0}, "annotations[1] (id 2): category_id 0: no such category"),
        ("annotations", {"bbox": [0, 0, -1, 5]}, "annotations[1] (id 2): bbox [0, 0, -1, 5], expected"),
        ("annotations", {"bbox": [NAN, 0, 1, 5]}, "bbox [nan, 0, 1, 5], expected"),
        ("annotations", {"bbox": [0, 0, 10**400, 5]}, "bbox [0, 0, 1000"),
        ("annotations", {"bbox": [0, 0, 5]}, "bbox [0, 0, 5], expected"),
        ("annotations", {"bbox": [40, 0, 5, 5]}, "bbox [40, 0, 5, 5] lies outside image 50 of 40 x 30 pixels"),
        ("annotations", {"iscrowd": 2}, "iscrowd 2, expected 0 or 1"),
        ("annotations", {"area": 1e11}, "area 100000000000.0, expected 0 to 1e+10"),
    ],
)
def test_a_bad_value_is_named_with_its_record(folder, content, name, change, message):
    annotations = content
    annotations[name][1] |= change
    assert message in first_line(folder, annotations)


def test_all_defects_are_found_at_once_and_ten_are_shown(folder, content):
    annotations = content
    annotations["images"][0]["height"] = None
    for number in range(20):
        annotations["annotations"].append({"id": 100 + number, "image_id": 50, "category_id": 3})
    with pytest.raises(DatasetError) as raised:
        read(folder, annotations)
    lines = str(raised.value).splitlines()
    assert "images[0] (id 50)" in lines[0]
    assert "(the first of 21 defects); " in lines[0]
    assert len(lines) == 11
    assert lines[-1].strip() == "... and 11 more"
    assert "annotations[3] (id 100): no 'bbox'" in lines[1]


# ---- the images on the disk -------------------------------------------------------------------------------------


def test_an_empty_image_file_is_named_before_it_is_opened(folder, content):
    (folder / "images/more/b.png").write_bytes(b"")
    assert "images[1] (id 20): file_name 'more/b.png': empty, 0 bytes" in first_line(folder, content)


@pytest.mark.timeout(20)
def test_a_pipe_is_no_image(folder, content):
    os.mkfifo(folder / "images/pipe.png")
    content["images"][0]["file_name"] = "pipe.png"
    assert "file_name 'pipe.png': no such file" in first_line(folder, content)


def test_a_link_to_nothing_is_a_missing_image(folder, content):
    (folder / "images/a.png").unlink()
    (folder / "images/a.png").symlink_to(folder / "gone.png")
    assert "file_name 'a.png': no such file" in first_line(folder, content)


def test_what_leads_out_of_the_folder_is_not_among_the_files_to_open(folder, content):
    (folder / "outside.png").write_bytes((folder / "images/a.png").read_bytes())
    content["images"][0]["file_name"] = "more/../../outside.png"
    content["images"][1]["file_name"] = str(folder / "outside.png")
    (folder / "annotations.json").write_text(json.dumps(content))
    assert survey_coco(folder / "annotations.json", folder / "images").files == []


def test_a_survey_keeps_what_is_sound(folder, content):
    content["images"][0]["width"] = -1
    (folder / "annotations.json").write_text(json.dumps(content))
    survey = survey_coco(folder / "annotations.json", folder / "images")
    assert [record.id for record in survey.coco.images] == [20]
    assert survey.coco.labels.tolist() == [1, 2]
    assert [(file.id, file.size) for file in survey.files] == [(50, None), (20, (40, 30))]


# ---- two files of one data set ----------------------------------------------------------------------------------


def test_two_files_of_other_classes_do_not_go_together(folder, content):
    train = read(folder, content)
    content["categories"][0]["name"] = "wolf"
    (defect,) = pair_defects(train, read(folder, content))
    assert "'wolf'" in defect.what
    assert "'dog'" in defect.what


def test_nothing_can_be_learned_from_crowds_alone(folder, content):
    val = read(folder, content)
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    (defect,) = pair_defects(read(folder, content), val)
    assert "no object is left to learn from (3 crowds)" in defect.what


def test_boxes_as_fractions_are_one_defect_that_names_the_cure(folder, content):
    for annotation in content["annotations"]:
        annotation["bbox"] = [0.1, 0.2, 0.5, 0.25]
    (defect,) = survey(folder, content).defects
    assert defect.record == ""
    for part in ("fractions of the image?", "in pixels", "multiply"):
        assert part in defect.what


def test_what_explains_the_defects_of_the_records_comes_first(folder, content):
    content["images"] = [image | {"width": 30, "height": 300} for image in content["images"]]
    content["annotations"] = [
        {"id": k, "image_id": 20, "category_id": 3, "bbox": [60 * k, 2, 50, 20]} for k in range(5)
    ]
    first, *others = survey(folder, content).defects
    assert "width and height of the images are swapped" in first.what
    assert all("lies outside image" in defect.what for defect in others)
    assert len(others) == 4


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("image_id", "20", ["'20'", "id 20 is there", "text where a number is expected"]),
        ("image_id", 20.0, ["20.0", "id 20 is there", "without the point"]),
        ("image_id", "a.png", ["'a.png'", "no such id", "text where a number is expected: write the id"]),
        ("category_id", "3", ["'3'", "id 3 is there", "text where a number is expected"]),
        ("id", "1", ["whole number as id", "text where a number is expected"]),
        ("bbox", ["1", "2", "3", "4"], ["expected [x, y, width, height]", "text in it where numbers are expected"]),
        ("iscrowd", "0", ["expected 0 or 1", "text where a number is expected"]),
        ("area", "12", ["square pixels", "text where a number is expected"]),
    ],
)
def test_numbers_written_as_something_else_are_called_so(folder, content, key, value, parts):
    content["annotations"][0][key] = value
    (defect,) = survey(folder, content).defects
    for part in parts:
        assert part in defect.what


# ---- real data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "images", "objects", "crowds"), [("train", 223, 1935, 21), ("val", 117, 1076, 13)])
def test_coco_is_read_whole(shared_data, split, images, objects, crowds):
    root = shared_data / "coco80"
    coco = read_coco(root / f"annotations/instances_{split}.json", root / f"images/{split}")
    assert (len(coco.images), len(coco.labels), coco.is_crowd.sum()) == (images, objects, crowds)
    assert len(coco.class_names) == 80
    assert (coco.category_ids[0], coco.category_ids[-1]) == (1, 90)
    assert (coco.num_cut, coco.num_left_out) == (0, 0)
    assert coco.class_counts.sum() == objects - crowds
