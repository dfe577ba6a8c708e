"""Words for messages: suggestions, shortened values, lists of names."""

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from engine.terminal import printable


class UnknownNameError(ValueError):
    """A name that is not among the known ones; the message lists them and suggests the nearest."""

    def __init__(self, what: str, name: str, choices: Iterable[str]) -> None:
        """what: the kind of thing that is named, such as 'backbone'."""
        self.name, self.choices = name, list(choices)
        cure = did_you_mean(nearest(name, self.choices))
        super().__init__(f"{what} {name!r}: expected one of {', '.join(self.choices)}{cure}")


def nearest(word: Any, choices: Iterable[Any]) -> list[str]:
    """Return the choice that is spelled most like `word`, ignoring case; an empty list if none is close."""
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    return [by_lower[near] for near in difflib.get_close_matches(str(word).lower(), by_lower, n=1)]


def did_you_mean(names: Iterable[Any]) -> str:
    """Return "; did you mean 'a' or 'b'?", or an empty string without names."""
    names = [f"'{name}'" for name in names]
    return f"; did you mean {' or '.join(names)}?" if names else ""


def shown(value: Any) -> str:
    """Return a value as a config would show it, cut to 80 characters."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def listed(names: Sequence[str], most: int = 12) -> str:
    """Return the first few names in one line, fit for a terminal."""
    return ", ".join(map(printable, names[:most])) + ", ..." * (len(names) > most)
