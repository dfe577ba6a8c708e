"""detection/prepare/shrink.py: the copies are smaller, but train and score like the originals."""

import errno
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import detection.prepare.shrink
from data import DatasetError
from detection.coco.annotations import read_coco
from detection.coco.dataset import CocoDetection, read_image
from detection.coco.image_files import ImageFile, shrunk_size
from detection.coco.transforms import eval_transform
from detection.prepare.images import find_defects
from detection.prepare.shrink import shrink, shrink_image
from detection.shapes import generate

TRAIN, IMAGES = "annotations/instances_train.json", "images/train"


@pytest.fixture
def root(tmp_path):
    """Draw a data set of six training and two validation images, 96 x 96 pixels."""
    generate(tmp_path / "original", num_train=6, num_val=2, image_size=96)
    return tmp_path / "original"


@pytest.fixture
def target(root):
    return root.parent / "copy"


def read(root):
    return read_coco(root / TRAIN, root / IMAGES)


@pytest.mark.parametrize(
    ("size", "expected"), [((640, 480), (533, 400)), ((427, 640), (400, 600)), ((300, 900), (300, 900))]
)
def test_shrinking_keeps_the_aspect_ratio_and_never_enlarges(size, expected):
    assert shrunk_size(size, 400) == expected


def test_annotations_are_copied_byte_for_byte_and_images_get_the_short_side(root, target):
    shrink(root, target, 48, workers=2)
    for name in (TRAIN, "annotations/instances_val.json"):
        assert (target / name).read_bytes() == (root / name).read_bytes()
    coco = read(target)
    files = [coco.file(index) for index in range(6)]
    assert {Image.open(file.path).size for file in files} == {(48, 48)}
    assert find_defects(files, 1, "checking") == []
    assert read_image(coco, 0).shape == (96, 96, 3)  # the size of the original


def test_boxes_are_the_same_fractions_of_the_original_and_of_the_copy(root, target):
    shrink(root, target, 48, workers=1)
    original, copy = (CocoDetection(read(folder), eval_transform(32)) for folder in (root, target))
    for index in range(6):
        expected, actual = original[0, index], copy[0, index]
        torch.testing.assert_close(actual["boxes_xyxy"], expected["boxes_xyxy"])
        assert torch.equal(actual["labels"], expected["labels"])
        assert (actual["image"].float() - expected["image"].float()).abs().mean() < 8


def test_an_image_with_exif_orientation_is_stored_upright(root, target):
    path, exif = root / IMAGES / "000001.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((96, 192, 3), np.uint8)).save(path, exif=exif)
    content = json.loads((root / TRAIN).read_text())
    content["images"][0] |= {"width": 96, "height": 192}
    (root / TRAIN).write_text(json.dumps(content))
    shrink(root, target, 48, workers=1)
    with Image.open(target / IMAGES / "000001.jpg") as copy:
        assert copy.size == (48, 96)
        assert not copy.getexif()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root, target: shutil.copy(root / IMAGES / "000001.jpg", target / IMAGES), "96 x 96 .* 48 x 48"),
        (lambda root, target: (target / IMAGES / "shrunk.json").unlink(), "48 x 48 pixels, .* says 96 x 96"),
        *[
            (lambda root, target, text=text: (target / IMAGES / "shrunk.json").write_text(text), r"shrunk\.json: ")
            for text in ("", "{}", '{"short_side": 0}')
        ],
    ],
)
def test_a_modified_copy_is_an_error(root, target, spoil, message):
    shrink(root, target, 48, workers=1)
    spoil(root, target)
    with pytest.raises(DatasetError, match=message):
        CocoDetection(read(target), eval_transform(32))[0, 0]


def test_folders_with_other_files_or_other_copies_are_refused(root, target):
    with pytest.raises(DatasetError, match=r"not empty.* shrunk\.json"):
        shrink(root, root, 48, workers=1)
    shrink(root, target, 48, workers=1)
    with pytest.raises(DatasetError, match="short side 48, not 40"):
        shrink(root, target, 40, workers=1)
    with pytest.raises(DatasetError, match=r"short side of 48; .*originals"):
        shrink(target, root.parent / "third", 40, workers=1)


def test_an_interrupted_copy_is_continued(root, target, monkeypatch):
    def stop_after_the_fourth(shrink, items, workers, title):
        yield from map(shrink, items[:4])
        raise KeyboardInterrupt

    monkeypatch.setattr(detection.prepare.shrink, "for_each", stop_after_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        shrink(root, target, 48, workers=1)
    monkeypatch.undo()
    assert not (target / TRAIN).exists()  # nothing to train on yet
    times = {path: path.stat().st_mtime_ns for path in target.rglob("*.jpg")}
    assert len(times) == 4
    assert "8 images (4 " in shrink(root, target, 48, workers=1)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert len(read(target).images) == 6


def test_a_broken_image_is_named_and_leaves_no_copy(root, target):
    path = root / IMAGES / "000001.jpg"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DatasetError, match=r"original/images/train/000001\.jpg: image id 1: cannot be decoded"):
        shrink(root, target, 48, workers=2)
    assert not list(target.rglob("000001.jpg*"))


def test_a_full_disk_is_an_error_that_names_the_file(root, target, monkeypatch):
    def save(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    (image,) = [path for path in (root / IMAGES).iterdir() if path.stem.endswith("1")]
    with pytest.raises(OSError, match=rf"{target / image.name}: .*no space left"):
        shrink_image(48, (ImageFile(1, image, (96, 96)), target / image.name))


def test_the_default_place_of_the_copy_is_beside_the_original(root, command, monkeypatch):
    words = ["shrink", root, "--short-side", 48, "--workers", 1]
    monkeypatch.setattr(detection.prepare.shrink, "_mark_copies", None)  # the first function that writes
    (line,) = command(*words)[1].splitlines()
    for part in ("8 images", f"{root}_48", "48 pixels", "--to"):
        assert part in line
    monkeypatch.undo()
    code, printed, _ = command(*words)
    assert code == 0
    assert f"train with data.root={root}_48" in printed
    assert len(read(root.with_name("original_48")).images) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--short-side"),
        (["--short-side", "0"], "--short-side"),
        (["--short-side", 48], "instances_train.json: missing image folder {}/train"),
    ],
)
def test_an_invalid_command_line_or_a_missing_image_folder_is_a_one_line_error(root, command, words, message):
    (root / "images/train").rename(root / "photos")
    code, _, errors = command("shrink", root, *words)
    assert (code, len(errors)) == (2, 1)
    assert message.format(root) in errors[0]
