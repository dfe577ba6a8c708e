"""engine/start.py: help and command-line errors appear before slow imports, and only once per machine."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from detection import export
from detection.deployment.formats import FORMATS
from diffusion import sample
from diffusion.schedule import SAMPLERS
from engine.start import read_arguments

ROOT = Path(__file__).parent.parent.parent
HEAVY = {"torch", "torchvision", "numpy", "pydantic", "matplotlib", "PIL", "safetensors", "timm"}
COMMANDS = [
    "detection.training", "detection.evaluate", "detection.predict", "detection.show", "detection.show backbones",
    "detection.export", "detection.data", "detection.sample", "ablation.grid", "ablation.compare", "ablation.plan",
    "engine.doctor",
    "weights", "weights.publish", "train_clf_imagenet", "classification.training", "classification.evaluate",
    "classification.predict", "diffusion.training", "diffusion.sample", "diffusion.evaluate",
    "adapters.efficientnet_lite0",
]  # fmt: skip
MISTAKES = [  # invalid command line, and what the error must name
    (["detection.training", "configs/bcd.yaml"], "configs/bccd.yaml"),
    (["detection.evaluate", "experiments/published/experimnt_1"], "experiments/published/experiment_1"),
    (["detection.predict", "nowhere.pt", "photo.jpg"], "nowhere.pt"),
    (["detection.export", "nowhere", "--format", "onx"], "onnx"),
    (["ablation.grid", "status", "configs/grid_cco.yaml"], "configs/grid_coco.yaml"),
    (["ablation.compare", "experiments/published/experiment_1", "--columns", "gflop"], "gflops"),
    (["ablation.plan", "configs/grid_cco.yaml"], "configs/grid_coco.yaml"),
    (["train_clf_imagenet", "--resume", "experiments/published/experimnt_1"], "experiments/published/experiment_1"),
    (["diffusion.sample", "experiments/published/experiment_1", "--sampler", "ddmi"], "ddim"),
]

# Runs a command like `python -m`, and prints the modules that it has imported.
PROGRAM = """
import json, runpy, sys

sys.path.insert(0, "")
module, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.__stdout__)
"""


def run(*words: str) -> subprocess.CompletedProcess:
    """Run a command; assert that it imports no slow module."""
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    modules = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert not HEAVY & modules
    return done


def test_every_tested_command_is_documented():
    text = "\n".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    assert [name for name in COMMANDS if f"-m {name}" not in text and f"python {name}.py" not in text] == []


@pytest.mark.parametrize("module", COMMANDS)
def test_help_is_printed_without_slow_imports(module):
    assert run(*module.split(), "--help").returncode == 0


@pytest.mark.parametrize(("words", "named"), MISTAKES)
def test_a_command_line_error_is_reported_without_slow_imports(words, named):
    done = run(*words)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def raise_value_error(words):
    raise ValueError("x.yaml: no such file")


@pytest.mark.parametrize("parse", [raise_value_error, argparse.ArgumentParser().parse_args])
def test_a_command_line_error_is_reported_by_the_first_rank_on_a_node(parse, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["command", "--nope"])
    for rank, code in (("0", 2), ("1", 0)):  # for an error code, the launcher would kill rank 0 before it prints
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(SystemExit) as exit_:
            read_arguments(parse)
        assert exit_.value.code == code
        assert ("error: " in capsys.readouterr().err) == (rank == "0")


def test_choices_on_command_lines_match_the_modules_that_implement_them():
    assert FORMATS.keys() == export.FORMATS.keys()
    assert tuple(SAMPLERS) == sample.SAMPLERS
