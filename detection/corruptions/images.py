"""The 15 common corruptions of images (Hendrycks and Dietterich, arXiv 1903.12261), always the same for an image.

The package imagecorruptions-imaug computes them: `pip install -e '.[corruptions]'`. It is the maintained version of the
package by the authors of the benchmark for detectors (Michaelis et al., arXiv 1907.07484).
"""

import contextlib
import hashlib
import importlib.metadata
import io
from collections.abc import Iterator

import numpy as np

from engine.text import UnknownNameError

CORRUPTIONS = {
    "gaussian_noise": "noise", "shot_noise": "noise", "impulse_noise": "noise",
    "defocus_blur": "blur", "glass_blur": "blur", "motion_blur": "blur", "zoom_blur": "blur",
    "snow": "weather", "frost": "weather", "fog": "weather", "brightness": "weather",
    "contrast": "digital", "elastic_transform": "digital", "pixelate": "digital", "jpeg_compression": "digital",
}  # fmt: skip
OWN_SEED = ("glass_blur", "impulse_noise")  # have a random generator of their own; the others use NumPy's global one
SEVERITIES = (1, 2, 3, 4, 5)
MIN_SIDE = 32  # pixels; the package rejects smaller images
PACKAGE = "imagecorruptions-imaug"
LIBRARIES = (PACKAGE, "numpy", "opencv-python", "pillow", "scikit-image", "scipy")  # that the pixels depend on


class MissingPackageError(ValueError):
    """The package that corrupts images is not installed."""


def parse_names(text: str) -> list[str]:
    """Return the corruptions of a comma-separated list of corruptions and kinds (such as blur), in the usual order.

    Raises UnknownNameError for any other word."""
    words = text.split(",")
    for word in words:
        if word not in CORRUPTIONS and word not in CORRUPTIONS.values():
            raise UnknownNameError("corruption", word, [*CORRUPTIONS, *dict.fromkeys(CORRUPTIONS.values())])
    return [name for name, kind in CORRUPTIONS.items() if name in words or kind in words]


def library_versions() -> dict[str, str]:
    """Return the versions of the packages that corrupted pixels depend on. Raises MissingPackageError."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise MissingPackageError(
                f"--corruptions: the package {name} is not installed; run pip install -e '.[corruptions]'"
            ) from None
    return versions


def corrupt(pixels: np.ndarray, corruption: str, severity: int, image_id: int) -> np.ndarray:
    """Return a corrupted copy of an image. Its random numbers depend only on image id, corruption and severity.

    pixels: (H, W, 3) uint8 RGB, at least MIN_SIDE pixels wide and high. severity: 1 (weak) to 5 (strong).
    Returns (H, W, 3) uint8 RGB."""
    import imagecorruptions  # takes seconds

    digest = hashlib.sha256(f"{image_id} {corruption} {severity}".encode()).digest()
    seeds = np.frombuffer(digest[:8], np.uint32)
    options = {"seed": int(seeds[1]) % 2**31} if corruption in OWN_SEED else {}
    with numpy_seed(int(seeds[0])), contextlib.redirect_stdout(io.StringIO()):  # the package prints for odd sizes
        corrupted = imagecorruptions.corrupt(pixels, severity=severity, corruption_name=corruption, **options)
    return np.array(corrupted)  # a copy, because the array of a decoded JPEG is read-only


@contextlib.contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """Context manager that seeds NumPy's global random generator, and restores its state afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
