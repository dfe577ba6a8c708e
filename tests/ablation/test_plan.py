"""ablation/plan.py: what a grid file asks for, and how far each cell is."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ablation.plan import (
    PROJECT,
    Grid,
    Job,
    changed_recipe,
    claimed,
    code_hashes,
    is_same_data,
    read_cells,
    read_grid,
    remember,
    state_of,
)
from engine.files import file_sha256
from engine.inputs import Inputs, identify_images
from engine.strict_yaml import ConfigError
from records.experiment import new_experiment, occupied

GRID = """
task: detection.training
seeds: [0, 1]
overrides: [train.epochs=3, model.neck=pan]
rows:
  - {name: small, config: CONFIG}
  - {name: large, config: CONFIG, overrides: [train.epochs=9], columns: [fpn]}
columns:
  - {name: none, overrides: [model.neck=none]}
  - {name: fpn, overrides: [model.neck=fpn]}
"""


def write_grid(folder: Path, text: str = GRID) -> Path:
    config, path = folder / "base.yaml", folder / "grid_test.yaml"
    config.write_text("data: {root: here}\nmodel: {neck: none}\ntrain: {epochs: 1}\n")
    path.write_text(text.replace("CONFIG", str(config)))
    return path


@pytest.fixture
def grid(tmp_path) -> Grid:
    return read_grid(write_grid(tmp_path))


@pytest.fixture
def job(grid) -> Job:
    return grid.jobs[0]


@pytest.fixture
def experiment(job, tmp_path) -> Path:
    """The experiment of `job`, as the grid makes it before the task starts."""
    experiment = new_experiment(tmp_path / "experiments")
    remember(job, experiment)
    return experiment


def finish(experiment: Path, inputs: dict[str, str] | None = None) -> None:
    results = {
        "task": "detection",
        "variant": {"backbone": "a", "neck": "b"},
        "seed": 0,
        "metric": "mAP",
        "scores": {"mAP": 0.25},
        "protocol": {"images": 9, "classes": ["a"]},
    }
    results |= {"inputs": inputs or {}, "cost": {}}
    (experiment / "config.yaml").write_text("data: {root: here}\ntrain: {epochs: 3}\n")
    (experiment / "results.json").write_text(json.dumps(results))


def state(job: Job, experiment: Path):
    return state_of(job, read_cells(experiment.parent))


def test_a_grid_lists_every_cell_with_its_first_seed_before_any_second(grid):
    names = [job.name for job in grid.jobs]
    assert names == [
        "small x none, seed 0", "small x fpn, seed 0", "large x fpn, seed 0",
        "small x none, seed 1", "small x fpn, seed 1", "large x fpn, seed 1",
    ]  # fmt: skip


def test_the_rows_word_counts_before_the_columns_and_both_before_the_grids(grid):
    small, _, large = (job.recipe() for job in grid.jobs[:3])
    assert (small["train"], small["model"]["neck"]) == ({"epochs": 3, "seed": 0}, "none")
    assert (large["train"], large["model"]["neck"]) == ({"epochs": 9, "seed": 0}, "fpn")


def test_a_job_is_started_by_the_command_of_its_task(job, tmp_path):
    _, *command = job.command(tmp_path / "experiment_3")
    assert command[:3] == ["-m", "detection.training", str(tmp_path / "base.yaml")]
    assert command[-2:] == ["--experiment", str(tmp_path / "experiment_3")]


@pytest.fixture
def data(tmp_path) -> Callable[[str, str], dict]:
    """Makes a folder of data with an annotation file of this content; the recipe that names it."""

    def make(folder: str, content: str) -> dict:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "val.json").write_text(content)
        return {"data": {"root": str(tmp_path / folder), "val": {"images": "val", "annotations": "val.json"}}}

    return make


def test_data_are_the_same_in_the_same_folder_copied_or_moved(data, tmp_path):
    one, copy = data("one", "cells"), data("copy", "cells")
    assert is_same_data(one, one)
    assert is_same_data(one, copy)
    (tmp_path / "one").rename(tmp_path / "moved")
    assert is_same_data(one, {"data": {"root": str(tmp_path / "moved")}})


def test_data_are_others_where_the_files_differ_or_are_not_found(data, tmp_path):
    cells = data("cells", "cells")
    assert not is_same_data(cells, data("cards", "cards"))
    assert not is_same_data(cells, {"data": {"root": str(tmp_path / "nowhere")}})


def test_a_run_on_other_data_is_not_taken_for_this_one(tmp_path, data):
    cells, cards = data("cells", "cells"), data("cards", "cards")
    jobs = []
    for name, recipe in (("cells", cells), ("cards", cards)):
        config = tmp_path / f"{name}.yaml"
        config.write_text(json.dumps(recipe))
        jobs.append(Job(name, "detection.training", "a", "none", 0, str(config), ()))
    experiment = new_experiment(tmp_path / "experiments")
    remember(jobs[0], experiment)
    assert [state(job, experiment).kind for job in jobs] == ["interrupted", "waiting"]
    finish(experiment)
    assert [state(job, experiment).kind for job in jobs] == ["done", "waiting"]


@pytest.fixture
def two_modalities(tmp_path):
    """rgb/ and thermal/, with one annotation file and images of the same names and sizes; a job on each."""
    jobs = {}
    for name in ("rgb", "thermal"):
        (tmp_path / name / "val").mkdir(parents=True)
        (tmp_path / name / "val.json").write_text("boxes")
        for number in range(3):
            (tmp_path / name / f"val/{number}.png").write_text(f"{name:8}{number}")
        recipe = {"data": {"root": str(tmp_path / name), "val": {"images": "val", "annotations": "val.json"}}}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(recipe))
        jobs[name] = Job(name, "detection.training", "a", "none", 0, str(tmp_path / f"{name}.yaml"), ())
    return jobs


def finish_on(root: Path, experiment: Path, with_images: bool = True) -> None:
    """As a run on `root` leaves it; runs of earlier versions do not say which images they read."""
    files = {str(root / "val.json"): file_sha256(root / "val.json")}
    if with_images:
        images = {"val": identify_images(root / "val", [path.name for path in (root / "val").iterdir()])}
        Inputs(str(root), files, images).write(experiment)
    finish(experiment, files)
    (experiment / "config.yaml").write_text(json.dumps({"data": {"root": str(root)}, "train": {"epochs": 3}}))


@pytest.mark.parametrize("with_images", [True, False])
def test_other_images_under_the_same_annotations_are_other_data(two_modalities, tmp_path, with_images):
    rgb, thermal = two_modalities.values()
    experiment = new_experiment(tmp_path / "experiments")
    remember(rgb, experiment)
    assert [state(job, experiment).kind for job in (rgb, thermal)] == ["interrupted", "waiting"]
    finish_on(tmp_path / "rgb", experiment, with_images)
    assert [state(job, experiment).kind for job in (rgb, thermal)] == ["done", "waiting"]


def test_a_moved_data_set_is_told_from_another_that_is_there_now(two_modalities, tmp_path):
    rgb, thermal = two_modalities.values()
    experiment = new_experiment(tmp_path / "experiments")
    remember(rgb, experiment)
    finish_on(tmp_path / "rgb", experiment)
    (tmp_path / "rgb").rename(tmp_path / "moved")
    assert state(thermal, experiment).kind == "waiting"
    moved = replace(rgb, overrides=(f"data.root={tmp_path / 'moved'}",))
    assert state(moved, experiment).kind == "done"


def test_images_replaced_in_place_make_it_stale_and_name_their_folder(two_modalities, tmp_path):
    rgb = two_modalities["rgb"]
    experiment = new_experiment(tmp_path / "experiments")
    remember(rgb, experiment)
    finish_on(tmp_path / "rgb", experiment)
    (tmp_path / "rgb/val/1.png").write_text("other!!!1")
    found = state(rgb, experiment)
    assert (found.kind, found.same_recipe) == ("stale", False)
    assert found.detail == f"mAP 0.2500; data: {tmp_path / 'rgb/val'}"


def test_a_record_of_an_earlier_version_is_done_whatever_the_images_are(two_modalities, tmp_path):
    experiment = new_experiment(tmp_path / "experiments")
    remember(two_modalities["rgb"], experiment)
    finish_on(tmp_path / "rgb", experiment, with_images=False)
    (tmp_path / "rgb/val/1.png").write_text("other!!!1")
    assert state(two_modalities["rgb"], experiment).kind == "done"


def test_cells_and_seeds_can_be_selected(grid):
    assert [job.name for job in grid.select("small x fpn", [1])] == ["small x fpn, seed 1"]
    assert len(grid.select("* x fpn", None)) == 4


@pytest.mark.parametrize(
    ("only", "seeds", "named"),
    [("small x fnp", None, "did you mean 'small x fpn'"), ("q", None, "it has small x none"), (None, [2], "no seed 2")],
)
def test_a_selection_of_nothing_is_refused(grid, only, seeds, named):
    with pytest.raises(ValueError, match=named):
        grid.select(only, seeds)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("name: large", "name: small", "rows: small is there twice"),
        ("columns: [fpn]", "columns: [fnp]", "column 'fnp': expected one of"),
        ("seeds: [0, 1]", "seeds: [1, 1]", "seeds: 1 is there twice"),
        ("seeds: [0, 1]", "seed: [0]", "did you mean 'seeds'"),
        ("CONFIG, overrides", "nowhere.yaml, overrides", "nowhere.yaml: no such file"),
        ("[train.epochs=9]", "[train.epochs]", "expected section.field=value"),
        ("[model.neck=none]", "[model.neck=fpn]", "small x none, seed 0 and small x fpn, seed 0 have the same recipe"),
        ("[train.epochs=9]", "[train.seed=9]", "the seeds of a grid are listed under `seeds`"),
        ("detection.training", "detection.trainer", "grid_test.yaml: task 'detection.trainer': no module"),
    ],
)
def test_a_bad_grid_file_is_refused(tmp_path, old, new, named):
    assert old in GRID
    with pytest.raises(ConfigError, match=named):
        read_grid(write_grid(tmp_path, GRID.replace(old, new, 1)))


@pytest.mark.parametrize("path", sorted((PROJECT / "configs").glob("grid_*.yaml")), ids=lambda path: path.stem)
def test_every_grid_of_the_project_can_be_read(path, monkeypatch):
    monkeypatch.chdir(PROJECT)
    assert read_grid(path).jobs


def test_the_full_grid_has_48_runs_and_the_published_one_ten(monkeypatch):
    monkeypatch.chdir(PROJECT)
    assert len(read_grid(PROJECT / "configs/grid_coco.yaml").jobs) == 48
    assert len(read_grid(PROJECT / "configs/grid_coco_published.yaml").jobs) == 10


def test_what_was_never_started_is_waiting(job, tmp_path):
    assert state(job, tmp_path / "experiments/experiment_1").kind == "waiting"


def test_what_holds_its_lock_is_running_with_epoch_and_time_left(job, experiment, monkeypatch):
    monkeypatch.setattr("ablation.plan.is_running", lambda path: path == experiment)
    (experiment / "config.yaml").write_text("train: {epochs: 50}\n")
    line = {"step": 1, "epoch_seconds": 50.0, "eval_seconds": 10.0}
    (experiment / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for _ in range(12)))
    found = state(job, experiment)
    assert (found.kind, found.detail) == ("running", "epoch 12/50, 38 min left")


def test_what_ended_without_a_word_is_interrupted(job, experiment):
    with occupied(experiment):
        pass
    (experiment / "train.log").write_text("2026-01-01 00:00:00,000 INFO epoch 1\n")
    assert state(job, experiment).kind == "interrupted"


def test_what_ended_with_an_error_is_failed_with_that_line(job, experiment):
    log = "2026-01-01 00:00:00,000 INFO epoch 1\n2026-01-01 00:00:01,000 DEBUG traceback\nTraceback\n"
    (experiment / "train.log").write_text(log + "2026-01-01 00:00:02,000 ERROR error: no space in /x\n")
    found = state(job, experiment)
    assert (found.kind, found.detail) == ("failed", "no space in /x")


def test_an_error_of_an_earlier_start_is_not_the_last_word(job, experiment):
    log = "2026-01-01 00:00:02,000 ERROR error: no space in /x\n2026-01-02 00:00:00,000 INFO resumed\n"
    (experiment / "train.log").write_text(log)
    assert state(job, experiment).kind == "interrupted"


def test_what_has_results_is_done_with_its_score(job, experiment):
    finish(experiment)
    found = state(job, experiment)
    assert (found.kind, found.detail) == ("done", "mAP 0.2500")


def change_cell(experiment: Path, **values: object) -> None:
    path = experiment / "cell.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_another_recipe_makes_it_stale(grid, job, experiment, tmp_path):
    finish(experiment)
    later = read_grid(write_grid(tmp_path, GRID.replace("epochs=3", "epochs=5"))).jobs[0]
    found = state(later, experiment)
    assert (found.kind, found.detail) == ("stale", "mAP 0.2500; train.epochs was 3, is 5")


def test_what_was_begun_with_another_recipe_is_begun_anew(experiment, tmp_path):
    later = read_grid(write_grid(tmp_path, GRID.replace("epochs=3", "epochs=5"))).jobs[0]
    assert state(later, experiment).kind == "waiting"


def test_other_code_makes_it_stale_and_names_the_files(job, experiment):
    finish(experiment)
    change_cell(experiment, code=code_hashes(job.task) | {"training.py": "0", "detection/network/loss.py": "0"})
    found = state(job, experiment)
    code = "the code has changed since (detection/network/loss.py, training.py)"
    assert (found.kind, found.detail) == ("stale", f"mAP 0.2500; {code}")


def test_of_many_changed_files_the_number_is_told(job, experiment):
    finish(experiment)
    change_cell(experiment, code=dict.fromkeys(code_hashes(job.task), "0"))
    assert state(job, experiment).detail.endswith(f"the code has changed since ({len(code_hashes(job.task))} files)")


def test_other_data_makes_it_stale_and_absent_data_does_not(job, experiment, tmp_path):
    data = tmp_path / "val.json"
    finish(experiment, inputs={str(data): "0"})
    assert state(job, experiment).kind == "done"
    data.write_text("{}")
    found = state(job, experiment)
    assert (found.kind, found.detail) == ("stale", f"mAP 0.2500; data: {data}")


def test_where_the_data_lies_makes_nothing_stale(job, experiment, tmp_path):
    finish(experiment)
    (tmp_path / "base.yaml").write_text("data: {root: there}\nmodel: {neck: none}\ntrain: {epochs: 1}\n")
    assert state(job, experiment).kind == "done"


def test_other_data_where_the_recipe_now_says_it_lies_makes_it_stale(job, experiment, tmp_path):
    finish(experiment, inputs={"here/val.json": "0"})
    (tmp_path / "there").mkdir()
    (tmp_path / "there/val.json").write_text("{}")
    base = f"data: {{root: {tmp_path / 'there'}}}\nmodel: {{neck: none}}\ntrain: {{epochs: 1}}\n"
    (tmp_path / "base.yaml").write_text(base)
    found = state(job, experiment)
    assert (found.kind, found.detail) == ("stale", f"mAP 0.2500; data: {tmp_path / 'there/val.json'}")
    assert not found.same_recipe


@pytest.mark.parametrize("name", ["cell.json", "results.json"])
@pytest.mark.parametrize("content", ["x", "[]", "{}", "3"])
def test_a_damaged_record_is_named(job, experiment, name, content):
    finish(experiment)
    (experiment / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}: (damaged|no )"):
        state(job, experiment)


def test_what_a_grid_is_about_to_start_counts_as_running(job, experiment):
    with claimed(experiment):
        assert state(job, experiment).kind == "running"
    assert state(job, experiment).kind == "interrupted"


def test_grids_share_runs_of_the_same_recipe(experiment, tmp_path):
    finish(experiment)
    other = tmp_path / "grid_other.yaml"
    other.write_text(write_grid(tmp_path).read_text())
    assert state(read_grid(other).jobs[0], experiment).kind == "done"


def test_the_newest_experiment_of_a_cell_counts(job, experiment):
    newer = new_experiment(experiment.parent)
    remember(job, newer)
    finish(newer)
    assert state(job, experiment).experiment == newer


@pytest.mark.parametrize("name", ["training.py", "engine/optim.py", "stats/bootstrap.py"])
def test_code_is_read_anew_when_a_file_of_the_project_was_written_to(tmp_path, monkeypatch, name):
    for folder in ("engine", "stats"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    modules = ["training.py", "engine/optim.py", "stats/bootstrap.py"]
    for module in modules:
        (tmp_path / module).touch()
    imports = "".join(f"import {module.removesuffix('.py').replace('/', '.')}\n" for module in modules[1:])
    (tmp_path / "training.py").write_text(imports)
    monkeypatch.setattr("ablation.plan.PROJECT", tmp_path)
    before, at = code_hashes("training"), (tmp_path / "training.py").stat().st_mtime_ns + 10**9
    (tmp_path / name).write_text(imports + "changed = True\n")
    os.utime(tmp_path / name, ns=(at, at))
    assert code_hashes("training")[name] != before[name]


def test_the_code_of_a_task_is_what_its_module_imports():
    files = code_hashes("detection.training")
    expected = {"training.py", "model.py", "engine/optim.py", "detection/network/ssd.py", "detection/training.py"}
    assert expected <= files.keys()
    assert not {"ablation/plan.py", "detection/evaluate.py", "detection/sample.py"} & files.keys()


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match=r"task 'detection\.trainer': no module detection/trainer\.py"):
        code_hashes("detection.trainer")


@pytest.mark.parametrize(("now", "matches"), [(None, True), ("auto", True), ("fp32", False), ("bf16", True)])
def test_auto_precision_accepts_a_run_that_was_started_in_any_precision(now, matches):
    train = {"epochs": 3} | ({"precision": now} if now else {})
    changes = changed_recipe({"recipe": {"train": {"epochs": 3, "precision": "bf16"}}}, {"train": train})
    assert (changes == []) is matches


def test_a_grid_knows_which_fields_it_sets_itself(grid):
    assert grid.sets("model.neck")
    assert grid.sets("train.epochs")
    assert not grid.sets("train.precision")


def grid_of_roots(tmp_path, *roots) -> Path:
    config, path = tmp_path / "base.yaml", tmp_path / "grid_test.yaml"
    config.write_text("data: {root: here, val: {images: val, annotations: val.json}}\n")
    rows = "".join(f"  - {{name: '{root.name}', config: {config}, overrides: [data.root={root}]}}\n" for root in roots)
    path.write_text(f"task: detection.training\nseeds: [0]\nrows:\n{rows}columns:\n  - {{name: none}}\n")
    return path


def test_rows_of_a_grid_may_differ_in_their_data_alone(two_modalities, tmp_path):
    rgb, thermal = read_grid(grid_of_roots(tmp_path, tmp_path / "rgb", tmp_path / "thermal")).jobs
    experiments = {}
    for job in (rgb, thermal):
        experiments[job.row] = new_experiment(tmp_path / "experiments")
        remember(job, experiments[job.row])
        finish_on(tmp_path / job.row, experiments[job.row])
    known = read_cells(tmp_path / "experiments")
    assert [state_of(job, known).experiment for job in (rgb, thermal)] == list(experiments.values())
    for name in experiments:  # as in a clone without the data
        (tmp_path / name).rename(tmp_path / f"{name}_elsewhere")
    assert [state_of(job, known).experiment for job in (rgb, thermal)] == list(experiments.values())


def test_rows_of_a_grid_on_the_same_data_are_refused(two_modalities, tmp_path):
    shutil.copytree(tmp_path / "rgb", tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path / "rgb")
    for name in ("copy", "link"):
        with pytest.raises(ConfigError, match=f"rgb x none, seed 0 and {name} x none, seed 0 .*the same data"):
            read_grid(grid_of_roots(tmp_path, tmp_path / "rgb", tmp_path / name))
