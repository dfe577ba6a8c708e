"""Fixtures: a small drawn data set, copied into different folder layouts or written in other formats."""

import json
import shutil
from pathlib import Path

import pytest

from detection.shapes import generate


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """Draw a COCO-format data set of six training and three validation images, 96 x 96 pixels."""
    return generate(tmp_path_factory.mktemp("drawn"), num_train=6, num_val=3, image_size=96)


@pytest.fixture
def lay_out(drawn, tmp_path):
    """Return a function that copies the drawn data set into a new folder and returns the folder.

    images, annotations: where the files of split {} are copied to. train, val: names of the splits there."""

    def lay_out(images, annotations, train="train", val="val", folder="set"):
        root = tmp_path / folder
        for split, name in (("train", train), ("val", val)):
            shutil.copytree(drawn / "images" / split, root / images.format(name), dirs_exist_ok=True)
            path = root / annotations.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(drawn / f"annotations/instances_{split}.json", path)
        return root

    return lay_out


@pytest.fixture(scope="session")
def objects():
    """Return a function that reads file name, class, box and iscrowd of each object of an annotation file."""

    def objects(path):
        content = json.loads(Path(path).read_text())
        names = {image["id"]: image["file_name"] for image in content["images"]}
        classes = {category["id"]: category["name"] for category in content["categories"]}
        return [
            (names[a["image_id"]], classes[a["category_id"]], a["bbox"], a["iscrowd"]) for a in content["annotations"]
        ]

    return objects


@pytest.fixture
def conversion_error(command):
    """Return a function that runs a failing `convert`, asserts that it wrote nothing, and returns its messages."""

    def conversion_error(format_name, folder, *arguments):
        code, printed, errors = command("convert", format_name, folder, *arguments)
        assert (code, len(errors)) == (2, 1)
        assert not (folder / "annotations").exists()
        return " ".join(f"{printed} {errors[0]}".split())

    return conversion_error


@pytest.fixture
def config(tmp_path):
    """Create a config file and the data set `sample` beside it, with three training and two validation images."""
    generate(tmp_path / "sample", num_train=3, num_val=2, image_size=64)
    path = tmp_path / "config.yaml"
    path.write_text(
        "data:\n  root: nowhere\n  workers: 0\n"
        "  train: {images: images/train, annotations: annotations/instances_train.json}\n"
        "  val: {images: images/val, annotations: annotations/instances_val.json}\n"
        "model: {backbone: ResNet18SlimBackbone_B, neck: none, input_size: 96}\n"
        "train: {epochs: 1, batch_size: 1, precision: fp32}\n"
    )
    return path
