"""Latencies in comparisons: columns, conflicts, the Pareto front, and the best within a budget."""

import argparse
import csv
import io
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest

import detection.latency
from ablation import compare as command
from ablation.comparison import Looks, measure_command
from ablation.display.latency_tables import budget_warnings, latency_sentences, latency_table
from ablation.display.plots import write_latency_plot
from ablation.display.tables import to_csv
from ablation.latency import Sample, best_places, decision_sample, front_of, within_budget
from records.latency import Program, read_latency, write_latency
from stats.pareto import Membership

WEAK, STRONG = ("weak", "none"), ("strong", "none")
WEAK_FPN, STRONG_FPN = ("weak", "fpn"), ("strong", "fpn")
TIMES = {WEAK: 10.0, WEAK_FPN: 12.0, STRONG: 20.0, STRONG_FPN: 30.0}  # ms


@pytest.fixture
def measured(grid):
    """Return the experiments of `grid`, measured in one session; seed 1 takes 2 ms longer than seed 0."""
    for place, path, seed in runs_of(grid):
        grid.measure(path, TIMES[place] - 1 + 2 * seed)
    return grid


def runs_of(experiments):
    """Return the place, path and seed of each run."""
    found = []
    for path in sorted(experiments.folder.iterdir()):
        results = json.loads((path / "results.json").read_text())
        found.append((tuple(results["variant"].values()), path, results["seed"]))
    return found


def path_of(experiments, place, seed=0):
    return next(path for found, path, number in runs_of(experiments) if (found, number) == (place, seed))


def cell_lines(comparison):
    """Return the lines of cells in CSV, by label."""
    lines = csv.DictReader(io.StringIO(to_csv(comparison)))
    return {line["label"]: line for line in lines if line["kind"] == "cell"}


# ---- latencies of cells ------------------------------------------------------------------------------------


def test_the_latency_of_a_cell_is_the_mean_over_its_measured_runs(measured):
    (path_of(measured, WEAK_FPN, seed=1) / "latency.json").unlink()
    found = measured.compare().latencies.cells
    both, one = found[WEAK], found[WEAK_FPN]
    assert (both.p50, both.p95) == (10, 15)
    assert (both.p50_low, both.p50_high) == pytest.approx((9.8, 10.2))
    assert both.images_per_second == pytest.approx((1000 / 9 + 1000 / 11) / 2)
    assert both.rounds.tolist() == [10] * 100
    assert (one.p50, one.batch_size, one.device) == (11, 8, "cpu")


def test_only_the_selected_program_with_batches_of_one_counts(measured):
    path = path_of(measured, WEAK)
    record = read_latency(path)
    compiled = [timing.model_copy(update={"program": "compiled"}) for timing in record.timings]
    write_latency(path, record.model_copy(update={"timings": compiled}))
    path = path_of(measured, WEAK_FPN)
    record = read_latency(path)
    large = record.timings[0].model_copy(update={"program": "onnxruntime", "batch_size": 32})
    write_latency(path, record.model_copy(update={"timings": [*record.timings, large]}))
    measured.measure(path_of(measured, STRONG), 20, batches=[8])
    assert measured.compare(program="compiled").latencies.cells.keys() == {WEAK}
    eager = measured.compare().latencies.cells
    assert (eager[WEAK].p50, eager[STRONG].p50) == (11, 21)  # of seed 1
    assert eager[WEAK_FPN].batch_size == 8


def test_the_programs_of_the_option_are_those_of_the_records():
    assert get_args(Program) == command.PROGRAMS


def test_experiments_without_a_record_have_no_latency(grid):
    comparison = grid.compare()
    assert comparison.latencies.cells == {}
    assert latency_sentences(comparison) == []
    assert not [name for name in cell_lines(comparison)["weak x none"] if "latency" in name or "pareto" in name]


# ---- columns -----------------------------------------------------------------------------------------------


