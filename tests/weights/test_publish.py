"""weights/publish.py and weights/model_card.py: the published folder and its model card."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

import weights.publish
from engine.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from engine.config import read_overridden
from stats.bootstrap import image_weights, resampled_scores
from stats.contrasts import interval
from stats.image_statistics import load_statistics
from weights.model_card import card, intervals, read_published
from weights.release import read_safetensors

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def publish(tmp_path, monkeypatch, run_in_process):
    """Return a function that runs `python -m weights.publish WORDS` and returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    return partial(run_in_process, weights.publish)


@pytest.fixture
def experiment(finished_detector, tmp_path):
    """Return a copy of an experiment that a test may change."""
    return shutil.copytree(finished_detector, tmp_path / "experiments/experiment_7")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def remove_key(path, key):
    """Remove a key from a JSON object in a file."""
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))


def test_the_folder_has_weights_config_card_and_valid_checksums(publish, experiment, tmp_path):
    code, out, _ = publish(experiment)
    folder = tmp_path / "saved_weights/experiment_7"
    assert code == 0
    assert "written to saved_weights/experiment_7/" in out
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "SHA256SUMS", "config.yaml", "model.safetensors",
    ]  # fmt: skip
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)
    assert len((folder / "SHA256SUMS").read_text().splitlines()) == 3


def test_the_published_weights_are_the_moving_average(publish, experiment, tmp_path):
    path = newest_checkpoint(experiment / "checkpoints")
    state = load_checkpoint(path)
    average = {name: weight + 1 for name, weight in state["model"].items()}
    save_checkpoint(path, state | {"ema": {"weights": average}})
    publish(experiment, "--output", "a")
    weights, metadata = read_safetensors(tmp_path / "a/model.safetensors")
    assert all(torch.equal(weights[name], average[name]) for name in average)
    assert (metadata["step"], metadata["commit"], metadata["task"]) == ("3", "abc", "detection")


def test_the_hub_can_read_the_cards_metadata(publish, experiment, tmp_path):
    publish(experiment, "--output", "cells", "--license", "cc-by-4.0")
    data = huggingface_hub.ModelCard.load(tmp_path / "cells/README.md").data
    results = json.loads((experiment / "results.json").read_text())
    assert (data.license, data.pipeline_tag, data.library_name) == ("cc-by-4.0", "object-detection", "ssd-workbench")
    assert data.model_name == "cells"
    scores = {result.metric_name: result.metric_value for result in data.eval_results}
    assert scores == {name: round(value, 4) for name, value in results["scores"].items() if value is not None}


def test_the_card_has_the_facts_of_the_experiment(finished_detector):
    published = read_published(finished_detector)
    text = card("cells", published, "unknown")
    for fact in (
        "backbone ResNet18SlimBackbone_B, neck fpn", "`sample`", "epochs 1 (3 steps), batch size 8", "seed 0",
        "commit abc", "softmax scores, score_threshold 0.3", "12 validation images", "| AP_large | undefined |",
        'load("saved_weights/cells")', "detection.predict saved_weights/cells photo.jpg", "license: unknown",
        "model.start_from=saved_weights/cells/model.safetensors",
        "named no licence", f"weights {published.results.weights}", *published.results.protocol.classes,
    ):  # fmt: skip
        assert fact in text
    score, confidence = published.results.scores["mAP"], published.intervals["mAP"]
    assert f"| mAP | {score:.4f} | {confidence.low:.4f} to {confidence.high:.4f} |" in text
    assert "trained on the same images" not in text
    assert re.findall(r"\n\n\n|[^\n]\n#", text) == []


def test_the_card_warns_of_scores_on_training_images_or_on_few_images(finished_detector):
    published = read_published(finished_detector)
    protocol = published.results.protocol.model_copy(update={"images": 9})
    inputs = {"train.json": "1a2b", "val.json": "1a2b"}
    results = published.results.model_copy(update={"inputs": inputs, "protocol": protocol})
    text = card("cells", replace(published, results=results, intervals={}), "mit")
    assert "trained on the same images" in text
    assert "too few images" in text
    assert "bootstrap" not in text


