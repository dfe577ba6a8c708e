"""Tests of ablation/compare.py, cells.py, tables.py and uncertainty.py: from experiments to tables."""

import csv
import io
import re
import sys
from pathlib import Path

import pytest

from ablation import compare as command
from ablation.display.difference_tables import difference_table
from ablation.display.formats import Table, to_latex, to_markdown
from ablation.display.sentences import conclusion_of
from ablation.display.tables import score_table, to_csv
from ablation.scheduling.jobs import State
from stats.replicates import SeedSpread
from tests.ablation.conftest import IMAGES, fake_matches

RGB, THERMAL = (dict.fromkeys(("train", "val"), digit * 64) for digit in "ab")


# ---- cells -------------------------------------------------------------------------------------------------


def test_experiments_that_differ_only_in_their_seed_share_a_cell_with_mean_and_standard_deviation(grid):
    comparison = grid.compare()
    table, (first, second) = score_table(comparison), comparison.cells["weak", "none"].scores
    assert table.header == ["backbone \\ neck", "none", "fpn"]
    assert table.title == "mAP, mean ± standard deviation over 2 seeds"
    assert table.rows[0][1] == f"{(first + second) / 2:.4f} ± {abs(first - second) / 2**0.5:.4f}"
    ((i, j),) = table.bold
    assert table.rows[i][j].startswith(f"{max(cell.mean for cell in comparison.scored_cells):.4f}")


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ([{"config": {"eval_every_epochs": 1}}, {"config": {"eval_every_epochs": 2}}], ["a"]),
        ([{}, {"config": {"epochs": 9}}], ["a (train.epochs 3)", "a (train.epochs 9)"]),
        (
            [{"data": {"root": "full"}}, {"data": {"root": "half"}, "inputs": {"train.json": "d" * 8}}],
            ["a (data.root 'full')", "a (data.root 'half')"],
        ),
        (
            [{"data": {"root": "rgb"}, "image_sets": RGB}, {"data": {"root": "thermal"}, "image_sets": THERMAL}],
            ["a (data.root 'rgb')", "a (data.root 'thermal')"],
        ),
        (
            [{"data": {"root": "one"}, "image_sets": images} for images in (RGB, THERMAL)],
            [f"a (data.root 'one', train images {c * 8}, val images {c * 8})" for c in "ab"],
        ),
        (
            [{}, {"inputs": {"train.json": "d" * 8}}],
            ["a (data.root null, train.json cccccccc)", "a (data.root null, train.json dddddddd)"],
        ),
        ([{"data": {"root": root}, "image_sets": RGB} for root in ("here", "copied")], ["a"]),
    ],
    ids=["evaluation interval", "recipe", "annotations", "folder", "images", "annotations in one folder", "a copy"],
)
def test_runs_share_a_row_unless_their_recipe_or_data_differ(experiments, changes, rows):
    for seed, each in enumerate(changes):
        experiments.add("a", seed=seed, **each)
    assert experiments.compare().rows == rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{}, {}], r"experiment_1 and .*experiment_2 .*same recipe and seed 0"),
        ([{}, {"row": "b", "protocol": {"nms_iou": 0.6}}], r"protocol.nms_iou is 0.45 in .* and 0.6 in .*cannot"),
        ([{}, {"row": "b", "classes": ("cat", "cow")}], r"protocol.classes is \[.*dog.*\] in .* and \[.*cow.*\] in "),
        (
            [{"row": c, "protocol": {"annotations_sha256": c * 64}} for c in "ab"],
            r"annotations_sha256 is 'a{8}\.\.\.' in .* and 'b{8}\.\.\.' in ",
        ),
        ([{}, {"row": "b", "metric": "top1", "scores": {"top1": 0.9}}], r"metric is 'mAP' in .* and 'top1' in"),
    ],
)
def test_incompatible_runs_raise_an_error_that_names_both_values(experiments, changes, message):
    for each in changes:
        experiments.add(**{"row": "a"} | each)
    with pytest.raises(ValueError, match=message):
        experiments.compare()


