"""Decoding images, samples and batches, and the check of a whole data set."""

import dataclasses
import json
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

import detection.check
import detection.data
from data import EpochBatchSampler, build_loader
from detection.annotations import DatasetError, read_coco
from detection.check import find_defects
from detection.data import main
from detection.dataset import CocoDetection, collate, decode_image, read_image
from detection.sample import generate
from detection.transforms import AugmentConfig, eval_transform, train_transform
from engine.command import run_command

CPU = torch.device("cpu")


def read(folder, annotations):
    (folder / "annotations.json").write_text(json.dumps(annotations), encoding="utf-8")
    return read_coco(folder / "annotations.json", folder / "images")


# ---- images -----------------------------------------------------------------------------------------------------


def one_image(folder, image, size, name="x.png", **options):
    image.save(folder / "images" / name, **options)
    record = {"id": 5, "file_name": name, "width": size[0], "height": size[1]}
    return read(folder, {"categories": [{"id": 1, "name": "thing"}], "images": [record], "annotations": []})


@pytest.mark.parametrize(
    ("mode", "name", "tolerance"),
    [
        ("L", "x.png", 0),
        ("LA", "x.png", 0),
        ("RGBA", "x.png", 0),
        ("P", "x.png", 0),
        ("P", "x.gif", 0),
        ("CMYK", "x.jpg", 4),
        ("L", "x.jpg", 4),
        ("1", "x.png", 0),
    ],
)
def test_every_kind_of_image_is_read_as_rgb(folder, mode, name, tolerance):
    grey = 255 if mode == "1" else 100
    image = Image.new("RGB", (40, 30), (grey, grey, grey)).convert(mode, palette=Image.Palette.ADAPTIVE)
    pixels = read_image(one_image(folder, image, (40, 30), name), 0)
    assert pixels.shape == (30, 40, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - grey).max() <= tolerance


