"""Describe the recipe of a run: what differs from the reference recipe, which is that of SSD (arXiv 1512.02325)."""

from typing import TYPE_CHECKING

from engine.text import shown

if TYPE_CHECKING:
    from detection.task import DetectionConfig

REFERENCE = "SSD of 2016 (reference recipe)"
# Fields that choose a part of the recipe. Their defaults are those of the reference recipe.
PARTS = (
    "loss.classification",
    "loss.assignment",
    "loss.box",
    "loss.reweight",
    "model.head_tower",
    "model.anchor_scales",
    "augment.policy",
    "train.ema_decay",
)


def describe_recipe(config: "DetectionConfig") -> str:
    """Return "SSD of 2016 (reference recipe)", followed by the parts that differ, such as "with loss.box giou"."""
    changes = []
    for name in PARTS:
        section, field = name.split(".")
        owner = getattr(config, section)
        value = getattr(owner, field)
        if value != type(owner).model_fields[field].default:
            changes.append(f"{name} {value if isinstance(value, str) else shown(value)}")
    return f"{REFERENCE} with {', '.join(changes)}" if changes else REFERENCE
