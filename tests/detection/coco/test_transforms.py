"""detection/coco/transforms.py: boxes move with the pixels; distributions and colours are those of torchvision."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from detection.coco import transforms
from detection.coco.transforms import (
    BRIGHTNESS,
    CONTRAST,
    CROP_ASPECT_RATIOS,
    CROP_IOUS,
    CROP_TRIALS,
    HUE,
    LSJ_SCALES,
    MOSAIC_CENTRES,
    MOSAIC_SCALES,
    SATURATION,
    AugmentConfig,
    distort_colours,
    draw_colours,
    eval_transform,
    iou_crop,
    lsj_window,
    plan_mosaic,
    train_transform,
    zoom_out,
)

OFF = {"photometric": False, "zoom_out": 1.0, "crop_min_scale": 1.0, "horizontal_flip": 0.0}
BOXES = [[10, 10, 30, 40], [35, 20, 75, 55], [60, 2, 70, 10]]  # in an image of 80 x 60 pixels
NEUTRAL = (1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 2.0)


def picture_of(boxes, labels, height=60, width=80):
    """Draw a grey picture in which each box is filled with the value 10 * label."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    for (x0, y0, x1, y1), label in zip(boxes, labels, strict=True):
        pixels[y0:y1, x0:x1] = 10 * label
    return pixels


def render(transform, boxes, labels, seed=0, height=60, width=80):
    """Transform `picture_of`; return image (3, S, S), boxes (k, 4) in pixels of the square, labels."""
    pixels = picture_of(boxes, labels, height, width)
    view = transform((width, height), np.float32(boxes).reshape(-1, 4), np.random.default_rng(seed))
    left, top, right, bottom = view.part
    image = transforms.render([view], [pixels[top:bottom, left:right]])
    return image, view.boxes_xyxy * view.side, np.array(labels, int)[view.objects].tolist()


# ---- geometry: crop, zoom-out, resize, flips ------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(60, 80), (480, 640), (333, 500), (7, 5)])
def test_evaluation_resizes_like_torchvision(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    view = eval_transform(96)((width, height), np.zeros((0, 4)), np.random.default_rng())
    expected = v2.Resize((96, 96), antialias=True)(tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1)))
    assert view.reduction == 1
    assert torch.equal(transforms.render([view], [pixels]), expected.as_subclass(torch.Tensor))


@pytest.mark.parametrize(
    ("flip", "expected"), [("horizontal_flip", [60, 10, 80, 30]), ("vertical_flip", [0, 50, 20, 70])]
)
def test_a_flip_mirrors_boxes_and_pixels(flip, expected):
    transform = train_transform(AugmentConfig(**OFF | {flip: 1.0}), 80)
    image, boxes, _ = render(transform, [[0, 10, 20, 30]], [1], height=80)
    np.testing.assert_allclose(boxes, [expected], rtol=1e-6)
    left, top, right, bottom = expected
    assert (image[:, top:bottom, left:right] == 10).all()


def test_zooming_out_keeps_every_object_and_makes_it_smaller():
    transform = train_transform(AugmentConfig(**{**OFF, "zoom_out": 4.0}), 100)
    areas = []
    for seed in range(50):
        _, boxes, labels = render(transform, [[0, 0, 80, 60]], [1], seed)
        assert labels == [1]
        areas.append(np.prod(boxes[0, 2:] - boxes[0, :2]) / 100**2)
    assert min(areas) >= 1 / 16.8
    assert 10 < sum(area > 0.999 for area in areas) < 40  # about half are unchanged


