import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import Swin_T_Weights
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from classification.transforms import (
    BICUBIC,
    FILL,
    AugmentConfig,
    BatchAugment,
    RandAugment,
    RandAugmentConfig,
    eval_transform,
)
from data import normalize_images


@pytest.fixture
def photo() -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    return small.resize((400, 300), Image.Resampling.BICUBIC)


def test_validation_images_are_preprocessed_as_for_torchvisions_weights(photo):
    theirs = Swin_T_Weights.IMAGENET1K_V1.transforms(antialias=True)(photo)
    ours = normalize_images(pil_to_tensor(eval_transform(224, 232)(photo))[None])[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_rand_augment_at_a_fixed_magnitude_equals_torchvisions(photo):
    ours = RandAugment(RandAugmentConfig(operations=1, probability=1.0, magnitude=9, magnitude_std=0))
    theirs = v2.RandAugment(1, 9, 11, interpolation=BICUBIC, fill=FILL)
    for seed in range(20):
        torch.manual_seed(seed)
        torch.rand(()), torch.randn(())  # ours first draws whether to apply the operation, and its magnitude
        expected = theirs(photo)
        torch.manual_seed(seed)
        assert np.array_equal(ours(photo), expected)


def test_rand_augment_does_nothing_with_probability_0_and_clips_extreme_magnitudes(photo):
    assert RandAugment(RandAugmentConfig(probability=0))(photo) is photo
    extreme = RandAugment(RandAugmentConfig(probability=1, magnitude=10, magnitude_std=50))
    for seed in range(20):
        torch.manual_seed(seed)
        assert extreme(photo).size == photo.size


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Return images whose pixels all equal their label, and the labels."""
    labels = torch.arange(8) % 4
    return labels.float().view(-1, 1, 1, 1).expand(8, 3, 32, 32).clone(), labels


def test_cutmix_targets_are_each_classs_share_of_the_pixels(batch):
    torch.manual_seed(1)
    images, targets = BatchAugment(AugmentConfig(erase=0, mixup=0, cutmix=1.0), 4)(*batch)
    shares = torch.stack([(images == label).float().mean((1, 2, 3)) for label in range(4)], dim=1)
    torch.testing.assert_close(targets, shares)
    assert ((targets > 0) & (targets < 1)).any()


def test_mixup_blends_images_and_targets_by_the_same_shares(batch):
    torch.manual_seed(1)
    images, targets = BatchAugment(AugmentConfig(erase=0, mixup=0.8, cutmix=0), 4)(*batch)
    torch.testing.assert_close(images[:, 0, 0, 0], targets @ torch.arange(4.0))
    assert ((targets > 0) & (targets < 1)).any()


def test_the_share_of_erased_images_is_about_the_erase_probability():
    torch.manual_seed(0)
    labels = torch.zeros(400, dtype=torch.int64)
    images, _ = BatchAugment(AugmentConfig(erase=0.25, mixup=0, cutmix=0), 4)(torch.zeros(400, 3, 16, 16), labels)
    erased = (images != 0).any(3).any(2).any(1).float().mean()
    assert 0.18 < erased < 0.32


@pytest.mark.parametrize("scale", [(0.9, 0.1), (0.0, 1.0), (0.5, 1.5)])
def test_a_crop_scale_that_is_not_a_range_is_rejected(scale):
    with pytest.raises(ValueError, match="two shares"):
        AugmentConfig(crop_scale=scale)
