"""Images that a data set holds twice: in both halves, or under several records of one half."""

from detection.coco.annotations import CocoFile
from engine.inputs import Repeats, repeated_names, shared_between


def leak_warnings(train: CocoFile, val: CocoFile) -> list[str]:
    """A line each: validation images that are also training images, and file names that occur twice in a half."""
    shared = shared_between(train.image_paths, val.image_paths)
    twice = {coco.annotations_path: repeated for coco in (train, val) if (repeated := named_twice(coco))}
    return [*([str(shared)] if shared else []), *(f"{path}: {repeated}" for path, repeated in twice.items())]


def named_twice(coco: CocoFile) -> Repeats | None:
    """File names that several records have."""
    return repeated_names([image.file_name for image in coco.images])
