"""Corrupted images: always the same for an image, and the stronger the severity, the larger the change."""

import numpy as np
import pytest
from PIL import Image

from detection.corruptions import images
from detection.corruptions.images import CORRUPTIONS, SEVERITIES, corrupt, library_versions, parse_names
from engine.text import UnknownNameError
from records.robustness import NUM_CORRUPTIONS

try:
    library_versions()
except ValueError:
    needs_package = pytest.mark.skip(reason="imagecorruptions-imaug is not installed: pip install -e '.[corruptions]'")
else:
    needs_package = pytest.mark.parametrize("corruption", CORRUPTIONS)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Return an image (96, 128, 3) with smooth areas, edges and texture, none of it black or white."""
    y, x = np.mgrid[:96, :128]
    waves = 110 + 50 * np.sin(x / 9) * np.cos(y / 7)
    texture = np.random.default_rng(0).integers(-4, 5, (96, 128))
    grey = waves + texture + 40 * ((x // 13 + y // 11) % 2)
    return np.stack([grey, grey * 0.8, 220 - grey * 0.7], axis=2).clip(20, 230).astype(np.uint8)


@needs_package
def test_pixels_depend_only_on_image_id_corruption_and_severity(picture, corruption):
    before = picture.copy()
    np.random.seed(1)
    first = corrupt(picture, corruption, 3, 17)
    np.random.seed(2)
    corrupt(picture, corruption, 5, 3)
    np.testing.assert_array_equal(corrupt(picture, corruption, 3, 17), first)
    np.testing.assert_array_equal(picture, before)
    assert (first.dtype, first.shape, first.flags.writeable) == (np.uint8, picture.shape, True)


@needs_package
def test_random_corruptions_differ_between_images(picture, corruption):
    is_random = corruption not in (
        "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression",
    )  # fmt: skip
    same = np.array_equal(corrupt(picture, corruption, 3, 17), corrupt(picture, corruption, 3, 18))
    assert same != is_random


@needs_package
def test_a_higher_severity_changes_the_image_more(picture, corruption):
    """Measured over several images: as the squared change, after a fit of gain and offset for fog, snow and frost."""

    def change(severity: int) -> float:
        losses = []
        for image_id in range(6):
            shown = corrupt(picture, corruption, severity, image_id).astype(float).ravel()
            if CORRUPTIONS[corruption] == "weather" and corruption != "brightness":
                losses.append(1 - np.corrcoef(shown, picture.ravel())[0, 1])
            else:
                losses.append(np.mean((shown - picture.ravel()) ** 2))
        return float(np.mean(losses))

    weak, strong = change(SEVERITIES[0]), change(SEVERITIES[-1])
    assert 0 < weak < strong


@pytest.mark.skipif(needs_package.name == "skip", reason="imagecorruptions-imaug is not installed")
def test_jpeg_compression_equals_pillow_at_the_published_quality(picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=15)  # severity 3 of Hendrycks and Dietterich
    with Image.open(tmp_path / "a.jpg") as expected:
        np.testing.assert_array_equal(corrupt(picture, "jpeg_compression", 3, 0), np.array(expected))


@pytest.mark.skipif(needs_package.name == "skip", reason="imagecorruptions-imaug is not installed")
def test_the_global_random_generator_is_left_as_it_was(picture):
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    corrupt(picture, "gaussian_noise", 1, 0)
    assert np.random.random() == expected


def test_there_are_fifteen_corruptions_of_four_kinds():
    assert len(CORRUPTIONS) == NUM_CORRUPTIONS == 15
    assert [list(CORRUPTIONS.values()).count(kind) for kind in ("noise", "blur", "weather", "digital")] == [3, 4, 4, 4]


def test_names_and_kinds_are_parsed_in_the_usual_order():
    assert parse_names("fog,noise") == ["gaussian_noise", "shot_noise", "impulse_noise", "fog"]
    with pytest.raises(UnknownNameError, match=r"'fogg'.*fog"):
        parse_names("fogg")


def test_a_missing_package_is_reported_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(images, "LIBRARIES", ("no-such-package",))
    with pytest.raises(images.MissingPackageError, match=r"no-such-package.*pip install -e '.\[corruptions\]'"):
        library_versions()
