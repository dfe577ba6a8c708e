"""A published folder: whole, honest about the scores, and as a hub wants it."""

import json
import re
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

import weights.model_card
import weights.publish
from engine.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from engine.config import read_overridden
from records.results import Protocol, Results
from stats.bootstrap import image_weights, interval, resampled_scores
from stats.image_statistics import Matches, load_statistics
from weights.model_card import class_table, intervals, limits
from weights.release import load_release


@pytest.fixture
def publish(tmp_path, monkeypatch, run_in_process):
    """`python -m weights.publish WORDS` in a folder of its own; its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    return partial(run_in_process, weights.publish)


@pytest.fixture
def experiment(finished_detector, tmp_path):
    """A copy that may be spoilt."""
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
    hub = pytest.importorskip("huggingface_hub")
    publish(experiment, "--output", "cells", "--license", "cc-by-4.0")
    data = hub.ModelCard.load(tmp_path / "cells/README.md").data
    results = json.loads((experiment / "results.json").read_text())
    assert (data.license, data.pipeline_tag, data.library_name) == ("cc-by-4.0", "object-detection", "ssd-workbench")
    assert data.model_name == "cells"
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    assert found == {name: round(value, 4) for name, value in results["scores"].items() if value is not None}


def test_the_card_says_what_the_experiment_says(publish, experiment, tmp_path):
    publish(experiment, "--output", "a")
    card = (tmp_path / "a/README.md").read_text()
    for label in ("Model", "Recipe", "Scored", "Code"):
        (line,) = re.findall(rf"^- \*\*{label}\*\*: .*$", (experiment / "README.md").read_text(), re.MULTILINE)
        assert line in card
    for heading in ("How to use it", "How good it is", "By class", "Limits", "Licence"):
        assert f"\n## {heading}\n" in card


def test_without_a_licence_the_card_claims_none(publish, experiment, tmp_path):
    publish(experiment, "--output", "a")
    card = (tmp_path / "a/README.md").read_text()
    assert "\nlicense: unknown\n" in card
    assert "No licence was named when the weights were published" in card


def test_a_class_name_stays_text_on_one_line_of_the_card():
    name, shown = "<b>red |\nblood & cell", "&lt;b&gt;red \\| blood &amp; cell"
    per_class = {name: {"AP": 0.25}, "b": {"AP": 0.5}}
    assert f"| {shown} | 0.2500 |" in class_table(per_class).splitlines()
    protocol = Protocol(classes=[name, "b"], images=1)
    results = Results.model_construct(protocol=protocol, per_class=per_class, task="detection", seed=0)
    known, weakest, *_ = limits(results)
    assert known.endswith(f": {shown}, b.")
    assert weakest == f"It is weakest at {shown}, 0.250."


def test_paths_of_this_machine_are_cut_to_their_last_part(publish, experiment, finished_detector, tmp_path):
    root = str(finished_detector.parent.parent / "sample")
    assert root in (experiment / "config.yaml").read_text()
    assert root in (experiment / "README.md").read_text()
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


def test_a_card_tells_of_scores_on_the_training_images_and_of_few_of_them(publish, experiment, tmp_path):
    publish(experiment, "--output", "a")
    card = (tmp_path / "a/README.md").read_text()
    assert "On 12 validation images. The intervals come from a bootstrap" in card
    edit(experiment / "results.json", inputs={"train.json": "1a2b", "val.json": "1a2b"})
    publish(experiment, "--output", "b")
    card = (tmp_path / "b/README.md").read_text()
    assert "On 12 validation images. It was trained on these, too: expect less on any others. The intervals" in card


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
        (lambda path: without(path / "results.json", "seed"), r"results\.json: .*: seed: Field required"),
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


def test_another_s_folder_is_left_alone(publish, experiment, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/README.md").write_text("mine")
    code, _, [error] = publish(experiment, "--output", "notes")
    assert code == 2
    assert "notes: exists, and this command did not make it" in error
    assert (tmp_path / "notes/README.md").read_text() == "mine"


def test_a_folder_of_its_own_is_written_anew(publish, experiment, tmp_path):
    publish(experiment, "--output", "a")
    assert publish(experiment, "--output", "a", "--license", "apache-2.0")[0] == 0
    assert "license: apache-2.0" in (tmp_path / "a/README.md").read_text()


@pytest.mark.parametrize("name", ["README.md", "config.yaml"])
def test_a_folder_edited_by_hand_is_left_as_it_is(publish, experiment, tmp_path, name):
    publish(experiment, "--output", "a")
    (tmp_path / "a" / name).write_text("mine")
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    code, _, (error,) = publish(experiment, "--output", "a", "--license", "mit")
    assert code == 2
    assert f"a: {name} edited by hand, so nothing is written" in error
    assert {path: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before


def test_an_edited_card_that_was_moved_away_is_written_anew(publish, experiment, tmp_path):
    publish(experiment, "--output", "a")
    (tmp_path / "a/README.md").write_text("mine")
    (tmp_path / "a/README.md").rename(tmp_path / "a/mine.md")
    assert publish(experiment, "--output", "a")[0] == 0
    assert (tmp_path / "a/mine.md").read_text() == "mine"
    assert (tmp_path / "a/README.md").is_file()


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("writes", range(5))
def test_after_a_kill_on_the_way_it_can_be_called_again(publish, experiment, tmp_path, monkeypatch, exists, writes):
    if exists:
        publish(experiment, "--output", "a")
    left = iter(range(writes))

    def or_killed(write, *arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(*arguments)

    with monkeypatch.context() as patch:
        for name in ("write_text", "save_release"):
            patch.setattr(f"weights.model_card.{name}", partial(or_killed, getattr(weights.model_card, name)))
        patch.setattr("sys.argv", ["weights.publish", str(experiment), "--output", "a", "--license", "mit"])
        with pytest.raises(KeyboardInterrupt):
            weights.publish.main(weights.publish.parse_arguments(sys.argv[1:]), None)
    assert publish(experiment, "--output", "a", "--license", "cc-by-4.0")[0] == 0
    assert "license: cc-by-4.0" in (tmp_path / "a/README.md").read_text()
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "a", check=True)