def test_force_shows_incompatible_runs_without_differences(experiments, run_in_process):
    experiments.add("a")
    experiments.add("b", protocol={"nms_iou": 0.6})
    forced = experiments.compare(force=True)
    assert not forced.differences
    assert forced.warnings[0].startswith("not comparable: protocol.nms_iou")
    assert len(forced.scored_cells) == 2
    for form in ("md", "latex", "csv"):
        _, out, _ = run_in_process(command, *sorted(experiments.folder.iterdir()), "--force", "--format", form)
        assert "not comparable" in "\n".join(line for line in out.splitlines() if not line.startswith("%"))


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (lambda path: (path / "image_statistics.npz").unlink(), r"image_statistics\.npz: no such file"),
        (lambda path: (path / "results.json").unlink(), "experiment_1: not finished"),
        (lambda path: (path / "results.json").write_text("{}"), r"results\.json: .*task: Field required"),
        (lambda path: (path / "metrics.jsonl").write_text("x\n"), "metrics.jsonl"),
        (
            lambda path: fake_matches(0.9, seed=99).save(path),
            r"image_statistics.npz gives mAP 0\.\d+, results.json says 0\.\d+",
        ),
    ],
)
def test_an_error_names_a_corrupt_or_unfinished_experiment(experiments, corrupt, message):
    corrupt(experiments.add("a", quality=0.2))
    with pytest.raises(ValueError, match=message):
        experiments.compare()


def test_a_run_without_a_defined_score_does_not_count(experiments):
    for column in ("none", "fpn"):
        experiments.add("a", column)
    experiments.add("a", "none", 1, scores={"mAP": None})
    comparison = experiments.compare()
    assert len(comparison.cells["a", "none"].scores) == 1
    assert comparison.differences


@pytest.mark.parametrize("name", ["strong x fpn", "FOLDER/experiment_7"])
def test_the_baseline_can_be_a_cell_or_one_of_its_experiments(grid, name):
    comparison = grid.compare(baseline=name.replace("FOLDER", str(grid.folder)))
    assert comparison.baseline == ("strong", "fpn")
    assert all(difference.label.endswith(" - strong x fpn") for difference in comparison.differences)


# ---- differences and effects -------------------------------------------------------------------------------


def test_only_large_differences_are_significant(grid):
    comparison = grid.compare()
    differences = {difference.label: difference for difference in comparison.differences}
    assert list(differences) == [
        "weak x fpn - weak x none", "strong x none - weak x none", "strong x fpn - weak x none",
    ]  # fmt: skip
    assert [difference.is_significant for difference in differences.values()] == [False, True, True]
    interval = differences["strong x none - weak x none"].interval
    assert 0 < interval.low < interval.estimate < interval.high
    assert difference_table("Differences", comparison.differences, comparison).bold == {(1, 1), (2, 1)}
    conclusion = " ".join(conclusion_of(comparison))
    assert "Not shown: 1 of 3 differences" in conclusion
    assert "60 validation images and 2 seeds" in conclusion
    assert "'strong' minus 'weak' is +0." in conclusion


def test_the_conclusion_leads_with_the_cells_that_may_be_the_best(grid):
    comparison = grid.compare()
    assert {place[0] for place in comparison.may_be_best} == {"strong"}
    assert comparison.probably_not_best == [("weak", "none"), ("weak", "fpn")]
    assert conclusion_of(comparison)[0].startswith("May be the best (95% confidence): 'strong x none', 'strong x fpn'.")


def test_with_a_margin_a_verdict_is_significant_small_or_open(grid):
    comparison = grid.compare(margin=1.0)  # larger than any difference of mAP
    assert [comparison.verdict(each) for each in comparison.differences] == [
        "smaller than 1", "significant, smaller than 1", "significant, smaller than 1",
    ]  # fmt: skip
    comparison = grid.compare(margin=1e-6)
    assert [comparison.verdict(each) for each in comparison.differences] == ["open", "significant", "significant"]


def test_one_seed_per_cell_shows_nothing_beyond_the_trained_weights(experiments):
    for row, quality in (("weak", 0.3), ("strong", 0.9)):
        experiments.add(row, quality=quality)
    comparison = experiments.compare()
    (difference,) = comparison.differences
    assert difference.p_holm < 0.05
    assert comparison.verdict(difference) == "differs for these weights only"
    assert not difference_table("", comparison.differences, comparison).bold
    assert "these trained weights only" in conclusion_of(comparison)[-1]