def test_labels_stay_with_their_boxes():
    boxes = [[4, 4, 20, 20], [40, 4, 56, 20], [4, 40, 20, 56], [40, 40, 56, 56]]
    transform = train_transform(AugmentConfig(photometric=False, vertical_flip=0.5), 240)
    visible = set()
    for seed in range(60):
        image, found, labels = render(transform, boxes, [1, 2, 3, 4], seed)
        for (x0, y0, x1, y1), label in zip(found.round().astype(int), labels, strict=True):
            assert abs(int(image[0, (y0 + y1) // 2, (x0 + x1) // 2]) - 10 * label) <= 1
            visible.add(label)
    assert visible == {1, 2, 3, 4}


def test_boxes_fit_the_pixels_of_their_objects():
    transform = train_transform(AugmentConfig(photometric=False, vertical_flip=0.5), 200)
    for seed in range(60):
        image, boxes, labels = render(transform, [[13, 11, 50, 44]], [1], seed)
        if labels:
            ys, xs = np.nonzero(image[0].numpy() < 64)
            np.testing.assert_allclose(boxes[0], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=1.01)


@pytest.mark.parametrize(
    ("boxes", "size"), [([[0, 0, 30, 30], [50, 20, 80, 60]], (80, 60)), ([], (80, 60)), ([[0, 0, 1, 1]], (1, 1))]
)
def test_boxes_stay_inside_views_of_any_image(boxes, size):
    transform = train_transform(AugmentConfig(), 96)
    for seed in range(40):
        image, found, labels = render(transform, boxes, [1, 2][: len(boxes)], seed, width=size[0], height=size[1])
        assert image.shape == (3, 96, 96)
        assert found.shape == (len(labels), 4)
        assert (found >= 0).all()
        assert (found <= 96.001).all()  # rounding
        assert (found[:, 2:] > found[:, :2]).all()


def test_a_box_with_a_side_below_one_pixel_is_removed():
    boxes = [[10, 10, 10.9, 40], [10, 10, 11.1, 40], [10, 10, 40, 10.9]]
    view = train_transform(AugmentConfig(**OFF), 300)((80, 60), np.float32(boxes), np.random.default_rng(0))
    assert view.objects.tolist() == [1]


def test_a_crop_is_resampled_like_torchvision():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    transform = train_transform(AugmentConfig(**{**OFF, "crop_min_scale": 0.3}), 50)
    for seed in range(20):
        view = transform((80, 60), np.float32(BOXES), np.random.default_rng(seed))
        left, top, right, bottom = view.part
        whole = torch.from_numpy(pixels).permute(2, 0, 1)
        expected = functional.resized_crop(whole, top, left, bottom - top, right - left, [50, 50], antialias=True)
        assert torch.equal(transforms.render([view], [pixels[top:bottom, left:right]]), expected)


def test_zooming_out_looks_like_padding_and_resizing():
    ramp = np.add.outer(3 * np.arange(60), np.arange(80))
    pixels = np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=2).astype(np.uint8)
    transform = train_transform(AugmentConfig(**{**OFF, "zoom_out": 4.0}), 100)
    for seed in range(20):
        view = transform((80, 60), np.zeros((0, 4)), np.random.default_rng(seed))
        (left, top), (right, bottom) = zoom_out((80, 60), 4.0, np.random.default_rng(seed)).tolist()
        whole = torch.from_numpy(pixels).permute(2, 0, 1)
        canvas = functional.pad(whole, [-left, -top, right - 80, bottom - 60], fill=[124, 116, 104])
        expected = functional.resize(canvas, [100, 100], antialias=True)
        left, top, right, bottom = view.part
        # View puts the edge of the image on whole pixels; torchvision blends at most one row of pixels at the edge.
        assert (transforms.render([view], [pixels[top:bottom, left:right]]).float() - expected).abs().mean() < 3


def test_a_reduced_part_has_enough_pixels_for_its_place():
    transform, reductions = train_transform(AugmentConfig(), 64), set()
    for seed in range(200):
        view = transform((333, 250), np.float32([[20, 30, 200, 220]]), np.random.default_rng(seed))
        part, shown = np.reshape(view.part, (2, 2)), np.reshape(view.place, (2, 2))
        assert (part % view.reduction == 0).all()
        assert ((part[1] - part[0]) // view.reduction >= shown[1] - shown[0]).all()
        reductions.add(view.reduction)
    assert reductions == {1, 2, 4, 8}


# ---- large-scale jitter and mosaic ----------------------------------------------------------------------------

LSJ, MOSAIC = ({**OFF, "policy": policy} for policy in ("lsj", "mosaic"))


def smooth_picture(width, height):
    """Return pixels (height, width, 3) uint8 without sharp edges, so that half a pixel matters little."""
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 50, height))
    return np.stack([x + y, 250 - x - y, 200 - x], axis=2).astype(np.uint8)


def resized(pixels, height, width):
    return functional.resize(torch.from_numpy(pixels).permute(2, 0, 1), [height, width], antialias=True)


def mean_square(side):
    return transforms.MEAN_COLOUR.expand(3, side, side).clone()


def render_mosaic(config, pictures, boxes, seed, side, labels=((1,), (2,), (3,), (4,))):
    """Return image (3, S, S), boxes (k, 4) in pixels of the square, labels (k,), views of a mosaic of four pictures."""
    sizes = [pixels.shape[1::-1] for pixels in pictures]
    boxes = [np.float32(each).reshape(-1, 4) for each in boxes]
    views = plan_mosaic(AugmentConfig(**config), side, 1).views(sizes, boxes, np.random.default_rng(seed))
    parts = [
        pixels[view.part[1] : view.part[3], view.part[0] : view.part[2]]
        for view, pixels in zip(views, pictures, strict=True)
    ]
    found = np.concatenate([view.boxes_xyxy for view in views]) * side
    names = np.concatenate([np.array(name, int)[view.objects] for view, name in zip(views, labels, strict=True)])
    return transforms.render(views, parts), found, names, views


def test_lsj_looks_like_resizing_and_then_cropping_or_pasting():
    side, pixels, enlarged = 160, smooth_picture(320, 200), 0
    transform = train_transform(AugmentConfig(**LSJ), side)
    for seed in range(40):
        view = transform((320, 200), np.zeros((0, 4)), np.random.default_rng(seed))
        left, top, right, bottom = view.part
        image = transforms.render([view], [pixels[top:bottom, left:right]])

        rng = np.random.default_rng(seed)
        length = round(side * rng.uniform(0.1, 2))
        x, y = ((side - length) * rng.random(2)).round().astype(int)
        picture, expected = resized(pixels, length, length), mean_square(side)
        if length > side:
            expected = picture[:, -y : side - y, -x : side - x]
            enlarged += 1
        else:
            expected[:, y : y + length, x : x + length] = picture
        assert (image.float() - expected.float()).abs().mean() < 1.5
    assert 10 < enlarged < 30


def test_mosaic_looks_like_four_resized_images_pasted_around_the_centre():
    side, gaps = 160, 0
    pictures = [np.roll(smooth_picture(*size), turn, 2) for turn, size in enumerate([(320, 200), (90, 150)] * 2)]
    for seed in range(40):
        image, *_ = render_mosaic(MOSAIC, pictures, [[]] * 4, seed, side, [[]] * 4)
        rng, expected = np.random.default_rng(seed), mean_square(5 * side)  # with room for what is cut off
        x, y = (side * rng.uniform(0.25, 0.75, 2)).round().astype(int) + 2 * side
        corners = [(False, False), (True, False), (False, True), (True, True)]
        for (is_right, is_lower), scale, pixels in zip(corners, rng.uniform(0.5, 1.5, 4), pictures, strict=True):
            length = round(side * scale)
            left, top = x - (not is_right) * length, y - (not is_lower) * length
            expected[:, top : top + length, left : left + length] = resized(pixels, length, length)
        expected = expected[:, 2 * side : 3 * side, 2 * side : 3 * side]
        assert (image.float() - expected.float()).abs().mean() < 1.5
        gaps += bool((image == transforms.MEAN_COLOUR).all(0).any())
    assert 5 < gaps < 40


def test_the_images_of_a_mosaic_meet_at_the_centre():
    sizes, none = [(640, 480), (31, 17), (1, 1), (200, 999)], [np.zeros((0, 4))] * 4
    mosaic = plan_mosaic(AugmentConfig(**MOSAIC), 192, 1)
    for seed in range(200):
        (_, _, x, y), *rest = (view.place for view in mosaic.views(sizes, none, np.random.default_rng(seed)))
        assert [rest[0][i] for i in (0, 3)] == [rest[1][2], rest[2][1]] == [x, y]
        assert [rest[1][1], rest[2][0]] == [y, x]
        assert 48 <= min(x, y) <= max(x, y) <= 144


@pytest.mark.parametrize("flips", [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)])
def test_boxes_fit_the_pixels_of_their_objects_after_lsj_and_mosaic(flips):
    config = {"horizontal_flip": flips[0], "vertical_flip": flips[1]}
    side, width, height, seen = 200, 240, 180, np.zeros((2, 5), int)
    box = [70, 50, 170, 130]
    for seed in range(50):
        transform = train_transform(AugmentConfig(**LSJ | config), side)
        image, boxes, labels = render(transform, [box], [1], seed, height, width)
        squares = [(image, boxes, labels, [[0, 0, side, side]])]
        pictures = [picture_of([box], [label], height, width) for label in (1, 2, 3, 4)]
        image, boxes, labels, views = render_mosaic(MOSAIC | config, pictures, [[box]] * 4, seed, side)
        places = [np.array(views[label - 1].place) for label in labels]
        for axis in (0, 1):
            if flips[axis]:
                for place in places:
                    place[[axis, axis + 2]] = side - place[[axis + 2, axis]]
        squares.append((image, boxes, labels, places))
        for policy, (image, boxes, labels, places) in enumerate(squares):
            for box_xyxy, label, (left, top, right, bottom) in zip(boxes, labels, places, strict=False):
                tile = image[0, top:bottom, left:right].float().numpy()
                ys, xs = np.nonzero(tile < (128 + 10 * label) / 2)  # half of the edge is covered
                corners = [left + xs.min(), top + ys.min(), left + xs.max() + 1, top + ys.max() + 1]
                np.testing.assert_allclose(box_xyxy, corners, atol=1.01)
                x, y = box_xyxy.reshape(2, 2).mean(0).astype(int)
                assert abs(int(image[0, y, x]) - 10 * label) <= 1
                seen[policy, label] += 1
    assert seen[0, 1] > 25
    assert (seen[1, 1:] > 10).all()


