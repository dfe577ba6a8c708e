"""Make text from files, such as names of classes and images, safe to print on a terminal.

A name may contain line breaks, which can fake lines of output, or escape codes, which control the terminal.
"""

import re

# Control characters, line and paragraph separators, overrides of the writing direction, and lone surrogates.
_CONTROLS = "\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROL = re.compile(f"[{_CONTROLS}]")
_CONTROL_IN_LINES = re.compile(f"(?![\n\t])[{_CONTROLS}]")


def printable(text: str) -> str:
    r"""Return a name with control characters, including line breaks, replaced by Python escapes such as `\n`."""
    return _CONTROL.sub(_escape, text)


def printable_lines(text: str) -> str:
    """Return a message with control characters escaped, except line breaks and tabs."""
    return _CONTROL_IN_LINES.sub(_escape, text)


def counted(number: int, singular: str, plural: str) -> str:
    """Return a number with a noun in the singular or plural: '1 class', '1,200 classes', '0 classes'."""
    return f"{number:,} {singular if number == 1 else plural}"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _escape(match: re.Match) -> str:
    return ascii(match[0])[1:-1]
