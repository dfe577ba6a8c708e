"""Augmentation: boxes and labels move with the pixels."""

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from detection.transforms import AugmentConfig, RandomIoUCrop, eval_transform, train_transform

OFF = {"photometric": False, "zoom_out": 1.0, "crop_min_scale": 1.0, "horizontal_flip": 0.0}


def sample_of(boxes, labels, height=60, width=80):
    """Grey, with each object filled in the brightness of ten times its label."""
    image = torch.full((3, height, width), 128, dtype=torch.uint8)
    for (x0, y0, x1, y1), label in zip(boxes, labels, strict=True):
        image[:, y0:y1, x0:x1] = 10 * label
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "image": tv_tensors.Image(image),
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_with_all_augmentation_off_training_equals_evaluation():
    sample = sample_of([[8, 6, 40, 30]], [1])
    trained = train_transform(AugmentConfig(**OFF), 128)(sample)
    scored = eval_transform(128)(sample)
    assert torch.equal(trained["image"], scored["image"])
    assert torch.equal(trained["boxes"], scored["boxes"])


def test_resizing_to_the_square_scales_boxes_along_each_side():
    scored = eval_transform(120)(sample_of([[8, 6, 40, 30]], [1], height=60, width=80))
    assert scored["image"].shape == (3, 120, 120)
    assert scored["image"].dtype == torch.uint8
    assert scored["boxes"].tolist() == [[12, 12, 60, 60]]


def test_a_horizontal_flip_mirrors_x():
    transform = train_transform(AugmentConfig(**{**OFF, "horizontal_flip": 1.0}), 80)
    flipped = transform(sample_of([[0, 10, 20, 30]], [1], height=80, width=80))
    assert flipped["boxes"].tolist() == [[60, 10, 80, 30]]
    assert (flipped["image"][:, 10:30, 60:80] == 10).all()


def test_a_vertical_flip_mirrors_y():
    transform = train_transform(AugmentConfig(**OFF, vertical_flip=1.0), 80)
    flipped = transform(sample_of([[0, 10, 20, 30]], [1], height=80, width=80))
    assert flipped["boxes"].tolist() == [[0, 50, 20, 70]]
    assert (flipped["image"][:, 50:70, 0:20] == 10).all()


def test_zooming_out_keeps_every_object_and_its_share_of_the_picture_shrinks():
    transform = train_transform(AugmentConfig(**{**OFF, "zoom_out": 4.0}), 100)
    areas = []
    for _ in range(50):
        zoomed = transform(sample_of([[0, 0, 80, 60]], [1]))
        assert zoomed["labels"].tolist() == [1]
        (x0, y0, x1, y1) = zoomed["boxes"][0].tolist()
        areas.append((x1 - x0) * (y1 - y0) / 100**2)
    assert min(areas) >= 1 / 16.5
    assert 10 < sum(area > 0.999 for area in areas) < 40  # about half are left alone


def test_labels_stay_with_their_boxes_through_everything():
    boxes = [[4, 4, 20, 20], [40, 4, 56, 20], [4, 40, 20, 56], [40, 40, 56, 56]]
    transform = train_transform(AugmentConfig(photometric=False, vertical_flip=0.5), 240)
    seen = set()
    for _ in range(60):
        result = transform(sample_of(boxes, [1, 2, 3, 4]))
        assert len(result["boxes"]) == len(result["labels"])
        for box, label in zip(result["boxes"].round().int().tolist(), result["labels"].tolist(), strict=True):
            x, y = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
            assert abs(int(result["image"][0, y, x]) - 10 * label) <= 1
            seen.add(label)
    assert seen == {1, 2, 3, 4}


def test_boxes_stay_inside_the_picture_and_have_an_area():
    transform = train_transform(AugmentConfig(), 96)
    for _ in range(60):
        boxes = transform(sample_of([[0, 0, 30, 30], [50, 20, 80, 60]], [1, 2]))["boxes"]
        assert (boxes >= 0).all()
        assert (boxes <= 96.001).all()  # rounding
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_an_image_without_objects_passes_through():
    transform = train_transform(AugmentConfig(), 64)
    for _ in range(20):
        result = transform(sample_of([], []))
        assert result["boxes"].shape == (0, 4)
        assert result["labels"].shape == (0,)
        assert result["image"].shape == (3, 64, 64)


def test_the_smallest_image_passes_through():
    transform = train_transform(AugmentConfig(), 32)
    for _ in range(20):
        assert transform(sample_of([[0, 0, 1, 1]], [1], height=1, width=1))["image"].shape == (3, 32, 32)


def test_colour_changes_pixels_and_not_boxes():
    transform = train_transform(AugmentConfig(**{**OFF, "photometric": True}), 64)
    sample = sample_of([[8, 6, 40, 30]], [1])
    results = [transform(sample) for _ in range(10)]
    assert any(not torch.equal(result["image"], results[0]["image"]) for result in results)
    assert all(torch.equal(result["boxes"], results[0]["boxes"]) for result in results)
    assert all(result["image"].dtype == torch.uint8 for result in results)


def test_what_goes_in_is_left_as_it_was():
    sample = sample_of([[8, 6, 40, 30], [50, 20, 80, 60]], [1, 2])
    before = {name: value.clone() for name, value in sample.items()}
    transform = train_transform(AugmentConfig(vertical_flip=0.5), 80)
    for _ in range(30):
        transform(sample)
    assert all(torch.equal(sample[name], before[name]) for name in sample)


def crop_statistics(crop, draws):
    """How often an image is cropped, and mean and spread of a crop's area, aspect and objects kept."""
    sample = sample_of([[10, 10, 30, 40], [35, 20, 75, 55], [60, 2, 70, 10]], [1, 2, 3])
    flat = [sample["image"], sample["boxes"]]
    rows = []
    for _ in range(draws):
        params = crop.make_params(flat)
        if params:
            area = params["height"] * params["width"] / (60 * 80)
            kept = int(params["is_within_crop_area"].sum())
            rows.append((area, params["width"] / params["height"], params["left"] / 80, params["top"] / 60, kept))
    rows = torch.tensor(rows, dtype=torch.float64)
    return len(rows) / draws, rows.mean(0), rows.std(0)


def test_crops_are_distributed_as_torchvision_s():
    rate, mean, std = crop_statistics(RandomIoUCrop(), 3000)
    expected_rate, expected_mean, expected_std = crop_statistics(v2.RandomIoUCrop(), 600)
    assert rate == pytest.approx(expected_rate, abs=0.06)
    assert ((mean - expected_mean).abs() < 0.2 * expected_std).all()  # five standard errors of the smaller sample
    assert ((std / expected_std - 1).abs() < 0.2).all()


def test_a_crop_keeps_the_centre_of_an_object_and_its_shape_is_limited():
    sample = sample_of([[10, 10, 30, 40]], [1])
    crop = RandomIoUCrop(min_scale=0.5)
    for _ in range(100):
        params = crop.make_params([sample["image"], sample["boxes"]])
        if params:
            left, top, width, height = (params[name] for name in ("left", "top", "width", "height"))
            assert left < 20 < left + width <= 80
            assert top < 25 < top + height <= 60
            assert width >= 40
            assert height >= 30
            assert 0.5 <= width / height <= 2


@pytest.mark.parametrize("field", [{"zoom_out": 0.5}, {"crop_min_scale": 0.0}, {"horizontal_flip": 1.5}])
def test_a_value_out_of_range_is_refused(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        AugmentConfig(**field)
