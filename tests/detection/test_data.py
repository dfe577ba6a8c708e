"""Reading and checking annotation files, decoding images, samples and batches."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from data import EpochBatchSampler, build_loader
from detection.data import (
    CocoDetection,
    DataConfig,
    DatasetError,
    SplitConfig,
    collate,
    read_coco,
    read_image,
    read_split,
)
from detection.transforms import AugmentConfig, eval_transform, train_transform

CPU = torch.device("cpu")


def content():
    """Two images of 40 x 30 pixels, three objects of two categories."""
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
def folder(tmp_path):
    (tmp_path / "images/more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "more/b.png"):
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    return tmp_path


def read(folder, annotations):
    (folder / "annotations.json").write_text(json.dumps(annotations), encoding="utf-8")
    return read_coco(folder / "annotations.json", folder / "images")


def first_line(folder, annotations):
    with pytest.raises(DatasetError) as raised:
        read(folder, annotations)
    assert str(folder / "annotations.json") in str(raised.value)
    return str(raised.value).splitlines()[0]


# ---- what a good file gives -------------------------------------------------------------------------------------


def test_labels_follow_the_order_of_the_category_ids(folder):
    coco = read(folder, content())
    assert coco.category_ids == [3, 7]
    assert coco.class_names == ["Kätzchen 猫", "dog"]


def test_objects_come_with_their_image(folder):
    coco = read(folder, content())
    boxes_xyxy, labels, is_crowd = coco.objects(0)
    assert coco.images[0].id == 50
    assert boxes_xyxy.tolist() == [[10.5, 10, 30.5, 20]]
    assert labels.tolist() == [2]
    boxes_xyxy, labels, is_crowd = coco.objects(1)
    assert coco.images[1].file_name == "more/b.png"
    assert boxes_xyxy.tolist() == [[1, 2, 4, 6], [0, 0, 40, 30]]
    assert labels.tolist() == [1, 2]
    assert is_crowd.tolist() == [False, False]


def test_optional_keys_change_nothing(folder):
    annotations = content()
    for annotation in annotations["annotations"]:
        annotation |= {"iscrowd": 0, "area": 12.5, "segmentation": [[1, 2, 3, 4, 5, 6]]}
    plain, full = read(folder, content()), read(folder, annotations | {"info": {}, "licenses": []})
    assert np.array_equal(plain.boxes_xyxy, full.boxes_xyxy)
    assert np.array_equal(plain.is_crowd, full.is_crowd)


def test_a_box_over_the_edge_is_cut_and_counted(folder):
    annotations = content()
    annotations["annotations"][0]["bbox"] = [-5, 20, 10, 50]
    annotations["annotations"][1]["bbox"] = [30, 20, 10.25, 10]  # within a pixel: cut without a word
    coco = read(folder, annotations)
    assert coco.objects(1)[0][0].tolist() == [0, 20, 5, 30]
    assert coco.objects(0)[0].tolist() == [[30, 20, 40, 30]]
    assert coco.num_cut == 1


def test_a_box_without_area_is_left_out_and_counted(folder):
    annotations = content()
    annotations["annotations"][0]["bbox"] = [8, 9, 1.03, 0]  # as annotation 918 of COCO's train2017
    coco = read(folder, annotations)
    assert coco.objects(1)[1].tolist() == [2]
    assert coco.num_left_out == 1


def test_class_counts_leave_crowds_out(folder):
    annotations = content()
    annotations["annotations"][1]["iscrowd"] = 1
    assert read(folder, annotations).class_counts.tolist() == [1, 1]


def test_a_file_without_any_objects_is_read(folder):
    coco = read(folder, content() | {"annotations": []})
    assert coco.objects(1)[0].shape == (0, 4)
    assert coco.class_counts.tolist() == [0, 0]


def test_read_split_finds_the_half_that_is_asked_for(sample_root):
    splits = {
        name: SplitConfig(images=f"images/{name}", annotations=f"annotations/instances_{name}.json")
        for name in ("train", "val")
    }
    config = DataConfig(root=str(sample_root), **splits)
    assert len(read_split(config, "train").images) == 12
    assert len(read_split(config, "val").images) == 8


# ---- what is wrong with a bad one -------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"nothing\.json: cannot be read: No such file"):
        read_coco(tmp_path / "nothing.json", tmp_path)


def test_a_missing_image_folder_is_said_once(folder):
    (folder / "annotations.json").write_text(json.dumps(content()))
    with pytest.raises(DatasetError, match=r"image folder .*elsewhere: no such folder"):
        read_coco(folder / "annotations.json", folder / "elsewhere")


@pytest.mark.parametrize("data", [b"", b'{"images": [', b"<html>", b"\xff\xfe\xfa", b"[" * 100_000])
def test_what_is_not_json_is_refused(folder, data):
    (folder / "annotations.json").write_bytes(data)
    with pytest.raises(DatasetError, match=r"annotations\.json: not JSON"):
        read_coco(folder / "annotations.json", folder / "images")


@pytest.mark.parametrize("annotations", [[], 3, None, "text"])
def test_json_that_is_no_object_is_refused(folder, annotations):
    assert "expected an object with the lists" in first_line(folder, annotations)


@pytest.mark.parametrize("name", ["categories", "images", "annotations"])
def test_a_missing_list_is_named(folder, name):
    annotations = content()
    del annotations[name]
    assert f"no list '{name}'" in first_line(folder, annotations)
    assert f"no list '{name}'" in first_line(folder, annotations | {name: {}})


@pytest.mark.parametrize("name", ["categories", "images"])
def test_an_empty_list_is_named(folder, name):
    assert f"'{name}' is empty" in first_line(folder, content() | {"annotations": [], name: []})


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("categories", {"id": None}, "categories[1] (id None): expected a whole number"),
        ("categories", {"id": 7}, "categories[1] (id 7): an earlier one has this id"),
        ("categories", {"name": "dog"}, "name 'dog' is that of category 7, too"),
        ("categories", {"name": 5}, "name 5, expected text"),
        ("images", {"id": 50}, "images[1] (id 50): an earlier one has this id"),
        ("images", {"id": "20"}, "images[1] (id '20'): expected a whole number"),
        ("images", {"width": 0}, "images[1] (id 20): width 0, height 30"),
        ("images", {"height": 30.5}, "height 30.5, expected whole numbers"),
        ("images", {"file_name": 7}, "file_name 7, expected text"),
        ("images", {"file_name": "c.png"}, "images[1] (id 20): file_name 'c.png': no such file in"),
        ("images", {"file_name": "nowhere/a.png"}, "no such file"),
        ("images", {"file_name": ""}, "no such file"),
        ("images", {"file_name": "a\0.png"}, "no such file"),
        ("images", {"file_name": "../a.json"}, "images[1] (id 20): file_name '../a.json' leads out"),
        ("images", {"file_name": "more/../../annotations.json"}, "leads out"),
        ("images", {"file_name": "/etc/passwd"}, "leads out"),
        ("annotations", {"id": 1}, "annotations[1] (id 1): an earlier one has this id"),
        ("annotations", {"id": True}, "expected a whole number"),
        ("annotations", {"image_id": 99}, "annotations[1] (id 2): image_id 99: no such image"),
        ("annotations", {"image_id": [50]}, "image_id [50]: no such image"),
        ("annotations", {"category_id": 0}, "annotations[1] (id 2): category_id 0: no such category"),
        ("annotations", {"bbox": [0, 0, -1, 5]}, "annotations[1] (id 2): bbox [0, 0, -1, 5], expected"),
        ("annotations", {"bbox": [NAN, 0, 1, 5]}, "bbox [nan, 0, 1, 5], expected"),
        ("annotations", {"bbox": [0, 0, INFINITY, 5]}, "bbox [0, 0, inf, 5], expected"),
        ("annotations", {"bbox": [0, 0, 10**400, 5]}, "bbox [0, 0, 1000"),
        ("annotations", {"bbox": [0, 0, 5]}, "bbox [0, 0, 5], expected"),
        ("annotations", {"bbox": ["0", 0, 5, 5]}, "bbox ['0', 0, 5, 5], expected"),
        ("annotations", {"bbox": None}, "bbox None, expected"),
        ("annotations", {"bbox": [40, 0, 5, 5]}, "bbox [40, 0, 5, 5] lies outside image 50 of 40 x 30 pixels"),
        ("annotations", {"bbox": [-9, 0, 5, 5]}, "lies outside"),
        ("annotations", {"iscrowd": 2}, "iscrowd 2, expected 0 or 1"),
        ("annotations", {"area": NAN}, "area nan, expected a number"),
    ],
)
def test_a_bad_value_is_named_with_its_record(folder, name, change, message):
    annotations = content()
    annotations[name][1] |= change
    assert message in first_line(folder, annotations)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("categories", "id"),
        ("categories", "name"),
        ("images", "file_name"),
        ("images", "width"),
        ("annotations", "id"),
        ("annotations", "image_id"),
        ("annotations", "category_id"),
        ("annotations", "bbox"),
    ],
)
def test_a_missing_key_is_named_with_its_record(folder, name, key):
    annotations = content()
    del annotations[name][1][key]
    line = first_line(folder, annotations)
    assert f"{name}[1] (id " in line
    assert f"no '{key}'" in line


def test_a_record_that_is_no_object_is_named(folder):
    annotations = content()
    annotations["annotations"].append(None)
    assert "annotations[3]: expected an object, got None" in first_line(folder, annotations)


def test_a_broken_image_record_does_not_make_its_annotations_unknown(folder):
    annotations = content()
    del annotations["images"][0]["width"]
    assert "defects" not in first_line(folder, annotations)


def test_all_defects_are_found_at_once_and_ten_are_shown(folder):
    annotations = content()
    annotations["images"][0]["height"] = None
    for number in range(20):
        annotations["annotations"].append({"id": 100 + number, "image_id": 50, "category_id": 3})
    with pytest.raises(DatasetError) as raised:
        read(folder, annotations)
    lines = str(raised.value).splitlines()
    assert "images[0] (id 50)" in lines[0]
    assert lines[0].endswith("(the first of 21 defects)")
    assert len(lines) == 11
    assert lines[-1].strip() == "... and 11 more"
    assert "annotations[3] (id 100): no 'bbox'" in lines[1]


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
    with pytest.raises(DatasetError, match=r"x\.png \(image id 5\): 40 x 30 pixels, .* says 41 x 30"):
        read_image(coco, 0)


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>"])
def test_a_file_that_is_no_image_is_refused_by_name(folder, data):
    coco = one_image(folder, Image.new("RGB", (40, 30)), (40, 30))
    (folder / "images/x.png").write_bytes(data)
    with pytest.raises(DatasetError, match=r"x\.png \(image id 5\): cannot be decoded"):
        read_image(coco, 0)


def test_half_a_jpeg_is_refused_by_name(folder):
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    coco = one_image(folder, Image.fromarray(noise), (40, 30), "x.jpg")
    path = folder / "images/x.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DatasetError, match=r"x\.jpg \(image id 5\): cannot be decoded"):
        read_image(coco, 0)


# ---- samples and batches ------------------------------------------------------------------------------------------


def sample_coco(sample_root, split="train"):
    return read_coco(sample_root / f"annotations/instances_{split}.json", sample_root / f"images/{split}")


def test_a_sample_has_fractions_of_the_square_and_the_file_s_image_id(folder):
    sample = CocoDetection(read(folder, content()), eval_transform(64))[0, 0]
    assert sample["image"].shape == (3, 64, 64)
    assert type(sample["image"]) is type(sample["boxes_xyxy"]) is torch.Tensor
    torch.testing.assert_close(sample["boxes_xyxy"], torch.tensor([[10.5 / 40, 10 / 30, 30.5 / 40, 20 / 30]]))
    assert sample["labels"].tolist() == [2]
    assert sample["image_id"] == 50


def test_crowds_are_no_targets(folder):
    annotations = content()
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


def test_loading_leaves_the_random_state_alone(sample_root):
    dataset = CocoDetection(sample_coco(sample_root), train_transform(AugmentConfig(), 64))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    dataset[0, 0]
    assert torch.equal(torch.rand(3), expected)


def test_the_cache_changes_nothing_and_is_not_changed(sample_root):
    coco, transform = sample_coco(sample_root), train_transform(AugmentConfig(), 128)
    plain, cached = CocoDetection(coco, transform), CocoDetection(coco, transform, cache_images=True)
    for index in range(len(coco.images)):
        one, other = plain[0, index], cached[0, index]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["boxes_xyxy"], other["boxes_xyxy"])
    assert all(np.array_equal(cached.cached[i], read_image(coco, i)) for i in range(len(coco.images)))


@pytest.mark.parametrize("cache_images", [False, True])
def test_batches_do_not_depend_on_the_number_of_workers(sample_root, cache_images):
    dataset = CocoDetection(
        sample_coco(sample_root), train_transform(AugmentConfig(), 64), seed=4, cache_images=cache_images
    )
    batches = EpochBatchSampler(len(dataset), batch_size=5, rank=0, world_size=1, seed=4)
    here, there = (list(build_loader(dataset, batches, collate, workers, CPU)) for workers in (0, 2))
    assert len(here) == len(there) == 2
    for one, other in zip(here, there, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_broken_image_is_named_from_a_worker_too(sample_root):
    coco = sample_coco(sample_root)
    coco = dataclasses.replace(coco, images=[image._replace(width=1) for image in coco.images])
    loader = build_loader(CocoDetection(coco, eval_transform(32)), [[(0, 0)]], collate, 1, CPU)
    with pytest.raises(DatasetError, match=r"000001\.jpg \(image id 1\)"):
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


# ---- real data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "images", "objects", "crowds"), [("train", 223, 1935, 21), ("val", 117, 1076, 13)])
def test_coco_is_read_whole(shared_data, split, images, objects, crowds):
    root = shared_data / "coco80"
    coco = read_coco(root / f"annotations/instances_{split}.json", root / f"images/{split}")
    assert (len(coco.images), len(coco.labels), coco.is_crowd.sum()) == (images, objects, crowds)
    assert len(coco.class_names) == 80
    assert (coco.category_ids[0], coco.category_ids[-1]) == (1, 90)
    assert (coco.num_cut, coco.num_left_out) == (0, 0)
    assert coco.class_counts.sum() == objects - crowds


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


def test_identity_is_a_transform_too(folder):
    sample = CocoDetection(read(folder, content()), v2.Identity())[0, 0]
    assert np.array_equal(sample["image"].permute(1, 2, 0), np.asarray(Image.open(folder / "images/a.png")))