def test_the_four_images_of_a_mosaic_are_flipped_together():
    pictures = [picture_of([box], [label]) for label, box in enumerate([*BOXES, [20, 10, 60, 50]], start=1)]
    boxes = [[*BOXES, [20, 10, 60, 50]][index] for index in range(4)]
    for seed in range(20):
        image, found, labels, _ = render_mosaic(MOSAIC, pictures, boxes, seed, 100)
        flip = {"horizontal_flip": 1.0, "vertical_flip": 1.0}
        turned, mirrored, same_labels, _ = render_mosaic(MOSAIC | flip, pictures, boxes, seed, 100)
        assert torch.equal(turned, image.flip(1, 2))
        np.testing.assert_allclose(mirrored, 100 - found[:, [2, 3, 0, 1]], atol=1e-4)
        assert labels.tolist() == same_labels.tolist()


def test_lsj_keeps_an_object_only_if_its_centre_is_visible():
    box, side, kept = [60, 40, 80, 60], 80, []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        scale = rng.uniform(0.1, 2)
        x, y = (side - side * scale) * rng.random(2) + side * scale * np.array([70 / 80, 50 / 60])  # of the centre
        view = train_transform(AugmentConfig(**LSJ), side)((80, 60), np.float32([box]), np.random.default_rng(seed))
        kept.append(0 < x < side and 0 < y < side)
        assert len(view.objects) == kept[-1]
    assert 50 < sum(kept) < 100


