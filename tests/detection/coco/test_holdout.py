"""The part of the training images that is scored in place of the validation images (data.holdout)."""

import json

import numpy as np
import pytest

from data import DatasetError
from detection.coco.annotations import DataConfig, SplitConfig, held_out, read_coco, read_split
from detection.coco.evaluation import GroundTruth, coco_scores


@pytest.fixture
def data(sample_root) -> DataConfig:
    splits = {
        split: SplitConfig(images=f"images/{split}", annotations=f"annotations/instances_{split}.json")
        for split in ("train", "val")
    }
    return DataConfig(root=str(sample_root), **splits)


def with_holdout(data, share):
    return data.model_copy(update={"holdout": share})


def test_the_two_parts_have_each_training_image_once_with_its_objects(data):
    whole = read_split(data, "train")
    parts = [read_split(with_holdout(data, 0.25), split) for split in ("train", "val")]
    assert [len(part.images) for part in parts] == [len(whole.images) * 3 // 4, len(whole.images) // 4]
    found = {}
    for part in parts:
        assert part.images_dir == whole.images_dir
        for index, image in enumerate(part.images):
            found[image] = [array.tolist() for array in part.objects(index)]
    expected = {image: [array.tolist() for array in whole.objects(i)] for i, image in enumerate(whole.images)}
    assert found == expected


def test_the_choice_depends_on_the_ids_only():
    ids = list(range(100))
    chosen = held_out(ids, 0.1)
    assert chosen.sum() == 10
    assert {i for i, is_held in zip(ids, chosen, strict=True) if is_held} == {
        i for i, is_held in zip(ids[::-1], held_out(ids[::-1], 0.1), strict=True) if is_held
    }
    assert (chosen <= held_out(ids, 0.2)).all()  # a larger share adds images
    # A hash spreads the choice over the ids, unlike their order.
    assert chosen[:50].any()
    assert chosen[50:].any()


def test_without_a_holdout_the_validation_images_are_scored(data):
    assert read_split(data, "val").annotations_path.name == "instances_val.json"


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_a_part_without_images_is_refused_with_the_field(data, share):
    with pytest.raises(DatasetError, match=f"data.holdout={share:g}"):
        read_split(with_holdout(data, share), "val")


def test_the_scores_are_those_of_a_file_with_only_the_held_out_images(data, tmp_path):
    held = read_split(with_holdout(data, 0.25), "val")
    ids = {image.id for image in held.images}
    content = json.loads(held.annotations_path.read_bytes())
    for name, key in (("images", "id"), ("annotations", "image_id")):
        content[name] = [record for record in content[name] if record[key] in ids]
    alone = tmp_path / "held_out.json"
    alone.write_text(json.dumps(content))
    generator = np.random.default_rng(0)
    detections = [
        {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": (np.array(annotation["bbox"]) + generator.normal(0, 3, 4).clip(-5, 5)).clip(1).tolist(),
            "score": float(generator.random()),
        }
        for annotation in content["annotations"]
    ]
    expected = coco_scores(GroundTruth(alone), detections)
    assert 0 < expected["mAP"] < 1
    assert coco_scores(GroundTruth(held.annotations_path, held.sha256, ids), detections) == expected
    whole = coco_scores(GroundTruth(held.annotations_path), detections)
    assert whole["mAP"] < expected["mAP"]  # the objects of the other images are missed
    assert read_coco(alone, held.images_dir).images == held.images
