"""A data set of two images for tests of annotations and of images."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import detection.data
from detection.coco.annotations import read_coco


@pytest.fixture
def content() -> dict:
    """Return annotations of two images (40 x 30 pixels) with three objects of two categories."""
    return {
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "Kätzchen 猫"}],
        "images": [
            {"id": 50, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 20, "file_name": "more/b.png", "width": 40, "height": 30},
        ],
        "annotations": [
            {"id": 1, "image_id": 20, "category_id": 3, "bbox": [1, 2, 3, 4]},
            {"id": 2, "image_id": 50, "category_id": 7, "bbox": [10.5, 10, 20, 10]},
            {"id": 3, "image_id": 20, "category_id": 7, "bbox": [0, 0, 40, 30]},
        ],
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    """Write the two images to a subfolder `images`. Annotation files belong beside it."""
    (tmp_path / "images/more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "more/b.png"):
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    return tmp_path


@pytest.fixture
def command(run_in_process):
    """Run `python -m detection.data ...`; return its exit code, output and errors."""
    return partial(run_in_process, detection.data)


@pytest.fixture
def read(folder):
    """Write annotations beside the images of `folder` and read them with `read_coco`."""

    def read(annotations):
        (folder / "annotations.json").write_text(json.dumps(annotations), encoding="utf-8")
        return read_coco(folder / "annotations.json", folder / "images")

    return read
