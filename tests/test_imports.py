"""Imports point downwards, without a circle, and tasks do not know each other."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TASKS = ("classification", "detection", "diffusion")
# The floors, from the ground up. A module imports from its own floor and from those below.
FLOORS = (
    ("engine",),
    ("model", "data", "stats"),
    ("records", "weights", "training"),
    ("runs",),
    ("ablation", *TASKS, "train_clf_imagenet"),
    ("adapters",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
# Inside detection: the network knows no COCO files and no commands, COCO code knows no commands.
DETECTION = ("detection.network", "detection.coco")
JUDGE = "diffusion.quality"  # the one module of a task that uses another task: a classifier judges samples


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path
    for path in sorted(ROOT.rglob("*.py"))
    if path.relative_to(ROOT).parts[0].removesuffix(".py") in FLOOR
}


@cache
def imported(module: str) -> frozenset[str]:
    """Every module of the project that a module imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names & SOURCES.keys())


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_top_level_module_and_folder_has_a_floor():
    found = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found == FLOOR.keys()


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_downwards(module):
    assert not [name for name in imported(module) if FLOOR[room(name)] > FLOOR[room(module)]]


def test_no_circle():
    TopologicalSorter({module: imported(module) - {module, *TASKS} for module in SOURCES}).prepare()


def test_ablation_knows_experiments_not_tasks():
    not_for_ablation = {*TASKS, "train_clf_imagenet", "runs", "training", "model", "data"}
    for module in SOURCES:
        assert room(module) != "ablation" or not not_for_ablation & {room(name) for name in imported(module)}, module


def test_tasks_do_not_import_each_other():
    for module in SOURCES:
        if room(module) in TASKS:
            allowed = {room(module), *(["classification"] if module == JUDGE else [])}
            assert not (set(TASKS) - allowed) & {room(name) for name in imported(module)}, module


def test_network_and_coco_code_know_no_command():
    for module in SOURCES:
        for below in DETECTION:
            if module.startswith(f"{below}."):
                above = [name for name in imported(module) if name.startswith("detection.")]
                allowed = DETECTION[: DETECTION.index(below) + 1]
                assert not [name for name in above if not name.startswith(allowed)], module


def test_engine_names_no_task():
    for module in SOURCES:
        if room(module) == "engine":
            tree = ast.parse(SOURCES[module].read_text())
            texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            assert not [t for t in texts for task in (*TASKS, "train_clf_imagenet") if f"{task}." in t], module


def test_only_one_module_communicates_between_processes():
    for module, path in SOURCES.items():
        if module != "engine.distributed":
            lines = [line.strip() for line in path.read_text().splitlines()]
            assert not [x for x in lines if x.startswith(("import torch.distributed", "from torch.distributed"))], (
                module
            )


def test_no_module_reads_a_log_or_a_readme_back():
    """State is data: programs write logs and READMEs for people, and read JSON."""
    for module, path in SOURCES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in {"read_text", "read_bytes", "open"}:
                texts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
                assert not {"train.log", "README.md"} & {*map(str, texts)}, module
