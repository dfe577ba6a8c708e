"""detection/prepare/split.py: one annotation file becomes two without a common image or group."""

import json
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from detection.coco.annotations import read_coco
from detection.prepare.check import DataSection
from detection.prepare.layouts import EXAMPLE
from engine.config import load_config

CLASSES = [{"id": 2, "name": "cat", "supercategory": "pet"}, {"id": 5, "name": "dog"}, {"id": 9, "name": "unseen"}]


def content_of(count=20):
    """Return annotations of images of five patients: dogs in the first two, cats in the rest, a crowd in the third."""
    return {
        "info": {"contributor": "me"},
        "licenses": [{"id": 1}],
        "images": [
            {"id": 7 * k, "file_name": f"p{k % 5}_{k}.png", "width": 40, "height": 30, "extra": [k]}
            for k in range(count)
        ],
        "annotations": [
            {"id": k, "image_id": 7 * k, "category_id": 5 if k < 2 else 2, "bbox": [1.5, 2, 10 + k, 9],
             "iscrowd": int(k == 2), "attributes": {"occluded": False}, "segmentation": {"counts": "x", "size": [3, 4]}}
            for k in range(count)
        ],
        "categories": CLASSES,
    }  # fmt: skip


@pytest.fixture
def export(tmp_path):
    """Return a function that writes a data set with one annotation file and returns its folder."""

    def export(annotations="annotations/instances_default.json", images="images/default", content=None, folder="set"):
        root, content = tmp_path / folder, content or content_of()
        rng = np.random.default_rng(0)
        for image in content["images"]:
            path = root / images / image["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (30, 40), dtype=np.uint8)).save(path)
        (root / annotations).parent.mkdir(parents=True, exist_ok=True)
        (root / annotations).write_text(json.dumps(content))
        return root

    return export


def read_splits(root):
    return [json.loads((root / f"annotations/instances_{split}.json").read_text()) for split in ("train", "val")]


def names(split):
    return {image["file_name"] for image in split["images"]}


def test_records_are_copied_unchanged_and_each_image_keeps_its_annotations(export, command):
    root = export()
    assert command("split", root)[0] == 0
    train, val = read_splits(root)
    assert (len(train["images"]), len(val["images"])) == (16, 4)
    source = content_of()
    for name in ("images", "annotations"):
        assert sorted(train[name] + val[name], key=lambda record: record["id"]) == source[name]
    for split in (train, val):
        assert (split["categories"], split["info"], split["licenses"]) == (CLASSES, source["info"], source["licenses"])
        assert {a["image_id"] for a in split["annotations"]} == {image["id"] for image in split["images"]}


@pytest.mark.parametrize(
    ("annotations", "images", "file_names"),
    [
        ("annotations/instances_default.json", "images/default", "{}"),
        ("annotations/instances_default.json", "images", "{}"),
        ("annotations/instances_default.json", "default", "{}"),
        ("_annotations.coco.json", ".", "{}"),
        ("result.json", "images", "{}"),
        ("result.json", ".", "images/{}"),
        ("train/_annotations.coco.json", "train", "{}"),
    ],
)
def test_an_export_is_recognised_split_and_readable(export, command, tmp_path, annotations, images, file_names):
    content = content_of()
    for image in content["images"]:
        image["file_name"] = file_names.format(image["file_name"])
    root = export(annotations, images, content)
    code, printed, _ = command("check", root)
    assert code == 0
    assert "python -m detection.data split" in printed
    code, _, errors = command("layout", root)
    assert code == 2
    assert str(root / annotations) in errors[0]
    words = shlex.split(errors[0].partition("`python -m detection.data ")[2].partition("`")[0])
    code, printed, _ = command(*words)  # exactly the command that the error suggests
    assert code == 0
    (tmp_path / "config.yaml").write_text(
        "data: {root: nowhere, train: {images: a, annotations: b}, val: {images: c, annotations: d}}\n"
    )
    overrides = shlex.split(printed.splitlines()[-1].partition(f"{EXAMPLE} ")[2])
    data = load_config(tmp_path / "config.yaml", overrides, DataSection).data
    assert [len(read_coco(*data.paths(split)).images) for split in ("train", "val")] == [16, 4]
    assert command("layout", root)[0] == 0
    assert command("check", root)[0] == 0
    assert command("shrink", data.root, "--short-side", 20, "--to", tmp_path / "small")[0] == 0


def test_an_only_file_named_like_train_is_split_into_a_different_folder(export, command):
    root = export("annotations/instances_train.json", "images/train")
    before = (root / "annotations/instances_train.json").read_bytes()
    assert "not made by" in command("split", root)[2][0]
    (error,) = command("layout", root)[2]
    words = shlex.split(error.partition("`python -m detection.data ")[2].partition("`")[0])
    code, printed, _ = command(*words)
    assert code == 0
    assert f"data.train.images={root}/images/train" in printed
    assert (root / "annotations/instances_train.json").read_bytes() == before


def test_the_split_depends_on_the_seed_but_not_on_the_order_of_the_file(export, command):
    content = content_of()
    root, found = export(content=content), []
    for seed in (0, 0, 1):
        command("split", root, "--seed", seed)
        found.append(names(read_splits(root)[1]))
    content["images"].reverse()
    content["annotations"] = content["annotations"][7:] + content["annotations"][:7]
    reordered = export(content=content, folder="reordered")
    command("split", reordered)
    assert names(read_splits(reordered)[1]) == found[0] == found[1] != found[2]


def test_groups_are_never_divided(export, command):
    root = export()
    code, printed, _ = command("split", root, "--groups", "^(p[0-9])_", "--val-share", "0.4")
    assert code == 0
    train, val = ({name[:2] for name in names(split)} for split in read_splits(root))
    assert not train & val
    assert len(val) == 2
    assert "2 of 5 groups" in printed


def test_an_image_listed_twice_is_in_one_split(export, command):
    content = content_of(6)
    content["images"] += [image | {"id": 1000 + k} for k, image in enumerate(content["images"])]
    root = export(content=content)
    command("split", root, "--val-share", "0.5")
    train, val = read_splits(root)
    assert not names(train) & names(val)
    assert len(val["images"]) == 6


@pytest.mark.parametrize("seed", range(3))
def test_a_class_in_two_images_is_in_both_splits(export, command, seed):
    root = export()
    printed = command("split", root, "--seed", seed)[1]
    assert [{a["category_id"] for a in split["annotations"]} for split in read_splits(root)] == [{2, 5}, {2, 5}]
    assert "warning: no objects of class" not in printed


def test_a_class_that_one_split_lacks_is_a_warning(export, command):
    content = content_of()
    content["annotations"][0]["category_id"] = 2
    printed = command("split", export(content=content))[1]
    assert "class 'dog' in val" in printed
    assert "unseen" not in printed.partition("warning")[2].splitlines()[0]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--val-share", "0"], ["--val-share", "got 0, ", "between 0 and 1"]),
        (["--val-share", "nan"], ["--val-share", "got nan"]),
        (["--seed", "-1"], ["--seed", "got -1"]),
        (["--groups", "p[0-9]"], ["--groups", "p[0-9]", "parentheses"]),
        (["--groups", "(p"], ["--groups", "(p", "not a regular expression"]),
        (["--groups", "^(p[0-3])_"], ["--groups ^(p[0-3])_", "4 of 20 file names", "'p4_4.png'"]),
        (["--groups", "^(p)"], ["one group, 'p'"]),
    ],
)
def test_an_invalid_command_line_writes_nothing(export, command, words, parts):
    root = export()
    code, _, errors = command("split", root, *words)
    assert code == 2
    assert not (root / "annotations/instances_train.json").exists()
    for part in parts:
        assert part in errors[-1]


