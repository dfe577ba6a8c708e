"""Find what changed since a run was started: its recipe, its data, or the code that computes weights and scores.

The training module of a task lists this code in COMPUTES, as {part: file patterns}. LOOP lists the code that all tasks
share. Changes of comments, docstrings, messages or any file not listed do not make a result stale.
"""

import ast
import hashlib
import importlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from engine.config import changed_values
from engine.inputs import Inputs, read_inputs
from engine.strict_yaml import read_yaml
from records.experiment import FREE_FIELDS
from records.results import read_results

PROJECT = Path(__file__).parents[2]
LOOP = {
    "training loop": (
        "training.py", "engine/optim.py", "engine/loading.py", "engine/distributed.py", "engine/train_state.py",
        "engine/finite.py", "engine/compute/inference.py", "engine/compute/placement.py", "engine/compute/precision.py",
    ),
    "data": ("data.py",),
}  # fmt: skip
LOG_CALLS = ("logger.info", "logger.warning", "logger.error", "logger.debug")


# ---- recipe and data -----------------------------------------------------------------------------------------


def changed_recipe(then: dict, now: dict) -> list[str]:
    """Return the changes between two recipes, such as ['train.epochs was 3, is 5'], ignoring FREE_FIELDS.

    If `now` has `train.precision: auto` (the default), any precision matches: `auto` depends on the hardware."""
    changes = changed_values(then, now)
    if now.get("train", {}).get("precision", "auto") == "auto":
        changes.pop("train.precision", None)
    return [text for name, text in changes.items() if name not in FREE_FIELDS]


def is_same_data(then: dict, now: dict, experiment: Path | None = None) -> bool:
    """Return whether two recipes use the same data: the same folder, or folders with the same content.

    experiment: run that was started with `then` and recorded the data that it read. Without the record, different
    folders count as different data. If both folders are missing, as in a clone without data, they count as the same."""
    old, new = data_folder(then), data_folder(now)
    if old == new or not (old.exists() or new.exists()):
        return True
    inputs = recorded_inputs(experiment) if experiment else None
    return inputs is not None and not any(inputs.changes(new))


def changed_data(experiment: Path, recipe: dict) -> list[str]:
    """Return the data files that changed since the run read them, such as ['data: .../instances_val.json'].

    Checks the files in the recipe's data.root. Missing files are not a change, because a clone may lack the data."""
    inputs = recorded_inputs(experiment)
    changes = inputs.changes(_data_root(recipe)) if inputs else ()
    return [f"data: {change.path}" for change in changes if not change.is_missing]


def recorded_inputs(experiment: Path) -> Inputs | None:
    """Return the record of the data that a run read (of earlier versions: only annotation files), or None."""
    inputs = read_inputs(experiment)
    if inputs is None and (experiment / "results.json").is_file():
        config, _ = read_yaml(experiment / "config.yaml")
        inputs = Inputs(str(_data_root(config)), read_results(experiment / "results.json").inputs, {})
    return inputs


def data_folder(recipe: dict) -> Path:
    """Return the data folder of a recipe as an absolute path with links resolved."""
    return Path(os.path.realpath(_data_root(recipe)))


def _data_root(recipe: dict) -> Path:
    return Path(os.path.expanduser(recipe.get("data", {}).get("root", "")))


# ---- code ----------------------------------------------------------------------------------------------------


def changed_code(cell: dict) -> list[str]:
    """Return ['code changed: detection/network/loss.py [loss]'] if code changed since the start, else []."""
    if "computes" not in cell:
        return ["started by an earlier version of this project, which did not record the code that a run used"]
    then, now = cell["computes"], code_hashes(cell["task"])
    parts = {path: part for part, paths in code_of(cell["task"]).items() for path in paths}
    changed = sorted(name for name in then | now if then.get(name) != now.get(name))
    shown = ", ".join(f"{name} [{parts.get(name, 'removed')}]" for name in changed[:3])
    more = f" and {len(changed) - 3} more files" if len(changed) > 3 else ""
    return [f"code changed: {shown}{more}"] if changed else []


def code_hashes(task: str) -> dict[str, str]:
    """Return a dict from path to code hash of all files that compute weights or scores of a task. Raises ValueError."""
    paths = [path for paths in code_of(task).values() for path in paths]
    return {path: _code_hash(PROJECT / path, (PROJECT / path).stat().st_mtime_ns) for path in sorted(paths)}


def code_of(task: str) -> dict[str, list[str]]:
    """Return {part: files that compute weights or scores of a task}. A file is in the first part that lists it.

    Raises ValueError if the task has no training module, or if the module has no COMPUTES."""
    source = PROJECT / f"{task.replace('.', '/')}.py"
    if not source.is_file():
        raise ValueError(f"task {task!r}: module {source.relative_to(PROJECT)} not found in the project")
    computes = getattr(importlib.import_module(task), "COMPUTES", None)
    if computes is None:
        raise ValueError(f"task {task!r}: {source.name} has no COMPUTES, the list of files that compute its scores")
    found: dict[str, list[str]] = {}
    known: set[str] = set()
    for part, patterns in [*computes.items(), *LOOP.items()]:
        paths = {str(path.relative_to(PROJECT)) for pattern in patterns for path in PROJECT.glob(pattern)}
        found.setdefault(part, []).extend(sorted(paths - known))
        known |= paths
    return found


@lru_cache(maxsize=2**10)
def _code_hash(path: Path, mtime_ns: int) -> str:
    """Return the first 16 hex digits of the SHA-256 of a file's code; a new `mtime_ns` invalidates the cached hash."""
    return hashlib.sha256(repr(outline(ast.parse(path.read_bytes()))).encode()).hexdigest()[:16]


def outline(node: Any) -> Any:
    """Return code as nested lists, without the parts that do not affect what it computes.

    Omits comments, positions, docstrings, descriptions of config fields, log calls and the arguments of exceptions.
    Also omits empty fields, because versions of Python differ in them."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        node = ast.Raise(node.exc.func)
    if isinstance(node, ast.AST):
        fields = [(name, outline(value)) for name, value in ast.iter_fields(node)]
        return [type(node).__name__, *(each for each in fields if each[1] not in (None, []))]
    if isinstance(node, list):
        return [outline(each) for each in node if not _is_text(each)]
    return node if node is None else repr(node)


def _is_text(node: Any) -> bool:
    if isinstance(node, ast.keyword):
        return node.arg == "description"
    if not isinstance(node, ast.Expr):
        return False
    is_docstring = isinstance(node.value, ast.Constant)
    return is_docstring or (isinstance(node.value, ast.Call) and ast.unparse(node.value.func) in LOG_CALLS)
