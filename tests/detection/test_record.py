"""detection/record.py: the record of a finished run is complete and has the numbers that were scored."""

import copy
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from data import DatasetError
from detection.coco.annotations import read_split
from detection.coco.evaluation import GroundTruth, coco_scores, quick_scores
from detection.record import record
from detection.task import DetectionConfig, DetectionTask
from records.record import write_record
from records.results import InitialWeights, read_results
from training import Evaluation

CPU = torch.device("cpu")
WEIGHTS = {
    "part": "trunk",
    "name": "timm",
    "entry": "timm/swin_t.ms_in1k",
    "source": "https://hub.example/model.safetensors",
    "file": "saved_weights/swin_t.ms_in1k.safetensors",
    "sha256": "704ceda3" * 8,
    "note": "",
}
SPLITS = {
    split: {"images": f"images/{split}", "annotations": f"annotations/instances_{split}.json"}
    for split in ("train", "val")
}


@pytest.fixture(scope="module")
def recorded(sample_root, tmp_path_factory):
    """Return experiment, task and record of untrained weights, in a directory with an old example image."""
    experiment = tmp_path_factory.mktemp("experiment_1")
    last = {"processes": 2, "device": "cpu", "cpu": "a CPU", "commit": "2", "uncommitted_changes": False}
    first = last | {"processes": 4, "initial_weights": WEIGHTS}
    last |= {"initial_weights": None} | {"versions": {"torch": "2", "torchvision": "0", "python": "3"}}
    (experiment / "environment.json").write_text(json.dumps([first, last]))
    line = {"epoch": 1, "step": 3, "epoch_seconds": 2.0, "images_per_second": 6.0, "mAP": 0.0}
    (experiment / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (experiment / "examples").mkdir()
    (experiment / "examples" / "77.jpg").write_bytes(b"old")
    task = make_task(sample_root)
    evaluation = task.evaluate(task.model, CPU)
    return experiment, task, write_record(experiment, task, record(experiment, task, evaluation))


def make_task(root):
    config = DetectionConfig.model_validate(
        {
            "data": {"root": str(root), **SPLITS, "workers": 0},
            "model": {"backbone": "ResNet18SlimBackbone_B", "neck": "fpn", "neck_channels": 32, "input_size": 128},
            "train": {"epochs": 1, "batch_size": 4, "seed": 5},
        }
    )
    return DetectionTask(config, read_split(config.data, "train"), read_split(config.data, "val"))


def test_the_record_has_the_variant_seed_cost_and_scores_of_the_run(recorded, sample_root):
    experiment, _, record = recorded
    assert json.loads((experiment / "results.json").read_text()) == record
    assert list(record["variant"].items()) == [("backbone", "ResNet18SlimBackbone_B"), ("neck", "fpn")]
    assert record["seed"] == 5
    assert (record["cost"]["processes"], record["cost"]["device"]) == (2, "cpu")  # values of the last start
    assert record["normalization"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert 0.01 < record["cost"]["gflops"] < 10
    assert record["cost"]["peak_memory_mib"] > 100
    assert record["errors"]["AP50"] == pytest.approx(record["scores"]["AP50"], abs=1e-12)
    paths = [sample_root / SPLITS[split]["annotations"] for split in ("train", "val")]
    assert record["inputs"] == {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    assert record["protocol"]["annotations_sha256"] == record["inputs"][str(paths[1])]
    assert record["initial_weights"] == WEIGHTS  # of the first start, because the other one resumed
    assert read_results(experiment / "results.json").initial_weights == InitialWeights(**WEIGHTS)
    for fact in ("timm/swin_t.ms_in1k", "https://hub.example/model.safetensors", "704ceda3"):
        assert fact in record["facts"]["Model"]
    assert record["facts"]["Model"] in (experiment / "README.md").read_text()


@pytest.mark.parametrize("start", [{"started_from": "trunk from swin_t.pth (SHA-256 704ceda3)"}, {}])
def test_a_run_that_an_older_version_started_has_a_text_instead_or_nothing(recorded, tmp_path, start):
    experiment, task, _ = recorded
    shutil.copytree(experiment, tmp_path / "old")
    environments = json.loads((experiment / "environment.json").read_text())
    for each in environments:
        del each["initial_weights"]
    (tmp_path / "old/environment.json").write_text(json.dumps([environments[0] | start, environments[1]]))
    results = write_record(tmp_path / "old", task, record(tmp_path / "old", task, task.evaluate(task.model, CPU)))
    assert results["initial_weights"] is None
    assert results["facts"]["Model"].endswith(start.get("started_from", "from random weights"))


@pytest.mark.parametrize(
    ("name", "score_function", "threshold"),
    [("finished_detector", "softmax", 0.3), ("modern_detector", "sigmoid", 0.3)],
)
def test_the_record_says_how_scores_are_computed_outside_of_the_protocol(name, score_function, threshold, request):
    experiment = request.getfixturevalue(name)
    results = read_results(experiment / "results.json")
    assert results.score_function == score_function
    assert score_function not in results.protocol.model_dump().values()  # so that both kinds stay comparable
    assert f"score ({score_function}) >= {threshold}" in (experiment / "README.md").read_text()


def test_the_record_names_the_parts_of_the_recipe_that_differ(finished_detector, modern_detector):
    facts = [json.loads((each / "results.json").read_text())["facts"] for each in (finished_detector, modern_detector)]
    assert ["loss.classification quality_focal" in each["Detector recipe"] for each in facts] == [False, True]


def spoil(change, path):
    """Replace the annotation file with what `change` returns for its content; delete it for None."""
    content = json.loads(path.read_text())
    text = change(content)
    if text is None:
        path.unlink()
    else:
        path.write_text(text if isinstance(text, str) else json.dumps(content))


def move_boxes(content):
    for annotation in content["annotations"]:
        annotation["bbox"][:2] = [0, 0]
    return content


def add_class(content):
    content["categories"].append({"id": 99, "name": "zebra"})
    return content


@pytest.mark.parametrize(
    "change", [move_boxes, add_class, lambda content: json.dumps(content)[:-900], lambda content: None]
)
def test_scoring_uses_the_annotations_read_at_the_start_even_if_the_file_changes(sample_root, tmp_path, change):
    root = shutil.copytree(sample_root, tmp_path / "sample")
    path = root / SPLITS["val"]["annotations"]
    task, perfect = make_task(root), json.loads(path.read_text())["annotations"]
    results = [{key: each[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for each in perfect]
    table = np.array([(each["image_id"], *each["bbox"], 0.9, each["category_id"]) for each in results])
    spoil(change, path)
    assert quick_scores(task.truth, table)["mAP"] == pytest.approx(1)
    assert coco_scores(task.truth, results)["mAP"] == pytest.approx(1)
    (message,) = map(str, task.inputs.changes())
    assert message == f"{path} {'has changed' if path.exists() else 'is missing'}"


def test_the_record_describes_the_data_at_the_start_and_changes_are_warnings(recorded, sample_root, tmp_path, caplog):
    experiment, _, before = recorded
    root = shutil.copytree(sample_root, tmp_path / "sample")
    task, path = make_task(root), root / SPLITS["val"]["annotations"]
    evaluation = task.evaluate(task.model, CPU)
    spoil(add_class, path)
    first, second, *_ = sorted((root / "images/train").iterdir())
    first.write_bytes(second.read_bytes())
    experiment = shutil.copytree(experiment, tmp_path / "experiment_1")
    after = write_record(experiment, task, record(experiment, task, evaluation))
    for name in ("scores", "per_class", "protocol", "image_sets"):
        assert after[name] == before[name]
    assert list(after["inputs"].values()) == list(before["inputs"].values())
    for changed in (f"{path} has changed", f"{root / 'images/train'} has different train images"):
        assert f"{changed} since the run started" in caplog.text


def test_an_image_deleted_during_training_gives_a_one_line_error_that_names_it(sample_root, tmp_path):
    root = shutil.copytree(sample_root, tmp_path / "sample")
    task = make_task(root)
    image = sorted((root / "images/val").iterdir())[0]
    image.unlink()
    with pytest.raises(DatasetError) as error:
        task.evaluate(task.model, CPU)
    assert str(image) in str(error.value)
    assert "\n" not in str(error.value)


def test_annotations_that_change_between_the_check_and_the_start_are_refused(sample_root, tmp_path):
    root = shutil.copytree(sample_root, tmp_path / "sample")
    path = root / SPLITS["val"]["annotations"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    spoil(add_class, path)
    with pytest.raises(DatasetError, match=r"instances_val\.json: was changed after it was checked"):
        GroundTruth(path, digest)


def test_examples_and_charts_are_written_and_old_examples_are_removed(recorded):
    experiment, task, _ = recorded
    ids = [task.val.images[index].id for index in (0, 2, 5, 7)]
    names = {path.name for path in (experiment / "examples").iterdir()}
    assert names == {f"{image_id}{suffix}.jpg" for image_id in ids for suffix in ("", "_truth")}
    assert all((experiment / "examples" / name).stat().st_size < 60_000 for name in names)
    for name in ("detections.png", "precision_recall.png", "class_scores.png", "confusion.png"):
        with Image.open(experiment / name) as image:
            image.load()
        assert f"]({name})" in (experiment / "README.md").read_text()


def test_detections_are_drawn_during_training_only_if_there_is_a_tracker(recorded, tmp_path):
    _, task, _ = recorded
    evaluation = Evaluation({}, np.zeros((0, 7)))
    task.draw(tmp_path, 1, evaluation)
    assert not list(tmp_path.iterdir())
    tracked = copy.copy(task)
    train = task.config.train.model_copy(update={"trackers": ("tensorboard",)})
    tracked.config = task.config.model_copy(update={"train": train})
    tracked.draw(tmp_path, 1, evaluation)
    assert [path.name for path in tmp_path.iterdir()] == ["detections.png"]
