"""ablation/staleness.py: what makes a result stale, and what does not."""

import ast
import os
from pathlib import Path

import pytest

from ablation import staleness
from ablation.staleness import PROJECT, changed_code, changed_recipe, code_hashes, outline
from tests.test_imports import SOURCES, imported

TASKS = ("detection.training", "train_clf_imagenet", "diffusion.training")

# What a training module imports and what computes neither weights nor scores.
UNRELATED_ROOMS = {
    "records": "what is written about a run",
    "stats": "comparisons, which are computed again from the record",
    "weights": "weights to start from are identified by content in the record",
    "detection.drawing": "pictures",
    "detection.prepare": "the check of images before training",
}
UNRELATED = {
    "runs": "from the command line to the record",
    "engine.arguments": "command lines", "engine.start": "command lines", "engine.command": "exit codes",
    "engine.config": "reading configs: the recipe is compared by value", "engine.strict_yaml": "reading configs",
    "engine.charts": "pictures", "engine.logbook": "messages", "engine.terminal": "messages", "engine.text": "messages",
    "engine.checkpoint": "saving: a resumed run is bit-identical", "engine.files": "files and locks",
    "engine.inputs": "data are compared by content",
    "engine.ranks": "which process prints", "engine.signals": "how a run is asked to end",
    "engine.compute.cost": "measurements", "engine.compute.machine": "measurements",
    "engine.compute.threads": "speed",
    "detection.training": "command line and messages", "detection.record": "what is written about a run",
    "classification.training": "command line and messages",
    "detection.anchor_fit": "a report", "detection.coco.warnings": "warnings", "detection.coco.defects": "errors",
    "detection.coco.detections": "found boxes for other programs",
    "detection.detector": "use of a trained detector",
    "train_clf_imagenet": "command line and messages", "classification.record": "what is written about a run",
    "classification.pictures": "pictures", "classification.predict": "use of a trained classifier",
    "classification.evaluate": "scoring again", "classification.classifier": "use of a trained classifier",
    "diffusion.training": "command line and messages", "diffusion.record": "what is written about a run",
    "diffusion.pictures": "pictures", "diffusion.sampling": "samples: the score is the loss",
}  # fmt: skip


def closure(module: str) -> set[str]:
    """Every module of the project that is imported when a task trains, but for packages."""
    found, waiting = set(), [module]
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += imported(name)
    return {name for name in found if SOURCES[name].name != "__init__.py"}


@pytest.mark.parametrize("task", TASKS)
def test_every_imported_module_is_listed_as_computing_or_as_unrelated(task):
    computes = {path.removesuffix(".py").replace("/", ".") for path in code_hashes(task)}
    unrelated = {
        name for name in closure(task) if name in UNRELATED or any(name.startswith(f"{r}.") for r in UNRELATED_ROOMS)
    }
    assert not computes & unrelated
    assert closure(task) - computes - unrelated == set(), "add it to COMPUTES of the task, to LOOP, or to UNRELATED"


@pytest.mark.parametrize("task", TASKS)
def test_comments_docstrings_descriptions_and_messages_make_nothing_stale(task):
    for name in code_hashes(task):
        source = (PROJECT / name).read_text()
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                node.body.insert(0, ast.Expr(ast.Constant("Another docstring.")))
            if isinstance(node, ast.keyword) and node.arg == "description":
                node.value = ast.Constant("another description")
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                node.exc.args = [ast.Constant("another message")]
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("logger.info", "logger.warning"):
                node.args = [ast.Constant("another message")]
        changed = "# another comment\n\n" + ast.unparse(tree)  # which leaves out the comments that were there
        assert outline(ast.parse(changed)) == outline(ast.parse(source)), name


def test_the_type_of_an_exception_counts_as_code():
    assert outline(ast.parse("raise KeyError('a')")) != outline(ast.parse("raise ValueError('a')"))


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A copy of the code that trains a detector; `edit` writes to it."""
    for path in code_hashes("detection.training"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((PROJECT / path).read_bytes())
    (tmp_path / "detection/training.py").touch()
    monkeypatch.setattr(staleness, "PROJECT", tmp_path)
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text, at = path.read_text(), path.stat().st_mtime_ns + 10**9
    assert old in text
    path.write_text(text.replace(old, new, 1))
    os.utime(path, ns=(at, at))


@pytest.mark.parametrize(
    ("path", "old", "new", "named"),
    [
        ("detection/network/loss.py", "return ", "return 2 * ", "loss: detection/network/loss.py"),
        ("detection/network/ssd.py", "return ", "return 2 * ", "network: detection/network/ssd.py"),
        ("engine/optim.py", "return ", "return 2 * ", "training loop: engine/optim.py"),
        ("detection/network/loss.py", "\ndef ", "\n# a comment\ndef ", None),
    ],
)
def test_a_change_of_what_is_computed_is_named_with_its_part(project, path, old, new, named):
    cell = {"task": "detection.training", "computes": code_hashes("detection.training")}
    assert changed_code(cell) == []
    edit(project / path, old, new)
    assert changed_code(cell) == ([f"the code has changed since ({named})"] if named else [])


def test_a_new_network_file_and_a_removed_one_count_and_of_many_files_the_first_are_named(project):
    cell = {"task": "detection.training", "computes": code_hashes("detection.training")}
    (project / "detection/network/another.py").write_text("x = 1\n")
    (project / "data.py").unlink()
    assert changed_code(cell) == [
        "the code has changed since (removed: data.py, network: detection/network/another.py)"
    ]
    (found,) = changed_code(cell | {"computes": {}})
    assert " and " in found
    assert found.count(".py") == 3


@pytest.mark.parametrize(("now", "matches"), [(None, True), ("auto", True), ("fp32", False), ("bf16", True)])
def test_auto_precision_accepts_a_run_that_was_started_in_any_precision(now, matches):
    train = {"epochs": 3} | ({"precision": now} if now else {})
    assert (changed_recipe({"train": {"epochs": 3, "precision": "bf16"}}, {"train": train}) == []) is matches
