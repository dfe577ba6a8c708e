"""engine/start.py: commands answer before anything heavy is imported, and say what is wrong once."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from detection import export
from detection.formats import FORMATS
from diffusion import sample
from diffusion.schedule import SAMPLERS
from engine.start import read_arguments

ROOT = Path(__file__).parent.parent.parent
HEAVY = {"torch", "torchvision", "numpy", "pydantic", "matplotlib", "PIL", "safetensors"}
COMMANDS = {  # module: words of which something is wrong, and what the answer names
    "detection.training": (["configs/bcd.yaml"], "configs/bccd.yaml"),
    "detection.evaluate": (["experiments/published/experimnt_1"], "experiments/published/experiment_1"),
    "detection.predict": (["nowhere.pt", "photo.jpg"], "nowhere.pt"),
    "detection.show": (["configs/bccd.yaml", "--what", "nothing"], "anchors"),
    "detection.export": (["nowhere", "--format", "onx"], "onnx"),
    "detection.data": (["shrnk"], "shrink"),
    "detection.sample": (["folder", "--seed", "x"], "--seed"),
    "ablation.grid": (["status", "configs/grid_cco.yaml"], "configs/grid_coco.yaml"),
    "ablation.compare": (["experiments/published/experiment_1", "--columns", "gflop"], "gflops"),
    "engine.doctor": (["--nope"], "--nope"),
    "weights": (["fech"], "fetch"),
    "weights.publish": (["experiments/published/experiment_1", "--license", "mitt"], "mit"),
    "train_clf_imagenet": (["--resume", "experiments/published/experimnt_1"], "experiments/published/experiment_1"),
    "classification.training": (["configs/swin_slim_mnst.yaml"], "configs/swin_slim_mnist.yaml"),
    "classification.evaluate": (["experiments/published/experiment_1", "--batch-size", "0"], "--batch-size"),
    "classification.predict": (["experiments/published/experiment_1", "x.jpg", "--top", "9"], "--top"),
    "diffusion.training": (["--nope", "x.yaml"], "--nope"),
    "diffusion.sample": (["experiments/published/experiment_1", "--sampler", "ddmi"], "ddim"),
    "diffusion.evaluate": (["experiments/published/experiment_1"], "--classifier"),
}
ACTIONS = [["train_clf_imagenet", "evaluate"], ["train_clf_imagenet", "predict"], ["detection.data", "check"],
           ["ablation.grid", "run"], ["weights", "fetch"]]  # fmt: skip

# Runs a command as `python -m` does, and tells which modules it has imported by its end.
PROGRAM = """
import json, runpy, sys

sys.path.insert(0, "")
module, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.__stdout__)
"""


def answer(module: str, *words: str) -> subprocess.CompletedProcess:
    """What a command answers; asserts that nothing heavy was imported for it."""
    command = [sys.executable, "-c", PROGRAM, module, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    modules = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert not HEAVY & modules
    return done


def test_every_command_of_the_readme_is_tested_here():
    text = "\n".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    named = {name for name in COMMANDS if f"-m {name}" in text or f"python {name}.py" in text}
    assert named == COMMANDS.keys()


@pytest.mark.parametrize("words", [*([module] for module in COMMANDS), *ACTIONS], ids=" ".join)
def test_help_is_printed_before_anything_heavy_is_imported(words):
    done = answer(*words, "--help")
    assert done.returncode == 0
    assert words[0].replace("train_clf_imagenet", "classification.") in done.stdout


@pytest.mark.parametrize("module", COMMANDS)
def test_what_is_wrong_with_the_command_line_is_told_before_anything_heavy_is_imported(module):
    words, named = COMMANDS[module]
    done = answer(module, *words)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_modules_import_no_more_of_the_heavy_packages_than_they_need():
    nothing = ["ablation.cells", "ablation.slurm", "detection.shapes"]
    torch = ["training", "runs", "diffusion.task", "weights.model_card"]
    torchvision = ["detection.task", "classification.record"]
    program = (
        "import importlib, json, sys\n"
        "for group in json.loads(sys.argv[1]):\n"
        "    list(map(importlib.import_module, group))\n"
        "    print(json.dumps(sorted(sys.modules)))"
    )
    command = [sys.executable, "-c", program, json.dumps([nothing, torch, torchvision])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = [set(json.loads(line)) for line in done.stdout.splitlines()]
    heavy = [modules & {"torch", "torchvision", "matplotlib"} for modules in found]
    assert heavy == [set(), {"torch"}, {"torch", "torchvision"}]
    assert "torch._dynamo" not in found[1]  # torchvision brings it


def wrong(words):
    raise ValueError("x.yaml: no such file")


def test_a_mistake_is_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as exit_:
        read_arguments(wrong, [])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: x.yaml: no such file\n"


@pytest.mark.parametrize("parse", [wrong, argparse.ArgumentParser().parse_args])
def test_only_the_first_rank_on_a_node_reports_a_mistake(parse, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as exit_:
        read_arguments(parse, ["--nope"])
    assert exit_.value.code == 0  # another code would have the launcher end the first before it reports
    assert capsys.readouterr() == ("", "")


def test_command_lines_know_what_the_modules_behind_them_know():
    assert FORMATS.keys() == export.FORMATS.keys()
    assert tuple(SAMPLERS) == sample.SAMPLERS