def test_columns_show_latency_and_the_speed_of_inference_apart_from_that_of_training(measured, run_in_process):
    names = "latency_p50,latency_p95,images_per_second,training_images_per_second"
    paths = sorted(measured.folder.iterdir())
    for options in (["--format", "md"], ["--format", "latex"]):
        _, text, _ = run_in_process(command, *paths, "--columns", names, "--replicates", 200, *options)
        row = next(line for line in text.splitlines() if "weak" in line and "60" in line).replace("{[}", "[")
        assert [value in row for value in ("10.00 [9.80, 10.20]", "15.00", "101.0", "60")] == [True] * 4


def test_csv_has_the_latency_of_each_cell(measured):
    (path_of(measured, STRONG) / "latency.json").unlink()
    (path_of(measured, STRONG, seed=1) / "latency.json").unlink()
    lines = cell_lines(measured.compare(budget=11.0))
    shown = {
        name: float(lines["weak x none"][name])
        for name in ("latency_p50", "latency_p50_low", "latency_p50_high", "latency_p95", "training_images_per_second")
    }
    assert list(shown.values()) == pytest.approx([10, 9.8, 10.2, 15, 60])
    names = ("latency_device", "latency_batch_size", "pareto_front", "within_budget", "may_be_best_within_budget")
    assert [lines["weak x none"][name] for name in names] == ["cpu", "8", "yes", "1", "1"]
    assert [lines["weak x fpn"][name] for name in names[3:]] == ["0", ""]
    assert {lines["strong x none"][name] for name in names} == {""}


def test_cells_that_were_not_measured_are_named(measured):
    for seed in (0, 1):
        (path_of(measured, STRONG, seed) / "latency.json").unlink()
    assert any("Not measured: 'strong x none'" in note for note in latency_table(measured.compare()).notes)
    (warning,) = budget_warnings(measured.compare(budget=15.0))
    assert "not measured" in warning
    assert "'strong x none'" in warning
    paths = [path_of(measured, place, seed) for place in TIMES for seed in (0, 1) if (place, seed) != (STRONG, 1)]
    command = warning.partition("python -m detection.latency ")[2]
    assert sorted(command.split()) == sorted(map(str, paths))  # of a cell that was not measured, one run


CONDITIONS = {  # field of a record -> a value that differs from the other records, and what the message names
    "device": ("H200", ("device", "cpu", "H200")),
    "threads": (1, ("threads", "2", "1")),
    "precision": ("bf16", ("precision", "fp32", "bf16")),
    "versions": ({"torch": "2.10"}, ("torch", "2.14", "2.10")),
    "images": (12, ("images", "60", "12")),
    "annotations_sha256": ("b" * 64, ("images", "aaaaaaaa", "bbbbbbbb")),
}


@pytest.mark.parametrize("field", CONDITIONS)
def test_latencies_under_different_conditions_are_refused_or_replaced_by_a_warning(measured, run_in_process, field):
    value, named = CONDITIONS[field]
    path = path_of(measured, STRONG, seed=1)
    measured.measure(path, 20, **{field: value})
    with pytest.raises(ValueError, match="--budget 20ms") as error:
        measured.compare(budget=20.0)
    facts = (*named, str(path), "python -m detection.latency")
    assert all(fact in str(error.value) for fact in facts)
    assert "\n" not in str(error.value)
    paths, small = sorted(measured.folder.iterdir()), ["--replicates", 200]
    code, _, errors = run_in_process(command, *paths, *small, "--columns", "AP50,latency_p50")
    assert code
    assert named[0] in errors[0]
    _, text, _ = run_in_process(command, *paths, *small, "--columns", "all")
    assert "latency p50" not in text
    assert all(fact in text for fact in facts)
    line = cell_lines(measured.compare())["weak x none"]
    assert "latency_p50" not in line
    assert named[0] in line["warnings"]


def test_the_version_of_onnxruntime_counts_only_for_its_times(measured):
    for number, (_, path, _) in enumerate(runs_of(measured)):
        record = read_latency(path)
        timings = [each.model_copy(update={"program": "onnxruntime"}) for each in record.timings]
        versions = record.versions | {"onnxruntime": f"1.{number}"}
        write_latency(path, record.model_copy(update={"timings": record.timings + timings, "versions": versions}))
    assert measured.compare().latencies.conflict == ""
    assert "onnxruntime is 1.0" in measured.compare(program="onnxruntime").latencies.conflict


