"""detection/coco/dataset.py: decoded images, samples and batches."""

import dataclasses
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from data import DatasetError, EpochBatchSampler, build_loader
from detection.coco.annotations import read_coco
from detection.coco.dataset import CocoDetection, collate, decode_image, read_image
from detection.coco.transforms import AugmentConfig, eval_transform, plan_mosaic, train_transform

CPU = torch.device("cpu")


# ---- images -----------------------------------------------------------------------------------------------------


@pytest.fixture
def one_image(folder, read):
    """Return a function that saves an image, writes an annotation file giving it `size`, and reads that file."""

    def one_image(image, size, name="x.png", **options):
        image.save(folder / "images" / name, **options)
        record = {"id": 5, "file_name": name, "width": size[0], "height": size[1]}
        return read({"categories": [{"id": 1, "name": "thing"}], "images": [record], "annotations": []})

    return one_image


@pytest.mark.parametrize(
    ("mode", "name", "tolerance"),
    [
        *[(mode, "x.png", 0) for mode in ("L", "LA", "RGBA", "P", "1")],
        ("P", "x.gif", 0),
        ("CMYK", "x.jpg", 4),
    ],
)
def test_every_image_mode_is_read_as_rgb(one_image, mode, name, tolerance):
    grey = 255 if mode == "1" else 100
    image = Image.new("RGB", (40, 30), (grey, grey, grey)).convert(mode, palette=Image.Palette.ADAPTIVE)
    pixels = read_image(one_image(image, (40, 30), name), 0)
    assert pixels.shape == (30, 40, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - grey).max() <= tolerance


GREY = np.arange(1200, dtype=np.uint8).reshape(30, 40) % 221  # 0 to 220


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((GREY / 255).astype(np.float32), "fractions.tif"),
        (GREY.astype(np.float32), "x.tif"),
        (GREY.astype(np.float32) * 256 + 128, "x.tif"),
        (GREY.astype(np.int32), "x.tif"),
        (GREY.astype(np.int32) * 65536, "x.tif"),
        (GREY.astype(np.uint16), "8 bits in 16.png"),
        (GREY.astype(np.uint16) * 16, "12 bits in 16.png"),
        (GREY.astype(np.uint16) * 64 + 5, "14 bits in 16.tif"),
        (GREY.astype(np.uint16) * 256, "16 bits.png"),
    ],
)
@pytest.mark.parametrize("part", [None, (0, 0, 8, 1)], ids=["whole", "part of small values"])
def test_a_deep_image_is_scaled_by_its_largest_value(one_image, values, name, part):
    file = one_image(Image.fromarray(values), (40, 30), name).file(0)
    expected = GREY if part is None else GREY[:1, :8]
    assert np.array_equal(decode_image(file, part), np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(-1, 1, 1200, dtype=np.float32),
        np.linspace(0, 1.5, 1200, dtype=np.float32),
        np.append(np.ones(1199, np.float32), np.nan),
        np.arange(-1024, 176, dtype=np.int32),
    ],
    ids=["below 0", "neither fractions nor integers", "nan", "hounsfield"],
)
def test_deep_values_of_unknown_scale_are_rejected_with_the_cure(one_image, values):
    coco = one_image(Image.fromarray(values.reshape(30, 40)), (40, 30), "x.tif")
    with pytest.raises(DatasetError, match=rf"x\.tif.*32-bit grey values from {values.min():g} to .*to 8 bits"):
        read_image(coco, 0)


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


@pytest.mark.parametrize("size", [(30, 40), (40, 30)], ids=["upright", "as stored"])
def test_an_image_is_rotated_if_the_annotation_file_gives_the_upright_size(one_image, size):
    stored = np.zeros((30, 40, 3), np.uint8)
    stored[:8] = 255  # the top edge; orientation 6 moves it to the right
    pixels = read_image(one_image(Image.fromarray(stored), size, "x.jpg", exif=exif(6), quality=95), 0)
    assert pixels.shape[:2] == size[::-1]
    upright = pixels if size == (30, 40) else np.rot90(pixels, -1)
    assert upright[:, 24:].mean() > 240
    assert upright[:, :20].mean() < 15


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def claim_four_gigapixels(path):
    data = path.read_bytes()
    header = b"IHDR" + struct.pack(">2I", 65_000, 65_000) + data[24:29]
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])


