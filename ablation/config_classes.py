"""The config classes of the tasks, which are imported only where they are needed, because this takes seconds."""

from importlib import import_module
from typing import Any

from pydantic_core import to_jsonable_python

from engine.config import Config, nested_class, sections


def config_class(task: str) -> type[Config] | None:
    """Return the config class of a task or training module: "detection" -> DetectionConfig in detection/task.py.

    None if the task has no such module."""
    package = task.partition(".")[0]
    try:
        module = import_module(f"{package}.task")
    except ModuleNotFoundError as error:
        if error.name in (package, f"{package}.task"):
            return None
        raise
    return getattr(module, f"{package.capitalize()}Config")


def default_values(cls: type[Config]) -> dict[str, Any]:
    """Return {field: default} for all fields of a config class that have a default, as in a config file."""
    return {
        ".".join((*path, name)): to_jsonable_python(field.default)
        for path, section in sections(cls)
        for name, field in section.model_fields.items()
        if not field.is_required() and not nested_class(field.annotation)
    }
