"""Single-shot detectors: the network, the training task and its commands.

`from detection import load` is the API for Python (detection/detector.py). It is imported on first use, because it
imports PyTorch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detection.detector import Detections, Detector, load

__all__ = ["Detections", "Detector", "load"]


def __getattr__(name: str) -> Any:
    """Import `__all__` from detection.detector on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from detection import detector

    return getattr(detector, name)
