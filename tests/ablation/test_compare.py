"""ablation/compare.py, tables.py and uncertainty.py: from experiment directories to tables that can be pasted."""

import csv
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from ablation import compare as command
from ablation.cells import compare, mixed_precisions
from ablation.comparison import Comparison, Note
from ablation.plan import State
from ablation.tables import (
    Table,
    column_table,
    difference_table,
    error_table,
    score_table,
    to_csv,
    to_latex,
    to_markdown,
)
from records.results import read_run
from stats.bootstrap import average_precision, holm, mean_average_precision
from stats.image_statistics import Matches

IMAGES, CLASSES, THRESHOLDS = 60, ("cat", "dog"), 10
KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")


def matches(quality: float, seed: int) -> Matches:
    """Detections of one object of each class per image: the share `quality` of them right at every threshold."""
    draw = np.random.default_rng(seed)
    images, classes = np.tile(np.arange(IMAGES), 2), np.repeat([0, 1], IMAGES)
    right = draw.random(2 * IMAGES) < quality
    return Matches(
        image_ids=np.arange(IMAGES),
        class_names=np.array(CLASSES),
        iou_thresholds=np.linspace(0.5, 0.95, THRESHOLDS),
        detection_images=images.astype(np.int32),
        detection_classes=classes.astype(np.int16),
        scores=draw.random(2 * IMAGES),
        true_positives=np.repeat(right[:, None], THRESHOLDS, axis=1),
        ignored=np.zeros((2 * IMAGES, THRESHOLDS), bool),
        object_images=images.astype(np.int32),
        object_classes=classes.astype(np.int16),
    )


