"""The floors of the house: a module imports only from its own floor or from those below it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = (
    {
        "model", "engine.config", "engine.strict_yaml", "engine.weights", "engine.distributed", "engine.optim",
        "detection.boxes", "detection.necks", "detection.sample",
    },
    {
        "data", "engine.checkpoint", "engine.logbook", "engine.experiment", "engine.command", "detection.backbones",
        "detection.anchors", "detection.matching", "detection.postprocess", "detection.transforms",
        "detection.pictures",
    },
    {"training", "detection.ssd", "detection.loss", "detection.data", "detection.evaluation", "detection.record"},
    {"detection.training", "detection.test"},
)  # fmt: skip
FLOOR = {module: number for number, modules in enumerate(FLOORS, start=1) for module in modules}


def source(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


def imported(path: Path) -> set[str]:
    """Modules of this project that a file imports when it is run, not those only for type checkers."""
    names = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return names & FLOOR.keys()


def test_every_module_has_a_floor():
    files = [*ROOT.glob("*.py"), *ROOT.glob("engine/*.py"), *ROOT.glob("detection/*.py")]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files if path.stem != "__init__"}
    assert modules == FLOOR.keys()


@pytest.mark.parametrize("module", sorted(FLOOR))
def test_imports_go_downward(module):
    upward = {name for name in imported(source(module)) if FLOOR[name] > FLOOR[module]}
    assert not upward


@pytest.mark.parametrize("module", sorted(FLOOR.keys() - {"engine.distributed"}))
def test_only_one_module_communicates(module):
    text = source(module).read_text()
    assert "torch.distributed" not in text