def test_times_of_a_different_checkpoint_than_the_scores_are_refused(measured):
    path = path_of(measured, WEAK)
    results = json.loads((path / "results.json").read_text())
    (path / "results.json").write_text(json.dumps(results | {"steps": 36}))
    assert measured.compare(budget=20.0).latencies.conflict == ""
    (path / "results.json").write_text(json.dumps(results | {"steps": 90}))
    with pytest.raises(ValueError, match=r"--budget 20ms") as error:
        measured.compare(budget=20.0)
    assert all(
        part in str(error.value) for part in (str(path), "step_36.pt", "step 36", "step 90", "measure all again")
    )
    assert "step 90" in measured.compare().latencies.conflict


def test_a_corrupt_record_stops_only_a_comparison_that_needs_latencies(measured):
    path = path_of(measured, WEAK) / "latency.json"
    path.write_text("{")
    comparison = measured.compare()
    assert comparison.latencies.cells == {}
    assert str(path) in comparison.latencies.conflict
    assert comparison.differences
    with pytest.raises(ValueError, match=r"--budget 20ms.*latency\.json: corrupt"):
        measured.compare(budget=20.0)


def test_cells_measured_in_several_sessions_get_a_note(measured):
    assert not any("sessions" in note for note in latency_table(measured.compare()).notes)
    for seed in (0, 1):
        measured.measure(path_of(measured, WEAK, seed), 10, session="two")
    comparison = measured.compare()
    assert comparison.latencies.sessions == {"one", "two"}
    assert any("2 sessions" in note for note in latency_table(comparison).notes)
    assert any("2 sessions" in warning for warning in budget_warnings(measured.compare(budget=15.0)))


def test_an_answer_that_no_other_measurement_would_change_has_no_warning(measured):
    assert budget_warnings(measured.compare(budget=15.0)) == budget_warnings(measured.compare()) == []


@pytest.mark.parametrize("form", ["md", "latex", "csv", "html"])
def test_a_borderline_cell_is_a_warning_beside_the_answer(measured, run_in_process, tmp_path, form):
    path = tmp_path / "answer"
    words = ("--replicates", 200, "--budget", "20ms", "--format", form, "--output", path)
    run_in_process(command, *sorted(measured.folder.iterdir()), *words)
    lines = [line for line in path.read_text().splitlines() if "borderline: " in line]
    assert lines
    assert "strong x none" in lines[0]
    if form in ("md", "latex"):
        before = [line for line in path.read_text().splitlines() if line.strip("% ")]
        number = next(number for number, line in enumerate(before) if "Within 20 ms" in line)
        assert "WARNING: borderline" in before[number + 1]


@pytest.mark.parametrize(
    ("loads", "shown"), [((None, None), None), ((1.52, 1.52), "average, 1.5 threads"), ((1, 3.0), "1.0 to 3.0")]
)
def test_the_answer_says_how_the_latency_was_measured(measured, loads, shown):
    for place, path, seed in runs_of(measured):
        measured.measure(path, TIMES[place], load=loads[seed])
    (sentence,) = latency_sentences(measured.compare(budget=15.0))
    assert "eager program in fp32 on cpu with 2 threads" in sentence
    assert shown in sentence if shown else "average" not in sentence


def test_the_command_of_a_message_lists_at_most_24_experiments():
    paths = [Path(f"my runs/experiment_{number}") for number in range(25)]
    assert measure_command(paths[:2], "eager").endswith("latency 'my runs/experiment_0' 'my runs/experiment_1'")
    assert measure_command(paths, "eager").count("experiment_") == 24
    assert measure_command(paths, "eager").endswith(" ...")


def test_the_command_that_measures_exports_has_the_options_that_exports_need():
    arguments = detection.latency.parse_arguments(measure_command([Path(".")], "onnxruntime").split()[3:])
    assert "onnxruntime" in arguments.programs
    assert (arguments.device, arguments.precision) == ("cpu", "fp32")