def test_a_file_with_defects_or_a_conflicting_file_is_an_error_and_nothing_is_written(export, command):
    content = content_of()
    content["annotations"][3]["image_id"] = 5000
    code, _, errors = command("split", root := export(content=content))
    assert code == 2
    assert "image_id 5000: no such image" in errors[0]
    assert not (root / "annotations/instances_train.json").exists()
    root = export(folder="conflict")
    conflicting = root / "annotations/instances_val.json"
    conflicting.write_text("{}")
    code, _, errors = command("split", root)
    assert code == 2
    assert f"{conflicting}: not made by detection.data split" in errors[0]
    assert conflicting.read_text() == "{}"
    assert not (root / "annotations/instances_train.json").exists()


def test_one_of_several_annotation_files_must_be_named_and_unrelated_json_does_not_count(export, command):
    root = export()
    path = root / "annotations/instances_default.json"
    for number, text in enumerate(['{"categories": [], "info": {}}', "[]", "{", '{"images": [], "annotations": []}']):
        (root / f"{number}.json").write_text(text)
    shutil.copy(path, path.with_name("._instances_default.json"))
    assert command("check", root)[0] == 0
    shutil.copy(path, path.with_name("more.json"))
    for name in ("layout", "split", "check"):
        code, _, errors = command(name, root)
        assert code == 2
        assert str(path) in errors[0]
    assert command("split", path)[0] == 0
