"""detection/prepare/layouts.py: the usual layouts are recognised, and training reads what is printed."""

import json
import shlex
from pathlib import Path

import pytest

from data import DatasetError
from detection.coco.annotations import read_coco
from detection.prepare.check import DataSection
from detection.prepare.layouts import EXAMPLE, MARK, PROJECT, find_data, image_folder, overrides
from engine.config import load_config


@pytest.fixture
def configured(tmp_path):
    """The `data` section of a config after overrides, given as a shell reads them."""

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
    assert [len(read_coco(*data.paths(half)).images) for half in ("train", "val")] == [6, 3]


@pytest.mark.parametrize("folder", ["it's", "a: b", "2017"])
def test_odd_names_reach_the_config_as_they_are(lay_out, configured, monkeypatch, folder):
    root = lay_out("images/{}", "annotations/instances_{}.json", folder=folder)
    monkeypatch.chdir(root.parent)
    layout = find_data(type(root)(folder))
    assert configured(shlex.split(" ".join(overrides(layout)))).root == folder


def test_the_config_in_the_command_exists_wherever_one_is(lay_out, command, monkeypatch):
    root = lay_out("images/{}", "annotations/instances_{}.json")
    monkeypatch.chdir(root)
    _, printed, _ = command("layout", root)
    assert Path(shlex.split(printed.splitlines()[-1].partition("detection.training ")[2])[0]).is_file()
    monkeypatch.chdir(PROJECT)
    assert f"detection.training {EXAMPLE} " in command("layout", root)[1]


@pytest.mark.parametrize(
    ("said", "found"), [("{}/images", "val/images"), ("../set/{}/images", "val"), ("/{}/images", "val")]
)
def test_images_are_where_convert_says_but_never_outside_the_data_set(lay_out, said, found):
    root = lay_out("{}/images", "annotations/instances_{}.json")
    for half in ("train", "val"):
        path = root / f"annotations/instances_{half}.json"
        mark = {"command": "convert", "images": said.format(half)}
        path.write_text(json.dumps({MARK: mark} | json.loads(path.read_text())))
    assert find_data(root).val.images == found
    assert image_folder(root / "annotations/instances_val.json") == root / found


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
def test_a_folder_with_none_is_answered_with_the_cure_or_all_that_was_looked_for(tmp_path, file, parts):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("<annotation/>")
    with pytest.raises(DatasetError) as error:
        find_data(tmp_path)
    for part in parts:
        assert part.format(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('.jpg"', '.png"', "file_name '000002.png': no such file"),
        ('"name": "', '"name": "x', "both files must list the same classes"),
    ],
)
def test_what_training_would_refuse_is_an_error(lay_out, command, old, new, message):
    root = lay_out("images/{}", "annotations/instances_{}.json")
    path = root / "annotations/instances_val.json"
    path.write_text(path.read_text().replace(old, new))
    code, printed, errors = command("layout", root)
    assert (code, len(errors)) == (2, 1)
    assert "images/ and annotations/" in printed
    assert message in errors[0]