def test_a_classifiers_card_shows_how_to_use_it(finished_detector):
    published = read_published(finished_detector)
    results = published.results.model_copy(
        update={"task": "classification", "per_class": {"a": {"top1": None, "images": 3}}}
    )
    text = card("cells", replace(published, results=results), "mit")
    assert "pipeline_tag: image-classification" in text
    assert "train_clf_imagenet.py predict saved_weights/cells photo.jpg" in text
    assert "by class" not in text
    assert re.findall(r"\n\n\n|[^\n]\n#", text) == []


def test_without_huggingface_hub_the_error_names_the_install_command(publish, experiment, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, _, [error] = publish(experiment)
    assert code == 2
    assert "pip install -e '.[publish]'" in error
    assert not (tmp_path / "saved_weights").exists()


def test_a_class_name_is_escaped_and_on_one_line_of_the_card(finished_detector):
    per_class = {"<b>red |\nblood & cell": {"AP": 0.25, "images": 3}, "b": {"AP": None, "images": 4}}
    published = read_published(finished_detector)
    results = published.results.model_copy(update={"per_class": per_class})
    text = card("cells", replace(published, results=results), "mit")
    table = [
        "| class | AP | images |", "|---|---|---|", "| &lt;b&gt;red \\| blood &amp; cell | 0.2500 | 3 |",
        "| b | undefined | 4 |",
    ]  # fmt: skip
    assert "\n\n" + "\n".join(table) + "\n\n## Limitations" in text


def test_local_paths_are_shortened_to_their_last_part(publish, experiment, finished_detector, tmp_path):
    root = str(finished_detector.parent.parent / "sample")
    assert root in (experiment / "config.yaml").read_text()
    publish(experiment, "--output", "a")
    config = read_overridden(tmp_path / "a/config.yaml", ())
    assert config == read_overridden(experiment / "config.yaml", ["data.root=sample"])
    assert read_safetensors(tmp_path / "a/model.safetensors")[1]["config"] == (tmp_path / "a/config.yaml").read_text()
    for path in (tmp_path / "a").iterdir():
        assert root.encode() not in path.read_bytes()


def test_the_interval_is_from_the_bootstrap_over_images(finished_detector):
    scores = json.loads((finished_detector / "results.json").read_text())["scores"]
    statistics = load_statistics(finished_detector)
    replicates, _ = resampled_scores(statistics, image_weights(12, 1000, seed=0))
    by_score = intervals(statistics, scores)
    assert by_score.keys() == {"mAP", "AP50", "AP75"}
    assert by_score["mAP"] == interval(by_score["mAP"].estimate, replicates["mAP"])
    assert by_score["mAP"].estimate == pytest.approx(scores["mAP"])
    assert by_score["AP50"].low <= scores["AP50"] <= by_score["AP50"].high


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "results.json").unlink(), r"no results\.json.*--resume"),
        (lambda path: shutil.rmtree(path), "no such folder"),
        (lambda path: shutil.rmtree(path / "checkpoints"), "no checkpoint"),
        (lambda path: edit(path / "results.json", steps=4), "step 3, .*step 4"),
        (lambda path: edit(path / "results.json", task="diffusion"), "diffusion; expected one of detection"),
        (lambda path: remove_key(path / "results.json", "seed"), r"results\.json: .*seed: Field required"),
    ],
)
def test_if_an_experiment_cannot_be_published_nothing_is_written(publish, experiment, tmp_path, damage, message):
    damage(experiment)
    code, _, [error] = publish(experiment)
    assert code == 2
    assert re.search(f"^error: .*{message}", error)
    assert not (tmp_path / "saved_weights").exists()


def test_a_folder_with_files_is_not_overwritten(publish, experiment, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/README.md").write_text("mine")
    code, _, [error] = publish(experiment, "--output", "notes")
    assert code == 2
    assert "notes: already exists" in error
    assert (tmp_path / "notes/README.md").read_text() == "mine"