def test_sixteen_bits_are_scaled_and_not_cut_off(folder):
    ramp = np.arange(0, 60_000, 50, dtype=np.uint16).reshape(30, 40)
    pixels = read_image(one_image(folder, Image.fromarray(ramp), (40, 30)), 0)
    assert np.array_equal(pixels[..., 0], ramp // 256)


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def test_an_image_is_turned_upright_when_the_file_gives_the_upright_size(folder):
    stored = np.zeros((30, 40, 3), np.uint8)
    stored[:8] = 255  # the top edge; orientation 6 turns it to the right one
    coco = one_image(folder, Image.fromarray(stored), (30, 40), "x.jpg", exif=exif(6), quality=95)
    pixels = read_image(coco, 0)
    assert pixels.shape == (40, 30, 3)
    assert pixels[:, 24:].mean() > 240
    assert pixels[:, :20].mean() < 15


def test_an_image_stays_as_stored_when_the_file_gives_that_size(folder):
    stored = np.zeros((30, 40, 3), np.uint8)
    stored[:8] = 255
    coco = one_image(folder, Image.fromarray(stored), (40, 30), "x.jpg", exif=exif(6), quality=95)
    pixels = read_image(coco, 0)
    assert pixels.shape == (30, 40, 3)
    assert pixels[:6].mean() > 240


def test_another_size_than_recorded_is_refused_with_both(folder):
    coco = one_image(folder, Image.new("RGB", (40, 30)), (41, 30))
    with pytest.raises(DatasetError, match=r"x\.png: image id 5: 40 x 30 pixels, .* says 41 x 30"):
        read_image(coco, 0)


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>"])
def test_a_file_that_is_no_image_is_refused_by_name(folder, data):
    coco = one_image(folder, Image.new("RGB", (40, 30)), (40, 30))
    (folder / "images/x.png").write_bytes(data)
    with pytest.raises(DatasetError, match=r"x\.png: image id 5: cannot be decoded"):
        read_image(coco, 0)


def test_half_a_jpeg_is_refused_by_name(folder):
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    coco = one_image(folder, Image.fromarray(noise), (40, 30), "x.jpg")
    path = folder / "images/x.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DatasetError, match=r"x\.jpg: image id 5: cannot be decoded"):
        read_image(coco, 0)


def test_a_part_of_half_a_jpeg_is_refused_too(folder):
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    coco = one_image(folder, Image.fromarray(noise), (40, 30), "x.jpg")
    path = folder / "images/x.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DatasetError, match="cannot be decoded: image file is truncated"):
        decode_image(coco.file(0), (0, 0, 40, 10))


def test_another_size_is_refused_before_a_pixel_is_decoded(folder, monkeypatch):
    coco = one_image(folder, Image.new("RGB", (40, 30)), (4000, 3000))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(DatasetError, match="40 x 30 pixels"):
        read_image(coco, 0)


def test_a_header_of_four_gigapixels_is_refused_before_a_pixel_is_decoded(folder, monkeypatch):
    coco = one_image(folder, Image.new("RGB", (40, 30)), (65_000, 65_000))
    path = folder / "images/x.png"
    header = b"IHDR" + struct.pack(">2I", 65_000, 65_000) + path.read_bytes()[24:29]
    data = path.read_bytes()
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(DatasetError, match=r"x\.png: image id 5: cannot be decoded: Image size \(4225000000 pixels\)"):
        read_image(coco, 0)


def test_postscript_named_as_a_photograph_is_not_run(folder):
    coco = one_image(folder, Image.new("RGB", (40, 30)), (40, 30))
    Image.new("RGB", (40, 30)).save(folder / "images/x.png", format="EPS")
    with pytest.raises(DatasetError, match=r"x\.png: image id 5: an EPS file, which is a program"):
        read_image(coco, 0)


@pytest.mark.parametrize(
    ("mode", "name", "orientation"),
    [
        ("RGB", "x.png", 1),
        ("RGB", "x.jpg", 1),
        ("RGB", "x.jpg", 6),
        ("CMYK", "x.jpg", 1),
        ("P", "x.png", 1),
        ("LA", "x.png", 1),
        ("I;16", "x.png", 1),
    ],
)
def test_a_part_is_what_the_whole_image_has_there(folder, mode, name, orientation):
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(256 * noise[..., 0].astype(np.uint16) if mode == "I;16" else noise)
    image = image if image.mode == mode else image.convert(mode)
    coco = one_image(folder, image, (30, 40) if orientation == 6 else (40, 30), name, exif=exif(orientation))
    whole = decode_image(coco.file(0))
    part = decode_image(coco.file(0), (4, 8, 20, 28))
    assert np.array_equal(part, whole[8:28, 4:20])


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_reduced_jpeg_shows_the_same_part_in_fewer_pixels(folder, reduction):
    ramp = np.add.outer(np.arange(100), np.arange(131)).astype(np.uint8)  # sizes that no reduction divides
    coco = one_image(folder, Image.fromarray(ramp), (131, 100), "x.jpg", quality=95)
    reduced = decode_image(coco.file(0), (8, 16, 128, 96), reduction)
    blocks = ramp[16:96, 8:128].reshape(80 // reduction, reduction, 120 // reduction, reduction)
    assert reduced.shape == (80 // reduction, 120 // reduction, 3)
    assert np.abs(reduced[..., 0] - blocks.mean((1, 3))).max() < 3


@pytest.mark.parametrize(("name", "orientation", "size"), [("x.png", 1, (40, 32)), ("x.jpg", 6, (32, 40))])
def test_what_is_no_upright_jpeg_is_not_reduced(folder, name, orientation, size):
    coco = one_image(folder, Image.new("RGB", (40, 32)), size, name, exif=exif(orientation))
    assert decode_image(coco.file(0), (0, 0, 32, 32), 4).shape == (32, 32, 3)


# ---- samples and batches ------------------------------------------------------------------------------------------


def sample_coco(sample_root, split="train"):
    return read_coco(sample_root / f"annotations/instances_{split}.json", sample_root / f"images/{split}")


def test_a_sample_has_fractions_of_the_square_and_the_file_s_image_id(folder, content):
    sample = CocoDetection(read(folder, content), eval_transform(64))[0, 0]
    assert sample["image"].shape == (3, 64, 64)
    assert type(sample["image"]) is type(sample["boxes_xyxy"]) is torch.Tensor
    torch.testing.assert_close(sample["boxes_xyxy"], torch.tensor([[10.5 / 40, 10 / 30, 30.5 / 40, 20 / 30]]))
    assert sample["labels"].tolist() == [2]
    assert sample["image_id"] == 50


def test_crowds_are_no_targets(folder, content):
    annotations = content
    annotations["annotations"][2]["iscrowd"] = 1
    sample = CocoDetection(read(folder, annotations), eval_transform(64))[0, 1]
    assert sample["labels"].tolist() == [1]


def test_a_sample_depends_on_seed_epoch_and_index_only(sample_root):
    coco, transform = sample_coco(sample_root), train_transform(AugmentConfig(), 64)
    dataset = CocoDetection(coco, transform, seed=1)
    first = dataset[2, 3]["image"]
    dataset[0, 1]
    torch.rand(5)
    assert torch.equal(dataset[2, 3]["image"], first)
    assert not torch.equal(dataset[3, 3]["image"], first)
    assert not torch.equal(CocoDetection(coco, transform, seed=2)[2, 3]["image"], first)


def test_a_batch_has_the_samples_that_are_loaded_one_by_one(sample_root):
    dataset = CocoDetection(sample_coco(sample_root), train_transform(AugmentConfig(), 64))
    keys = [(3, 5), (0, 1), (3, 2)]
    for one, other in zip(dataset.__getitems__(keys), (dataset[key] for key in keys), strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_loading_leaves_the_random_state_alone(sample_root):
    dataset = CocoDetection(sample_coco(sample_root), train_transform(AugmentConfig(), 64))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    dataset[0, 0]
    assert torch.equal(torch.rand(3), expected)


def test_colours_depend_on_seed_epoch_and_index_only(sample_root):
    coco, transform = sample_coco(sample_root), train_transform(AugmentConfig(), 64)
    colours = [CocoDetection(coco, transform, seed)[epoch, 3]["colours"] for seed, epoch in ((1, 2), (1, 2), (1, 3))]
    assert torch.equal(colours[0], colours[1])
    assert not torch.equal(colours[0], colours[2])


def test_the_cache_changes_pixels_only_where_a_jpeg_is_decoded_reduced(sample_root):
    coco, transform = sample_coco(sample_root), train_transform(AugmentConfig(), 32)
    plain, cached = CocoDetection(coco, transform), CocoDetection(coco, transform, cache_mib=100)
    reductions = set()
    for index in range(len(coco.images)):
        one, other = plain[0, index], cached[0, index]
        boxes_xyxy, _, is_crowd = coco.objects(index)
        view = transform((128, 128), boxes_xyxy[~is_crowd], np.random.default_rng((0, 0, index)))
        assert torch.equal(one["boxes_xyxy"], other["boxes_xyxy"])
        difference = (one["image"].float() - other["image"].float()).abs()
        assert difference.mean() <= (4 if view.reduction > 1 else 0)
        reductions.add(view.reduction)
    assert len(reductions) > 1
    assert all(np.array_equal(cached.cached[i], read_image(coco, i)) for i in range(len(coco.images)))


def test_the_cache_keeps_to_its_limit(sample_root):
    coco = sample_coco(sample_root)
    dataset = CocoDetection(coco, eval_transform(32), cache_mib=0.15)  # an image takes 48 KiB
    assert len(dataset.cached) == 3
    assert torch.equal(dataset[0, 3]["image"], CocoDetection(coco, eval_transform(32))[0, 3]["image"])


@pytest.mark.parametrize("cache_mib", [0, 100])
def test_batches_do_not_depend_on_the_number_of_workers(sample_root, cache_mib):
    dataset = CocoDetection(sample_coco(sample_root), train_transform(AugmentConfig(), 64), seed=4, cache_mib=cache_mib)
    batches = EpochBatchSampler(len(dataset), batch_size=5, rank=0, world_size=1, seed=4)
    here, there = (list(build_loader(dataset, batches, collate, workers, CPU)) for workers in (0, 2))
    assert len(here) == len(there) == 2
    for one, other in zip(here, there, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one.keys() - {"load_seconds"})


def test_a_broken_image_is_named_from_a_worker_too(sample_root):
    coco = sample_coco(sample_root)
    coco = dataclasses.replace(coco, images=[image._replace(width=1) for image in coco.images])
    loader = build_loader(CocoDetection(coco, eval_transform(32)), [[(0, 0)]], collate, 1, CPU)
    with pytest.raises(DatasetError, match=r"000001\.jpg: image id 1"):
        next(iter(loader))


def test_collate_pads_with_background():
    samples = [
        {
            "image": torch.full((3, 4, 4), n, dtype=torch.uint8),
            "boxes_xyxy": torch.full((n, 4), 0.5),
            "labels": torch.full((n,), 3),
            "image_id": 10 + n,
        }
        for n in (2, 0, 1)
    ]
    batch = collate(samples)
    assert batch["images"].shape == (3, 3, 4, 4)
    assert batch["images"].dtype == torch.uint8
    assert batch["boxes_xyxy"].shape == (3, 2, 4)
    assert batch["labels"].tolist() == [[3, 3], [0, 0], [3, 0]]
    assert batch["boxes_xyxy"].sum(dim=(1, 2)).tolist() == [4, 0, 2]
    assert batch["image_ids"].tolist() == [12, 10, 11]


def test_a_batch_has_a_row_of_colours_for_each_image(sample_root):
    dataset = CocoDetection(sample_coco(sample_root), train_transform(AugmentConfig(), 32))
    batch = collate([dataset[0, index] for index in range(3)])
    assert batch["colours"].shape == (3, 8)
    assert torch.equal(batch["colours"][1], dataset[0, 1]["colours"])


def test_a_batch_without_objects_has_room_for_one():
    sample = {
        "image": torch.zeros(3, 4, 4, dtype=torch.uint8),
        "boxes_xyxy": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "image_id": 1,
    }
    batch = collate([sample, sample])
    assert batch["boxes_xyxy"].shape == (2, 1, 4)
    assert batch["labels"].tolist() == [[0], [0]]


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
    coco = one_image(folder, Image.new("CMYK", (30, 40)), (40, 30), "x.jpg", exif=exif(8))
    assert list(find_defects([coco.file(0)], workers=1)) == [None]


def test_a_decoder_that_takes_its_process_down_is_a_defect_of_that_image_alone(folder, content, monkeypatch):
    def decode(file):
        if file.id == 50:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(detection.check, "decode_image", decode)
    coco = read(folder, content)
    found = list(find_defects([coco.file(i % 2) for i in range(7)], workers=2))
    assert [defect and defect.what for defect in found] == ["the process that decoded it died", None] * 3 + [
        "the process that decoded it died"
    ]


def test_the_check_s_processes_end_with_a_parent_that_is_killed(folder, content, monkeypatch):
    def decode(file):
        (folder / "pid").write_text(str(os.getpid()))
        time.sleep(60)

    monkeypatch.setattr(detection.check, "decode_image", decode)
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
def check(monkeypatch, capsys):
    """Run the command; returns its exit code, what it printed and its errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["detection.data", "check", *map(str, arguments), "--workers", "2"])
        code = 0
        try:
            run_command(main)
        except SystemExit as exit_:
            code = exit_.code
        captured = capsys.readouterr()
        return code, captured.out, [line for line in captured.err.splitlines() if "error" in line]

    return run


def write(folder, annotations):
    (folder / "annotations.json").write_text(json.dumps(annotations))
    return folder / "annotations.json", "--images", folder / "images"


def test_a_sound_data_set_passes(folder, content, check):
    code, printed, errors = check(*write(folder, content))
    assert (code, errors) == (0, [])
    assert "2 images, 3 objects, 2 classes" in printed


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


@pytest.mark.parametrize("text", ["", '{"images": [', "[]", "<html>"])
def test_a_file_that_cannot_be_read_is_one_defect(folder, check, text):
    (folder / "annotations.json").write_text(text)
    code, _, errors = check(folder / "annotations.json", "--images", folder / "images")
    assert (code, errors) == (2, [f"error: 1 defect in {folder / 'annotations.json'}"])


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


# ---- real data ----------------------------------------------------------------------------------------------------


def test_boxes_go_to_the_network_and_back_unchanged(shared_data):
    root = shared_data / "coco80"
    coco = read_coco(root / "annotations/instances_val.json", root / "images/val")
    dataset = CocoDetection(coco, eval_transform(96))
    for index in range(0, len(dataset), 10):
        record, sample = coco.images[index], dataset[0, index]
        boxes_xyxy, labels, is_crowd = coco.objects(index)
        back = sample["boxes_xyxy"] * torch.tensor([record.width, record.height] * 2)
        np.testing.assert_allclose(back, boxes_xyxy[~is_crowd], atol=0.01)
        assert sample["labels"].tolist() == labels[~is_crowd].tolist()


def test_real_photographs_survive_augmentation(shared_data):
    root = shared_data / "coco80"
    coco = read_coco(root / "annotations/instances_train.json", root / "images/train")
    dataset = CocoDetection(coco, train_transform(AugmentConfig(), 128))
    batch = collate([dataset[0, index] for index in range(16)])
    has_object = batch["labels"] > 0
    boxes_xyxy = batch["boxes_xyxy"][has_object]
    assert batch["images"].shape == (16, 3, 128, 128)
    assert len(boxes_xyxy) > 16
    assert (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all()
    assert (boxes_xyxy >= 0).all()
    assert (boxes_xyxy <= 1).all()
