"""Single-shot detectors: the parts, the training task and its commands.

`from detection import load` is the door for Python (detection/detector.py); it is not opened before it is asked for,
because the commands and the parts do without it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detection.detector import Detections, Detector, load

__all__ = ["Detections", "Detector", "load"]


def __getattr__(name: str) -> Any:
    """The names of detection.detector that belong to the package, when they are first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from detection import detector

    return getattr(detector, name)