@pytest.mark.parametrize("is_measured", [False, True])
def test_all_columns_include_those_of_latency_only_if_measured(experiments, run_in_process, is_measured):
    path = experiments.add("a")
    if is_measured:
        experiments.measure(path, 10)
    _, text, _ = run_in_process(command, path, "--replicates", 200, "--columns", "all")
    headings = ("latency p50 (ms)", "latency p95 (ms)", "| images/s |")
    assert [heading in text for heading in headings] == [is_measured] * 3
    assert "Latency: median" in text or not is_measured


# ---- front -------------------------------------------------------------------------------------------------


def test_the_front_has_the_fastest_cell_and_better_slower_cells(measured):
    front = measured.compare().latencies.front
    assert front[WEAK] is Membership.YES
    assert front[WEAK_FPN] is Membership.MAYBE  # slower than the first, and not shown to be better or worse
    assert front[STRONG] is Membership.YES  # shown to be better than all faster cells
    assert front[STRONG_FPN] is Membership.MAYBE


def test_a_slower_and_worse_cell_is_not_on_the_front(measured):
    for seed in (0, 1):
        measured.measure(path_of(measured, WEAK_FPN, seed), 25.0)
    assert measured.compare().latencies.front[WEAK_FPN] is Membership.NO


def test_latencies_of_different_sessions_decide_nothing_because_the_load_may_differ(measured):
    for seed in (0, 1):
        measured.measure(path_of(measured, WEAK_FPN, seed), 40.0, width=0.2, session="two")
    front = measured.compare().latencies.front
    assert front[WEAK_FPN] is Membership.MAYBE  # twice the time of a better cell
    assert front[STRONG] is Membership.YES  # better than that one, and the other two were measured in its session


def test_a_lower_loss_is_better_on_the_front(experiments):
    for name, loss, time in (("small", 0.2, 10.0), ("large", 0.9, 20.0)):
        experiments.measure(experiments.add_generator(name, loss, 1.0), time)
    front = experiments.compare().latencies.front
    assert list(front.values()) == [Membership.YES, Membership.NO]


# ---- budget ------------------------------------------------------------------------------------------------


def test_the_set_of_the_best_within_a_budget_has_only_cells_within_it(measured):
    comparison = measured.compare(budget=21.0)
    budget = comparison.latencies.budget
    assert budget.within == [WEAK, WEAK_FPN, STRONG]
    assert budget.too_slow == [STRONG_FPN]
    assert budget.may_be_best == [STRONG]
    assert STRONG_FPN in comparison.may_be_best
    sentence = latency_sentences(comparison)[0]
    names = [f"'{name}'" for name in ("strong x none", "weak x none", "weak x fpn", "strong x fpn")]
    assert sorted(names, key=sentence.index) == names
    assert (sentence.index("Probably not"), sentence.index("Too slow")) > (sentence.index(names[0]), 0)


def test_within_a_budget_that_all_cells_meet_the_best_are_those_of_the_comparison(measured):
    comparison = measured.compare(budget=100.0)
    assert comparison.latencies.budget.may_be_best == comparison.may_be_best
    assert comparison.latencies.budget.too_slow == []
    comparison.may_be_best = [WEAK]  # for example because of an exact test
    sample = decision_sample(comparison, None)
    assert within_budget(comparison, 100.0, sample).may_be_best == [WEAK]
    assert within_budget(comparison, 29.0, sample).may_be_best == [STRONG]


def test_a_p50_equal_to_the_budget_is_within_it_and_borderline(measured):
    budget = measured.compare(budget=20.0).latencies.budget
    assert STRONG in budget.within
    assert budget.borderline == [STRONG]
    budget = measured.compare(budget=19.8).latencies.budget
    assert STRONG in budget.too_slow
    assert budget.borderline == [STRONG]


def test_if_no_cell_is_within_the_budget_the_fastest_is_named(measured):
    comparison = measured.compare(budget=5.0)
    assert comparison.latencies.budget.within == comparison.latencies.budget.may_be_best == []
    assert all(part in latency_sentences(comparison)[0] for part in ("'weak x none'", "10.00 ms"))


def test_a_budget_without_any_latency_is_an_error_with_the_cure(grid):
    with pytest.raises(ValueError, match=r"--budget 20ms.*eager.*python -m detection\.latency"):
        grid.compare(budget=20.0)


