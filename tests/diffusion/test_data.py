import numpy as np
import pytest

from data import DatasetError
from diffusion.data import DataConfig, build_transform, read_split


def test_the_error_about_a_missing_root_names_the_field_and_the_path(tmp_path):
    with pytest.raises(DatasetError, match=r"data\.root .*gone: no such folder"):
        read_split(DataConfig(root=str(tmp_path / "gone"), format="mnist"), "train")


def test_grey_images_are_resized_and_otherwise_unchanged(mnist_root):
    config = DataConfig(root=str(mnist_root), format="mnist")
    images = read_split(config, "val")
    assert np.array_equal(build_transform(config, 28, train=True)(images.read(3)), images.images[3])
    assert build_transform(config, 32, train=True)(images.read(3)).size == (32, 32)


def test_only_training_images_are_flipped(mnist_root):
    image = read_split(DataConfig(root=str(mnist_root), format="mnist"), "val").read(0)
    config = DataConfig(root="", format="mnist", flip=1.0)
    train, val = (np.asarray(build_transform(config, 28, train)(image)) for train in (True, False))
    assert np.array_equal(train, val[:, ::-1])
    assert not np.array_equal(train, val)