def test_a_known_spread_between_seeds_widens_intervals_and_allows_a_verdict(experiments):
    for row, quality in (("weak", 0.3), ("strong", 0.9)):
        experiments.add(row, quality=quality)
    (alone,), (known,), (wide,) = (
        experiments.compare(known_spread=spread).differences
        for spread in (None, SeedSpread(0.01, 9), SeedSpread(0.5, 9))
    )
    assert alone.interval.standard_error < known.interval.standard_error < wide.interval.standard_error
    assert experiments.compare(known_spread=SeedSpread(0.01, 9)).verdict(known) == "significant"
    assert not wide.is_significant


def test_a_known_spread_is_refused_if_the_cells_have_several_seeds(grid):
    with pytest.raises(ValueError, match="--seed-sd"):
        grid.compare(known_spread=SeedSpread(0.01, 9))


def test_one_family_corrects_all_tests_together(grid):
    apart, together = grid.compare(), grid.compare(one_family=True)
    assert [each.num_tests for family in apart.families.values() for each in family] == [3, 3, 3, 1, 1, 1]
    assert [each.num_tests for family in together.families.values() for each in family] == [6] * 6
    assert [apart.variances.tests, together.variances.tests] == [3, 6]
    assert together.variances.detectable() > apart.variances.detectable()
    assert together.family("row effect")[0].p_holm >= apart.family("row effect")[0].p_holm


def test_verdicts_do_not_depend_on_the_resamples_or_are_warned_about(experiments):
    for seed in (0, 1):
        for row, quality in (("a", 0.60), ("b", 0.64), ("c", 0.67)):
            experiments.add(row, seed=seed, quality=quality)
    verdicts, warned = {}, set()
    for resample_seed in range(8):
        comparison = experiments.compare(pairs=True, resample_seed=resample_seed)
        for each in comparison.differences:
            verdicts.setdefault(each.label, set()).add(comparison.verdict(each))
        text = " ".join(each for each in comparison.warnings if each.startswith("other resamples"))
        warned |= {label for label in verdicts if label in text}
    assert {label for label, each in verdicts.items() if len(each) > 1} <= warned


def test_rare_classes_are_warned_about(experiments, monkeypatch):
    monkeypatch.setattr("ablation.uncertainty.RARE", IMAGES + 1)
    experiments.add("a")
    experiments.add("b")
    assert any("validation images: cat (" in text for text in experiments.compare().warnings)


def test_main_effects_are_mean_differences_and_interactions_are_differences_between_differences(grid):
    comparison = grid.compare()
    mean = {place: cell.mean for place, cell in comparison.cells.items()}
    ((rows,), (columns,), (both,)) = map(comparison.family, ("row effect", "column effect", "interaction"))
    change = [mean["strong", column] - mean["weak", column] for column in ("none", "fpn")]
    assert rows.label == "strong - weak"
    assert rows.interval.estimate == pytest.approx(sum(change) / 2)
    assert columns.interval.estimate == pytest.approx(
        sum(mean[row, "fpn"] - mean[row, "none"] for row in ("weak", "strong")) / 2
    )
    assert both.interval.estimate == pytest.approx(change[1] - change[0])
    assert rows.is_significant
    assert not columns.is_significant


def test_effects_use_only_complete_rows(grid):
    grid.add("lonely")
    comparison = grid.compare()
    assert [effect.label for effect in comparison.family("row effect")] == ["strong - weak"]
    assert any("complete rows only: weak, strong" in text for text in comparison.warnings)
    assert score_table(comparison).rows[2][2] == "-"


def test_without_any_correct_detection_no_difference_can_be_tested(experiments):
    for row in "ab":
        experiments.add(row, quality=0.0)
    comparison = experiments.compare()
    assert conclusion_of(comparison)[0].startswith("No difference can be tested")
    assert difference_table("", comparison.differences, comparison).rows[0][-1] == "undefined"