def test_of_two_cells_within_the_budget_the_two_sided_test_decides():
    noise = np.random.default_rng(0).normal(size=(2, 10_000))
    for gap, count in ((1.8, 2), (2.1, 1)):  # standard errors of the difference
        means = np.array([gap * np.sqrt(2), 0.0])
        sample = Sample([WEAK, STRONG], means, means[:, None] + noise, 0.05)
        assert len(best_places(sample, is_two_sided=True)) == count
        assert best_places(sample, is_two_sided=False) == [WEAK]


@pytest.mark.parametrize(("text", "expected"), [("20ms", 20), ("0.02s", 20), ("1.5 ms", 1.5), ("2s", 2000)])
def test_a_budget_is_a_time_with_its_unit(text, expected):
    assert command.milliseconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["20", "ms", "-1ms", "0s", "20us", "infms", "20ms ms"])
def test_other_budgets_are_refused_with_an_example(text):
    with pytest.raises(argparse.ArgumentTypeError, match="20ms"):
        command.milliseconds(text)


def test_with_planned_looks_decisions_are_those_of_the_latest_complete_look(measured):
    comparison = measured.compare()
    plan = SimpleNamespace(config=SimpleNamespace(seeds=[0, 1]))
    comparison.looks = Looks((1, 2), [0.5], [0.01], {})
    at_look = decision_sample(comparison, plan)
    first = {place: scores[0, 0] for place, scores in comparison.run_scores.items()}
    assert dict(zip(at_look.places, at_look.estimates, strict=True)) == first  # only seed 0
    assert at_look.level == 0.01
    comparison.looks = Looks((2,), [], [], {})
    assert decision_sample(comparison, plan).places == []
    assert front_of(comparison.latencies.cells, decision_sample(comparison, plan)) == {}
    assert within_budget(comparison, 21.0, decision_sample(comparison, plan)).may_be_best == []


# ---- output ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["md", "latex", "csv"])
def test_the_command_shows_the_budget_in_every_text_format(measured, run_in_process, form):
    paths = sorted(measured.folder.iterdir())
    _, text, _ = run_in_process(command, *paths, "--replicates", 200, "--format", form, "--budget", "0.021s")
    assert "may_be_best_within_budget" in text if form == "csv" else "within 21 ms" in text
    assert form == "csv" or "Within 21 ms, 'strong x none' is the best" in text


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_plot_is_written_as_a_picture(measured, run_in_process, tmp_path, suffix):
    path = tmp_path / f"latency{suffix}"
    _, text, _ = run_in_process(command, *sorted(measured.folder.iterdir()), "--replicates", 200, "--plot", path)
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(start)
    assert str(path) in text
    if suffix == ".svg":
        assert all(name in path.read_text() for name in ("weak x none", "strong x fpn", "may be on the front"))


def test_long_names_are_wrapped_in_the_legend_of_the_plot_and_unmeasured_cells_are_left_out(experiments, tmp_path):
    long = f"backbone {'with many words ' * 10}end"
    for name in (long, "W" * 150):
        experiments.measure(experiments.add(name), 10)
    experiments.add("unmeasured")
    write_latency_plot(tmp_path / "plot.svg", experiments.compare())
    text = (tmp_path / "plot.svg").read_text()
    assert "unmeasured" not in text
    root = ElementTree.fromstring(text)
    width = float(root.get("viewBox").split()[2])
    labels = [each for each in root.iter("{http://www.w3.org/2000/svg}text") if each.text and "many words" in each.text]
    assert len(labels) > 1
    assert all(len(each.text) * 4.9 < width for each in labels)  # 8 points: 4.9 points per character


def test_a_plot_without_latencies_or_with_another_suffix_is_refused(grid, run_in_process, tmp_path):
    for name, fact in (("plot.gif", ".png"), ("plot.png", "python -m detection.latency")):
        code, _, errors = run_in_process(command, *sorted(grid.folder.iterdir()), "--plot", tmp_path / name)
        assert code
        assert fact in errors[0]
        assert not (tmp_path / name).exists()
