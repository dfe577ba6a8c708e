"""The switches of the detection recipe and their levels: data for the tests that every level has to pass."""

# {field: {value: overrides that the value needs}}. The first value is that of the reference recipe, SSD's of 2016.
SWITCHES = {
    "loss.classification": {"multibox": (), "focal": (), "quality_focal": ()},
    "loss.assignment": {"iou": (), "atss": (), "task_aligned": ("loss.classification=quality_focal",)},
    "loss.box": {"smooth_l1": (), "giou": (), "ciou": ()},
    "loss.reweight": {"none": (), "pisa": ()},
    "model.head_tower": {"0": (), "2": (), "4": ()},
    "model.anchor_scales": {"ssd": (), "ssd_coco": (), "auto": (), "[0.08, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9]": ()},
    "augment.policy": {"ssd": (), "lsj": (), "mosaic": ("augment.mosaic_share=0.5",)},
    "train.ema_decay": {"null": (), "0.9": ()},
}

REFERENCE = tuple(f"{field}={next(iter(values))}" for field, values in SWITCHES.items())

# Many switches at once, with softmax and with sigmoid scores.
COMBINATIONS = {
    "softmax": (
        "loss.assignment=atss", "loss.box=giou", "loss.reweight=pisa", "model.head_tower=2", "model.anchor_scales=auto",
        "augment.policy=mosaic", "augment.mosaic_share=0.5", "train.ema_decay=0.9",
    ),
    "sigmoid": (
        "loss.classification=quality_focal", "loss.assignment=task_aligned", "loss.box=ciou", "model.head_tower=4",
        "model.anchor_scales=auto", "augment.policy=lsj", "train.ema_decay=0.9",
    ),
}  # fmt: skip

# {name: overrides}: the reference recipe, each other level of each switch, and the combinations.
RECIPES = {
    "reference": (),
    **{
        f"{field}={value}": (f"{field}={value}", *needed)
        for field, values in SWITCHES.items()
        for value, needed in list(values.items())[1:]
    },
    **COMBINATIONS,
}

# Pairs of levels that do not fit together.
IMPOSSIBLE = [
    ("loss.assignment=task_aligned", "loss.classification=multibox"),
    ("loss.assignment=task_aligned", "loss.classification=focal"),
    ("loss.reweight=pisa", "loss.classification=focal"),
    ("loss.reweight=pisa", "loss.classification=quality_focal"),
]