@pytest.mark.parametrize(
    ("name", "size", "spoil", "message"),
    [
        ("x.png", (41, 30), lambda _: None, "40 x 30 pixels, .* says 41 x 30"),
        ("x.png", (30, 40), lambda _: None, "40 x 30 pixels, .* says 30 x 40: .*swapped"),
        ("x.png", (40, 30), lambda path: path.write_bytes(b""), "cannot be decoded"),
        ("x.png", (40, 30), lambda path: path.write_bytes(b"<html>not found</html>"), "cannot be decoded"),
        ("x.jpg", (40, 30), halve, "cannot be decoded: image file is truncated"),
        ("x.png", (65_000, 65_000), claim_four_gigapixels, r"cannot be decoded: Image size \(4225000000 pixels\)"),
        ("x.png", (40, 30), lambda path: Image.new("L", (40, 30)).save(path, "EPS"), "EPS"),
    ],
    ids=["size", "swapped", "empty", "html", "half", "four gigapixels", "postscript"],
)
def test_an_unusable_image_is_named_and_rejected_without_decoding_it(
    folder, one_image, monkeypatch, name, size, spoil, message
):
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    coco = one_image(Image.fromarray(noise), size, name)
    spoil(folder / "images" / name)
    if size != (30, 40):  # reading the orientation of a PNG decodes it
        monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(DatasetError, match=rf"{name}: image id 5: {message}.*; `python -m detection\.data check`"):
        read_image(coco, 0)
    if spoil is halve:  # also when decoding a part that is not truncated
        with pytest.raises(DatasetError, match="truncated"):
            decode_image(coco.file(0), (0, 0, 40, 10))


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
def test_a_decoded_part_equals_the_crop_of_the_whole_image(one_image, mode, name, orientation):
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(256 * noise[..., 0].astype(np.uint16) if mode == "I;16" else noise)
    image = image if image.mode == mode else image.convert(mode)
    coco = one_image(image, (30, 40) if orientation == 6 else (40, 30), name, exif=exif(orientation))
    whole = decode_image(coco.file(0))
    part = decode_image(coco.file(0), (4, 8, 20, 28))
    assert np.array_equal(part, whole[8:28, 4:20])


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_reduced_jpeg_shows_the_same_part_in_fewer_pixels(one_image, reduction):
    ramp = np.add.outer(np.arange(100), np.arange(131)).astype(np.uint8)  # sizes that are not multiples of a reduction
    coco = one_image(Image.fromarray(ramp), (131, 100), "x.jpg", quality=95)
    reduced = decode_image(coco.file(0), (8, 16, 128, 96), reduction)
    blocks = ramp[16:96, 8:128].reshape(80 // reduction, reduction, 120 // reduction, reduction)
    assert reduced.shape == (80 // reduction, 120 // reduction, 3)
    assert np.abs(reduced[..., 0] - blocks.mean((1, 3))).max() < 3


@pytest.mark.parametrize(("name", "orientation", "size"), [("x.png", 1, (40, 32)), ("x.jpg", 6, (32, 40))])
def test_only_an_upright_jpeg_is_reduced(one_image, name, orientation, size):
    coco = one_image(Image.new("RGB", (40, 32)), size, name, exif=exif(orientation))
    assert decode_image(coco.file(0), (0, 0, 32, 32), 4).shape == (32, 32, 3)


# ---- samples and batches ------------------------------------------------------------------------------------------


def sample_coco(sample_root):
    return read_coco(sample_root / "annotations/instances_train.json", sample_root / "images/train")


def test_a_sample_has_fractions_of_the_square_and_the_file_s_image_id(read, content):
    sample = CocoDetection(read(content), eval_transform(64))[0, 0]
    assert sample["image"].shape == (3, 64, 64)
    assert type(sample["image"]) is type(sample["boxes_xyxy"]) is torch.Tensor
    torch.testing.assert_close(sample["boxes_xyxy"], torch.tensor([[10.5 / 40, 10 / 30, 30.5 / 40, 20 / 30]]))
    assert sample["labels"].tolist() == [2]
    assert sample["image_ids"] == [50]


def test_crowds_are_not_targets(read, content):
    content["annotations"][2]["iscrowd"] = 1
    assert CocoDetection(read(content), eval_transform(64))[0, 1]["labels"].tolist() == [1]


def test_a_sample_depends_on_seed_epoch_and_index_only(sample_root):
    coco, transform = sample_coco(sample_root), train_transform(AugmentConfig(), 64)
    dataset, other = (CocoDetection(coco, transform, seed) for seed in (1, 2))
    first = dataset[2, 3]
    dataset[0, 1]
    state = torch.get_rng_state()
    for name in ("image", "colours"):
        assert torch.equal(dataset[2, 3][name], first[name])
        assert not torch.equal(dataset[3, 3][name], first[name])
        assert not torch.equal(other[2, 3][name], first[name])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_equals_the_samples_loaded_one_by_one(sample_root):
    dataset = CocoDetection(sample_coco(sample_root), train_transform(AugmentConfig(), 64))
    keys = [(3, 5), (0, 1), (3, 2)]
    for one, other in zip(dataset.__getitems__(keys), (dataset[key] for key in keys), strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_the_cache_changes_pixels_only_of_reduced_jpegs(sample_root):
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


@pytest.mark.parametrize("cache_mib", [0, 100])
def test_batches_do_not_depend_on_the_number_of_workers(sample_root, cache_mib):
    dataset = CocoDetection(sample_coco(sample_root), train_transform(AugmentConfig(), 64), seed=4, cache_mib=cache_mib)
    batches = EpochBatchSampler(len(dataset), batch_size=5, rank=0, world_size=1, seed=4)
    here, there = (list(build_loader(dataset, batches, collate, workers, CPU)) for workers in (0, 2))
    assert len(here) == len(there) == 2
    for one, other in zip(here, there, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


# ---- mosaic ---------------------------------------------------------------------------------------------------


def mosaic_set(coco, side=64, epochs=1, **options):
    """Return a data set with mosaic in all of `epochs` epochs, then SSD's augmentation."""
    config = AugmentConfig(policy="mosaic", mosaic_share=1)
    return CocoDetection(coco, train_transform(config, side), mosaic=plan_mosaic(config, side, epochs), **options)


def test_a_mosaic_has_the_boxes_and_labels_of_its_own_and_three_random_images(sample_root):
    coco = sample_coco(sample_root)
    dataset, drawn = mosaic_set(coco, epochs=200, seed=3), []
    for epoch in range(200):
        plan = dataset.plan((epoch, 2))
        assert plan.indices[0] == 2
        labels = []
        for index, view in zip(plan.indices, plan.views, strict=True):
            _, own, is_crowd = coco.objects(index)
            labels += own[~is_crowd][view.objects].tolist()
        assert plan.labels.tolist() == labels
        np.testing.assert_array_equal(plan.boxes_xyxy, np.concatenate([view.boxes_xyxy for view in plan.views]))
        drawn += plan.indices[1:]
    assert set(drawn) == set(range(len(coco.images)))
    sample = dataset[0, 2]
    assert sample["image_ids"] == [coco.images[index].id for index in dataset.plan((0, 2)).indices]
    assert sample["image"].shape == (3, 64, 64)
    assert len(sample["boxes_xyxy"]) == len(sample["labels"])
    assert (sample["boxes_xyxy"] >= 0).all()
    assert (sample["boxes_xyxy"] <= 1).all()


def test_the_last_epochs_have_no_mosaic(sample_root):
    coco = sample_coco(sample_root)
    dataset, plain = mosaic_set(coco, epochs=2), CocoDetection(coco, train_transform(AugmentConfig(), 64))
    assert [len(dataset[epoch, 0]["image_ids"]) for epoch in range(4)] == [4, 4, 1, 1]
    for name, value in plain[2, 0].items():
        assert np.array_equal(dataset[2, 0][name], value)


def test_a_mosaic_of_images_with_only_crowds_has_no_boxes(read, content):
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    sample = mosaic_set(read(content))[0, 0]
    assert sample["boxes_xyxy"].shape == (0, 4)
    assert sample["labels"].shape == (0,)
    assert len(sample["image_ids"]) == 4
    assert collate([sample, sample])["image_ids"].tolist() == 2 * sample["image_ids"]


@pytest.mark.parametrize("share", [0.5, 2])
def test_the_cache_changes_pixels_of_mosaics_only_if_jpegs_are_reduced(sample_root, share):
    coco = sample_coco(sample_root)
    mib = share * sum(3 * image.width * image.height for image in coco.images) / 2**20
    plain, cached = (mosaic_set(coco, 64, 5, cache_mib=cache_mib) for cache_mib in (0, mib))
    assert (len(cached.cached) < len(coco.images)) == (share < 1)
    exact = 0
    for key in [(epoch, index) for epoch in range(5) for index in range(4)]:
        one, other = plain[key], cached[key]
        assert all(np.array_equal(one[name], other[name]) for name in ("boxes_xyxy", "labels", "image_ids", "colours"))
        difference = (one["image"].float() - other["image"].float()).abs()
        is_reduced = any(view.reduction > 1 for view in plain.plan(key).views)
        assert difference.mean() <= (4 if is_reduced else 0)
        exact += not is_reduced
    assert 0 < exact < 20


@pytest.mark.parametrize("policy", ["lsj", "mosaic"])
def test_batches_of_a_policy_do_not_depend_on_the_number_of_workers(sample_root, policy):
    config = AugmentConfig(policy=policy)
    dataset = CocoDetection(
        sample_coco(sample_root), train_transform(config, 64), seed=4, mosaic=plan_mosaic(config, 64, 1)
    )
    batches = EpochBatchSampler(len(dataset), batch_size=5, rank=0, world_size=1, seed=4)
    here, there = (list(build_loader(dataset, batches, collate, workers, CPU)) for workers in (0, 2))
    assert len(here[0]["image_ids"]) == (20 if policy == "mosaic" else 5)
    for one, other in zip(here, there, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_loader_process_names_an_unusable_image(sample_root):
    coco = sample_coco(sample_root)
    coco = dataclasses.replace(coco, images=[image._replace(width=1) for image in coco.images])
    loader = build_loader(CocoDetection(coco, eval_transform(32)), [[(0, 0)]], collate, 1, CPU)
    with pytest.raises(DatasetError, match=r"000001\.jpg: image id 1"):
        next(iter(loader))


@pytest.mark.parametrize("counts", [(2, 0, 1), (0, 0, 0)])
def test_collate_pads_with_label_0(counts):
    samples = [
        {
            "image": torch.full((3, 4, 4), n, dtype=torch.uint8),
            "boxes_xyxy": torch.full((n, 4), 0.5),
            "labels": torch.full((n,), 3),
            "image_ids": [10 + n],
            "colours": torch.full((8,), float(n)),
        }
        for n in counts
    ]
    batch = collate(samples)
    room = max(1, *counts)
    assert (batch["images"].shape, batch["images"].dtype) == ((3, 3, 4, 4), torch.uint8)
    assert batch["boxes_xyxy"].shape == (3, room, 4)
    assert batch["labels"].tolist() == [[3] * n + [0] * (room - n) for n in counts]
    assert batch["boxes_xyxy"].sum(dim=(1, 2)).tolist() == [2 * n for n in counts]
    assert batch["image_ids"].tolist() == [10 + n for n in counts]
    assert batch["colours"][:, 0].tolist() == list(counts)
