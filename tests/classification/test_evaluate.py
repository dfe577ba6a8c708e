"""The commands classification.evaluate and classification.predict, for experiments and published weights."""

import json
import re
import shutil

import pytest

from classification import evaluate, predict
from classification.classifier import load_classifier
from classification.data import read_folders
from detection import load as load_detector
from tests.classification.test_training import launch
from weights import publish


def test_the_score_on_1_2_and_3_processes_equals_the_recorded_one(experiment, run_in_process, tmp_path):
    evaluations = set()
    words = (experiment, "--output", tmp_path, "--batch-size", 4, "--workers", 0)
    for processes in (1, 2, 3):
        if processes == 1:
            assert run_in_process(evaluate, *words)[0] == 0
        else:
            launch(*words, module="classification.evaluate", processes=processes)
        evaluations.add((tmp_path / "evaluation.json").read_text())
    assert len(evaluations) == 1
    assert json.loads(evaluations.pop())["scores"] == json.loads((experiment / "results.json").read_text())["scores"]


def test_images_of_a_subset_of_the_classes_are_matched_by_name(experiment, colours_root, run_in_process, tmp_path):
    for name in ("white", "blue"):
        shutil.copytree(colours_root / "val" / name, tmp_path / "some" / name)
    words = (experiment, tmp_path / "some", "--output", tmp_path, "--workers", 0)
    assert run_in_process(evaluate, *words)[0] == 0
    per_class = json.loads((tmp_path / "evaluation.json").read_text())["per_class"]
    recorded = json.loads((experiment / "results.json").read_text())["per_class"]
    assert per_class == {name: recorded[name] for name in ("blue", "white")}
    assert (tmp_path / "evaluation_confusion.png").is_file()


def test_an_unknown_class_and_a_wrong_option_give_a_one_line_error(experiment, colours_root, run_in_process, tmp_path):
    shutil.copytree(colours_root / "val/white", tmp_path / "some/violet")
    for words, message in (([tmp_path / "some"], "violet"), (["--batch-size", 0], "--batch-size: '0'")):
        code, _, errors = run_in_process(evaluate, experiment, *words)
        assert code == 2
        (error,) = errors
        assert message in error


def test_predict_prints_names_with_probabilities_and_reports_unreadable_images(
    experiment, colours_root, run_in_process, tmp_path
):
    image = colours_root / "val/n01440764/0.png"
    (tmp_path / "broken.jpg").write_text("<html>")
    code, output, errors = run_in_process(predict, experiment, tmp_path / "broken.jpg", image, "--top", 2)
    assert code == 2
    (error,) = errors
    assert "1 of 2 images" in error
    assert "broken.jpg: cannot be decoded" in output
    lines = output[output.index(f"{image}\n") :].splitlines()[1:3]
    predictions = [re.fullmatch(r" +(\d+\.\d)%  (.+)", line).groups() for line in lines]
    assert {name for _, name in predictions} <= set(read_folders(colours_root / "val").class_names)
    assert float(predictions[0][0]) >= float(predictions[1][0])


def test_a_published_folder_predicts_the_same_as_its_experiment(experiment, colours_root, run_in_process, tmp_path):
    folder = tmp_path / "colours"
    assert run_in_process(publish, experiment, "--output", folder)[0] == 0
    image = colours_root / "val/n01440764/0.png"
    from_experiment, from_folder = (run_in_process(predict, path, image) for path in (experiment, folder))
    assert from_folder == from_experiment
    assert from_folder[0] == 0
    trained, published = load_classifier(str(experiment)), load_classifier(str(folder / "model.safetensors"))
    assert published.class_ids == trained.class_ids
    assert (published.input_size, published.resize_size) == (trained.input_size, trained.resize_size) == (32, 32)
    with pytest.raises(ValueError, match="no DetectionConfig in its metadata"):
        load_detector(folder)
