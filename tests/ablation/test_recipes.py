"""What differs between the recipes of a comparison, also with runs that an earlier version recorded."""

import json

import pytest

from ablation import compare as command
from ablation.cells import compare
from ablation.config_classes import config_class, default_values
from ablation.display.report import write_report
from ablation.scheduling.jobs import State
from engine.strict_yaml import read_yaml

GRID = """
task: detection.training
seeds: [0]
rows: [{name: a, config: CONFIG}, {name: b, config: CONFIG, overrides: [train.epochs=9]}]
columns: [{name: none}, {name: fpn, overrides: [model.neck=fpn, train.epochs=5]}]
"""


def set_config(experiment, **fields):
    """Add fields, named section__field, to the config of an experiment."""
    config, _ = read_yaml(experiment / "config.yaml")
    for name, value in fields.items():
        section, _, key = name.partition("__")
        config.setdefault(section, {})[key] = value
    (experiment / "config.yaml").write_text(json.dumps(config))


# ---- fields that an earlier version did not have -------------------------------------------------------------


def test_a_field_that_was_not_recorded_counts_as_its_default(experiments):
    old, new = experiments.add("a", seed=0), experiments.add("a", seed=1)
    set_config(new, model__neck_repeats=3, train__ema_decay=None, optim__drop_epochs=[])
    comparison = experiments.compare()
    assert comparison.rows == ["a"]
    assert [run.path for run in comparison.cells["a", "none"].runs] == [old, new]
    assert comparison.recipes == []


def test_a_field_that_was_not_recorded_differs_from_other_values(experiments):
    experiments.add("a", seed=0)
    set_config(experiments.add("a", seed=1), model__neck_repeats=4)
    comparison = experiments.compare()
    assert comparison.rows == ["a (model.neck_repeats 3)", "a (model.neck_repeats 4)"]
    assert comparison.recipes == [("a (model.neck_repeats 4) x none", "model.neck_repeats=4")]


@pytest.mark.parametrize("task", ["detection", "classification", "diffusion"])
def test_every_task_has_a_config_class_with_defaults(task):
    defaults = default_values(config_class(task))
    assert (defaults["train.seed"], defaults["optim.drop_epochs"]) == (0, [])


def test_the_default_of_a_task_wins_over_the_default_of_the_loop():
    assert default_values(config_class("diffusion"))["train.ema_decay"] == 0.999
    assert default_values(config_class("detection"))["train.ema_decay"] is None


# ---- the table of recipes ------------------------------------------------------------------------------------


@pytest.fixture
def compare_grid(experiments, tmp_path, monkeypatch):
    """Return a function that compares a grid of two rows and two columns.

    epochs: epochs of each finished run, by cell. changes: changes of the runs of a row."""

    def show(epochs, **changes):
        (tmp_path / "base.yaml").write_text("train: {epochs: 3}\n")
        (tmp_path / "grid_two.yaml").write_text(GRID.replace("CONFIG", str(tmp_path / "base.yaml")))
        states = {}
        for place, number in epochs.items():
            data = {"data": {"root": place[0]}} | changes.get(place[0], {})
            states[place] = State("done", experiments.add("r", place[1], config={"epochs": number}, **data))
        monkeypatch.setattr("ablation.cells.state_of", lambda job, cells: states.get(job.place, State("waiting")))
        paths = [tmp_path / "grid_two.yaml"]
        return compare(paths, experiments.folder, baseline=None, pairs=False, replicates=100, force=False)

    return show


def test_each_row_and_column_has_its_changes_and_a_cell_what_they_do_not_explain(compare_grid):
    epochs = {("a", "none"): 3, ("a", "fpn"): 5, ("b", "none"): 9, ("b", "fpn"): 9}
    assert compare_grid(epochs).recipes == [
        ("b", "train.epochs=9"), ("fpn", "model.neck=fpn, train.epochs=5"), ("b x fpn", "train.epochs=9"),
    ]  # fmt: skip


def test_a_cell_without_the_cells_that_would_explain_it_has_all_its_changes(compare_grid):
    assert compare_grid({("a", "none"): 3, ("b", "fpn"): 9}).recipes == [("b x fpn", "model.neck=fpn, train.epochs=9")]


def test_different_data_are_a_change_and_a_copy_of_the_data_is_not(compare_grid):
    epochs = {("a", "none"): 3, ("b", "none"): 3}
    assert compare_grid(epochs).recipes == []
    assert compare_grid(epochs, b={"image_sets": {"val": "a" * 64}}).recipes == []  # a did not record its images
    assert compare_grid(epochs, b={"inputs": {"train.json": "d" * 8}}).recipes == [("b", "data.root=b")]


@pytest.mark.parametrize("form", ["md", "latex"])
def test_the_changes_of_experiments_are_in_the_tables(experiments, run_in_process, form):
    experiments.add("a")
    experiments.add("a", config={"epochs": 9})
    _, text, _ = run_in_process(command, *sorted(experiments.folder.iterdir()), "--format", form)
    assert "train.epochs=9" in text
    assert "differs from a (train.epochs 3)" in text


LONG = {"augmentation": "a_long_name", "schedule": "another_long_name"}


def test_recipes_that_differ_in_many_fields_are_named_by_experiment_and_listed(experiments):
    experiments.add("a")
    experiments.add("a", seed=1, config=LONG)
    experiments.add("a", seed=2, config=LONG)
    experiments.add("b")
    comparison = experiments.compare()
    assert comparison.rows == ["a (experiment_1)", "a (experiment_2)", "b"]
    fields = "train.augmentation=a_long_name, train.schedule=another_long_name"
    assert dict(comparison.recipes)["a (experiment_2) x none"] == fields
    assert not [each for each in comparison.warnings if "recipes also differ" in each]


def test_experiments_of_the_same_name_in_different_folders_are_named_by_path(experiments, new_experiments):
    paths = [experiments.add("a"), new_experiments().add("a", config=LONG)]
    comparison = compare(paths, experiments.folder, replicates=200)
    assert comparison.rows == [f"a ({path})" for path in paths]


def test_the_page_refers_from_the_scores_to_the_recipes(experiments, tmp_path):
    for options in ({}, {"config": LONG}):
        experiments.add("a", **options)
    write_report(tmp_path / "page.html", experiments.compare())
    scores = (tmp_path / "page.html").read_text().partition('<section id="scores">')[2].partition("</section>")[0]
    assert 'href="#how"' in scores
