"""Samplers, loader and normalisation shared by all tasks."""

import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2

from data import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DatasetError,
    EpochBatchSampler,
    LabelledImages,
    LabelledSamples,
    build_loader,
    collate,
    eval_batches,
    normalize_images,
    read_binary_dataset,
    read_image,
)

CPU = torch.device("cpu")


def sampler(num_samples=50, batch_size=6, rank=0, world_size=1, seed=3, **options):
    return EpochBatchSampler(num_samples, batch_size, rank, world_size, seed, **options)


def indices(batches):
    return [index for _, index in chain.from_iterable(batches)]


# ---- images -------------------------------------------------------------------------------------------------


def test_normalize_images_matches_torchvision():
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    expected = v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)(images.float() / 255)
    torch.testing.assert_close(normalize_images(images), expected)
    result = normalize_images(images, channels_last=True)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result, normalize_images(images))


def test_normalize_images_can_be_trained_through_after_use_in_inference_mode():
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    with torch.inference_mode():
        normalize_images(images)
    conv = torch.nn.Conv2d(3, 1, 1)
    conv(normalize_images(images)).sum().backward()
    assert conv.weight.grad is not None


# ---- training batches -----------------------------------------------------------------------------------------


def test_an_epoch_has_only_full_batches_and_no_image_twice():
    batches = list(sampler(num_samples=50, batch_size=6))
    assert [len(batch) for batch in batches] == [6] * 8
    assert len(set(indices(batches))) == 48


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_a_global_batch_has_the_same_images_on_any_number_of_ranks(world_size):
    single = [sorted(batch) for batch in sampler(batch_size=6)]
    ranks = [list(sampler(batch_size=6 // world_size, rank=r, world_size=world_size)) for r in range(world_size)]
    assert [sorted(chain.from_iterable(shares)) for shares in zip(*ranks, strict=True)] == single


def test_the_order_depends_on_both_seed_and_epoch():
    batches = sampler(num_samples=48)
    first = indices(batches)
    assert indices(batches) == first  # until `epoch` changes
    batches.epoch = 1
    assert sorted(indices(batches)) == sorted(first) == list(range(48))
    assert {epoch for epoch, _ in chain.from_iterable(batches)} == {1}
    orders = [first, indices(batches), indices(sampler(num_samples=48, seed=4))]
    assert len({tuple(order) for order in orders}) == 3


def test_first_batch_is_the_number_of_skipped_batches():
    full, resumed = list(sampler()), sampler()
    resumed.first_batch = 3
    assert list(resumed) == full[3:]
    assert len(resumed) == len(full)


def test_too_few_images_for_one_global_batch_are_rejected_with_the_largest_batch_size():
    with pytest.raises(ValueError, match=r"batch_size 6: .*4 x 6 images.* only 23 .* at most 5"):
        sampler(num_samples=23, batch_size=6, world_size=4)


# ---- evaluation batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("num_samples", [0, 3, 16, 17])
def test_evaluation_batches_are_the_same_on_any_number_of_ranks(num_samples, world_size):
    single = eval_batches(num_samples, 4, rank=0, world_size=1)
    assert indices(single) == list(range(num_samples))
    ranks = [eval_batches(num_samples, 4, rank, world_size) for rank in range(world_size)]
    assert sorted(chain.from_iterable(ranks)) == single


# ---- the loader -------------------------------------------------------------------------------------------------


class Echo(Dataset):
    """Data set whose samples are their own indices."""

    def __len__(self):
        return 50

    def __getitem__(self, key):
        return torch.tensor(key)


def stack(samples):
    return {"keys": torch.stack(samples)}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_follows_the_sampler_across_epochs(workers):
    batches = sampler()
    loader = build_loader(Echo(), batches, stack, workers, CPU)
    for epoch in (0, 1):
        batches.epoch = epoch
        loaded = [[tuple(key) for key in batch["keys"].tolist()] for batch in loader]
        assert loaded == list(batches)


# ---- labelled images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "what"), [(b"", "empty, 0 bytes"), (b"<html>", "not an image, or an unsupported format")]
)
def test_a_file_that_is_not_an_image_is_named_in_the_error(tmp_path, content, what):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DatasetError) as error:
        read_image(tmp_path / "a.jpg")
    assert str(error.value).startswith(f"{tmp_path}/a.jpg: cannot be decoded: {what}; ")


def test_mnist_is_read_from_its_idx_files(mnist_root):
    images = read_binary_dataset("mnist", mnist_root, train=False)
    assert images.images.shape == (20, 28, 28)
    assert images.labels.tolist() == [*range(10)] * 2
    assert [path.name for path in images.inputs] == ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def halve(content: bytes) -> bytes:
    return content[: len(content) // 2]


def drop_one_label(content: bytes) -> bytes:
    return content[:4] + (len(content) - 9).to_bytes(4) + content[8:-1]


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("t10k-labels-idx1", None, "missing t10k-labels-idx1-ubyte; .*gunzip"),
        ("train-images-idx3", halve, "train-images-idx3-ubyte, train-labels-idx1-ubyte: cannot be read"),
        ("train-images-idx3", lambda content: b"<html>gone</html>", "cannot be read"),
        ("train-labels-idx1", drop_one_label, "40 images, 39 labels"),
        ("train-labels-idx1", lambda content: content[:-1] + b"\x0a", "labels from 0 to 10"),
    ],
)
def test_missing_and_corrupt_mnist_files_are_rejected(mnist_root, tmp_path, name, change, what):
    shutil.copytree(mnist_root, tmp_path, dirs_exist_ok=True)
    path = tmp_path / f"MNIST/raw/{name}-ubyte"
    content = path.read_bytes()
    path.unlink()
    if change:
        path.write_bytes(change(content))
    with pytest.raises(DatasetError, match=f"raw: .*{what}"):
        read_binary_dataset("mnist", tmp_path, train=True)


def test_the_digest_of_a_split_depends_on_its_labels(mnist_root, tmp_path):
    shutil.copytree(mnist_root, tmp_path, dirs_exist_ok=True)
    before = read_binary_dataset("mnist", tmp_path, train=True).digest
    path = tmp_path / "MNIST/raw/train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    digests = [read_binary_dataset("mnist", root, train=True).digest for root in (mnist_root, tmp_path)]
    assert digests[0] == before != digests[1]


@pytest.fixture
def samples() -> LabelledSamples:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 20, 24, 3), dtype=np.uint8)
    images = LabelledImages(Path("noise"), pixels, np.arange(48) // 8, [], [], "", {})
    transform = v2.Compose([v2.RandomResizedCrop(16), v2.RandomHorizontalFlip()])
    return LabelledSamples(images, transform, seed=3)


def test_a_sample_depends_only_on_epoch_and_index_and_leaves_the_global_generator_unchanged(samples):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = samples[2, 5]["image"]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(samples[2, 5]["image"], first)
    assert not torch.equal(samples[3, 5]["image"], first)


def test_a_batch_has_images_labels_and_image_ids(samples):
    batch = collate([samples[0, index] for index in (0, 47)])
    assert (batch["images"].dtype, batch["images"].shape) == (torch.uint8, (2, 3, 16, 16))
    assert batch["labels"].tolist() == [0, 5]
    assert batch["image_ids"].tolist() == [0, 47]
