"""A tuned grid of real detectors: which files its trials open, and what the final run gets."""

import json
import os
import subprocess
import sys
from pathlib import Path

from detection.shapes import generate

ROOT = Path(__file__).parent.parent.parent
CONFIG = """
data:
  root: {root}
  train: {{images: images/train, annotations: annotations/instances_train.json}}
  val: {{images: images/val, annotations: annotations/instances_val.json}}
  workers: 0
model: {{backbone: ResNet18SlimBackbone_B, neck: none, input_size: 96}}
optim: {{optimizer: adamw, reference_batch_size: 4}}
train: {{epochs: 2, batch_size: 4, precision: fp32}}
"""
GRID = """
task: detection.training
seeds: [5]
tune: {{trials: 2, on: 0.25, train.epochs: 0.5, optim.learning_rate: {{log_uniform: [1e-4, 1e-3]}}}}
rows: [{{name: slim, config: {config}}}]
columns: [{{name: none}}]
"""
# Runs a module like `python -m`, and writes the files that it opens to opened/<trial or run>-<pid>.txt.
WATCH = """
import os, runpy, sys
kind = "trial" if any(word.startswith("data.holdout=") for word in sys.argv) else "run"
log = open(os.path.join(os.environ["OPENED"], f"{kind}-{os.getpid()}.txt"), "a")
sys.addaudithook(lambda event, args: event == "open" and log.write(f"{args[0]}\\n"))
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def opened(folder: Path, kind: str, split: str) -> set[str]:
    """Return the files of a split that processes of a kind opened."""
    lines = [line for path in folder.glob(f"{kind}-*.txt") for line in path.read_text().splitlines()]
    return {Path(line).name for line in lines if f"images/{split}/" in line or f"instances_{split}" in line}


def test_trials_open_no_file_of_the_validation_set_and_the_run_uses_all_training_images(tmp_path):
    generate(tmp_path / "sample", num_train=12, num_val=4, image_size=96)
    (tmp_path / "config.yaml").write_text(CONFIG.format(root=tmp_path / "sample"))
    (tmp_path / "grid.yaml").write_text(GRID.format(config=tmp_path / "config.yaml"))
    (tmp_path / "watch.py").write_text(WATCH)
    (tmp_path / "opened").mkdir()
    watched = [sys.executable, "-u", tmp_path / "watch.py"]
    experiments = tmp_path / "experiments"
    subprocess.run(
        [sys.executable, "-m", "ablation.grid", "run", tmp_path / "grid.yaml", "--experiments", experiments,
         "--parallel", "1", "--launcher", " ".join(map(str, watched))],
        cwd=ROOT, env=os.environ | {"OPENED": str(tmp_path / "opened"), "OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    assert len(list((tmp_path / "opened").glob("trial-*"))) == 2
    assert len(opened(tmp_path / "opened", "trial", "train")) == 13  # all images, and the annotations
    assert not opened(tmp_path / "opened", "trial", "val")
    assert len(opened(tmp_path / "opened", "run", "val")) == 5

    results = [json.loads((path / "results.json").read_text()) for path in sorted(experiments.glob("experiment_*"))]
    assert [each["protocol"]["images"] for each in results] == [3, 3, 4]
    cells = [json.loads((path / "cell.json").read_text()) for path in sorted(experiments.glob("experiment_*"))]
    best = max(cells[:2], key=lambda cell: results[cell["trial"] - 1]["scores"]["mAP"])
    rates = [cell["recipe"]["optim"]["learning_rate"] for cell in cells]
    assert len({*rates[:2]}) == 2
    assert rates[2] == best["recipe"]["optim"]["learning_rate"]
    assert [cell["recipe"]["train"]["epochs"] for cell in cells] == [1, 1, 2]
    identities = [json.loads((path / "inputs.json").read_text()) for path in sorted(experiments.glob("experiment_*"))]
    assert [each["images"]["train"]["count"] for each in identities] == [9, 9, 12]
