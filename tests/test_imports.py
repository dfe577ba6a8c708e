"""Imports point downwards and have no cycles, and tasks do not import each other."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TASKS = ("classification", "detection", "diffusion")
# Layers, lowest first. A module may import from its own layer and from lower ones.
LAYERS = (
    ("engine",),
    ("model", "data", "stats"),
    ("records", "weights", "training"),
    ("runs",),
    ("ablation", *TASKS, "train_clf_imagenet"),
    ("adapters",),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
# Inside detection: the network imports neither COCO code nor commands; COCO code imports no commands.
DETECTION = ("detection.network", "detection.coco")
JUDGE_MODULE = "diffusion.quality"  # the only module that imports a different task: a classifier judges samples


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path
    for path in sorted(ROOT.rglob("*.py"))
    if path.relative_to(ROOT).parts[0].removesuffix(".py") in LAYER
}


@cache
def imported(module: str) -> frozenset[str]:
    """Return all project modules that a module imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names & SOURCES.keys())


def package_of(module: str) -> str:
    return module.split(".")[0]


def test_every_top_level_module_and_package_has_a_layer():
    found = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found == LAYER.keys()


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_downwards(module):
    assert not [name for name in imported(module) if LAYER[package_of(name)] > LAYER[package_of(module)]]


def test_imports_have_no_cycles():
    TopologicalSorter({module: imported(module) - {module, *TASKS} for module in SOURCES}).prepare()


def test_ablation_does_not_import_tasks():
    forbidden = {*TASKS, "train_clf_imagenet", "runs", "training", "model", "data"}
    for module in SOURCES:
        assert package_of(module) != "ablation" or not forbidden & {package_of(name) for name in imported(module)}, (
            module
        )


def test_tasks_do_not_import_each_other():
    for module in SOURCES:
        if package_of(module) in TASKS:
            allowed = {package_of(module), *(["classification"] if module == JUDGE_MODULE else [])}
            assert not (set(TASKS) - allowed) & {package_of(name) for name in imported(module)}, module


def test_network_and_coco_code_do_not_import_commands():
    for module in SOURCES:
        for below in DETECTION:
            if module.startswith(f"{below}."):
                above = [name for name in imported(module) if name.startswith("detection.")]
                allowed = DETECTION[: DETECTION.index(below) + 1]
                assert not [name for name in above if not name.startswith(allowed)], module


def test_engine_does_not_mention_tasks():
    for module in SOURCES:
        if package_of(module) == "engine":
            tree = ast.parse(SOURCES[module].read_text())
            texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            assert not [t for t in texts for task in (*TASKS, "train_clf_imagenet") if f"{task}." in t], module


def test_only_engine_distributed_imports_torch_distributed():
    for module, path in SOURCES.items():
        if module != "engine.distributed":
            lines = [line.strip() for line in path.read_text().splitlines()]
            assert not [x for x in lines if x.startswith(("import torch.distributed", "from torch.distributed"))], (
                module
            )


def test_no_module_reads_logs_or_readmes():
    """Logs and READMEs are for people; programs read JSON."""
    for module, path in SOURCES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in {"read_text", "read_bytes", "open"}:
                texts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
                assert not {"train.log", "README.md"} & {*map(str, texts)}, module
