import shutil

import pytest
from torchvision.models import Swin_T_Weights

from classification.data import DataConfig, check_same_classes, imagenet_classes, read_folders, read_split
from data import DatasetError, find_shared_images, identify_inputs


def test_labels_follow_the_sorted_folders_and_wordnet_ids_get_english_names(colours_root):
    images = read_split(DataConfig(root=str(colours_root)), "val")
    assert images.class_ids == ["black", "blue", "green", "n01440764", "n02124075", "white"]
    assert images.class_names == ["black", "blue", "green", "tench", "Egyptian cat", "white"]
    assert images.labels.tolist() == [0] * 3 + [1] * 3 + [2, 2, 3, 3, 4, 4, 5, 5]
    assert images.name(3) == "blue/0.png"


def test_imagenets_class_names_are_torchvisions_and_sorted_by_wordnet_id():
    assert list(imagenet_classes().values()) == Swin_T_Weights.IMAGENET1K_V1.meta["categories"]
    assert list(imagenet_classes()) == sorted(imagenet_classes())


def test_cifar10_is_read_from_its_original_files(cifar10_root):
    train, val = (read_split(DataConfig(root=str(cifar10_root), format="cifar10"), split) for split in ("train", "val"))
    assert (len(train), len(val)) == (10, 2)
    assert val.class_names[9] == "truck"
    assert val.labels.tolist() == [3, 9]
    assert val.read(0).size == (32, 32)
    assert [path.name for path in val.inputs] == ["test_batch"]


@pytest.mark.parametrize("fixture", ["cifar10_root", "mnist_root", "colours_root"])
def test_images_in_both_splits_are_counted_in_every_format(fixture, request):
    kind = {"cifar10_root": "cifar10", "mnist_root": "mnist"}.get(fixture, "folders")
    config = DataConfig(root=str(request.getfixturevalue(fixture)), format=kind)
    train, val = read_split(config, "train"), read_split(config, "val")
    shared = find_shared_images(val, val)
    assert (shared.count, shared.total) == (len(val), len(val))
    assert kind == "folders" or find_shared_images(train, val) is None


def test_the_hash_of_a_folder_of_images_depends_on_their_content(colours_root, tmp_path):
    copy = shutil.copytree(colours_root, tmp_path / "copy")
    sets = []
    for root in (colours_root, copy, copy):
        train, val = (read_folders(root / split) for split in ("train", "val"))
        sets.append({split: images.sha256 for split, images in identify_inputs(str(root), train, val).images.items()})
        pixels = (copy / "val/blue/1.png").read_bytes()
        if len(sets) == 2:
            (copy / "val/blue/0.png").write_bytes(pixels + b"more")
    assert sets[0] == sets[1]
    assert [split for split in sets[2] if sets[2][split] != sets[0][split]] == ["val"]


def test_the_digest_changes_if_a_name_or_a_label_changes(colours_root, tmp_path):
    shutil.copytree(colours_root / "val", tmp_path / "val")
    digest = read_folders(tmp_path / "val").digest
    assert digest == read_folders(colours_root / "val").digest
    (tmp_path / "val/blue/0.png").rename(tmp_path / "val/green/7.png")
    assert read_folders(tmp_path / "val").digest != digest


def test_a_missing_split_and_an_empty_class_folder_are_errors(tmp_path):
    with pytest.raises(DatasetError, match=r"train: no such folder"):
        read_split(DataConfig(root=str(tmp_path)), "train")
    (tmp_path / "train/violet").mkdir(parents=True)
    with pytest.raises(DatasetError, match="violet"):
        read_split(DataConfig(root=str(tmp_path)), "train")


def test_the_error_about_splits_with_different_classes_names_the_classes(colours_root, tmp_path):
    shutil.copytree(colours_root / "val", tmp_path / "val")
    (tmp_path / "val/blue").rename(tmp_path / "val/violet")
    with pytest.raises(DatasetError, match=r"blue only in .*train; violet only in .*val"):
        check_same_classes(read_folders(colours_root / "train"), read_folders(tmp_path / "val"))
