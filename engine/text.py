"""Text for messages: suggestions of names, shortened values, lists of names."""

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from engine.terminal import printable


class UnknownNameError(ValueError):
    """An unknown name; the message lists the known names and suggests the most similar one."""

    def __init__(self, what: str, name: str, choices: Iterable[str]) -> None:
        """Create the error; `what` is the kind of thing that has the name, such as 'backbone'."""
        self.name, self.choices = name, list(choices)
        cure = did_you_mean(nearest(name, self.choices))
        super().__init__(f"{what} {name!r}: expected one of {', '.join(self.choices)}{cure}")


def nearest(word: Any, choices: Iterable[Any]) -> list[str]:
    """Return a list with the choice most similar to `word`, ignoring case; an empty list if no choice is similar."""
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    return [by_lower[near] for near in difflib.get_close_matches(str(word).lower(), by_lower, n=1)]


def did_you_mean(names: Iterable[Any]) -> str:
    """Return "; did you mean 'a' or 'b'?", or an empty string if there are no names."""
    names = [f"'{name}'" for name in names]
    return f"; did you mean {' or '.join(names)}?" if names else ""


def shown(value: Any) -> str:
    """Return a value as written in a config, truncated to 80 characters."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def listed(names: Sequence[str], most: int = 12) -> str:
    """Return the first `most` names, separated by commas and safe to print on a terminal."""
    return ", ".join(map(printable, names[:most])) + ", ..." * (len(names) > most)