def test_a_mosaic_keeps_an_object_only_if_its_centre_is_visible():
    boxes, side, size = np.float32([[0, 0, 40, 30], [20, 15, 60, 45], [50, 40, 80, 60]]), 80, (80, 60)
    kept = []
    for seed in range(100):
        mosaic = plan_mosaic(AugmentConfig(**MOSAIC), side, 1)
        views = mosaic.views([size] * 4, [boxes] * 4, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        middle = (side * rng.uniform(0.25, 0.75, 2)).round()
        for view, scale, corner in zip(views, rng.uniform(0.5, 1.5, 4), [(1, 1), (0, 1), (1, 0), (0, 0)], strict=True):
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / size  # fractions of the image; `corner` is at the middle
            shown = middle + (centres - corner) * side * scale
            visible = ((shown > 0) & (shown < side)).all(1)
            assert view.objects.tolist() == np.flatnonzero(visible).tolist()
            kept.extend(visible)
    assert 300 < sum(kept) < 900


@pytest.mark.parametrize("sizes", [[(80, 60)] * 4, [(1, 1), (2, 500), (640, 3), (7, 5)]])
def test_boxes_stay_inside_lsj_and_mosaic_views_of_any_image(sizes):
    rng = np.random.default_rng(1)
    boxes = [np.sort(rng.uniform(0, 1, (9, 2, 2)), axis=1).reshape(-1, 4) * np.tile(size, 2) for size in sizes]
    boxes[0][0] = (0, 0, *sizes[0])
    pictures = [np.zeros((height, width, 3), np.uint8) for width, height in sizes]
    for seed in range(60):
        image, _, _, views = render_mosaic(MOSAIC | {"photometric": True}, pictures, boxes, seed, 96, [range(9)] * 4)
        assert image.shape == (3, 96, 96)
        for size, box in zip(sizes, boxes, strict=True):
            view = train_transform(AugmentConfig(**LSJ), 96)(size, np.float32(box), np.random.default_rng(seed))
            views.append(view)
        for view in views:
            assert min(view.part) >= 0
            assert (np.subtract(view.part[2:], view.part[:2]) >= 1).all()
            assert (view.boxes_xyxy >= 0).all()
            assert (view.boxes_xyxy <= 1 + 1e-6).all()  # rounding
            assert (view.boxes_xyxy[:, 2:] > view.boxes_xyxy[:, :2]).all()


def test_lsj_and_mosaic_read_no_more_pixels_than_needed():
    reductions = set()
    for policy in ("lsj", "mosaic"):
        config, boxes, size = AugmentConfig(policy=policy), np.zeros((0, 4)), (1000, 750)
        for seed in range(100):
            rng = np.random.default_rng(seed)
            if policy == "lsj":
                views = [train_transform(config, 64)(size, boxes, rng)]
            else:
                views = plan_mosaic(config, 64, 1).views([size] * 4, [boxes] * 4, rng)
            for view in views:
                part, place = np.reshape(view.part, (2, 2)), np.reshape(view.place, (2, 2))
                assert (part % view.reduction == 0).all()
                assert ((part[1] - part[0]) // view.reduction >= place[1] - place[0]).all()
                reductions.add(view.reduction)
    assert reductions == {4, 8}


def test_scales_and_positions_of_lsj_and_mosaic_are_uniform():
    size, rng = np.array([8000, 6000]), np.random.default_rng(0)
    windows = np.array([lsj_window(AugmentConfig(**LSJ), size, np.zeros((0, 2, 2)), rng)[0] for _ in range(2000)])
    shapes = windows[:, 1] - windows[:, 0]
    np.testing.assert_allclose(shapes[:, 0] * 6000, shapes[:, 1] * 8000)
    assert_uniform(8000 / shapes[:, 0], 0.1, 2)
    for axis in (0, 1):
        assert_uniform(windows[:, 0, axis] / (size - shapes)[:, axis], 0, 1)

    mosaic = plan_mosaic(AugmentConfig(**MOSAIC), 100_000, 1)
    views = [mosaic.views([(8000, 6000)] * 4, [np.zeros((0, 4))] * 4, rng) for _ in range(400)]
    for axis in (0, 1):
        assert_uniform([each[0].place[2 + axis] / 100_000 for each in views], 0.25, 0.75)
    # Side of the square per pixel of the image: exact, because a part has thousands of pixels.
    scales = [
        8000 * (view.place[2] - view.place[0]) / (view.part[2] - view.part[0]) / 100_000
        for each in views
        for view in each
    ]
    assert_uniform(scales, 0.5, 1.5)
    assert (LSJ_SCALES, MOSAIC_SCALES, MOSAIC_CENTRES) == ((0.1, 2.0), (0.5, 1.5), (0.25, 0.75))


def assert_uniform(values, low, high):
    """Assert that a Kolmogorov-Smirnov test at 0.1 % does not reject a uniform distribution."""
    shares = np.sort((np.array(values) - low) / (high - low))
    steps = np.arange(len(shares) + 1) / len(shares)
    assert max((steps[1:] - shares).max(), (shares - steps[:-1]).max()) < 1.95 / np.sqrt(len(shares))


@pytest.mark.parametrize(("share", "epochs", "expected"), [(0.8, 100, 80), (1.0, 7, 7), (0.07, 100, 7), (0.01, 10, 0)])
def test_mosaic_share_is_the_share_of_the_first_epochs(share, epochs, expected):
    assert plan_mosaic(AugmentConfig(policy="mosaic", mosaic_share=share), 96, epochs).epochs == expected
    assert plan_mosaic(AugmentConfig(policy="lsj", mosaic_share=share), 96, epochs) is None


# ---- distributions, compared with torchvision's by two-sample Kolmogorov-Smirnov tests at 0.1 % -------------------


def assert_same_distribution(values, expected):
    """Assert that a two-sample Kolmogorov-Smirnov test does not reject equal distributions."""
    values, expected = np.sort(values), np.sort(expected)
    points = np.concatenate([values, expected])
    shares = [np.searchsorted(sample, points, side="right") / len(sample) for sample in (values, expected)]
    distance = np.abs(shares[0] - shares[1]).max()
    assert distance < 1.95 * np.sqrt(1 / len(values) + 1 / len(expected))


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    boxes = tv_tensors.BoundingBoxes(torch.tensor(BOXES, dtype=torch.float32), format="XYXY", canvas_size=(60, 80))
    return [tv_tensors.Image(torch.from_numpy(picture_of(BOXES, [1, 2, 3])).permute(2, 0, 1)), boxes]


def test_zoom_out_has_torchvision_s_distribution(tensors):
    rng = np.random.default_rng(0)
    windows = [zoom_out((80, 60), 4.0, rng) for _ in range(3000)]
    zoomed = np.array([window for window in windows if (window != [[0, 0], [80, 60]]).any()])
    assert len(zoomed) / len(windows) == pytest.approx(0.5, abs=0.03)
    paddings = np.array([v2.RandomZoomOut(side_range=(1, 4)).make_params(tensors)["padding"] for _ in range(1500)])
    ours = np.concatenate([-zoomed[:, 0], zoomed[:, 1] - (80, 60)], axis=1)  # left, top, right, bottom
    for side in range(4):
        assert_same_distribution(ours[:, side], paddings[:, side])
    assert_same_distribution(ours[:, 0] + ours[:, 2], paddings[:, 0] + paddings[:, 2])


def test_crops_have_torchvision_s_distribution(tensors):
    rng, corners = np.random.default_rng(0), np.float64(BOXES).reshape(-1, 2, 2)
    whole = np.array([[0, 0], [80, 60]])
    rows, expected = [], []
    for _ in range(6000):
        (start, end), is_kept = iou_crop(whole, corners, 0.3, rng)
        rows.append((*start, *(end - start), is_kept.sum()))
    for _ in range(2000):
        crop = v2.RandomIoUCrop().make_params(tensors)
        kept = crop["is_within_crop_area"].sum().item() if crop else 3
        expected.append((*(crop.get(name, 0) for name in ("left", "top")), crop.get("width", 80),
                         crop.get("height", 60), kept))  # fmt: skip
    (left, top, width, height, kept), theirs = np.array(rows).T, np.array(expected).T
    assert_same_distribution(left / (80.5 - width), theirs[0] / (80.5 - theirs[2]))
    assert_same_distribution(top / (60.5 - height), theirs[1] / (60.5 - theirs[3]))
    assert_same_distribution(width * height, theirs[2] * theirs[3])
    assert_same_distribution(width / height, theirs[2] / theirs[3])
    assert_same_distribution(kept, theirs[4])


def test_final_boxes_have_torchvision_s_distribution(tensors):
    fill = [124, 116, 104]
    chain = v2.Compose(
        [
            v2.RandomZoomOut(fill), v2.RandomIoUCrop(), v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(),
            v2.Resize((100, 100)), v2.RandomHorizontalFlip(),
        ]
    )  # fmt: skip
    transform, theirs, ours = train_transform(AugmentConfig(photometric=False), 100), [], []
    for seed in range(2000):
        view = transform((80, 60), np.float32(BOXES), np.random.default_rng(seed))
        ours.append((len(view.objects), *view.boxes_xyxy[:1].flatten() * 100))
    for _ in range(500):
        found = chain({"image": tensors[0], "boxes": tensors[1], "labels": torch.tensor([1, 2, 3])})
        theirs.append((len(found["labels"]), *found["boxes"][:1].flatten().tolist()))
    assert_same_distribution([row[0] for row in ours], [row[0] for row in theirs])
    (_, *ours), (_, *theirs) = (np.array([row for row in rows if row[0]]).T for rows in (ours, theirs))
    for box in (ours, theirs):
        box.append((box[2] - box[0]) * (box[3] - box[1]))  # area
    for values, expected in zip(ours, theirs, strict=True):
        assert_same_distribution(values.round(3), expected.round(3))


def test_colours_have_torchvision_s_distribution(tensors):
    rng, theirs = np.random.default_rng(0), []
    ours = np.array([draw_colours(rng) for _ in range(8000)]).T
    for _ in range(4000):
        params = v2.RandomPhotometricDistort().make_params(tensors)
        brightness, contrast, saturation, hue = (
            neutral if params[f"{name}_factor"] is None else params[f"{name}_factor"]
            for name, neutral in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0))
        )
        contrasts = (contrast, 1) if params["contrast_before"] else (1, contrast)
        order = [0, 1, 2] if params["channel_permutation"] is None else params["channel_permutation"].tolist()
        theirs.append((brightness, contrasts[0], saturation, hue, contrasts[1], *order))
    for values, expected, neutral in zip(ours, np.float32(theirs).T, NEUTRAL, strict=True):
        assert (values != neutral).mean() == pytest.approx((expected != neutral).mean(), abs=0.03)
        assert_same_distribution(values[values != neutral], expected[expected != neutral])


