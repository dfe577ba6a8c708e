"""detection/prepare/images.py: what is wrong with each image."""

import numpy as np
import pytest
from PIL import Image

import detection.training
from detection.prepare.images import find_defects


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_checksum(path):
    """Of a PNG's pixels; they themselves stay as they are."""
    data = bytearray(path.read_bytes())
    data[-13] ^= 255  # before the 12 bytes of the end
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (halve, "cannot be decoded: "),
        (spoil_checksum, "damaged: broken PNG file"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "cannot be decoded: not an image"),
        (lambda path: Image.new("RGB", (30, 41)).save(path), "30 x 41 pixels, the annotation file says 40 x 30"),
        (lambda path: path.unlink(), "cannot be decoded: "),
    ],
    ids=["half", "checksum", "html", "size", "gone"],
)
def test_the_check_finds_a_broken_image(read, folder, content, spoil, message):
    coco = read(content)
    spoil(folder / "images/a.png")
    (broken,) = find_defects([coco.file(0), coco.file(1)], 2, "checking")
    assert broken.file == folder / "images/a.png"
    assert broken.record == "image id 50"
    assert message in broken.what


@pytest.mark.parametrize(
    ("image", "what"),
    [
        (Image.new("RGB", (40, 30)), "black"),
        (Image.linear_gradient("L").point(lambda value: value // 16).resize((40, 30)), "black"),
        (Image.new("L", (40, 30), 200), "same colour"),
        (Image.fromarray(np.full((30, 40), 0.5, np.float32)), "same colour"),
    ],
    ids=["black", "12 bits taken for 16", "white", "float"],
)
def test_an_image_that_shows_nothing_is_a_warning(read, folder, content, image, what):
    content["images"][0]["file_name"] = "x.tif"
    image.save(folder / "images/x.tif")
    (blank,) = find_defects([read(content).file(index) for index in (0, 1)], 1, "checking")
    assert blank.is_warning
    assert blank.file == folder / "images/x.tif"
    assert what in blank.what


def test_training_checks_every_image_first_if_asked_to(config, run_in_process):
    root = config.parent / "sample"
    halve(root / "images/val/000005.jpg")
    experiments = config.parent / "experiments"
    words = [config, f"data.root={root}", "data.check_images=true", "--experiments", experiments]
    code, _, errors = run_in_process(detection.training, *words)
    assert (code, len(errors)) == (2, 1)
    assert f"{root}/images/val/000005.jpg: image id 5: cannot be decoded" in errors[0]
    assert not experiments.exists()
