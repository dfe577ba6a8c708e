"""detection/prepare/layouts.py: the usual layouts are recognised, and training accepts the printed overrides."""

import json
import shlex
from pathlib import Path

import pytest

from data import DatasetError
from detection.coco.annotations import read_coco
from detection.prepare.check import DataSection
from detection.prepare.layouts import EXAMPLE, MARK_KEY, PROJECT, find_data, find_images_dir, overrides
from engine.config import load_config


@pytest.fixture
def configured(tmp_path):
    """Return a function that applies overrides to a config and returns its `data` section."""

    def configured(words):
        text = "data: {root: nowhere, train: {images: a, annotations: b}, val: {images: c, annotations: d}}"
        (tmp_path / "config.yaml").write_text(text)
        return load_config(tmp_path / "config.yaml", words, DataSection).data

    return configured


@pytest.mark.parametrize(
    ("images", "annotations", "train", "val", "name"),
    [
        ("{}", "annotations/instances_{}.json", "train2017", "val2017", "COCO's archives unpacked"),
        ("images/{}", "annotations/instances_{}.json", "train", "val", "images/ and annotations/"),
        ("{}/data", "{}/labels.json", "train", "validation", "an export of FiftyOne"),
        ("{}", "{}/_annotations.coco.json", "train", "valid", "a COCO export of Roboflow"),
    ],
)
def test_a_layout_is_recognised_and_training_reads_it(
    lay_out, configured, command, images, annotations, train, val, name
):
    root = lay_out(images, annotations, train, val)
    code, printed, _ = command("layout", root)
    assert code == 0
    assert f"{root}: {name}" in printed
    data = configured(shlex.split(printed.splitlines()[-1].partition(f"{EXAMPLE} ")[2]))
    assert [len(read_coco(*data.paths(split)).images) for split in ("train", "val")] == [6, 3]


@pytest.mark.parametrize("folder", ["it's", "a: b", "2017"])
def test_folder_names_with_special_characters_reach_the_config_unchanged(lay_out, configured, monkeypatch, folder):
    root = lay_out("images/{}", "annotations/instances_{}.json", folder=folder)
    monkeypatch.chdir(root.parent)
    layout = find_data(type(root)(folder))
    assert configured(shlex.split(" ".join(overrides(layout)))).root == folder


def test_the_printed_config_path_exists_in_any_working_directory(lay_out, command, monkeypatch):
    root = lay_out("images/{}", "annotations/instances_{}.json")
    monkeypatch.chdir(root)
    _, printed, _ = command("layout", root)
    assert Path(shlex.split(printed.splitlines()[-1].partition("detection.training ")[2])[0]).is_file()
    monkeypatch.chdir(PROJECT)
    assert f"detection.training {EXAMPLE} " in command("layout", root)[1]


@pytest.mark.parametrize(
    ("recorded", "found"), [("{}/images", "val/images"), ("../set/{}/images", "val"), ("/{}/images", "val")]
)
def test_the_image_folder_that_convert_recorded_is_used_unless_it_is_outside_the_data_set(lay_out, recorded, found):
    root = lay_out("{}/images", "annotations/instances_{}.json")
    for split in ("train", "val"):
        path = root / f"annotations/instances_{split}.json"
        mark = {"command": "convert", "images": recorded.format(split)}
        path.write_text(json.dumps({MARK_KEY: mark} | json.loads(path.read_text())))
    assert find_data(root).val.images == found
    assert find_images_dir(root / "annotations/instances_val.json") == root / found


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("x", ["annotations/instances_SPLIT.json", "SPLIT/labels.json", "_annotations.coco.json", "valid"]),
        ("Annotations/1.xml", ["convert voc {}"]),
        ("data.yaml", ["convert yolo {}"]),
        ("labels/x", ["convert yolo {}"]),
        ("obj.names", ["darknet", "convert yolo {}"]),
    ],
)
def test_an_unrecognised_folder_is_an_error_with_the_cure_or_the_expected_layouts(tmp_path, file, parts):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("<annotation/>")
    with pytest.raises(DatasetError) as error:
        find_data(tmp_path)
    for part in parts:
        assert part.format(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('.jpg"', '.png"', "file_name '000002.png'"),
        ('"name": "', '"name": "x', "must list the same classes"),
    ],
)
def test_a_data_set_that_training_would_refuse_is_an_error(lay_out, command, old, new, message):
    root = lay_out("images/{}", "annotations/instances_{}.json")
    path = root / "annotations/instances_val.json"
    path.write_text(path.read_text().replace(old, new))
    code, printed, errors = command("layout", root)
    assert (code, len(errors)) == (2, 1)
    assert "images/ and annotations/" in printed
    assert message in errors[0]