def test_with_too_few_images_a_warning_replaces_the_differences(experiments, monkeypatch):
    monkeypatch.setattr("ablation.uncertainty.MIN_IMAGES", IMAGES + 1)
    experiments.add("a")
    experiments.add("b")
    comparison = experiments.compare()
    assert not comparison.differences
    assert ["60 validation images" in text for text in comparison.warnings] == [True]


# ---- warnings ----------------------------------------------------------------------------------------------


def test_a_warning_says_if_there_are_too_few_resamples_for_the_number_of_differences(grid):
    enough = grid.compare(pairs=True, replicates=300)
    assert len(enough.differences) == 6
    assert not any("too few" in text for text in enough.warnings)
    assert any("below 0.0198" in text for text in grid.compare(pairs=True, replicates=100).warnings)


def test_a_warning_names_runs_of_a_cell_with_different_numbers_of_steps(experiments):
    for seed, steps in ((0, 37), (1, 9)):
        experiments.add("a", seed=seed, steps=steps)
    warning = experiments.compare().warnings[0]
    assert "a x none" in warning
    assert "9 in " in warning
    assert "37 in " in warning


def test_a_warning_lists_differences_that_row_and_column_names_do_not_show(experiments):
    first = experiments.add("a", "none")
    second = experiments.add("a", "fpn", config={"epochs": 1})
    difference = f"train.epochs is 3 in {first} and 1 in {second}"
    assert any(text.endswith(difference) for text in experiments.compare().warnings)
    experiments.add("a", "none", config={"epochs": 1})
    assert not any(text.endswith(difference) for text in experiments.compare().warnings)


@pytest.fixture
def named(experiments, run_in_process):
    """Return a function that compares words, in which "{0}" is the first experiment; returns exit code and texts."""
    paths = [experiments.add("a", "none", seed) for seed in (0, 1)]
    paths += [experiments.add("a", "none", seed, config={"epochs": 9}) for seed in (0, 1)]

    def compare(*words):
        return run_in_process(command, *(word.format(*paths) for word in words))

    return compare


def test_experiments_can_be_named_on_the_command_line(named):
    code, output, errors = named("short={0},{1}", "long training={2},{3}", "--baseline", "long training")
    assert code == 0, errors
    assert re.search(r"^\| short \| 0\.\d+ ± ", output, re.MULTILINE)
    assert "short - long training" in output
    assert "recipes also differ" not in output  # the user knows what the names stand for


def test_an_experiment_without_a_name_keeps_that_of_its_recipe_beside_named_ones(named):
    code, output, errors = named("long={2},{3}", "{0}", "{1}")
    assert code == 0, errors
    assert re.search(r"^\| a .*x none \| 0\.", output, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["one={0}", "two={1}"], "one row"),
        (["both={0},{2}"], "different recipes"),
        (["one={0}", "one={2}"], "given twice"),
        (["={0}", "b={2}"], "expected a name"),
    ],
    ids=["two names of a recipe", "two recipes of a name", "a name twice", "no name"],
)
def test_names_that_do_not_fit_the_recipes_are_refused(named, words, message):
    code, output, [error] = named(*words)
    assert code != 0
    assert message in error
    assert not output


# ---- grids -------------------------------------------------------------------------------------------------


@pytest.fixture
def two_cell_grid(experiments, tmp_path, monkeypatch) -> dict[str, State]:
    """Return the states of a grid of two cells by column; tests may change them."""
    (tmp_path / "base.yaml").write_text("train: {epochs: 3}\n")
    columns = "columns: [{name: none}, {name: fpn, overrides: [model.neck=fpn]}]"
    rows = f"rows: [{{name: a, config: {tmp_path / 'base.yaml'}}}]"
    (tmp_path / "grid_two.yaml").write_text(f"task: detection.training\nseeds: [0]\n{rows}\n{columns}\n")
    states = {column: State("done", experiments.add("a", column)) for column in ("none", "fpn")}
    monkeypatch.setattr("ablation.cells.state_of", lambda job, cells: states[job.column])
    return states


@pytest.fixture
def table_of_grid(two_cell_grid, tmp_path, run_in_process):
    """Return a function that compares the grid and returns its exit code, output and errors."""
    return lambda: run_in_process(command, tmp_path / "grid_two.yaml", "--replicates", 100)