class Experiments:
    """A folder of made-up finished experiments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, row: str, column: str, seed: int = 0, quality: float = 0.6, **changes: dict) -> Path:
        """One more; `changes` are merged into results.json, "config" into config.yaml."""
        number = sum(1 for _ in self.folder.iterdir()) + 1
        path = self.folder / f"experiment_{number}"
        path.mkdir()
        statistics = matches(quality, seed=number)
        statistics.save(path)
        per_class = average_precision(statistics, np.ones((1, IMAGES), int))
        config = {"model": {"backbone": row, "neck": column}, "train": {"seed": seed, "epochs": 3}}
        config["train"] |= changes.pop("config", {})
        (path / "config.yaml").write_text(json.dumps(config))
        (path / "environment.json").write_text("[]")
        results = {
            "task": "made up", "metric": "mAP", "variant": {"backbone": row, "neck": column}, "seed": seed,
            "scores": {"mAP": float(mean_average_precision(per_class)[0]), "AP50": 0.75},
            "per_class": {name: {"AP": float(ap)} for name, ap in zip(CLASSES, per_class[0], strict=True)},
            "errors": {"AP50": 0.7, "delta_AP50": dict.fromkeys(KINDS, 0.1 * quality)},
            "inputs": {"train.json": "c" * 8},
            "protocol": {"annotations": "val.json", "annotations_sha256": "a" * 8, "images": IMAGES,
                         "classes": list(CLASSES), "nms_iou": 0.45},
            "cost": {"parameters": 2_000_000, "gflops": 1.5, "train_seconds": 1800.0, "images_per_second": 60.0,
                     "peak_memory_mib": 900.0, "processes": 4},
        }  # fmt: skip
        for section, values in changes.items():
            results[section] = results[section] | values
        (path / "results.json").write_text(json.dumps(results))
        return path

    def compare(self, **options: object) -> Comparison:
        arguments = {"baseline": None, "pairs": False, "replicates": 200, "force": False} | options
        return compare(sorted(self.folder.iterdir()), self.folder, **arguments)


@pytest.fixture
def experiments(tmp_path) -> Experiments:
    folder = tmp_path / "experiments"
    folder.mkdir()
    return Experiments(folder)


@pytest.fixture
def grid(experiments) -> Experiments:
    """Two rows, two columns, two seeds; only the row makes a difference."""
    for row, quality in (("weak", 0.3), ("strong", 0.9)):
        for column in ("none", "fpn"):
            for seed in (0, 1):
                experiments.add(row, column, seed, quality)
    return experiments


def test_experiments_that_differ_in_their_seed_share_a_cell_with_mean_and_spread(grid):
    table = score_table(grid.compare())
    assert table.header == ["backbone \\ neck", "none", "fpn"]
    assert table.title == "mAP, mean ± standard deviation over 2 seeds"
    cell = grid.compare().cells["weak", "none"]
    first, second = (run.score for run in cell.runs)
    assert table.rows[0][1] == f"{(first + second) / 2:.4f} ± {abs(first - second) / 2**0.5:.4f}"


def test_how_often_runs_were_scored_keeps_them_not_apart(experiments):
    experiments.add("a", "none", seed=0, config={"eval_every_epochs": 1})
    experiments.add("a", "none", seed=1, config={"eval_every_epochs": 2})
    assert len(experiments.compare().cells["a", "none"].runs) == 2


def test_the_best_cell_alone_is_bold(grid):
    comparison = grid.compare()
    table = score_table(comparison)
    ((i, j),) = table.bold
    assert table.rows[i][j].startswith(f"{max(cell.mean for cell in comparison.filled):.4f}")


def test_a_large_difference_is_shown_and_no_difference_is_not(grid):
    differences = {difference.label: difference for difference in grid.compare().differences}
    assert list(differences) == [
        "weak x fpn - weak x none", "strong x none - weak x none", "strong x fpn - weak x none",
    ]  # fmt: skip
    assert [difference.significant for difference in differences.values()] == [False, True, True]
    interval = differences["strong x none - weak x none"].interval
    assert interval.low < interval.estimate < interval.high
    assert interval.low > 0


def test_every_pair_is_compared_on_request(grid):
    assert len(grid.compare(pairs=True).differences) == 6


def test_the_conclusion_names_what_was_shown_and_what_could_have_been(grid):
    conclusion = grid.compare().conclusion
    assert "2 of 3 differences significant" in conclusion
    assert "60 validation images and 2 seeds" in conclusion


def test_main_effects_are_means_of_differences_and_interactions_differences_of_these(grid):
    comparison = grid.compare()
    mean = {place: cell.mean for place, cell in comparison.cells.items()}
    ((rows,), (columns,), (both,)) = comparison.row_effects, comparison.column_effects, comparison.interactions
    change = [mean["strong", column] - mean["weak", column] for column in ("none", "fpn")]
    assert rows.label == "strong - weak"
    assert rows.interval.estimate == pytest.approx(sum(change) / 2)
    assert columns.interval.estimate == pytest.approx(
        sum(mean[row, "fpn"] - mean[row, "none"] for row in ("weak", "strong")) / 2
    )
    assert both.interval.estimate == pytest.approx(change[1] - change[0])
    assert rows.significant
    assert not columns.significant


def test_effects_are_taken_over_complete_rows_alone(grid):
    grid.add("lonely", "none")
    comparison = grid.compare()
    assert [effect.label for effect in comparison.row_effects] == ["strong - weak"]
    assert score_table(comparison).rows[2][2] == "-"


def test_one_seed_per_cell_is_a_warning(experiments):
    experiments.add("a", "none")
    experiments.add("b", "none")
    assert "one seed per cell" in experiments.compare().warnings[0]


def test_too_few_resamples_for_so_many_differences_are_a_warning(grid):
    assert not grid.compare(pairs=True, replicates=300).warnings
    assert "p cannot fall below 0.0198" in grid.compare(pairs=True, replicates=100).warnings[0]


def test_two_recipes_of_one_variant_are_two_rows_that_say_what_differs(experiments):
    experiments.add("a", "none")
    experiments.add("a", "none", config={"epochs": 9})
    assert experiments.compare().rows == ["a (train.epochs 3)", "a (train.epochs 9)"]


def test_the_same_run_twice_is_refused(experiments):
    experiments.add("a", "none")
    experiments.add("a", "none")
    with pytest.raises(ValueError, match=r"experiment_1 and .*experiment_2: the same recipe and seed 0"):
        experiments.compare()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"nms_iou": 0.6}, "protocol.nms_iou is 0.45 in .*, 0.6 in "),
        ({"classes": ["cat", "cow"]}, r"protocol.classes is \[.*dog.*\] in .*, \[.*cow.*\] in "),
    ],
)
def test_what_cannot_be_compared_is_refused_with_both_values_and_forced_with_a_warning(experiments, changes, told):
    experiments.add("a", "none")
    experiments.add("b", "none", protocol=changes)
    with pytest.raises(ValueError, match=f"{told}.*cannot be compared"):
        experiments.compare()
    forced = experiments.compare(force=True)
    assert not forced.differences
    assert forced.warnings[0].startswith("not comparable: protocol.")
    assert len(forced.filled) == 2


def test_other_annotations_are_told_by_their_files(experiments):
    for digest in "ab":
        files = {"inputs": {f"{digest}/val.json": digest * 64}, "protocol": {"annotations_sha256": digest * 64}}
        experiments.add(digest, "none", **files)
    files = r"another annotation file: a/val\.json \(sha256 a{8}\) in .* against b/val\.json \(sha256 b{8}\) in "
    with pytest.raises(ValueError, match=files):
        experiments.compare()


RGB, THERMAL = (dict.fromkeys(("train", "val"), digit * 64) for digit in "ab")


def place(path: Path, root: str, images: dict | None) -> None:
    """Have a made-up run say where its data lay, and which images it read."""
    config = json.loads((path / "config.yaml").read_text()) | {"data": {"root": root}}
    (path / "config.yaml").write_text(json.dumps(config))
    results = json.loads((path / "results.json").read_text())
    (path / "results.json").write_text(json.dumps(results | ({"image_sets": images} if images else {})))


@pytest.mark.parametrize(
    ("roots", "names"),
    [
        (("rgb", "thermal"), ["a (data.root 'rgb')", "a (data.root 'thermal')"]),
        (("one", "one"), [f"a (data.root 'one', train images {c * 8}, val images {c * 8})" for c in "ab"]),
    ],
)
def test_runs_on_other_images_are_no_seeds_of_one_cell(experiments, roots, names):
    for seed, (root, images) in enumerate(zip(roots, (RGB, THERMAL), strict=True)):
        place(experiments.add("a", "none", seed), root, images)
    comparison = experiments.compare()
    assert comparison.rows == names
    assert [len(cell.runs) for cell in comparison.cells.values()] == [1, 1]


def test_seeds_on_copies_of_one_data_set_share_a_cell(experiments):
    for seed, root in enumerate(("here", "copied")):
        place(experiments.add("a", "none", seed), root, RGB)
    assert [len(cell.runs) for cell in experiments.compare().cells.values()] == [2]


@pytest.mark.parametrize(("images", "cells"), [((RGB, None, RGB), [3]), ((RGB, None, THERMAL), [1, 1, 1])])
def test_a_run_that_does_not_tell_its_images_joins_the_others_if_these_agree(experiments, images, cells):
    for seed, each in enumerate(images):
        place(experiments.add("a", "none", seed), f"root{seed}", each)
    assert [len(cell.runs) for cell in experiments.compare().cells.values()] == cells


def test_other_images_of_a_classifier_are_told_by_their_folders(experiments):
    for digest in "ab":
        experiments.add(digest, "none", protocol={"images_sha256": digest * 64})
    with pytest.raises(ValueError, match=r"other validation images: \d+ of .* \(sha256 a{8}\) in .* against .*b{8}\)"):
        experiments.compare()


def test_runs_of_a_cell_that_took_other_numbers_of_steps_are_warned_of(experiments):
    for seed, steps in ((0, 37), (1, 9)):
        path = experiments.add("a", "none", seed) / "results.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"steps": steps}))
    (warning,) = [text for text in experiments.compare().warnings if "steps" in text]
    assert warning.startswith("a x none: its runs took other numbers of steps (9 in ")


def test_runs_of_a_grid_in_different_precisions_are_reported_with_the_cure(experiments):
    runs = [
        read_run(experiments.add("a", "none", seed, config={"precision": precision}))
        for seed, precision in enumerate(["bf16", "fp32", "bf16"])
    ]
    (warning,) = mixed_precisions(runs)
    assert all(fact in warning for fact in ("bf16 in", "fp32 in", str(runs[1].path), "set train.precision"))
    assert not list(mixed_precisions(runs[::2]))


def test_what_rows_and_columns_do_not_tell_is_told(experiments):
    experiments.add("a", "none")
    experiments.add("a", "fpn", config={"epochs": 1})
    (warning,) = [text for text in experiments.compare().warnings if "do not tell" in text]
    first, second = sorted(experiments.folder.iterdir())
    assert warning == (f"rows and columns do not tell all that differs: train.epochs is 3 in {first}, 1 in {second}")


def test_what_rows_tell_is_not_told_again(experiments):
    experiments.add("a", "none")
    experiments.add("a", "none", config={"epochs": 1})
    experiments.add("b", "fpn")
    assert not [text for text in experiments.compare().warnings if "do not tell" in text]


def test_scores_of_different_kinds_have_no_table_even_when_forced(experiments):
    experiments.add("a", "none")
    path = experiments.add("b", "none") / "results.json"
    content = json.loads(path.read_text()) | {"metric": "top1"}
    content["scores"]["top1"] = 0.9
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"metric is 'mAP' in .*, 'top1' in .*; they cannot .* not with --force"):
        experiments.compare(force=True)


def test_other_hashes_are_shortened(experiments):
    for digest in "ab":
        experiments.add(digest, "none", protocol={"another_sha256": digest * 64})
    with pytest.raises(ValueError, match=r"another_sha256 is 'a{8}\.\.\.' in .*, 'b{8}\.\.\.' in "):
        experiments.compare()


def test_runs_of_tasks_that_score_on_other_things_are_told_apart(experiments):
    experiments.add("a", "none")
    results = experiments.add("b", "none") / "results.json"
    content = json.loads(results.read_text())
    del content["protocol"]["annotations_sha256"]
    results.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"annotations_sha256 is 'aaaaaaaa' in .*, null in "):
        experiments.compare()


@pytest.fixture
def two_cell_grid(experiments, tmp_path, monkeypatch) -> dict[str, State]:
    """A grid file of two cells whose states can be set, by column; its command line is in sys.argv."""
    (tmp_path / "base.yaml").write_text("train: {epochs: 3}\n")
    columns = "columns: [{name: none}, {name: fpn, overrides: [model.neck=fpn]}]"
    rows = f"rows: [{{name: a, config: {tmp_path / 'base.yaml'}}}]"
    (tmp_path / "grid_two.yaml").write_text(f"task: detection.training\nseeds: [0]\n{rows}\n{columns}\n")
    states = {column: State("done", experiments.add("a", column)) for column in ("none", "fpn")}
    monkeypatch.setattr("ablation.cells.state_of", lambda job, cells: states[job.column])
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path / "grid_two.yaml"), "--replicates", "100"])
    return states


def test_a_run_of_another_recipe_is_told_and_counts_for_nothing(two_cell_grid, capsys):
    done = two_cell_grid["fpn"]
    two_cell_grid["fpn"] = State("stale", done.experiment, "mAP 0.1; train.epochs was 1, is 3", same_recipe=False)
    command.main(command.parse_arguments(sys.argv[1:]), None)
    text = capsys.readouterr().out
    assert "| stale |" in text
    assert "a x fpn: seed 0 stale: mAP 0.1; train.epochs was 1, is 3; left out" in text
    assert "Differences" not in text


def test_a_grid_with_nothing_to_compare_says_how_its_runs_are(two_cell_grid):
    for column, state in two_cell_grid.items():
        two_cell_grid[column] = State("stale", state.experiment, "mAP 0.1; train.epochs was 1, is 3", same_recipe=False)
    with pytest.raises(ValueError, match=r"nothing to compare, of its runs are 2 stale; .*--rerun-stale"):
        command.main(command.parse_arguments(sys.argv[1:]), None)


def test_an_output_that_cannot_be_written_is_refused_before_any_work(grid, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"--output .*: expected a file in a folder that exists"):
        run_command(monkeypatch, grid.folder / "experiment_1", "--output", tmp_path / "no/table.md")


def test_significant_effects_are_part_of_the_conclusion(grid):
    assert "Significant averaged over the rest of the grid: strong against weak: +0." in grid.compare().conclusion


def test_a_run_of_other_code_counts_with_a_warning(two_cell_grid, capsys):
    done = two_cell_grid["fpn"]
    two_cell_grid["fpn"] = State("stale", done.experiment, "mAP 0.1; the code has changed since (training.py)")
    command.main(command.parse_arguments(sys.argv[1:]), None)
    text = capsys.readouterr().out
    assert "WARNING: a x fpn: seed 0 stale: the code has changed since (training.py)" in text
    assert "Differences" in text


def test_what_all_runs_share_is_said_once(two_cell_grid, capsys):
    for column, done in two_cell_grid.items():
        score = f"mAP 0.{len(column)}"
        two_cell_grid[column] = State("stale", done.experiment, f"{score}; the code has changed since (71 files)")
    command.main(command.parse_arguments(sys.argv[1:]), None)
    text = capsys.readouterr().out
    assert "WARNING: all 2 runs stale: the code has changed since (71 files)" in text
    assert text.count("71 files") == 1


def test_what_several_runs_share_is_said_once_with_their_cells(comparison):
    for cell in comparison.filled[:3]:
        cell.notes = [Note(9, "failed", "no space left")]
    first, second, third = (cell.name for cell in comparison.filled[:3])
    assert comparison.reasons(of_scored=False) == [f"3 runs ({first}, {second}, {third}) failed: no space left"]


def test_a_cell_that_has_not_finished_is_shown_as_what_it_is(two_cell_grid, capsys):
    two_cell_grid["fpn"] = State("failed", Path("experiments/experiment_9"), "no space left")
    command.main(command.parse_arguments(sys.argv[1:]), None)
    assert "a x fpn: seed 0 failed: no space left" in capsys.readouterr().out


def test_with_one_seed_the_conclusion_is_of_these_weights_alone(experiments):
    experiments.add("weak", "none", quality=0.2)
    experiments.add("strong", "none", quality=0.9)
    conclusion = experiments.compare().conclusion
    assert "significant at 5% after Holm for these very weights (one seed per cell)" in conclusion
    assert "What another seed would change comes on top" in conclusion


def test_a_renamed_annotation_file_is_the_same_file(experiments):
    experiments.add("a", "none")
    experiments.add("b", "none", protocol={"annotations": "other_name.json"})
    assert experiments.compare().differences


def test_one_recipe_on_two_sets_of_training_data_is_refused(experiments):
    experiments.add("a", "none", 0)
    experiments.add("a", "none", 1, inputs={"train.json": "d" * 8})
    with pytest.raises(ValueError, match=r"the same recipe on other data, .*cccccccc.*dddddddd"):
        experiments.compare()


def test_one_recipe_on_training_data_in_two_folders_makes_two_rows(experiments):
    for root, digest in (("full", "c"), ("half", "d")):
        path = experiments.add("a", "none", inputs={"train.json": digest * 8}) / "config.yaml"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data": {"root": root}}))
    assert [row for row, _ in experiments.compare().cells] == ["a (data.root 'full')", "a (data.root 'half')"]


def test_an_undefined_score_is_left_out(experiments):
    for column in ("none", "fpn"):
        experiments.add("a", column)
    experiments.add("a", "none", 1, scores={"mAP": None})
    comparison = experiments.compare()
    assert len(comparison.cells["a", "none"].scores) == 1
    assert comparison.differences


def test_where_nothing_is_found_nothing_could_have_been_shown(experiments):
    for row in "ab":
        experiments.add(row, "none", quality=0.0)
    comparison = experiments.compare()
    assert comparison.conclusion.startswith("No difference can be tested")
    assert difference_table("", comparison.differences, "mAP").rows[0][-1] == "undefined"


def test_too_few_images_give_no_differences_but_a_warning(experiments, monkeypatch):
    monkeypatch.setattr("ablation.uncertainty.FEWEST_IMAGES", IMAGES + 1)
    experiments.add("a", "none")
    experiments.add("b", "none")
    comparison = experiments.compare()
    assert not comparison.differences
    assert "60 validation images: too few" in comparison.warnings[0]


def test_what_could_have_been_shown_is_found_in_four_of_five_experiments(experiments):
    for row in "abcd":
        experiments.add(row, "none")
    differences = experiments.compare().differences
    truth, error = differences[0].smallest_detectable, differences[0].interval.standard_error
    # Three differences of the same size, each seen with normal noise, tested by Holm: how often is the first found?
    seen = np.random.default_rng(0).normal([truth, 0, 0], error, (4000, 3))
    found = [holm([math.erfc(abs(z) / 2**0.5) for z in row])[0] < 0.05 for row in seen / error]
    assert 0.78 < np.mean(found) < 0.84


def test_statistics_of_another_run_are_refused(experiments):
    matches(0.9, seed=99).save(experiments.add("a", "none", quality=0.2))
    with pytest.raises(ValueError, match=r"image_statistics.npz gives mAP 0\.\d+, results.json says 0\.\d+"):
        experiments.compare()


def test_absent_statistics_are_named(experiments):
    (experiments.add("a", "none") / "image_statistics.npz").unlink()
    with pytest.raises(ValueError, match=r"image_statistics\.npz: no such file"):
        experiments.compare()


def test_an_unfinished_experiment_is_named(experiments):
    (experiments.add("a", "none") / "results.json").unlink()
    with pytest.raises(ValueError, match="experiment_1: not finished"):
        experiments.compare()


@pytest.mark.parametrize("name", ["strong x fpn", "experiment_7", "FOLDER/experiment_7"])
def test_the_baseline_is_a_cell_or_one_of_its_experiments(grid, name):
    comparison = grid.compare(baseline=name.replace("FOLDER", str(grid.folder)))
    assert comparison.baseline == ("strong", "fpn")
    assert all(difference.label.endswith(" - strong x fpn") for difference in comparison.differences)


def test_an_unknown_baseline_is_refused(grid):
    with pytest.raises(ValueError, match="did you mean 'strong x fpn'"):
        grid.compare(baseline="strong x fnp")


def test_ap_by_class_has_intervals_and_its_change_is_from_the_baseline(grid):
    comparison = grid.compare()
    change = comparison.per_class_change["strong", "none"]["dog"].estimate
    ap = [comparison.per_class[row, "none"]["dog"] for row in ("strong", "weak")]
    assert change == pytest.approx(ap[0].estimate - ap[1].estimate)
    assert ap[0].low < ap[0].estimate < ap[0].high


def test_errors_are_shown_with_their_change(grid):
    table = error_table(grid.compare())
    assert table.header == ["", *KINDS]
    assert table.rows[0][1] == "0.0300"
    assert table.rows[2][1] == "0.0900 (+0.0600)"


def test_csv_has_a_line_per_cell_in_full_precision(grid):
    comparison = grid.compare()
    lines = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert [(line["backbone"], line["neck"], line["seeds"]) for line in lines][:2] == [
        ("weak", "none", "2"), ("weak", "fpn", "2"),
    ]  # fmt: skip
    assert float(lines[2]["mAP"]) == comparison.cells["strong", "none"].mean
    assert float(lines[2]["difference_low"]) > 0
    assert lines[0]["difference_low"] == ""
    assert float(lines[0]["device_hours"]) == 2.0


def test_all_columns_are_those_that_the_runs_have_numbers_for(grid):
    names = column_table(grid.compare(), ["all"]).header[2:]
    assert names == ["AP50", "parameters", "GFLOPs", "images/s", "peak memory (MiB)", "device-hours"]


def test_every_pair_is_measured_from_the_baseline_where_it_is_one_of_them(grid):
    differences = grid.compare(pairs=True, baseline="strong x fpn").differences
    assert sum(difference.label.endswith(" - strong x fpn") for difference in differences) == 3


def test_warnings_are_in_every_format(experiments, monkeypatch, capsys):
    experiments.add("a", "none")
    experiments.add("b", "none", protocol={"nms_iou": 0.6})
    for form in ("md", "latex", "csv"):
        run_command(monkeypatch, *sorted(experiments.folder.iterdir()), "--force", "--format", form)
        text = capsys.readouterr().out
        printed = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
        assert "not comparable" in printed


def test_markdown_escapes_names(experiments):
    experiments.add("a|b", "none")
    assert "| a\\|b |" in to_markdown(score_table(experiments.compare()))


def test_latex_escapes_names_and_sets_the_best_in_bold(experiments):
    experiments.add("ResNet_A", "none", quality=0.3)
    experiments.add("ResNet_B", "dense_fpn", quality=0.9)
    text = to_latex(score_table(experiments.compare()))
    assert r"ResNet\_B" in text
    assert r"\textbf{0." in text
    assert text.count(r"\\") == 3
    assert text.index(r"\begin{tabular}{lrr}") < text.index(r"\bottomrule")


def test_significant_differences_are_bold(grid):
    table = difference_table("Differences", grid.compare().differences, "mAP")
    assert table.bold == {(1, 1), (2, 1)}


def run_command(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments), "--replicates", "200"])
    command.main(command.parse_arguments(sys.argv[1:]), None)


def test_the_command_prints_markdown_with_every_view_asked_for(grid, monkeypatch, capsys):
    run_command(
        monkeypatch, *sorted(grid.folder.iterdir()), "--columns", "AP50,parameters,gflops", "--per-class", "--errors"
    )
    text = capsys.readouterr().out
    for heading in ("Scores and cost", "Differences", "Interactions", "AP by class", "Errors by kind", "GFLOPs: one"):
        assert heading in text
    assert "| strong x none |" in text
    assert "2,000,000" in text


@pytest.mark.parametrize(("form", "begin"), [("latex", "% 2 of 3"), ("csv", "backbone,neck,seeds,mAP")])
def test_the_command_writes_a_file_on_request(grid, monkeypatch, tmp_path, form, begin):
    output = tmp_path / "table.txt"
    run_command(monkeypatch, *sorted(grid.folder.iterdir()), "--format", form, "--output", output)
    assert output.read_text().startswith(begin)


@pytest.mark.parametrize(("suffix", "begin"), [("html", "<!DOCTYPE"), ("tex", "% 2 of 3"), ("csv", "backbone,neck")])
def test_the_format_is_that_of_the_outputs_suffix(grid, monkeypatch, tmp_path, suffix, begin):
    output = tmp_path / f"table.{suffix}"
    monkeypatch.setattr("ablation.report.write_report", lambda path, _: path.write_text("<!DOCTYPE html>"))
    run_command(monkeypatch, *sorted(grid.folder.iterdir()), "--output", output)
    assert output.read_text().startswith(begin)


def test_a_suffix_that_contradicts_the_format_is_refused(grid, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"table\.html: not latex; end it in \.tex, or leave out --format"):
        run_command(monkeypatch, grid.folder / "experiment_1", "--format", "latex", "--output", tmp_path / "table.html")


def test_one_experiment_is_not_called_experiments(experiments):
    experiments.add("a", "none")
    assert experiments.compare().title == "1 experiment"


def test_negative_numbers_have_a_minus_sign_in_markdown_and_names_do_not():
    text = to_markdown(Table("", ["", "change"], [["swin-2", "[-0.1, 0.2]"]]))
    assert "| swin-2 | [\N{MINUS SIGN}0.1, 0.2] |" in text


def test_an_unknown_column_is_refused(grid, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_command(monkeypatch, grid.folder / "experiment_1", "--columns", "gflop")
    assert "no column 'gflop'; did you mean 'gflops'?" in capsys.readouterr().err
