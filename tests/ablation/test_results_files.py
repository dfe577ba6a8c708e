"""ablation/results_files.py and the command line: the detections of other tools, alone and beside experiments."""

import csv
import io
import json
import re

import numpy as np
import pytest

from ablation import compare as command
from engine.files import file_sha256
from tests.ablation.conftest import IMAGES

CLASSES = ("cat", "dog")


@pytest.fixture
def annotations(tmp_path):
    """Write an annotation file of the images of fake experiments: an object of each class per image."""
    objects = [(image, label) for label in range(2) for image in range(IMAGES)]
    content = {
        "images": [{"id": k, "file_name": f"{k}.jpg", "width": 100, "height": 100} for k in range(IMAGES)],
        "categories": [{"id": 3 * k, "name": name} for k, name in enumerate(CLASSES, start=1)],
        "annotations": [
            {"id": number, "image_id": image, "category_id": 3 * label + 3, "bbox": [10 + 40 * label, 10, 30, 30]}
            for number, (image, label) in enumerate(objects)
        ],
    }
    (tmp_path / "val.json").write_text(json.dumps(content))
    return tmp_path / "val.json"


@pytest.fixture
def results(tmp_path, annotations):
    """Return a function that writes detections of which the fraction `quality` is correct, and returns their file."""

    def write(name, quality, seed=0):
        draw = np.random.default_rng(seed)
        content = [
            {"image_id": each["image_id"], "category_id": each["category_id"], "score": float(draw.random()),
             "bbox": each["bbox"] if draw.random() < quality else [60, 60, 30, 35]}
            for each in json.loads(annotations.read_text())["annotations"]
        ]  # fmt: skip
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    return write


@pytest.fixture
def run(run_in_process, annotations):
    """Return a function that runs the command with --annotations; it returns exit code, output and error lines."""
    return lambda *words: run_in_process(command, "--annotations", annotations, "--replicates", 200, *words)


@pytest.fixture
def files(results):
    """Return words that name a weak detector with two seeds and a strong detector with one."""
    weak = ",".join(str(results(f"weak{seed}.json", 0.3, seed)) for seed in range(2))
    return [f"weak={weak}", f"strong={results('strong.json', 0.9, 5)}"]


def test_detectors_are_rows_of_one_column_and_have_differences(run, files):
    code, text, _ = run(*files)
    assert code == 0
    assert "| detector | mAP |" in text
    assert re.search(r"^\| weak \| 0\.\d{4} ± 0\.\d{4} \|$", text, re.MULTILINE)
    assert re.search(r"^\| strong \| \*\*0\.\d{4}\*\* \|$", text, re.MULTILINE)
    assert "| strong - weak | **+0." in text
    assert "weak1.json | 0." in text
    for absent in ("WARNING", "Recipes", "Errors by kind", " x ", "undefined", "None"):
        assert absent not in text


def test_options_of_the_command_apply_to_results_files(run, files):
    _, text, _ = run(*files, "--errors", "--per-class", "--columns", "AP50,gflops", "--baseline", "strong", "--pairs")
    assert "| weak - strong | " in text
    assert "### Errors by kind" in text
    assert "### AP by class" in text
    assert "| cat | " in text
    assert "| AP50 |" in text
    assert "GFLOPs" not in text
    _, text, _ = run(*files, "--columns", "all", "--format", "latex")
    assert "AP50" in text
    assert "parameters" not in text


def test_csv_has_a_line_per_detector_without_an_empty_column(run, files):
    lines = list(csv.DictReader(io.StringIO(run(*files, "--format", "csv")[1])))
    assert [(line["detector"], line["seeds"]) for line in lines] == [("weak", "2"), ("strong", "1")]
    assert "" not in lines[0]
    assert "gflops" not in lines[0]
    assert float(lines[1]["difference_estimate"]) > 0.3


def test_the_page_shows_files_and_leaves_out_what_only_experiments_have(run, files, tmp_path):
    code, _, errors = run(*files, "--output", tmp_path / "page.html")
    assert (code, errors) == (0, [])
    page = (tmp_path / "page.html").read_text()
    sections = re.findall(r'<section id="(\w+)"', page)
    expected = ["scores", "differences", "limits", "errors", "disagreements", "classes", "sizes", "how", "files"]
    assert sections == expected
    assert "weak1.json" in page
    assert "None" not in page


def test_one_file_per_name_gives_cells_with_one_seed(run, results):
    _, text, _ = run(f"a={results('a.json', 0.3)}", f"b={results('b.json', 0.4, 1)}")
    assert "mAP, one seed" in text
    assert "one seed per cell" in text


# ---- beside experiments ------------------------------------------------------------------------------------


