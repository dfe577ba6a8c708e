"""weights/publish.py, weights/model_card.py: a folder that is complete and says what is known."""

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
from stats.bootstrap import image_weights, interval, resampled_scores
from stats.image_statistics import load_statistics
from weights.model_card import card, intervals, read
from weights.release import read_safetensors

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def publish(tmp_path, monkeypatch, run_in_process):
    """`python -m weights.publish WORDS` in a folder of its own; its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    return partial(run_in_process, weights.publish)


@pytest.fixture
def experiment(finished_detector, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(finished_detector, tmp_path / "experiments/experiment_7")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without(path, key):
    """Take a key out of a JSON object."""
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))


def test_the_folder_has_weights_config_card_and_sums_that_hold(publish, experiment, tmp_path):
    code, out, _ = publish(experiment)
    folder = tmp_path / "saved_weights/experiment_7"
    assert code == 0
    assert "written to saved_weights/experiment_7/" in out
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "SHA256SUMS", "config.yaml", "model.safetensors",
    ]  # fmt: skip
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)
    assert len((folder / "SHA256SUMS").read_text().splitlines()) == 3


def test_the_weights_are_those_that_were_scored(publish, experiment, tmp_path):
    path = newest_checkpoint(experiment / "checkpoints")
    state = load_checkpoint(path)
    average = {name: weight + 1 for name, weight in state["model"].items()}
    save_checkpoint(path, state | {"ema": {"weights": average}})
    publish(experiment, "--output", "a")
    weights, facts = read_safetensors(tmp_path / "a/model.safetensors")
    assert all(torch.equal(weights[name], average[name]) for name in average)
    assert (facts["step"], facts["commit"], facts["task"]) == ("3", "abc", "detection")


def test_the_hub_reads_the_card(publish, experiment, tmp_path):
    publish(experiment, "--output", "cells", "--license", "cc-by-4.0")
    data = huggingface_hub.ModelCard.load(tmp_path / "cells/README.md").data
    results = json.loads((experiment / "results.json").read_text())
    assert (data.license, data.pipeline_tag, data.library_name) == ("cc-by-4.0", "object-detection", "ssd-workbench")
    assert data.model_name == "cells"
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    assert found == {name: round(value, 4) for name, value in results["scores"].items() if value is not None}


def test_the_card_has_the_facts_of_the_experiment(finished_detector):
    published = read(finished_detector)
    text = card("cells", published, "unknown")
    for fact in (
        "backbone ResNet18SlimBackbone_B, neck fpn", "`sample`", "epochs 1 (3 steps), batch 8", "seed 0", "commit abc",
        "weights after the last step", "score_threshold 0.3", "On 12 validation images", "| AP_large | undefined |",
        'load("cells")', "detection.predict cells photo.jpg", "model.start_from=cells/model.safetensors",
        "license: unknown", "No licence was named", *published.results.protocol.classes,
    ):  # fmt: skip
        assert fact in text
    score, found = published.results.scores["mAP"], published.intervals["mAP"]
    assert f"| mAP | {score:.4f} | {found.low:.4f} to {found.high:.4f} |" in text
    assert "trained on the same images" not in text
    assert re.findall(r"\n\n\n|[^\n]\n#", text) == []


def test_the_card_says_that_scores_are_of_the_training_images_or_of_few(finished_detector):
    published = read(finished_detector)
    protocol = published.results.protocol.model_copy(update={"images": 9})
    inputs = {"train.json": "1a2b", "val.json": "1a2b"}
    results = published.results.model_copy(update={"inputs": inputs, "protocol": protocol})
    text = card("cells", replace(published, results=results, intervals={}), "mit")
    assert "trained on the same images" in text
    assert "too few to estimate intervals" in text
    assert "bootstrap" not in text


def test_a_classifiers_card_says_how_to_use_it(finished_detector):
    published = read(finished_detector)
    results = published.results.model_copy(
        update={"task": "classification", "per_class": {"a": {"top1": None, "images": 3}}}
    )
    text = card("cells", replace(published, results=results), "mit")
    assert "pipeline_tag: image-classification" in text
    assert "train_clf_imagenet.py predict cells photo.jpg" in text
    assert "By class" not in text
    assert re.findall(r"\n\n\n|[^\n]\n#", text) == []


def test_without_huggingface_hub_the_error_names_the_install_command(publish, experiment, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, _, [error] = publish(experiment)
    assert code == 2
    assert "pip install -e '.[publish]'" in error
    assert not (tmp_path / "saved_weights").exists()


def test_a_class_name_stays_text_on_one_line_of_the_card(finished_detector):
    per_class = {"<b>red |\nblood & cell": {"AP": 0.25, "images": 3}, "b": {"AP": None, "images": 4}}
    published = read(finished_detector)
    results = published.results.model_copy(update={"per_class": per_class})
    text = card("cells", replace(published, results=results), "mit")
    table = [
        "| class | AP | images |", "|---|---|---|", "| &lt;b&gt;red \\| blood &amp; cell | 0.2500 | 3 |",
        "| b | undefined | 4 |",
    ]  # fmt: skip
    assert "\n\n" + "\n".join(table) + "\n\n## Limits" in text


def test_paths_of_this_machine_are_cut_to_their_last_part(publish, experiment, finished_detector, tmp_path):
    root = str(finished_detector.parent.parent / "sample")
    assert root in (experiment / "config.yaml").read_text()
    publish(experiment, "--output", "a")
    config = read_overridden(tmp_path / "a/config.yaml", ())
    assert config == read_overridden(experiment / "config.yaml", ["data.root=sample"])
    assert read_safetensors(tmp_path / "a/model.safetensors")[1]["config"] == (tmp_path / "a/config.yaml").read_text()
    for path in (tmp_path / "a").iterdir():
        assert root.encode() not in path.read_bytes()


def test_the_interval_is_that_of_the_bootstrap(finished_detector):
    scores = json.loads((finished_detector / "results.json").read_text())["scores"]
    statistics = load_statistics(finished_detector)
    replicates, _ = resampled_scores(statistics, image_weights(12, 1000, seed=0))
    found = intervals(statistics, scores)
    assert found.keys() == {"mAP", "AP50", "AP75"}
    assert found["mAP"] == interval(found["mAP"].estimate, replicates["mAP"])
    assert found["mAP"].estimate == pytest.approx(scores["mAP"])
    assert found["AP50"].low <= scores["AP50"] <= found["AP50"].high


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: (path / "results.json").unlink(), "no results.json in it, so it is not finished"),
        (lambda path: shutil.rmtree(path), "no such folder"),
        (lambda path: shutil.rmtree(path / "checkpoints"), "no checkpoint in it"),
        (lambda path: edit(path / "results.json", steps=4), "of step 3, but results.json scored step 4"),
        (lambda path: edit(path / "results.json", task="diffusion"), "task is diffusion; expected one of detection"),
        (lambda path: without(path / "results.json", "seed"), r"results\.json: .*seed: Field required"),
    ],
)
def test_what_cannot_be_published_is_refused_and_nothing_written(publish, experiment, tmp_path, spoil, message):
    spoil(experiment)
    code, _, [error] = publish(experiment)
    assert code == 2
    assert re.search(f"^error: .*{message}", error)
    assert not (tmp_path / "saved_weights").exists()


def test_a_folder_of_other_files_is_left_alone(publish, experiment, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/README.md").write_text("mine")
    code, _, [error] = publish(experiment, "--output", "notes")
    assert code == 2
    assert "notes: exists already" in error
    assert (tmp_path / "notes/README.md").read_text() == "mine"
