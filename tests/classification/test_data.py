import shutil

import pytest
from torchvision.models import Swin_T_Weights

from classification.data import DataConfig, check_pair, imagenet_classes, read_folders, read_split
from data import DatasetError, inputs_of, shared_images


def test_classes_are_numbered_in_the_order_of_their_folders_and_named_as_people_call_them(colours_root):
    images = read_split(DataConfig(root=str(colours_root)), "val")
    assert images.class_ids == ["black", "blue", "green", "n01440764", "n02124075", "white"]
    assert images.class_names == ["black", "blue", "green", "tench", "Egyptian cat", "white"]
    assert images.labels.tolist() == [0] * 3 + [1] * 3 + [2, 2, 3, 3, 4, 4, 5, 5]
    assert images.name(3) == "blue/0.png"


def test_imagenets_classes_are_torchvisions_in_the_order_of_its_folders():
    assert list(imagenet_classes().values()) == Swin_T_Weights.IMAGENET1K_V1.meta["categories"]
    assert list(imagenet_classes()) == sorted(imagenet_classes())


def test_cifar10_is_read_from_its_own_files(cifar10_root):
    train, val = (read_split(DataConfig(root=str(cifar10_root), format="cifar10"), split) for split in ("train", "val"))
    assert (len(train), len(val)) == (10, 2)
    assert val.class_names[9] == "truck"
    assert val.labels.tolist() == [3, 9]
    assert val.read(0).size == (32, 32)
    assert [path.name for path in val.inputs] == ["test_batch"]


@pytest.mark.parametrize("fixture", ["cifar10_root", "mnist_root", "colours_root"])
def test_validation_images_that_are_training_images_are_counted_in_every_format(fixture, request):
    kind = {"cifar10_root": "cifar10", "mnist_root": "mnist"}.get(fixture, "folders")
    config = DataConfig(root=str(request.getfixturevalue(fixture)), format=kind)
    train, val = read_split(config, "train"), read_split(config, "val")
    found = shared_images(val, val)
    assert (found.count, found.total) == (len(val), len(val))
    assert kind == "folders" or shared_images(train, val) is None


def test_images_of_folders_are_identified_by_their_content(colours_root, tmp_path):
    copy = shutil.copytree(colours_root, tmp_path / "copy")
    sets = []
    for root in (colours_root, copy, copy):
        train, val = (read_folders(root / half) for half in ("train", "val"))
        sets.append({half: images.sha256 for half, images in inputs_of(str(root), train, val).images.items()})
        pixels = (copy / "val/blue/1.png").read_bytes()
        if len(sets) == 2:
            (copy / "val/blue/0.png").write_bytes(pixels + b"more")
    assert sets[0] == sets[1]
    assert [half for half in sets[2] if sets[2][half] != sets[0][half]] == ["val"]


def test_the_digest_follows_names_and_labels(colours_root, tmp_path):
    shutil.copytree(colours_root / "val", tmp_path / "val")
    same = read_folders(tmp_path / "val").digest
    assert same == read_folders(colours_root / "val").digest
    (tmp_path / "val/blue/0.png").rename(tmp_path / "val/green/7.png")
    assert read_folders(tmp_path / "val").digest != same


def test_a_root_without_the_split_or_with_an_empty_class_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"train: no such folder; expected one with a folder of images"):
        read_split(DataConfig(root=str(tmp_path)), "train")
    (tmp_path / "train/violet").mkdir(parents=True)
    with pytest.raises(DatasetError, match="violet"):
        read_split(DataConfig(root=str(tmp_path)), "train")


def test_halves_of_other_classes_are_refused_naming_them(colours_root, tmp_path):
    shutil.copytree(colours_root / "val", tmp_path / "val")
    (tmp_path / "val/blue").rename(tmp_path / "val/violet")
    with pytest.raises(DatasetError, match=r"blue only in .*train; violet only in .*val"):
        check_pair(read_folders(colours_root / "train"), read_folders(tmp_path / "val"))