def test_ranges_and_trials_equal_torchvision_s():
    crop, colours = v2.RandomIoUCrop(), v2.RandomPhotometricDistort()
    assert [*CROP_IOUS[:-1], 1.0] == crop.options
    assert crop.trials == CROP_TRIALS
    assert (crop.min_aspect_ratio, crop.max_aspect_ratio) == CROP_ASPECT_RATIOS
    assert crop.min_scale == AugmentConfig().crop_min_scale
    assert (colours.brightness, colours.contrast, colours.saturation) == (BRIGHTNESS, CONTRAST, SATURATION)
    assert colours.hue == HUE
    assert v2.RandomZoomOut().side_range[1] == AugmentConfig().zoom_out


# ---- colours --------------------------------------------------------------------------------------------------


@pytest.fixture
def photo():
    """Return an image, (1, 3, 40, 48) uint8, with all hues, greys, black, white and noise."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 40, 48), dtype=torch.uint8, generator=generator)
    image[..., :8] = image[:, :1, :, :8]  # grey
    image[:, 2, :, 8:16] = image[:, 1, :, 8:16]  # two equal channels
    image[..., 16:20], image[..., 20:24] = 0, 255
    return image


@pytest.mark.parametrize(
    ("column", "values", "reference"),
    [
        (0, (0.875, 1.125), functional.adjust_brightness),
        (1, (0.5, 0.9, 1.5), functional.adjust_contrast),
        (2, (0.5, 0.9, 1.5), functional.adjust_saturation),
        (3, (-1 / 6, -0.05, -0.001, 0.02, 0.05, 1 / 6), functional.adjust_hue),
        (4, (0.5, 0.9, 1.5), functional.adjust_contrast),
    ],
    ids=["brightness", "contrast", "saturation", "hue", "late contrast"],
)
def test_each_distortion_equals_torchvision_s_within_one_level(photo, column, values, reference):
    for value in values:
        colours = torch.tensor([NEUTRAL])
        colours[0, column] = value
        difference = distort_colours(photo, colours).int() - reference(photo, value).int()
        assert difference.abs().max() <= 1


def test_all_distortions_together_equal_torchvision_s_within_four_levels(photo):
    rng = np.random.default_rng(0)
    for _ in range(50):
        colours = draw_colours(rng)
        brightness, first, saturation, hue, last = colours[:5].tolist()
        expected = functional.adjust_brightness(photo, brightness)
        expected = functional.adjust_saturation(functional.adjust_contrast(expected, first), saturation)
        expected = functional.adjust_contrast(functional.adjust_hue(expected, hue), last)
        expected = functional.permute_channels(expected, colours[5:].astype(int).tolist())
        difference = distort_colours(photo, torch.from_numpy(colours)[None]).int() - expected.int()
        assert difference.abs().max() <= 4
        assert difference.float().mean().abs() < 2


def test_neutral_colours_change_nothing_and_the_input_is_not_modified(photo):
    before = photo.clone()
    distort_colours(photo, torch.tensor([[1.1, 1.2, 0.8, 0.03, 0.9, 2, 0, 1]]))
    assert torch.equal(photo, before)
    assert torch.equal(distort_colours(photo, torch.tensor([NEUTRAL])), photo)


def test_each_image_is_distorted_by_its_own_row(photo):
    images = torch.cat([photo, photo.flip(3), photo])
    rng = np.random.default_rng(3)
    colours = torch.from_numpy(np.stack([draw_colours(rng) for _ in range(3)]))
    together = distort_colours(images, colours)
    for row in range(3):
        assert torch.equal(together[row : row + 1], distort_colours(images[row : row + 1], colours[row : row + 1]))


def test_a_gpu_and_the_cpu_distort_a_batch_equally(photo):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    rng = np.random.default_rng(3)
    images, colours = photo.repeat(8, 1, 1, 1), torch.from_numpy(np.stack([draw_colours(rng) for _ in range(8)]))
    difference = distort_colours(images.cuda(), colours.cuda()).cpu().int() - distort_colours(images, colours).int()
    assert difference.abs().max() <= 1
