"""detection/coco/annotations.py and image_files.py: reading annotation files, and missing image files."""

import json
import os

import pytest

from data import DatasetError
from detection.coco.annotations import pair_defects, read_coco, survey_coco

# ---- valid files ------------------------------------------------------------------------------------------------


def test_labels_follow_the_order_of_the_category_ids(read, content):
    coco = read(content)
    assert coco.category_ids == [3, 7]
    assert coco.class_names == ["Kätzchen 猫", "dog"]


def test_objects_come_with_their_image(read, content):
    coco = read(content)
    assert [(image.id, image.file_name) for image in coco.images] == [(50, "a.png"), (20, "more/b.png")]
    (one, labels, _), (two, two_labels, is_crowd) = coco.objects(0), coco.objects(1)
    assert (one.tolist(), labels.tolist()) == ([[10.5, 10, 30.5, 20]], [2])
    assert (two.tolist(), two_labels.tolist()) == ([[1, 2, 4, 6], [0, 0, 40, 30]], [1, 2])
    assert not is_crowd.any()
    assert coco.image_indices.tolist() == [0, 1, 1]


def test_a_box_beyond_the_edge_is_clipped_and_counted(read, content):
    content["annotations"][0]["bbox"] = [-5, 20, 10, 50]
    content["annotations"][1]["bbox"] = [30, 20, 10.25, 10]  # less than a pixel: clipped, not counted
    coco = read(content)
    assert coco.objects(1)[0][0].tolist() == [0, 20, 5, 30]
    assert coco.objects(0)[0].tolist() == [[30, 20, 40, 30]]
    assert coco.num_clipped == 1


def test_a_box_without_area_is_discarded_and_counted(read, content):
    content["annotations"][0]["bbox"] = [8, 9, 1.03, 0]  # like annotation 918 of COCO's train2017
    coco = read(content)
    assert coco.objects(1)[1].tolist() == [2]
    assert coco.num_discarded == 1


@pytest.mark.parametrize(("split", "images", "objects", "crowds"), [("train", 223, 1935, 21), ("val", 117, 1076, 13)])
def test_all_records_of_coco_are_read(shared_data, split, images, objects, crowds):
    root = shared_data / "coco80"
    coco = read_coco(root / f"annotations/instances_{split}.json", root / f"images/{split}")
    assert (len(coco.images), len(coco.labels), coco.is_crowd.sum()) == (images, objects, crowds)
    assert len(coco.class_names) == 80
    assert (coco.category_ids[0], coco.category_ids[-1]) == (1, 90)
    assert (coco.num_clipped, coco.num_discarded) == (0, 0)
    assert coco.class_counts.sum() == objects - crowds


# ---- invalid files ------------------------------------------------------------------------------------------------


def test_the_error_for_a_missing_file_names_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=rf"^none\.json: .*relative to {tmp_path}.*data\.root=FOLDER"):
        read_coco("none.json", "images")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "not JSON"),
        (b'{"images": [', "not JSON"),
        (b"<html>", "not JSON"),
        (b"\xff\xfe\xfa", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "categories, images, annotations"),
        (b"null", "categories, images, annotations"),
        (b'{"a": 1}', "no list"),
    ],
)
def test_a_file_without_annotations_is_rejected(folder, text, what):
    (folder / "annotations.json").write_bytes(text)
    with pytest.raises(DatasetError, match=rf"annotations\.json: .*{what}"):
        read_coco(folder / "annotations.json", folder / "images")


@pytest.mark.parametrize("name", ["categories", "images", "annotations"])
def test_a_missing_or_empty_list_is_named(read, content, name):
    for lists in ({}, {name: {}}, *([] if name == "annotations" else [{name: [], "annotations": []}])):
        broken = {key: value for key, value in content.items() if key != name} | lists
        with pytest.raises(DatasetError, match=f"no list '{name}'|'{name}' is empty"):
            read(broken)


def test_the_error_shows_the_first_defect_and_the_command_that_lists_all(read, content):
    content["images"][0]["height"] = None
    content["annotations"] += [{"id": 100 + number, "image_id": 50, "category_id": 3} for number in range(20)]
    with pytest.raises(DatasetError) as raised:
        read(content)
    (line,) = str(raised.value).splitlines()
    assert "images[0] (id 50)" in line
    assert "21 defects); `python -m detection.data check`" in line


def test_a_survey_keeps_the_valid_records(folder, content):
    content["images"][0]["width"] = -1
    (folder / "annotations.json").write_text(json.dumps(content))
    survey = survey_coco(folder / "annotations.json", folder / "images")
    assert [record.id for record in survey.coco.images] == [20]
    assert survey.coco.labels.tolist() == [1, 2]
    assert [(file.id, file.size) for file in survey.files] == [(50, None), (20, (40, 30))]


# ---- image files ------------------------------------------------------------------------------------------------


def test_a_missing_image_folder_is_reported_once(folder, content):
    (folder / "annotations.json").write_text(json.dumps(content))
    (defect,) = survey_coco(folder / "annotations.json", folder / "elsewhere").defects
    assert f"{folder}/elsewhere: no such folder" in defect.what


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("name", "spoil", "what"),
    [
        ("a.png", lambda folder: (folder / "images/a.png").write_bytes(b""), "the file is empty"),
        ("pipe.png", lambda folder: os.mkfifo(folder / "images/pipe.png"), "no such file"),
        ("a.png", lambda folder: (folder / "images/a.png").unlink(), "no such file"),
        *[(name, lambda _: None, "no such file") for name in ("more", "c.png", "nowhere/a.png", "", "a\0.png")],
    ],
)
def test_a_missing_or_empty_image_file_is_named(read, folder, content, name, spoil, what):
    content["images"][0]["file_name"] = name
    spoil(folder)
    with pytest.raises(DatasetError) as raised:
        read(content)
    assert f"images[0] (id 50): file_name {name!r}: {what}" in str(raised.value)


def test_files_outside_the_image_folder_are_defects_and_not_opened(folder, content):
    (folder / "outside.png").write_bytes((folder / "images/a.png").read_bytes())
    content["images"][0]["file_name"] = "more/../../outside.png"
    content["images"][1]["file_name"] = str(folder / "outside.png")
    (folder / "annotations.json").write_text(json.dumps(content))
    survey = survey_coco(folder / "annotations.json", folder / "images")
    assert survey.files == []
    assert ["outside.png" in defect.what for defect in survey.defects] == [True, True]


# ---- train and val together -------------------------------------------------------------------------------------


def test_train_and_val_must_have_the_same_classes(read, content):
    train = read(content)
    content["categories"][0]["name"] = "wolf"
    (defect,) = pair_defects(train, read(content))
    assert "'wolf'" in defect.what
    assert "'dog'" in defect.what


@pytest.mark.parametrize(("change", "what"), [({"iscrowd": 1}, "3 crowds"), ({"bbox": [0, 0, 0, 0]}, "3 without area")])
def test_training_needs_more_than_crowds_and_boxes_without_area(read, content, change, what):
    val = read(content)
    for annotation in content["annotations"]:
        annotation |= change
    (defect,) = pair_defects(read(content), val)
    assert what in defect.what
