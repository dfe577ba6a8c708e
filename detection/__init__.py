"""Single-shot detectors: the network, the training task and its commands.

`from detection import load` is the Python API (detection/detector.py). The import is lazy, because it loads PyTorch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detection.detector import Detections, Detector, load

__all__ = ["Detections", "Detector", "load"]


def __getattr__(name: str) -> Any:
    """Import the names in `__all__` from detection.detector on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from detection import detector

    return getattr(detector, name)