@pytest.fixture
def add(experiments, annotations):
    """Return a function that adds an experiment that was scored on the same annotations."""

    def add(row, column="none", sha256=None, **options):
        protocol = {"annotations": "instances.json", "annotations_sha256": sha256 or file_sha256(annotations)}
        return experiments.add(row, column, protocol=protocol, **options)

    return add


def test_experiments_can_be_rows_beside_results_files(run, files, add, tmp_path):
    paths = [
        add("swin", column, quality=0.6, config={"epochs": epochs}) for column, epochs in (("fpn", 3), ("none", 9))
    ]
    _, text, _ = run(*files, *paths, "--columns", "gflops")
    rows = re.findall(r"^\| ([\w ]+) \| \**0\.\d{4}(?: ± 0\.\d{4})?\**(?: \| ([\d.-]+))? \|$", text, re.MULTILINE)
    names = ["swin x fpn", "swin x none", "weak", "strong"]
    assert rows == [(name, "") for name in names] + list(zip(names, ["1.50", "1.50", "-", "-"], strict=True))
    assert "| weak - swin x fpn |" in text
    assert "| swin x none | model.neck=none, train.epochs=9 |" in text
    assert "nms_iou" not in text
    code, _, _ = run(*files, *paths, "--output", tmp_path / "page.html")
    assert code == 0
    page = (tmp_path / "page.html").read_text()
    assert {"files", "experiments", "curves"} < set(re.findall(r'<section id="(\w+)"', page))
    assert "different devices" not in page
    assert "nms iou" not in page  # holds for the experiments only


def test_experiments_on_other_annotations_are_refused(run, files, add, annotations):
    path = add("swin", sha256="a" * 64)
    code, _, [error] = run(*files, path)
    assert code == 2
    assert "aaaaaaaa..." in error
    assert file_sha256(annotations)[:8] in error
    _, text, _ = run(*files, path, "--force")
    assert "WARNING: not comparable: protocol.annotations_sha256" in text
    assert "### Differences" not in text


def test_a_name_that_an_experiment_has_too_is_refused(run, results, add):
    code, _, [error] = run(f"swin x fpn={results('a.json', 0.3)}", add("swin", "fpn"))
    assert code == 2
    assert "'swin x fpn'" in error


# ---- the command line --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["yolo=a.json"], ["--annotations"]),
        (["a.json"], ["a.json", "NAME=FILE"]),
        (["--annotations", "val.json", "a.json"], ["a.json", "NAME=FILE"]),
        (["--annotations", "val.json", "experiment"], ["val.json", "NAME=FILE"]),
        (["--annotations", "val.json", "yolo=a.json", "grid.yaml"], ["grid.yaml", "experiments"]),
        (["--annotations", "val.json", "yolo=a.json", "yolo=b.json"], ["'yolo'", "twice"]),
        (["--annotations", "val.json", "=a.json"], ["'=a.json'", "name"]),
        (["--annotations", "val.json", "yolo="], ["'yolo='", "NAME=FILE"]),
        (["--annotations", "val.json", "yolo=a.json,"], ["NAME=FILE"]),
        (["--annotations", "val.json", "yolo - 8=a.json"], ["' - '"]),
        (["--annotations", "val.json", "yolo=aa.json"], ["aa.json", "did you mean 'a.json'"]),
        (["yolo=experimen"], ["experimen", "did you mean 'experiment'"]),
        (["--annotations", "vall.json", "yolo=a.json"], ["vall.json", "did you mean 'val.json'"]),
        (["--annotations", "experiment", "yolo=a.json"], ["experiment", "folder"]),
    ],
)
def test_parsing_refuses_words_that_cannot_be_used(tmp_path, monkeypatch, words, facts):
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b.json", "val.json", "grid.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "experiment").mkdir()
    with pytest.raises(ValueError) as error:
        command.parse_arguments(words)
    assert [fact for fact in facts if fact not in str(error.value)] == []


def test_parsing_accepts_words_in_any_order_and_folders_with_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b.json", "val.json"):
        (tmp_path / name).touch()
    (tmp_path / "lr=1").mkdir()
    arguments = command.parse_arguments(["yolo=a.json,b.json", "--annotations", "val.json", "lr=1", "--pairs"])
    assert [str(path) for path in arguments.paths] == ["lr=1"]
    assert {name: list(map(str, paths)) for name, paths in arguments.files.items()} == {"yolo": ["a.json", "b.json"]}


def test_an_invalid_file_ends_the_command_in_one_line(run, tmp_path):
    (tmp_path / "a.json").write_text("{}")
    code, _, [error] = run(f"yolo={tmp_path / 'a.json'}")
    assert code == 2
    assert "a.json" in error