@pytest.mark.parametrize(
    ("kind", "same_recipe", "line"),
    [
        ("stale", False, "a x fpn, seed 0: stale (mAP 0.1; something has changed; not counted)"),  # different recipe
        ("failed", False, "a x fpn, seed 0: failed (mAP 0.1; something has changed)"),
        ("stale", True, "WARNING: a x fpn, seed 0: stale (something has changed)"),  # different code: counts
    ],
)
def test_the_state_of_a_run_that_is_not_done_is_shown(two_cell_grid, table_of_grid, kind, same_recipe, line):
    experiment = two_cell_grid["fpn"].experiment
    changes = "something has changed"
    two_cell_grid["fpn"] = State(kind, experiment, f"mAP 0.1; {changes}", same_recipe, changes)
    _, text, _ = table_of_grid()
    assert line in text
    assert ("Differences" in text) == same_recipe


def test_the_error_for_a_grid_without_comparable_runs_counts_their_states(two_cell_grid, table_of_grid):
    for column, state in two_cell_grid.items():
        two_cell_grid[column] = State("stale", state.experiment, "mAP 0.1; train.epochs was 1", same_recipe=False)
    code, _, [error] = table_of_grid()
    assert code == 2
    assert "2 stale" in error
    assert "--rerun-stale" in error


def test_a_warning_about_different_precisions_names_the_cure(two_cell_grid, table_of_grid, experiments):
    for column, precision in (("none", "bf16"), ("fpn", "fp32")):
        two_cell_grid[column] = State("done", experiments.add("a", column, config={"precision": precision}))
    text = table_of_grid()[1]
    assert "WARNING: runs were trained in different precisions (bf16 in " in text
    assert "set train.precision" in text


@pytest.mark.parametrize(
    ("kinds", "threshold", "is_warned"),
    [
        (("softmax", "sigmoid"), 0.05, True),
        (("softmax", "sigmoid"), 0.01, False),
        (("sigmoid", "sigmoid"), 0.05, False),
        ((None, "softmax"), 0.05, False),  # an earlier version, which had only softmax
    ],
)
def test_different_kinds_of_scores_are_warned_about_unless_the_threshold_is_low(
    two_cell_grid, table_of_grid, experiments, kinds, threshold, is_warned
):
    for column, kind in zip(("none", "fpn"), kinds, strict=True):
        changes = {"score_function": kind, "protocol": {"score_threshold": threshold}}
        two_cell_grid[column] = State("done", experiments.add("a", column, **changes))
    assert ("eval.score_threshold=0.01" in table_of_grid()[1]) == is_warned


# ---- tables and the command --------------------------------------------------------------------------------


def test_csv_has_one_line_per_cell_in_full_precision(grid):
    comparison = grid.compare()
    lines = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert [(line["backbone"], line["neck"], line["seeds"]) for line in lines][:2] == [
        ("weak", "none", "2"), ("weak", "fpn", "2"),
    ]  # fmt: skip
    assert float(lines[2]["mAP"]) == comparison.cells["strong", "none"].mean
    assert float(lines[2]["difference_low"]) > 0
    assert lines[0]["difference_low"] == ""
    assert float(lines[0]["device_hours"]) == 2.0


def test_csv_has_a_line_per_effect_and_per_difference_between_other_cells(grid):
    comparison = grid.compare(pairs=True)
    lines = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    kinds = [line["kind"] for line in lines]
    assert kinds == ["cell"] * 4 + ["difference"] * 3 + ["column effect", "row effect", "interaction"]
    found = {line["label"]: line for line in lines if line["kind"] != "cell"}
    (effect,) = comparison.family("row effect")
    assert float(found["strong - weak"]["difference_estimate"]) == effect.interval.estimate
    assert float(found["strong - weak"]["at_most"]) == effect.bound
    assert found["strong - weak"]["verdict"] == "significant"
    assert found["strong - weak"]["mAP"] == ""
    assert {"strong x none - weak x fpn", "strong x fpn - strong x none"} < found.keys()
    assert "strong x none - weak x none" not in found  # it is on the line of its cell


