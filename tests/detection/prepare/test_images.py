"""detection/prepare/images.py: what is wrong with each image, found in processes that end with their parent."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection.coco.dataset import decode_image
from detection.prepare import images
from detection.prepare.images import find_defects

PROJECT = Path(__file__).parents[3]


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
        (lambda path: path.write_bytes(b"<html>not found</html>"), "cannot be decoded: no image, or of a kind that"),
        (lambda path: Image.new("RGB", (30, 41)).save(path), "30 x 41 pixels, the annotation file says 40 x 30"),
        (lambda path: path.unlink(), "cannot be decoded: "),
    ],
    ids=["half", "checksum", "html", "size", "gone"],
)
def test_the_check_finds_a_broken_image(read, folder, content, spoil, message):
    coco = read(content)
    spoil(folder / "images/a.png")
    broken, sound = find_defects([coco.file(0), coco.file(1)], workers=2)
    assert broken.file == folder / "images/a.png"
    assert broken.record == "image id 50"
    assert message in broken.what
    assert sound is None


def test_the_check_leaves_kinds_of_images_alone_that_training_reads(read, folder):
    turned = Image.Exif()
    turned[0x0112] = 8
    Image.linear_gradient("L").resize((30, 40)).convert("CMYK").save(folder / "images/x.jpg", exif=turned)
    record = {"id": 5, "file_name": "x.jpg", "width": 40, "height": 30}
    coco = read({"categories": [{"id": 1, "name": "thing"}], "images": [record], "annotations": []})
    assert list(find_defects([coco.file(0)], workers=1)) == [None]


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
    blank, sound = find_defects([read(content).file(index) for index in (0, 1)], workers=1)
    assert blank.is_warning
    assert blank.file == folder / "images/x.tif"
    assert what in blank.what
    assert sound is None


def test_a_decoder_that_takes_its_process_down_is_a_defect_of_that_image_alone(read, content, monkeypatch):
    def decode(file):
        if file.id == 50:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode_image(file)

    monkeypatch.setattr(images, "decode_image", decode)
    coco = read(content)
    found = list(find_defects([coco.file(i % 2) for i in range(7)], workers=2))
    assert [defect and defect.what for defect in found] == ["the process that decoded it died", None] * 3 + [
        "the process that decoded it died"
    ]


def test_the_check_s_processes_end_with_a_parent_that_is_killed(read, folder, content, monkeypatch):
    def decode(file):
        (folder / "pid").write_text(str(os.getpid()))
        time.sleep(600)

    monkeypatch.setattr(images, "decode_image", decode)
    files = [read(content).file(0)]
    parent = multiprocessing.get_context("fork").Process(target=lambda: list(find_defects(files, workers=1)))
    parent.start()
    wait_for(lambda: (folder / "pid").exists() and (folder / "pid").read_text())
    parent.kill()
    parent.join()
    wait_for(lambda: not is_alive(int((folder / "pid").read_text())))


def wait_for(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_training_checks_every_image_first_if_asked_to(config):
    root = config.parent / "sample"
    halve(root / "images/val/000005.jpg")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("-m", "detection.training", config, f"data.root={root}", "data.check_images=true"),
        *("--experiments", config.parent / "experiments"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"{root}/images/val/000005.jpg: image id 5: cannot be decoded" in done.stderr
    assert "DatasetError" not in done.stderr  # a traceback of theirs would say it; torchrun has one of its own
    assert not (config.parent / "experiments").exists()
