"""Names and sources of timm's pretrained weights. timm is an optional extra and is imported only when needed."""

from types import ModuleType

EXTRA = "pip install -e '.[timm]'"


def import_timm() -> ModuleType:
    """Return the timm package. Raises ValueError with the command that installs it if it is missing."""
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"timm: not installed ({error}); run {EXTRA}") from error
    return timm