def test_markdown_escapes_names_and_uses_minus_signs_for_numbers():
    text = to_markdown(Table("", ["", "change"], [["swin-2", "[-0.1, 0.2]"], ["a|b", "0"]]))
    assert "| swin-2 | [\N{MINUS SIGN}0.1, 0.2] |" in text
    assert "| a\\|b | 0 |" in text


def test_latex_escapes_names_and_prints_the_best_in_bold(experiments):
    experiments.add("ResNet_A", "none", quality=0.3)
    experiments.add("ResNet_B", "dense_fpn", quality=0.9)
    text = to_latex(score_table(experiments.compare()))
    assert r"ResNet\_B" in text
    assert r"\textbf{0." in text
    assert text.count(r"\\") == 3
    assert text.index(r"\begin{tabular}{lrr}") < text.index(r"\bottomrule")


def test_latex_is_balanced_and_wide_tables_fit_the_width_of_the_text(grid, run_in_process):
    words = ["--columns", "all", "--per-class", "--errors", "--replicates", 200, "--format", "latex"]
    _, text, _ = run_in_process(command, *sorted(grid.folder.iterdir()), *words)
    typeset = "\n".join(re.sub(r"(?<!\\)%.*", "", line) for line in text.splitlines())
    tables = re.findall(r"\\begin\{table\}.*?\\end\{table\}", typeset, re.DOTALL)
    assert len(tables) == text.count(r"\begin{table}")
    for table in tables:
        braces = re.sub(r"\\[{}]", "", table)
        assert braces.count("{") == braces.count("}")
        columns = len(re.search(r"\\begin\{tabular\}\{(l?r*)\}", table)[1])
        rows = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {columns}
        assert (r"\resizebox{\textwidth}" in table) == (columns > 7)


def test_the_command_prints_all_requested_tables_as_markdown(grid, run_in_process):
    options = ["--columns", "AP50,parameters,gflops", "--per-class", "--errors", "--replicates", 200]
    _, text, _ = run_in_process(command, *sorted(grid.folder.iterdir()), *options)
    for heading in ("Scores and cost", "Differences", "Interactions", "AP by class", "Errors by kind", "GFLOPs are"):
        assert heading in text
    assert "| strong x none |" in text
    assert "2,000,000" in text
    assert "0.0900 (+0.0600)" in text  # a kind of error, with its change


@pytest.mark.parametrize(
    ("name", "options", "start"),
    [
        ("table.txt", ["--format", "latex"], "% "),
        ("table.html", [], "<!DOCTYPE"),
        ("table.tex", [], "% "),
        ("table.csv", [], "kind,label,backbone,neck,seeds,mAP"),
    ],
)
def test_the_format_of_the_output_file_is_from_the_option_or_else_the_suffix(
    experiments, run_in_process, monkeypatch, tmp_path, name, options, start
):
    experiments.add("a")
    monkeypatch.setattr("ablation.display.report.write_report", lambda path, _: path.write_text("<!DOCTYPE html>"))
    run_in_process(command, experiments.folder / "experiment_1", "--output", tmp_path / name, *options)
    assert (tmp_path / name).read_text().startswith(start)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "table.txt"], "use .md, .tex"),
        (["--output", "no/table.md"], "existing folder"),
        (["--columns", "gflop"], "did you mean 'gflops'"),
    ],
)
def test_parsing_refuses_an_invalid_argument(experiments, monkeypatch, capsys, options, message):
    monkeypatch.setattr(sys, "argv", ["compare", str(experiments.add("a")), *options])
    with pytest.raises((ValueError, SystemExit)) as error:
        command.parse_arguments(sys.argv[1:])
    assert message in str(error.value) + capsys.readouterr().err


def test_commands_that_repeat_a_comparison_are_the_training_of_a_grid_and_the_command_as_typed(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["/bin/python3", "-m", "ablation.compare", "my grid.yaml", "--margin", "0.1"])
    typed = "python -m ablation.compare 'my grid.yaml' --margin 0.1"
    assert command.commands_of([Path("my grid.yaml")]) == ["python -m ablation.grid run 'my grid.yaml'", typed]
    assert command.commands_of([Path("experiments/experiment_1")]) == command.commands_of([]) == [typed]
