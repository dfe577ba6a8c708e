"""weights/publish.py, weights/model_card.py: a folder that is complete and says what is known."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import weights.publish
from engine.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from engine.config import read_overridden
from stats.bootstrap import image_weights, interval, resampled_scores
from stats.image_statistics import Matches, load_statistics
from weights.model_card import card, class_rows, intervals, read, weakest_class
from weights.release import load_release

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
    weights, facts = load_release(tmp_path / "a/model.safetensors")
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
        "weights as after the last step", "score_threshold 0.3", "On 12 validation images", "| AP_large | undefined |",
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


def test_a_class_name_stays_text_on_one_line_of_the_card():
    name, shown = "<b>red |\nblood & cell", "&lt;b&gt;red \\| blood &amp; cell"
    per_class = {name: {"AP": 0.25, "images": 3}, "b": {"AP": 0.5, "images": 4}}
    assert list(class_rows(per_class))[:2] == [["class", "AP", "images"], [shown, "0.2500", "3"]]
    assert weakest_class(per_class) == f"{shown}, 0.250"


def test_paths_of_this_machine_are_cut_to_their_last_part(publish, experiment, finished_detector, tmp_path):
    root = str(finished_detector.parent.parent / "sample")
    assert root in (experiment / "config.yaml").read_text()
    publish(experiment, "--output", "a")
    config = read_overridden(tmp_path / "a/config.yaml", ())
    assert config == read_overridden(experiment / "config.yaml", ["data.root=sample"])
    assert load_release(tmp_path / "a/model.safetensors")[1]["config"] == (tmp_path / "a/config.yaml").read_text()
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


def test_a_handful_of_images_has_no_interval():
    nothing = np.zeros(0, int)
    few = Matches(np.arange(9), np.array(["a"]), np.array([0.5]), nothing, nothing, nothing, nothing, nothing, nothing,
                  nothing)  # fmt: skip
    assert intervals(few, {"mAP": 0.5}) == {}


def test_statistics_of_another_run_are_refused(publish, experiment):
    results = json.loads((experiment / "results.json").read_text())
    edit(experiment / "results.json", scores=results["scores"] | {"mAP": 0.9})
    code, _, [error] = publish(experiment)
    assert code == 2
    assert "image_statistics.npz gives mAP" in error
    assert "not of the same run" in error


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: (path / "results.json").unlink(), "no results.json in it, so it is not finished"),
        (lambda path: (path / "results.json").write_text("{"), r"results\.json: damaged"),
        (lambda path: shutil.rmtree(path), "no such folder"),
        (lambda path: shutil.rmtree(path / "checkpoints"), "no checkpoint in it"),
        (lambda path: edit(path / "results.json", steps=4), "of step 3, but results.json scored step 4"),
        (lambda path: edit(path / "results.json", task="diffusion"), "task is diffusion; expected one of detection"),
        (lambda path: without(path / "results.json", "seed"), r"results\.json: .*seed: Field required"),
        (lambda path: edit(path / "results.json", protocol={"classes": ["a"]}), r"results\.json: .*protocol\.images"),
    ],
)
def test_what_cannot_be_published_is_refused_and_nothing_written(publish, experiment, tmp_path, spoil, message):
    spoil(experiment)
    code, _, [error] = publish(experiment)
    assert code == 2
    assert re.search(f"^error: .*{message}", error)
    assert not (tmp_path / "saved_weights").exists()


def test_weights_that_are_not_finite_are_refused(publish, experiment):
    path = newest_checkpoint(experiment / "checkpoints")
    state = load_checkpoint(path)
    state["model"]["class_head.0.bias"][0] = torch.nan
    save_checkpoint(path, state)
    _, _, [error] = publish(experiment)
    assert "not finite: class_head.0.bias" in error


def test_a_folder_of_other_files_is_left_alone(publish, experiment, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/README.md").write_text("mine")
    code, _, [error] = publish(experiment, "--output", "notes")
    assert code == 2
    assert "notes: exists, and this command did not make it" in error
    assert (tmp_path / "notes/README.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["README.md", "config.yaml"])
def test_edited_files_are_kept_and_may_be_moved_away(publish, experiment, tmp_path, name):
    folder = tmp_path / "a"
    publish(experiment, "--output", "a")
    (folder / name).write_text("mine")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    code, _, (error,) = publish(experiment, "--output", "a", "--license", "mit")
    assert code == 2
    assert f"a: {name} edited by hand" in error
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (folder / name).rename(folder / "mine")
    assert publish(experiment, "--output", "a")[0] == 0
    assert (folder / "mine").read_text() == "mine"
    assert (folder / name).is_file()


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("writes", range(5))
def test_after_a_kill_the_command_can_be_called_again(publish, experiment, tmp_path, monkeypatch, exists, writes):
    if exists:
        publish(experiment, "--output", "a")
    left = iter(range(writes))

    def or_killed(write, *arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(*arguments)

    with monkeypatch.context() as patch:
        for name in ("weights.publish.write_text", "weights.release.save_release"):
            module, function = name.rsplit(".", 1)
            patch.setattr(name, partial(or_killed, getattr(sys.modules[module], function)))
        with pytest.raises(KeyboardInterrupt):
            weights.publish.main(
                weights.publish.parse_arguments([str(experiment), "--output", "a", "--license", "mit"]), None
            )
    assert publish(experiment, "--output", "a", "--license", "cc-by-4.0")[0] == 0
    assert "license: cc-by-4.0" in (tmp_path / "a/README.md").read_text()
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "a", check=True)
