"""Tests of ablation/scheduling/staleness.py: which changes make a result stale."""

import ast
import os
from pathlib import Path

import pytest

from ablation.scheduling import staleness
from ablation.scheduling.staleness import PROJECT, changed_code, changed_recipe, code_hashes, outline
from tests.test_imports import SOURCES, imported

TASKS = ("detection.training", "train_clf_imagenet", "diffusion.training")

# Modules that training imports but that compute neither weights nor scores, each with its purpose.
UNRELATED_ROOMS = {
    "records": "records of a run",
    "stats": "comparisons, computed again from the records",
    "weights": "start weights, identified by content in the record",
    "detection.drawing": "pictures",
    "detection.prepare": "the check of images before training",
}
UNRELATED = {
    "runs": "runs a command and records it",
    "engine.arguments": "command lines", "engine.start": "command lines", "engine.command": "exit codes",
    "engine.config": "reading configs; recipes are compared by value", "engine.strict_yaml": "reading configs",
    "engine.charts": "pictures", "engine.logbook": "messages", "engine.terminal": "messages", "engine.text": "messages",
    "engine.checkpoint": "saving; a resumed run is bit-identical", "engine.files": "files and locks",
    "engine.inputs": "identifying data; data are compared by content",
    "engine.ranks": "which rank prints", "engine.signals": "stop signals",
    "engine.compute.cost": "measurements", "engine.compute.machine": "measurements",
    "engine.compute.threads": "speed",
    "detection.training": "command line and messages", "detection.record": "records of a run",
    "detection.recipe": "messages and records of a run",
    "classification.training": "command line and messages",
    "detection.anchor_fit": "a report", "detection.coco.warnings": "warnings", "detection.coco.defects": "errors",
    "detection.coco.detections": "detections for other programs",
    "detection.detector": "inference with a trained detector",
    "train_clf_imagenet": "command line and messages", "classification.record": "records of a run",
    "classification.pictures": "pictures", "classification.predict": "inference with a trained classifier",
    "classification.evaluate": "evaluation of a trained classifier",
    "classification.classifier": "inference with a trained classifier",
    "diffusion.training": "command line and messages", "diffusion.record": "records of a run",
    "diffusion.pictures": "pictures", "diffusion.sampling": "samples; the score is the loss",
}  # fmt: skip


def closure(module: str) -> set[str]:
    """Return every module of the project, except packages, that is imported when a task trains."""
    found, waiting = set(), [module]
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += imported(name)
    return {name for name in found if SOURCES[name].name != "__init__.py"}


@pytest.mark.parametrize("task", TASKS)
def test_every_imported_module_is_listed_in_computes_loop_or_unrelated(task):
    computes = {path.removesuffix(".py").replace("/", ".") for path in code_hashes(task)}
    unrelated = {
        name for name in closure(task) if name in UNRELATED or any(name.startswith(f"{r}.") for r in UNRELATED_ROOMS)
    }
    assert computes & unrelated <= {"weights.timm_weights"}  # only detectors take mean and std of pixels from it
    assert closure(task) - computes - unrelated == set(), "add it to COMPUTES of the task, to LOOP, or to UNRELATED"


@pytest.mark.parametrize("task", TASKS)
def test_comments_docstrings_descriptions_and_messages_do_not_make_a_result_stale(task):
    for name in code_hashes(task):
        source = (PROJECT / name).read_text()
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                node.body.insert(0, ast.Expr(ast.Constant("A new docstring.")))
            if isinstance(node, ast.keyword) and node.arg == "description":
                node.value = ast.Constant("a new description")
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                node.exc.args = [ast.Constant("a new message")]
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("logger.info", "logger.warning"):
                node.args = [ast.Constant("a new message")]
        changed = "# a new comment\n\n" + ast.unparse(tree)  # unparse drops the old comments
        assert outline(ast.parse(changed)) == outline(ast.parse(source)), name


def test_the_type_of_an_exception_counts_as_code():
    assert outline(ast.parse("raise KeyError('a')")) != outline(ast.parse("raise ValueError('a')"))


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """Return a copy of the code that trains a detector; tests change it with `edit`."""
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
        ("detection/network/loss.py", "return ", "return 2 * ", "detection/network/loss.py [loss]"),
        ("detection/network/ssd.py", "return ", "return 2 * ", "detection/network/ssd.py [network]"),
        ("engine/optim.py", "return ", "return 2 * ", "engine/optim.py [training loop]"),
        ("detection/network/loss.py", "\ndef ", "\n# a comment\ndef ", None),
    ],
)
def test_a_code_change_is_reported_with_its_file_and_part(project, path, old, new, named):
    cell = {"task": "detection.training", "computes": code_hashes("detection.training")}
    assert changed_code(cell) == []
    edit(project / path, old, new)
    assert changed_code(cell) == ([f"code changed: {named}"] if named else [])


def test_added_and_removed_files_are_changes_and_only_the_first_few_are_listed(project):
    cell = {"task": "detection.training", "computes": code_hashes("detection.training")}
    (project / "detection/network/another.py").write_text("x = 1\n")
    (project / "data.py").unlink()
    assert changed_code(cell) == ["code changed: data.py [removed], detection/network/another.py [network]"]
    (found,) = changed_code(cell | {"computes": {}})
    assert " and " in found
    assert found.count(".py") == 3


@pytest.mark.parametrize(("now", "matches"), [(None, True), ("auto", True), ("fp32", False), ("bf16", True)])
def test_auto_precision_matches_a_run_in_any_precision(now, matches):
    train = {"epochs": 3} | ({"precision": now} if now else {})
    assert (changed_recipe({"train": {"epochs": 3, "precision": "bf16"}}, {"train": train}) == []) is matches
