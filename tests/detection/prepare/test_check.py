"""detection/prepare/check.py: every defect of a whole data set in one pass, in processes that end with it."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import detection.data
import detection.prepare.check
from detection.annotations import read_coco
from detection.prepare.check import find_defects
from detection.sample import generate


def read(folder, annotations):
    (folder / "annotations.json").write_text(json.dumps(annotations), encoding="utf-8")
    return read_coco(folder / "annotations.json", folder / "images")


# ---- checking every image ---------------------------------------------------------------------------------------


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
        (lambda path: path.write_bytes(b"<html>not found</html>"), "cannot be decoded: cannot identify"),
        (lambda path: Image.new("RGB", (30, 41)).save(path), "30 x 41 pixels, the annotation file says 40 x 30"),
        (lambda path: path.unlink(), "cannot be decoded: "),
    ],
    ids=["half", "checksum", "html", "size", "gone"],
)
def test_the_check_finds_a_broken_image(folder, content, spoil, message):
    coco = read(folder, content)
    spoil(folder / "images/a.png")
    broken, sound = find_defects([coco.file(0), coco.file(1)], workers=2)
    assert broken.file == folder / "images/a.png"
    assert broken.record == "image id 50"
    assert message in broken.what
    assert sound is None


def test_the_check_leaves_kinds_of_images_alone_that_training_reads(folder):
    turned = Image.Exif()
    turned[0x0112] = 8
    Image.new("CMYK", (30, 40)).save(folder / "images/x.jpg", exif=turned)
    record = {"id": 5, "file_name": "x.jpg", "width": 40, "height": 30}
    coco = read(folder, {"categories": [{"id": 1, "name": "thing"}], "images": [record], "annotations": []})
    assert list(find_defects([coco.file(0)], workers=1)) == [None]


def test_a_decoder_that_takes_its_process_down_is_a_defect_of_that_image_alone(folder, content, monkeypatch):
    def decode(file):
        if file.id == 50:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(detection.prepare.check, "decode_image", decode)
    coco = read(folder, content)
    found = list(find_defects([coco.file(i % 2) for i in range(7)], workers=2))
    assert [defect and defect.what for defect in found] == ["the process that decoded it died", None] * 3 + [
        "the process that decoded it died"
    ]


def test_the_check_s_processes_end_with_a_parent_that_is_killed(folder, content, monkeypatch):
    def decode(file):
        (folder / "pid").write_text(str(os.getpid()))
        time.sleep(60)

    monkeypatch.setattr(detection.prepare.check, "decode_image", decode)
    files = [read(folder, content).file(0)]
    parent = multiprocessing.get_context("fork").Process(target=lambda: list(find_defects(files, workers=1)))
    parent.start()
    wait_for(lambda: (folder / "pid").exists() and (folder / "pid").read_text())
    parent.kill()
    parent.join()
    wait_for(lambda: not is_alive(int((folder / "pid").read_text())))


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def check(command):
    """Run `python -m detection.data check ...`; returns its exit code, what it printed and its errors."""
    return lambda *arguments: command("check", *arguments, "--workers", "2")


def write(folder, annotations):
    (folder / "annotations.json").write_text(json.dumps(annotations))
    return folder / "annotations.json", "--images", folder / "images"


def test_a_sound_data_set_passes(folder, content, check):
    code, printed, errors = check(*write(folder, content))
    assert (code, errors) == (0, [])
    assert "2 images (3 objects), 2 classes" in printed


def test_what_training_changes_or_leaves_out_is_counted(folder, content, check):
    content["annotations"] = [
        {"id": 1, "image_id": 20, "category_id": 3, "bbox": [30, 2, 30, 4]},
        {"id": 2, "image_id": 20, "category_id": 7, "bbox": [10, 10, 0, 10]},
        {"id": 3, "image_id": 50, "category_id": 7, "bbox": [0, 0, 40, 30], "iscrowd": 1},
    ]
    assert check(*write(folder, content), "--json", folder / "report.json")[0] == 0
    (report,) = json.loads((folder / "report.json").read_text())
    assert report["counts"] == {
        "images": 2, "objects": 2, "classes": 2, "boxes_cut": 1, "boxes_left_out": 1, "crowds": 1,
        "images_without_objects": 1,
    }  # fmt: skip


def test_defects_of_annotations_and_images_are_found_in_one_pass(folder, content, check):
    content["annotations"][0]["category_id"] = 99
    del content["images"][0]["width"]
    for name in ("a.png", "more/b.png"):
        halve(folder / "images" / name)
    code, printed, errors = check(*write(folder, content), "--json", folder / "report.json")
    found = [
        ("annotations.json", "images[0] (id 50)", "no 'width'"),
        ("annotations.json", "annotations[0] (id 1)", "category_id 99: no such category"),
        ("images/a.png", "image id 50", "cannot be decoded: image file is truncated"),
        ("images/more/b.png", "image id 20", "cannot be decoded: image file is truncated"),
    ]
    assert code == 2
    assert errors == [f"error: 4 defects in {folder / 'annotations.json'}"]
    assert "error" not in printed
    lines = printed.splitlines()[1:5]
    (report,) = json.loads((folder / "report.json").read_text())
    for line, entry, (file, record, what) in zip(lines, report["defects"], found, strict=True):
        assert line.startswith(str(folder / file))
        assert f"  {record}  " in line
        assert what in line
        assert (entry["file"], entry["record"]) == (str(folder / file), record)
        assert what in entry["defect"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not JSON: "),
        ('{"images": [', "not JSON: "),
        ("<html>", "not JSON: "),
        ("[]", "holds a list, expected an object with the lists categories, images, annotations"),
        ('{"a": 1}', "holds none of the lists categories, images, annotations; is it"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_before_its_images_are_looked_for(folder, check, text, what):
    (folder / "annotations.json").write_text(text)
    code, printed, errors = check(folder / "annotations.json")
    assert (code, len(errors), printed) == (2, 1, "")
    assert errors[0].startswith(f"error: {folder / 'annotations.json'}: {what}")


def test_a_single_defect_is_told_by_the_error_itself(folder, content, check):
    content["annotations"][0]["category_id"] = 99
    assert check(*write(folder, content))[2] == [
        f"error: {folder}/annotations.json: annotations[0] (id 1): category_id 99: no such category"
    ]


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


def test_both_halves_of_a_config_are_checked(config, check):
    root = config.parent / "sample"
    halve(root / "images/train/000001.jpg")
    (root / "images/val/000002.jpg").unlink()
    code, printed, errors = check(config, f"data.root={root}")
    assert code == 2
    assert errors == [
        f"error: 1 defect in {root}/annotations/instances_train.json, 1 defect in {root}/annotations/instances_val.json"
    ]
    assert "image id 1 " in printed
    assert "images[0] (id 2)" in printed


@pytest.mark.parametrize("override", ["dat.root=x", "data.rot=x", "model.neck=fpn", "data.root"])
def test_an_override_that_concerns_no_data_is_refused(config, check, override):
    code, _, errors = check(config, override)
    assert code == 2
    assert len(errors) == 1
    assert override.partition("=")[0] in errors[0]


@pytest.mark.parametrize("layout", ["val", "images/val"])
def test_the_image_folder_is_found_by_coco_s_layout(config, check, layout):
    root = config.parent / "sample"
    (root / "images/val").rename(root / "moved")
    (root / "moved").rename(root / layout)
    assert check(root / "annotations/instances_val.json")[0] == 0


def test_an_image_folder_that_cannot_be_found_is_asked_for(folder, content, check):
    path, *_ = write(folder, content)
    code, _, errors = check(path)
    assert code == 2
    assert "say where it is by --images" in errors[0]


def test_both_halves_of_a_folder_are_checked(config, check):
    code, printed, _ = check(config.parent / "sample")
    assert code == 0
    assert [line.partition(" (")[0].rpartition("/")[2] for line in printed.splitlines()] == [
        "instances_train.json: 3 images",
        "instances_val.json: 2 images",
    ]


def test_a_folder_of_another_format_is_told_its_converter(tmp_path, check):
    (tmp_path / "labels").mkdir()
    code, _, errors = check(tmp_path)
    assert (code, len(errors)) == (2, 1)
    assert f"`python -m detection.data convert yolo {tmp_path}`" in errors[0]


@pytest.mark.parametrize(("name", "what"), [("README.md", "expected a config (.yaml)"), ("gone", "no such file")])
def test_what_is_no_data_set_is_told_what_is(tmp_path, check, name, what):
    (tmp_path / "README.md").write_text("**Hello**\n")
    code, _, errors = check(tmp_path / name)
    assert (code, len(errors)) == (2, 1)
    assert f"{name}: {what}" in errors[0]


def test_training_checks_every_image_first_if_asked_to(config):
    root = config.parent / "sample"
    halve(root / "images/val/000005.jpg")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("-m", "detection.training", config, f"data.root={root}", "data.check_images=true"),
        *("--experiments", config.parent / "experiments"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    project = Path(detection.data.__file__).parent.parent
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"{root}/images/val/000005.jpg: image id 5: cannot be decoded" in done.stderr
    assert "DatasetError" not in done.stderr  # a traceback of theirs would say it; torchrun has one of its own
    assert not (config.parent / "experiments").exists()
