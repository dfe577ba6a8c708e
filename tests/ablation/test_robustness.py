"""Comparisons under corruption: whether the better cell stays better, on records with a known truth."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import kendalltau

from ablation import compare as command
from ablation.comparison import Looks
from ablation.display.report import write_report
from ablation.display.robustness_tables import robustness_columns, robustness_sentences, robustness_tables
from ablation.display.tables import to_csv
from ablation.robustness import add_robustness
from records.robustness import CLEAN, FOLDER, Robustness, read_robustness, statistics_name, write_robustness
from stats.bootstrap import average_precision, image_weights, mean_average_precision
from stats.image_statistics import compact, load_statistics
from tests.ablation.conftest import IMAGES, fake_matches

CORRUPTIONS, SEVERITIES = ["fog", "zoom_blur"], [1, 5]
VERSIONS = {"imagecorruptions-imaug": "1.1.5", "numpy": "2"}


def score_of(matches):
    return float(mean_average_precision(average_precision(matches, np.ones((1, IMAGES), int)))[0])


def finding(quality, *seed):
    """Return detections that find an object with a chance of `quality`; each object is equally hard for all models."""
    matches = fake_matches(0.5, 0)
    ease, draw = np.random.default_rng(7).random(len(matches.scores)), np.random.default_rng(seed)
    own = np.where(draw.random(len(ease)) < 0.8, ease, draw.random(len(ease)))
    found = np.repeat(own[:, None] < quality, matches.true_positives.shape[1], axis=1)
    return replace(matches, scores=draw.random(len(ease)), true_positives=found)


def add_detector(experiments, row, clean, corrupted, seed=0, **changes):
    """Add a detector that finds the fraction `clean` of the objects, or `corrupted` of them in corrupted images."""
    number = sum(row.encode())
    matches = finding(clean, number, seed)
    path = experiments.add(row, seed=seed, scores={"mAP": score_of(matches)})
    matches.save(path)
    (path / FOLDER).mkdir()
    facts = {"metric": "mAP", "corruptions": CORRUPTIONS, "severities": SEVERITIES, "checkpoint": "step_3.pt"}
    facts |= {"step": 3, "precision": "fp32", "protocol": {"nms_iou": 0.45}, "versions": VERSIONS}
    record = Robustness(**facts | changes).with_scores({"mAP": score_of(matches)})
    compact(matches).save(path / FOLDER, CLEAN)
    for position, (name, severity) in enumerate(record.evaluations):
        matches = finding(corrupted, number, seed, position)
        compact(matches).save(path / FOLDER, statistics_name(name, severity))
        record = record.with_scores({"mAP": score_of(matches)}, name, severity)
    write_robustness(path, record)
    return path


@pytest.fixture(scope="module")
def overtaken(new_experiments):
    """Return three detectors with three seeds: `sharp` is best on original images, `sturdy` under corruption."""
    experiments = new_experiments()
    for seed in range(3):
        add_detector(experiments, "plain", 0.5, 0.2, seed)
        add_detector(experiments, "sharp", 0.9, 0.3, seed)
        add_detector(experiments, "sturdy", 0.7, 0.6, seed)
    return experiments


@pytest.fixture(scope="module")
def comparison(overtaken):
    return overtaken.compare(baseline="plain x none", corruptions=True, replicates=1000)


# ---- what is computed --------------------------------------------------------------------------------------


def test_means_are_those_of_the_records(comparison):
    for cell in comparison.scored_cells:
        records = [read_robustness(run.path) for run in cell.runs]
        found = comparison.robustness.cells[cell.place]
        assert found.clean.estimate == pytest.approx(cell.mean)
        assert found.mean.estimate == pytest.approx(np.mean([each.mPC for each in records]))
        assert found.relative.estimate == pytest.approx(np.mean([each.rPC for each in records]))
        for name in CORRUPTIONS:
            assert found.by_corruption[name].estimate == pytest.approx(
                np.mean([each.mean_of(name) for each in records])
            )


def test_a_cell_that_becomes_better_is_named(comparison):
    (sentence,) = robustness_sentences(comparison)
    assert "'sturdy x none' becomes better than 'sharp x none'" in sentence
    found = comparison.robustness
    assert (found.best[0], found.best_corrupted[0], found.may_be_best) == ("sharp", "sturdy", [("sturdy", "none")])
    assert all(each.is_significant for each in found.from_best.values() if "sturdy" in each.label)


def test_differences_are_from_the_baseline_and_corrected_together(comparison):
    found = comparison.robustness
    assert found.differences.keys() == {("sharp", "none"), ("sturdy", "none")}
    change = found.differences["sturdy", "none"]
    cells = {place: each.mean.estimate for place, each in found.cells.items()}
    assert change.interval.estimate == pytest.approx(cells["sturdy", "none"] - cells["plain", "none"])
    assert change.num_tests == 2
    assert change.simultaneous[0] < change.interval.low < change.interval.high < change.simultaneous[1]
    assert change.is_significant


def test_rank_agreement_is_that_of_scipy(comparison):
    found = comparison.robustness
    clean, mean = ([getattr(each, name).estimate for each in found.cells.values()] for name in ("clean", "mean"))
    assert found.agreement.tau.estimate == pytest.approx(kendalltau(clean, mean).statistic)
    assert found.agreement.same_best < 0.1


def test_all_corruptions_are_scored_on_the_resamples_of_the_comparison(new_experiments):
    """With one seed per cell, nothing is added to the resampled scores, so the intervals can be computed by hand."""
    experiments = new_experiments()
    paths = [add_detector(experiments, "a", 0.8, 0.5), add_detector(experiments, "b", 0.7, 0.3)]
    comparison = experiments.compare(corruptions=True, replicates=300)
    weights, means = image_weights(IMAGES, 300, 0), []
    for path in paths:
        names = [statistics_name(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
        each = [average_precision(load_statistics(path / FOLDER, name), weights) for name in names]
        means.append(np.mean([mean_average_precision(per_class) for per_class in each], axis=0))
    found = comparison.robustness
    assert found.cells["a", "none"].mean.low == pytest.approx(np.quantile(means[0], 0.025))
    change = found.differences["b", "none"].interval
    assert (change.low, change.high) == pytest.approx(tuple(np.quantile(means[1] - means[0], (0.025, 0.975))))


def test_a_cell_that_is_better_everywhere_stays_the_best(new_experiments):
    experiments = new_experiments()
    for seed in range(3):
        add_detector(experiments, "good", 0.9, 0.7, seed)
        add_detector(experiments, "bad", 0.4, 0.2, seed)
    comparison = experiments.compare(corruptions=True)
    assert "'good x none' stays the best" in robustness_sentences(comparison)[0]
    agreement = comparison.robustness.agreement
    assert (agreement.tau.estimate, agreement.same_order) == (1, 1)


def test_equal_cells_are_not_told_apart(new_experiments):
    """Twenty pairs of equal detectors: few are called different, although their measured scores differ."""
    shown = 0
    for number in range(20):
        experiments = new_experiments()
        add_detector(experiments, f"a{number}", 0.6, 0.4)
        add_detector(experiments, f"b{2 * number}", 0.6, 0.4)
        comparison = experiments.compare(corruptions=True, replicates=200)
        shown += "not shown" not in robustness_sentences(comparison)[0]
    assert shown <= 3  # 1 expected


# ---- planned looks -----------------------------------------------------------------------------------------


@pytest.fixture
def planned():
    """Return a grid that plans looks at two and at three seeds per cell."""
    return SimpleNamespace(config=SimpleNamespace(seeds=[0, 1, 2]), path=Path("grid.yaml"))


def test_only_the_runs_of_the_latest_complete_look_count_at_its_level(overtaken, planned):
    comparison = overtaken.compare(baseline="plain x none", replicates=300)
    comparison.looks = Looks((2, 3), [0.6], [0.01], {})
    add_robustness(comparison, planned)
    found = comparison.robustness
    for cell in comparison.scored_cells:
        expected = np.mean([read_robustness(run.path).mPC for run in cell.scored_runs if run.seed < 2])
        assert found.cells[cell.place].mean.estimate == pytest.approx(expected)
    assert {each.level for each in found.differences.values()} == {0.01}
    notes = " ".join(robustness_tables(comparison)[0].notes)
    assert "look 1" in notes
    assert "below 0.01" in notes


def test_a_cell_without_runs_in_the_look_is_left_out(overtaken, planned):
    comparison = overtaken.compare(baseline="plain x none", replicates=300)
    comparison.looks = Looks((2, 3), [0.6], [0.01], {})
    cell = comparison.cells["sturdy", "none"]
    cell.runs = [run for run in cell.runs if run.seed == 2]
    add_robustness(comparison, planned)
    assert [row[0] for row in robustness_tables(comparison)[0].rows] == ["plain x none", "sharp x none"]
    assert robustness_columns(comparison, cell)["mPC"] is None


def test_before_the_first_look_nothing_is_tested(overtaken, planned):
    comparison = overtaken.compare(replicates=300)
    comparison.looks = Looks((2, 3), [], [], {})
    with pytest.raises(ValueError, match=r"first planned look, at 2 seeds.* ablation\.grid run grid\.yaml"):
        add_robustness(comparison, planned)


# ---- what is refused ---------------------------------------------------------------------------------------


def test_a_run_without_a_record_is_named_with_the_command_that_makes_it(new_experiments):
    experiments = new_experiments()
    add_detector(experiments, "a", 0.8, 0.5)
    path = experiments.add("b")
    with pytest.raises(ValueError, match=rf"{path}: no scores .* python -m detection.evaluate {path} --corruptions"):
        experiments.compare(corruptions=True)


@pytest.mark.parametrize("content", ["", "{", '{"metric": "mAP"}', "[1, 2]"])
def test_a_corrupt_record_ends_the_command_with_one_line_and_the_cure(new_experiments, run_in_process, content):
    experiments = new_experiments()
    paths = [add_detector(experiments, name, 0.8, 0.5) for name in "ab"]
    file = paths[1] / "corruptions.json"
    file.write_text(content)
    code, _, errors = run_in_process(command, *paths, "--corruptions", "--replicates", "200")
    assert (code, len(errors)) == (2, 1)
    assert f"{file}: corrupt" in errors[0]
    assert f"delete this file and run python -m detection.evaluate {paths[1]} --corruptions" in errors[0]
    assert file.read_text() == content


@pytest.mark.parametrize("option", [["--one-family"], ["--seed-sd", "0.01", "--seed-df", "9"]])
def test_options_that_do_not_hold_under_corruption_are_refused(overtaken, run_in_process, option):
    code, _, errors = run_in_process(command, *sorted(overtaken.folder.iterdir()), "--corruptions", *option)
    assert code == 2
    assert len(errors) == 1
    assert option[0] in errors[0]
    assert "--corruptions" in errors[0]


def test_a_missing_record_is_made_with_the_corruptions_of_the_other_runs(new_experiments):
    experiments = new_experiments()
    add_detector(experiments, "a", 0.8, 0.5)
    path = experiments.add("b")
    command = f"python -m detection.evaluate {path} --corruptions fog,zoom_blur --severities 1,5"
    with pytest.raises(ValueError, match=command):
        experiments.compare(corruptions=True)


@pytest.mark.parametrize("content", [None, b"PK not a zip"])
def test_missing_or_corrupt_statistics_are_named_with_the_command_that_repairs_them(new_experiments, content):
    experiments = new_experiments()
    path = add_detector(experiments, "a", 0.8, 0.5)
    file = path / FOLDER / statistics_name("fog", 5)
    file.unlink()
    if content:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file}: .* python -m detection.evaluate {path} --corruptions fog,zoom"):
        experiments.compare(corruptions=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"versions": VERSIONS | {"numpy": "1"}}, "versions.numpy was '2', is '1'"),
        ({"severities": [1]}, "severities was"),
        ({"corruptions": ["fog"]}, "corruptions was"),
        ({"protocol": {"nms_iou": 0.5}}, "protocol.nms_iou was 0.45, is 0.5"),
    ],
)
def test_records_that_were_made_in_different_ways_are_refused(new_experiments, changes, message):
    experiments = new_experiments()
    add_detector(experiments, "a", 0.8, 0.5)
    add_detector(experiments, "b", 0.8, 0.5, **changes)
    with pytest.raises(ValueError, match=message):
        experiments.compare(corruptions=True)


def test_an_incomplete_record_is_refused(new_experiments):
    experiments = new_experiments()
    path = add_detector(experiments, "a", 0.8, 0.5)
    record = read_robustness(path)
    write_robustness(path, record.model_copy(update={"scores": {"fog": record.scores["fog"]}}).with_means())
    with pytest.raises(ValueError, match=f"{path}: 2 of 4 .* are scored"):
        experiments.compare(corruptions=True)


def test_a_record_of_a_different_checkpoint_is_refused(new_experiments):
    experiments = new_experiments()
    path = add_detector(experiments, "a", 0.8, 0.5)
    results = json.loads((path / "results.json").read_text())
    (path / "results.json").write_text(json.dumps(results | {"steps": 9}))
    with pytest.raises(ValueError, match=r"step 3, results\.json of step 9"):
        experiments.compare(corruptions=True)


# ---- what is shown -----------------------------------------------------------------------------------------


def test_tables_show_scores_tests_and_each_corruption(comparison):
    means, by_corruption = robustness_tables(comparison)
    lines = {row[0]: dict(zip(means.header, row, strict=True)) for row in means.rows}
    assert lines["plain x none"]["mPC: difference from plain x none"] == "baseline"
    assert lines["sturdy x none"]["verdict"] == "significant"
    assert "imagecorruptions-imaug 1.1.5" in means.notes[0]
    assert [row[0] for row in by_corruption.rows] == ["fog", "zoom blur"]
    assert by_corruption.header[1:] == [cell.name for cell in comparison.scored_cells]


def test_csv_has_the_means_and_the_differences(comparison):
    lines = {line["backbone"]: line for line in csv.DictReader(io.StringIO(to_csv(comparison)))}
    found = comparison.robustness
    assert float(lines["sharp"]["mPC"]) == found.cells["sharp", "none"].mean.estimate
    assert float(lines["sharp"]["mPC_difference_low"]) == found.differences["sharp", "none"].simultaneous[0]
    assert float(lines["sharp"]["mPC[fog]"]) == found.cells["sharp", "none"].by_corruption["fog"].estimate
    assert lines["plain"]["mPC_difference"] == ""


def test_the_page_has_a_section_only_if_asked(overtaken, comparison, tmp_path):
    pictures = [cell.runs[0].path / "corruptions.png" for cell in comparison.scored_cells]
    for path in pictures:
        Image.new("RGB", (40, 40)).save(path)
    write_report(tmp_path / "a.html", comparison)
    for path in pictures:
        path.unlink()
    text = (tmp_path / "a.html").read_text()
    assert '<section id="robustness">' in text
    assert text.count('alt="corrupted image') == 1  # all cells have a picture of the same image
    without = overtaken.compare(baseline="plain x none")
    write_report(tmp_path / "b.html", without)
    assert 'id="robustness"' not in (tmp_path / "b.html").read_text()
    assert robustness_tables(without) == robustness_sentences(without) == []
    assert "mPC" not in to_csv(without)


def test_the_command_prints_the_sentence_and_the_table(overtaken, run_in_process):
    words = (*sorted(overtaken.folder.iterdir()), "--corruptions", "--replicates", "200")
    code, output, _ = run_in_process(command, *words)
    assert code == 0
    assert "becomes better than" in output
    assert "### Performance under corruption" in output
    code, output, _ = run_in_process(command, *words, "--format", "latex")
    assert "Performance under corruption" in output
