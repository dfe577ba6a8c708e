"""ablation/display/methods.py: what the page says about recipe, data, hardware and software."""

import json

from ablation.comparison import Comparison
from ablation.display.methods import facts_of, recipe_table
from ablation.display.report import write_report


def change_start(path, **changes):
    """Change the record of the first start of an experiment."""
    (start,) = json.loads((path / "environment.json").read_text())
    (path / "environment.json").write_text(json.dumps([start | changes]))


def test_data_hardware_software_and_commit_are_listed_once_if_all_runs_have_the_same(experiments):
    for row in "ab":
        path = experiments.add(row, inputs={"val.json": "b" * 64}, image_sets={"val": "d" * 64})
        change_start(path, versions={"python": "3.11.7", "torch": "2.9.0", "timm": None}, cpu_threads=1, cpu_cores=2)
    facts = facts_of(experiments.compare(replicates=200, resample_seed=7))
    assert f"val.json {'b' * 16}" in facts["data (SHA-256)"]
    assert f"val images {'d' * 16}" in facts["data (SHA-256)"]
    assert facts["hardware"] == "1 x AMD EPYC, 1 thread of 2 cores"
    assert facts["software"] == "python 3.11.7, torch 2.9.0"
    assert facts["commit"] == "c87c5e7aa7e6"
    assert facts["seeds"] == "1 seed per cell (0)"
    assert facts["resamples"].startswith("200 ")
    assert "seed 7" in facts["resamples"]
    assert facts["classes"] == "2: cat, dog"


def test_commits_and_devices_that_differ_are_counted(experiments):
    for number, row in enumerate("abc"):
        change_start(experiments.add(row), **({"commit": "f" * 40, "device": "NVIDIA H200"} if number == 0 else {}))
    facts = facts_of(experiments.compare())
    assert facts["commit"].startswith("c87c5e7aa7e6 (2 starts); ffffffffffff (1 start)")
    assert "stale" in facts["commit"]
    assert facts["hardware"] == "1 x AMD EPYC (2 starts); 1 x NVIDIA H200 (1 start)"


def test_the_shared_recipe_has_the_fields_that_all_runs_have_in_common(experiments):
    for row, rate in (("a", 0.1), ("b", 0.2)):
        experiments.add(row, config={"learning_rate": rate, "batch_size": 16})
    rows = dict(recipe_table(experiments.compare()).rows)
    assert rows == {"model": "neck=none", "train": "epochs=3, batch_size=16"}


def test_the_page_has_the_commands_that_repeat_it(experiments, tmp_path):
    experiments.add("a")
    comparison: Comparison = experiments.compare()
    comparison.commands = ["python -m ablation.grid run 'my grid.yaml'", "python -m ablation.compare 'my grid.yaml'"]
    write_report(tmp_path / "page.html", comparison)
    page = (tmp_path / "page.html").read_text()
    assert "To repeat the runs, then this page" in page
    assert "<pre>python -m ablation.grid run &#39;my grid.yaml&#39;</pre>" in page
