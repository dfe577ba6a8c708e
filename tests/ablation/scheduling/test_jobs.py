"""Tests of ablation/scheduling/jobs.py: the runs of a grid file, and their states."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ablation.scheduling.jobs import Grid, Job, State, read_cells, read_grid, state_of, write_cell
from ablation.scheduling.staleness import PROJECT
from engine.files import file_sha256, locked
from engine.inputs import Inputs, identify_images
from engine.strict_yaml import ConfigError
from records.experiment import new_experiment
from records.status import GRID_LOCK, RUN_LOCK, Status, write_status

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
    """Return the experiment of `job` as it is before the task starts."""
    return new_run(job, tmp_path)


def new_run(job: Job, folder: Path) -> Path:
    experiment = new_experiment(folder / "experiments")
    write_cell(job, experiment)
    return experiment


def finish(experiment: Path, inputs: dict[str, str] | None = None, root: str = "here") -> None:
    results = {
        "task": "detection", "variant": {"backbone": "a", "neck": "b"}, "seed": 0, "metric": "mAP",
        "scores": {"mAP": 0.25}, "protocol": {"images": 9, "classes": ["a"]}, "inputs": inputs or {}, "cost": {},
    }  # fmt: skip
    (experiment / "config.yaml").write_text(json.dumps({"data": {"root": root}, "train": {"epochs": 3}}))
    (experiment / "results.json").write_text(json.dumps(results))


def state(job: Job, experiment: Path) -> State:
    return state_of(job, read_cells(experiment.parent))


# ---- grid files ----------------------------------------------------------------------------------------------


def test_a_grid_lists_all_cells_with_the_first_seed_before_the_second_seed(grid):
    cells = ["small x none", "small x fpn", "large x fpn"]
    assert [job.name for job in grid.jobs] == [f"{cell}, seed {seed}" for seed in (0, 1) for cell in cells]


def test_a_row_override_wins_over_a_column_override_and_both_over_the_grid(grid):
    small, _, large = (job.recipe() for job in grid.jobs[:3])
    assert (small["train"], small["model"]["neck"]) == ({"epochs": 3, "seed": 0}, "none")
    assert (large["train"], large["model"]["neck"]) == ({"epochs": 9, "seed": 0}, "fpn")
    assert all(map(grid.overrides_field, ("model.neck", "train.epochs")))
    assert not grid.overrides_field("train.precision")


@pytest.mark.parametrize(
    ("only", "seeds", "named"),
    [
        ("small x fnp", None, "did you mean 'small x fpn'"),
        ("q", None, "expected one of small x none"),
        (None, [2], "seed 2"),
    ],
)
def test_a_selection_without_runs_is_refused(grid, only, seeds, named):
    with pytest.raises(ValueError, match=named):
        grid.select(only, seeds)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("name: large", "name: small", "rows: small "),
        ("columns: [fpn]", "columns: [fnp]", "column 'fnp': expected one of"),
        ("seeds: [0, 1]", "seeds: [1, 1]", "seeds: 1 "),
        ("seeds: [0, 1]", "seed: [0]", "did you mean 'seeds'"),
        ("CONFIG, overrides", "nowhere.yaml, overrides", "nowhere.yaml: no such file"),
        ("[train.epochs=9]", "[train.epochs]", "expected section.field=value"),
        ("[model.neck=none]", "[model.neck=fpn]", "small x none, seed 0 and small x fpn, seed 0 have the same recipe"),
        ("[train.epochs=9]", "[train.seed=9]", "train.seed .* `seeds`"),
        ("detection.training", "detection.trainer", "grid_test.yaml: task 'detection.trainer': .*detection/trainer.py"),
        ("detection.training", "detection.sample", "detection.sample': .* COMPUTES"),
    ],
)
def test_an_invalid_grid_file_is_refused(tmp_path, old, new, named):
    assert old in GRID
    with pytest.raises(ConfigError, match=named):
        read_grid(write_grid(tmp_path, GRID.replace(old, new, 1)))


@pytest.mark.parametrize("path", sorted((PROJECT / "configs").glob("grid_*.yaml")), ids=lambda path: path.stem)
def test_every_grid_in_configs_is_valid(path, monkeypatch):
    monkeypatch.chdir(PROJECT)
    counts = {"grid_coco": 48, "grid_coco_published": 10}
    jobs = read_grid(path).jobs
    assert len(jobs) == counts.get(path.stem, len(jobs)) > 0


# ---- state of a run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", [RUN_LOCK, GRID_LOCK])
def test_a_run_whose_lock_is_held_is_running_and_shows_epoch_and_time_left(job, experiment, lock):
    write_status(experiment, Status("running", step=120, total_steps=500, epoch=12, epochs=50))
    lines = [{"step": 10 * epoch, "epoch_seconds": 50.0, "eval_seconds": 10.0} for epoch in range(1, 13)]
    (experiment / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with locked(experiment / lock):
        found = state(job, experiment)
    assert (found.kind, found.detail) == ("running", "epoch 12/50, 38:00 left")
    assert state(job, experiment).kind == "killed"


@pytest.mark.parametrize(
    ("status", "kind", "detail"),
    [
        (Status("failed", exit_code=2, reason="no space in /x"), "failed", "no space in /x"),
        (Status("failed", exit_code=2, reason="two fields:\n  a\n  b"), "failed", "two fields:; a; b"),
        (Status("stopped", 5, 30, 1, 3, exit_code=75, reason="SIGTERM"), "stopped", "epoch 1/3; SIGTERM"),
        (Status("killed", 5, 30, 1, 3, exit_code=-9, reason="SIGKILL"), "killed", "epoch 1/3; SIGKILL"),
        (Status("running", 5, 30, 1, 3), "killed", "epoch 1/3"),
        (Status("running"), "killed", "training not started"),
        (Status("done", 30, 30, 3, 3, exit_code=0), "killed", "epoch 3/3"),  # without results.json
        (None, "killed", "training not started"),
    ],
)
def test_the_state_of_a_run_without_results_is_from_its_status(job, experiment, status, kind, detail):
    if status:
        write_status(experiment, status)
    found = state(job, experiment)
    assert (found.kind, found.detail) == (kind, detail)


def test_a_run_with_results_is_done_in_every_grid_that_defines_it(job, experiment, tmp_path):
    finish(experiment)
    write_status(experiment, Status("failed", exit_code=2, reason="refused a second start"))
    (tmp_path / "grid_other.yaml").write_text(write_grid(tmp_path).read_text())
    for each in (job, read_grid(tmp_path / "grid_other.yaml").jobs[0]):
        found = state(each, experiment)
        assert (found.kind, found.detail) == ("done", "mAP 0.2500")


@pytest.mark.parametrize("name", ["cell.json", "results.json"])
@pytest.mark.parametrize("content", ["x", "[]", "{}", "3"])
def test_an_error_names_a_corrupt_record(job, experiment, name, content):
    finish(experiment)
    (experiment / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}: "):
        state(job, experiment)


@pytest.mark.parametrize(
    ("then", "now", "kind"),
    [("auto", "auto", "done"), ("auto", "ssd", "stale"), ("ssd", "auto", "stale"), ("auto", "[0.1, 0.2]", "stale")],
)
def test_anchor_scales_match_a_run_if_its_recipe_has_the_same_setting(tmp_path, then, now, kind):
    """The config.yaml of a run with auto has the fitted numbers, but its cell.json has the recipe with auto."""
    first, later = (
        read_grid(write_grid(tmp_path, GRID.replace("model.neck=pan", f"'model.anchor_scales={value}'"))).jobs[0]
        for value in (then, now)
    )
    experiment = new_run(first, tmp_path)
    finish(experiment)
    content = json.loads((experiment / "config.yaml").read_text()) | {"model": {"anchor_scales": [0.1, 0.2]}}
    (experiment / "config.yaml").write_text(json.dumps(content))
    assert state(later, experiment).kind == kind


# ---- stale results and identical data -----------------------------------------------------------------------


def test_a_different_recipe_makes_a_result_stale_and_ignores_an_unfinished_run(experiment, tmp_path):
    later = read_grid(write_grid(tmp_path, GRID.replace("epochs=3", "epochs=5"))).jobs[0]
    assert state(later, experiment).kind == "waiting"
    finish(experiment)
    found = state(later, experiment)
    assert (found.kind, found.detail, found.same_recipe) == ("stale", "mAP 0.2500; train.epochs was 3, is 5", False)


@pytest.mark.parametrize(("key", "named"), [("computes", "training.py"), ("code", "an earlier version")])
def test_changed_code_makes_a_result_stale_but_comparable(job, experiment, key, named):
    finish(experiment)
    cell = json.loads((experiment / "cell.json").read_text())
    hashes = cell.pop("computes") | {"training.py": "0"}
    (experiment / "cell.json").write_text(json.dumps(cell | {key: hashes}))
    found = state(job, experiment)
    assert (found.kind, found.same_recipe) == ("stale", True)
    assert found.detail.startswith("mAP 0.2500; ")
    assert named in found.detail


def test_changed_data_make_a_result_stale_and_missing_data_do_not(job, experiment, tmp_path):
    data = tmp_path / "val.json"
    finish(experiment, inputs={str(data): "0"})
    assert state(job, experiment).kind == "done"
    data.write_text("{}")
    found = state(job, experiment)
    assert (found.kind, found.detail, found.same_recipe) == ("stale", f"mAP 0.2500; data: {data}", False)


def test_different_data_in_a_new_data_root_make_a_result_stale(job, experiment, tmp_path):
    finish(experiment, inputs={"here/val.json": "0"})
    (tmp_path / "there").mkdir()
    (tmp_path / "there/val.json").write_text("{}")
    base = f"data: {{root: {tmp_path / 'there'}}}\nmodel: {{neck: none}}\ntrain: {{epochs: 1}}\n"
    (tmp_path / "base.yaml").write_text(base)
    found = state(job, experiment)
    assert (found.kind, found.detail) == ("stale", f"mAP 0.2500; data: {tmp_path / 'there/val.json'}")
    assert not found.same_recipe


@pytest.fixture
def two_modalities(tmp_path) -> dict[str, Job]:
    """Return a job on rgb/ and one on thermal/, with equal annotations, and image files of equal names and sizes."""
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
    """Finish an experiment on the data in `root`. with_images: False as in earlier versions, which omitted images."""
    files = {str(root / "val.json"): file_sha256(root / "val.json")}
    if with_images:
        images = {"val": identify_images(root / "val", [path.name for path in (root / "val").iterdir()])}
        Inputs(str(root), files, images).write(experiment)
    finish(experiment, files, str(root))


def test_different_images_with_the_same_annotations_are_different_data(two_modalities, tmp_path):
    rgb, thermal = two_modalities.values()
    experiment = new_run(rgb, tmp_path)
    assert [state(job, experiment).kind for job in (rgb, thermal)] == ["killed", "waiting"]
    finish_on(tmp_path / "rgb", experiment)
    assert [state(job, experiment).kind for job in (rgb, thermal)] == ["done", "waiting"]


def test_moved_data_are_recognised_by_content(two_modalities, tmp_path):
    rgb, thermal = two_modalities.values()
    experiment = new_run(rgb, tmp_path)
    finish_on(tmp_path / "rgb", experiment)
    (tmp_path / "rgb").rename(tmp_path / "moved")
    assert state(thermal, experiment).kind == "waiting"
    moved = replace(rgb, overrides=(f"data.root={tmp_path / 'moved'}",))
    assert state(moved, experiment).kind == "done"


@pytest.mark.parametrize("with_images", [True, False])
def test_replaced_images_make_a_result_stale_if_the_run_recorded_its_images(two_modalities, tmp_path, with_images):
    rgb = two_modalities["rgb"]
    experiment = new_run(rgb, tmp_path)
    finish_on(tmp_path / "rgb", experiment, with_images)
    (tmp_path / "rgb/val/1.png").write_text("other!!!1")
    found = state(rgb, experiment)
    expected = ("stale", f"mAP 0.2500; data: {tmp_path / 'rgb/val'}") if with_images else ("done", "mAP 0.2500")
    assert (found.kind, found.detail) == expected


def grid_of_roots(tmp_path: Path, *roots: Path) -> Path:
    config, path = tmp_path / "base.yaml", tmp_path / "grid_test.yaml"
    config.write_text("data: {root: here, val: {images: val, annotations: val.json}}\n")
    rows = "".join(f"  - {{name: '{root.name}', config: {config}, overrides: [data.root={root}]}}\n" for root in roots)
    path.write_text(f"task: detection.training\nseeds: [0]\nrows:\n{rows}columns:\n  - {{name: none}}\n")
    return path


def test_rows_of_a_grid_may_differ_only_in_their_data(two_modalities, tmp_path):
    rgb, thermal = read_grid(grid_of_roots(tmp_path, tmp_path / "rgb", tmp_path / "thermal")).jobs
    experiments = [new_run(job, tmp_path) for job in (rgb, thermal)]
    for job, experiment in zip((rgb, thermal), experiments, strict=True):
        finish_on(tmp_path / job.row, experiment)
    known = read_cells(tmp_path / "experiments")
    assert [state_of(job, known).experiment for job in (rgb, thermal)] == experiments
    for name in ("rgb", "thermal"):  # as in a clone without the data
        (tmp_path / name).rename(tmp_path / f"{name}_elsewhere")
    assert [state_of(job, known).experiment for job in (rgb, thermal)] == experiments


def test_rows_of_a_grid_with_the_same_data_folder_and_recipe_are_refused(two_modalities, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "rgb")
    with pytest.raises(ConfigError, match="rgb x none, seed 0 and link x none, seed 0 have the same recipe"):
        read_grid(grid_of_roots(tmp_path, tmp_path / "rgb", tmp_path / "link"))
