"""Tests of comparisons of classifiers, which use the same commands as detectors: tables and report."""

import re

import pytest

from ablation import compare as command
from ablation.comparison import Comparison
from ablation.display.report import write_report
from ablation.display.tables import column_table
from stats.image_statistics import load_statistics
from tests.ablation.conftest import Experiments

MODELS, POSITIONS = {"no_shift": 0.45, "shift": 0.75}, ("none", "rel")
DETECTION_TERMS = r"mAP|\bAP|\bAR_|detect(?!able)|\bobject|\bbox|IoU|NMS|coco|ground truth"


@pytest.fixture(scope="module")
def classifiers(new_experiments) -> Experiments:
    """Return experiments with two models, two positions and two seeds; only the model affects the score. Read-only."""
    experiments = new_experiments()
    for model, top1 in MODELS.items():
        for position in POSITIONS:
            for seed in (0, 1):
                experiments.add_classifier(model, position, seed, top1)
    return experiments


@pytest.fixture(scope="module")
def comparison(classifiers) -> Comparison:
    """Return their comparison. Read-only."""
    return classifiers.compare()


@pytest.fixture(scope="module")
def text(comparison, tmp_path_factory) -> str:
    """Return the HTML report of the comparison."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, comparison)
    return path.read_text(encoding="utf-8")


def words_of(text: str) -> str:
    """Return the visible text of a page and the text for screen readers, without styles, addresses and drawings."""
    text = re.sub(r"<style>.*?</style>|data:[^\"]*|<path.*?>", "", text, flags=re.DOTALL)
    return " ".join(re.findall(r"[^<>]+(?=<)|(?:aria-label|alt)=\"[^\"]*\"", text))


def test_tables_and_report_use_no_terms_of_detection(classifiers, text, run_in_process):
    options = ["--replicates", 200, "--columns", "all", "--per-class", "--errors"]
    code, out, _ = run_in_process(command, *sorted(classifiers.folder.iterdir()), *options)
    assert code == 0
    for heading in ("### top1, mean ± standard deviation over 2 seeds", "### top1 by class", "| difference in top1 |"):
        assert heading in out
    assert not re.findall(DETECTION_TERMS, out)
    assert "top1" in words_of(text)
    assert not re.findall(DETECTION_TERMS, words_of(text))


def test_top5_is_omitted_with_five_classes(experiments, tmp_path):
    for position in POSITIONS:
        experiments.add_classifier("shift", position, classes=("a", "b", "c", "d", "e"))
    comparison = experiments.compare()
    assert "top5" not in column_table(comparison, ["all"]).header
    write_report(tmp_path / "report.html", comparison)
    assert "top5" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_predictions_on_different_images_cannot_be_compared(experiments):
    for seed, name in enumerate(("ant", "bee")):
        path = experiments.add_classifier("shift", seed=seed)
        hits = load_statistics(path)
        hits.image_ids[0] = f"{name}/new.jpg"
        hits.save(path)
    with pytest.raises(ValueError, match=r"experiment_2: image_statistics\.npz .* different images .*experiment_1"):
        experiments.compare()


def test_the_report_has_the_sections_of_the_task(text):
    assert re.findall(r'<section id="([^"]*)">', text) == [
        "scores", "differences", "effects", "limits", "costs", "classes", "curves", "confusion", "how", "experiments",
    ]  # fmt: skip


def test_the_report_shows_every_score_with_its_interval(comparison, text):
    table = text.partition('aria-label="every score"')[2].partition("</table>")[0]
    top5 = comparison.intervals["no_shift", "none"]["top5"]
    assert f"{top5.estimate:.4f}<small>{top5.low:.4f} to {top5.high:.4f}</small>" in table
    assert table.count("<small") == 2 * len(comparison.scored_cells)
