"""Scores under corruption, with fake corruptions: what is scored, recorded, continued and refused."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from detection import evaluate
from detection.coco.annotations import read_coco
from detection.corruptions import scoring
from records.robustness import read_robustness, statistics_name
from stats.bootstrap import average_precision, mean_average_precision
from stats.image_statistics import load_statistics

VERSIONS = {"imagecorruptions-imaug": "1.2.3", "numpy": "2"}


def fake(pixels, corruption, severity, image_id):
    """Leave an image as it is (brightness), or black out its top (fog), the more the higher the severity."""
    changed = pixels.copy()
    if corruption == "fog":
        changed[: len(pixels) * severity // 5] = 0
    return changed


@pytest.fixture
def corrupted(monkeypatch):
    """Replace the package by `fake`; return the list of calls (corruption, severity, image id)."""
    calls = []

    def counted(pixels, *arguments):
        calls.append(arguments)
        return fake(pixels, *arguments)

    monkeypatch.setattr("detection.corruptions.dataset.corrupt", counted)
    monkeypatch.setattr("detection.drawing.corruptions.corrupt", fake)
    monkeypatch.setattr("detection.corruptions.images.library_versions", lambda: VERSIONS)
    return calls


@pytest.fixture
def experiment(finished_detector, tmp_path):
    return shutil.copytree(finished_detector, tmp_path / "experiment_1")


def scored(path):
    return {(name, level) for name, levels in read_robustness(path).scores.items() for level in levels}


def test_an_identity_corruption_has_exactly_the_clean_score(experiment, corrupted, run_in_process):
    words = ("--corruptions", "brightness,fog", "--severities", "1,5", "train.precision=fp32")
    code, output, _ = run_in_process(evaluate, experiment, *words)
    assert code == 0
    record = read_robustness(experiment)
    assert record.clean["mAP"] > 0
    assert record.scores["brightness"] == {"1": record.clean, "5": record.clean}
    results = json.loads((experiment / "results.json").read_text())
    assert record.clean["mAP"] == pytest.approx(results["scores"]["mAP"], abs=1e-6)
    assert record.protocol == results["protocol"]
    assert (record.step, record.versions) == (3, VERSIONS)
    assert record.scores["fog"]["5"]["mAP"] < record.clean["mAP"]  # the images are black
    values = [record.scores[name][level]["mAP"] for name in ("fog", "brightness") for level in "15"]
    assert record.mPC == pytest.approx(np.mean(values))
    assert record.rPC == pytest.approx(record.mPC / record.clean["mAP"])
    assert f"mPC {record.mPC:.4f}" in output
    assert (experiment / "corruptions.png").is_file()
    assert not (experiment / "test.json").exists()


def test_saved_statistics_give_the_recorded_scores(experiment, corrupted, run_in_process):
    run_in_process(evaluate, experiment, "--corruptions", "fog", "--severities", "2,4")
    record = read_robustness(experiment)
    names = {"clean.npz": record.clean}
    names |= {statistics_name("fog", level): record.scores["fog"][str(level)] for level in (2, 4)}
    for name, scores in names.items():
        matches = load_statistics(experiment / "corruptions", name)
        per_class = average_precision(matches, np.ones((1, 12), int))
        assert mean_average_precision(per_class)[0] == pytest.approx(scores["mAP"], abs=1e-9)


def test_a_repeated_command_scores_only_what_is_missing(experiment, corrupted, run_in_process, monkeypatch):
    original, finished = scoring.evaluate_corrupted, []

    def interrupted(*arguments):
        if len(finished) == 3:
            raise KeyboardInterrupt
        finished.append(arguments[-1])
        return original(*arguments)

    words = (experiment, "--corruptions", "fog,brightness", "--severities", "1,3")
    monkeypatch.setattr(scoring, "evaluate_corrupted", interrupted)
    code, _, _ = run_in_process(evaluate, *words)
    assert code != 0
    partial = read_robustness(experiment)  # valid, but not complete
    assert (partial.is_complete, partial.mPC, len(partial.missing)) == (False, None, 2)
    before = {call[:2] for call in corrupted}
    assert len(corrupted) == 2 * 12  # the first evaluation is of the original images
    corrupted.clear()
    monkeypatch.setattr(scoring, "evaluate_corrupted", original)
    code, _, _ = run_in_process(evaluate, *words)
    assert code == 0
    assert {call[:2] for call in corrupted} == {("fog", 1), ("fog", 3), ("brightness", 1), ("brightness", 3)} - before
    assert len(corrupted) == 2 * 12
    assert read_robustness(experiment).is_complete
    corrupted.clear()
    run_in_process(evaluate, *words)
    assert corrupted == []


def test_more_severities_can_be_added_and_fewer_can_be_chosen(experiment, corrupted, run_in_process):
    run_in_process(evaluate, experiment, "--corruptions", "fog", "--severities", "1,5")
    corrupted.clear()
    run_in_process(evaluate, experiment, "--corruptions", "fog", "--severities", "1,3,5")
    assert {call[:2] for call in corrupted} == {("fog", 3)}
    run_in_process(evaluate, experiment, "--corruptions", "fog", "--severities", "5")
    record = read_robustness(experiment)
    assert record.mPC == record.scores["fog"]["5"]["mAP"]
    assert scored(experiment) == {("fog", "1"), ("fog", "3"), ("fog", "5")}


def test_lost_statistics_are_scored_again(experiment, corrupted, run_in_process):
    words = (experiment, "--corruptions", "fog", "--severities", "1,2")
    run_in_process(evaluate, *words)
    (experiment / "corruptions" / statistics_name("fog", 2)).unlink()
    corrupted.clear()
    run_in_process(evaluate, *words)
    assert {call[:2] for call in corrupted} == {("fog", 2)}


def test_a_record_that_was_made_in_a_different_way_is_not_continued(experiment, corrupted, run_in_process):
    run_in_process(evaluate, experiment, "--corruptions", "fog", "--severities", "1")
    before = (experiment / "corruptions.json").read_bytes()
    words = ("--corruptions", "fog", "--severities", "1,2", "eval.nms_iou=0.6")
    code, _, errors = run_in_process(evaluate, experiment, *words)
    assert code == 2
    assert len(errors) == 1
    assert "protocol.nms_iou was 0.45, is 0.6" in errors[0]
    assert (experiment / "corruptions.json").read_bytes() == before


def test_cached_images_give_the_same_scores_to_the_next_detector(
    experiment, corrupted, run_in_process, tmp_path, finished_detector
):
    words = ("--corruptions", "fog", "--severities", "2", "--cache", tmp_path / "cache")
    run_in_process(evaluate, experiment, *words)
    assert len(corrupted) == 12
    other = shutil.copytree(finished_detector, tmp_path / "experiment_2")
    run_in_process(evaluate, other, *words)
    assert len(corrupted) == 12
    assert read_robustness(other) == read_robustness(experiment)


def key_of(folder, annotations):
    (folder / "annotations.json").write_text(json.dumps(annotations))
    return scoring.cache_key(read_coco(folder / "annotations.json", folder / "images"), VERSIONS)


def test_a_copy_of_the_data_shares_the_cache_also_with_other_labels(folder, content, tmp_path_factory):
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("elsewhere") / "data")
    relabelled = content | {"annotations": content["annotations"][:1]}
    assert key_of(copy, relabelled) == key_of(folder, content)


@pytest.mark.parametrize("change", ["pixels", "id", "versions", "shrunk"])
def test_images_that_are_corrupted_in_a_different_way_do_not_share_the_cache(folder, content, change, monkeypatch):
    before = key_of(folder, content)
    if change == "pixels":  # the same annotation file, with different images of the same size
        Image.new("RGB", (40, 30)).save(folder / "images/a.png")
    elif change == "id":
        content["images"][0]["id"] = content["annotations"][1]["image_id"] = 51
    elif change == "versions":
        monkeypatch.setitem(VERSIONS, "numpy", "3")
    else:
        (folder / "images/shrunk.json").write_text('{"short_side": 30}')
    assert key_of(folder, content) != before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--corruptions", "fogg"), "fogg"),
        (("--corruptions", "--severities", "0,3"), "1,3,5"),
        (("--corruptions", "fog", "eval.nms_iou=0.4,0.5"), "2 settings"),
    ],
)
def test_invalid_options_end_with_one_line(experiment, corrupted, run_in_process, words, message):
    code, _, errors = run_in_process(evaluate, experiment, *words)
    assert code == 2
    assert len(errors) == 1
    assert message in errors[0]


def test_images_that_are_too_small_are_named(read, content):
    from data import DatasetError
    from detection.corruptions.dataset import CorruptedImages

    with pytest.raises(DatasetError, match=r"a.png: 40 x 30 pixels.*32 x 32"):
        CorruptedImages(read(content), 32)
