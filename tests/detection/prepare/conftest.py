"""A small data set to lay out in the ways of the world, and to write in other formats."""

import json
import shutil
from pathlib import Path

import pytest

from detection.shapes import generate


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """Six images to train on and three to validate, 96 x 96 pixels, in COCO's format."""
    return generate(tmp_path_factory.mktemp("drawn"), num_train=6, num_val=3, image_size=96)


@pytest.fixture
def lay_out(drawn, tmp_path):
    """Copies the data set, the halves under other names, into a folder of the test's own.

    images, annotations: where those of {} go. Returns the folder."""

    def lay_out(images, annotations, train="train", val="val", folder="set"):
        root = tmp_path / folder
        for half, name in (("train", train), ("val", val)):
            shutil.copytree(drawn / "images" / half, root / images.format(name), dirs_exist_ok=True)
            path = root / annotations.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(drawn / f"annotations/instances_{half}.json", path)
        return root

    return lay_out


@pytest.fixture(scope="session")
def objects():
    """Reads an annotation file: (file name, class, box in x, y, width, height, crowd) of every object, in order."""

    def objects(path):
        content = json.loads(Path(path).read_text())
        names = {image["id"]: image["file_name"] for image in content["images"]}
        classes = {category["id"]: category["name"] for category in content["categories"]}
        return [
            (names[a["image_id"]], classes[a["category_id"]], a["bbox"], a["iscrowd"]) for a in content["annotations"]
        ]

    return objects


@pytest.fixture
def refused(command):
    """Convert; returns the defects and the error of a conversion that fails and writes nothing."""

    def refused(format_name, folder, *arguments):
        code, printed, errors = command("convert", format_name, folder, *arguments)
        assert (code, len(errors)) == (2, 1)
        assert not (folder / "annotations").exists()
        return " ".join(f"{printed} {errors[0]}".split())

    return refused


@pytest.fixture
def config(tmp_path):
    """A config and the data set it names: 3 images to train on, 2 to validate."""
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
