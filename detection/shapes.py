"""Draw a small detection data set in COCO's format, so that nothing has to be downloaded.

The six classes are shapes that may overlap and cross the image edge. Some images are empty. Some contain a crowd: many
small shapes in one box with `iscrowd` 1. Category ids and image ids have gaps. As in COCO, box, area and segmentation
describe the *visible* part of an object. At least half of each object is visible. Segmentations are polygons if the
object is fully visible. For partly hidden objects and crowds they are run-length encoded masks (RLE).

The `easy` style, which the demo uses, has three classes, no crowds, and at most three shapes per image.

An image depends only on the seed, its split and its index, so a larger set begins with the images of a smaller set.
With the same versions of NumPy and Pillow, the files are identical byte for byte.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageColor, ImageDraw, ImageFilter
from tqdm import tqdm

from engine.files import describe_write_errors, write_text

FINE = 4  # supersampling factor of the canvas, for smooth edges and boxes with a precision of 1/4 pixel
DESCRIPTION = "Drawn shapes, made by detection/sample.py"
VERSION = "1"  # increase it whenever the code draws different pixels or boxes

Outline = np.ndarray  # (n, 2) float, x and y of a polygon's corners


# ---- the classes ---------------------------------------------------------------------------------


def _polygon(*radii: float, corners: int) -> Outline:
    """Return corners at equal angles around the origin. Their distances from the origin cycle through `radii`."""
    angles = np.arange(corners) * (2 * np.pi / corners)
    return np.resize(radii, corners)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


CIRCLE = _polygon(1.0, corners=49)[[*range(49), 0]]
RING = np.concatenate([CIRCLE, 0.55 * CIRCLE[::-1]])  # the hole is traced backwards, so one outline suffices
ARM = np.array([[0.3, 0.3], [0.3, 1.0], [-0.3, 1.0]])
CROSS = np.concatenate([ARM, ARM[:, ::-1] * [-1, 1], -ARM, ARM[:, ::-1] * [1, -1]])  # four rotated copies of ARM


class Shape(NamedTuple):
    category_id: int
    outline: Outline  # fits roughly in the unit circle
    diameters: tuple[float, float]  # smallest and largest, as fractions of the image side


SHAPES = {
    "circle": Shape(1, _polygon(1.0, corners=48), (0.14, 0.42)),
    "square": Shape(2, _polygon(1.0, corners=4), (0.16, 0.50)),
    "triangle": Shape(4, _polygon(1.0, corners=3), (0.18, 0.55)),
    "star": Shape(7, _polygon(1.0, 0.45, corners=10), (0.18, 0.60)),
    "ring": Shape(11, RING, (0.16, 0.50)),
    "cross": Shape(18, CROSS, (0.16, 0.50)),
}


class Style(NamedTuple):
    """Parameters of the images of a data set."""

    shapes: dict[str, Shape]
    stretch: float  # natural logarithm of the largest stretch factor
    turns: tuple[float, float]  # smallest and largest rotation, radians
    most_objects: int  # largest number of objects per image
    visible: float  # smallest share of an object's area that must be visible
    small: float  # share of small objects, whose diameter is 8 to 13% of the image side
    empty: float  # share of images without objects
    crowds: float  # share of images with a crowd


STYLES = {
    "full": Style(
        SHAPES, stretch=0.18, turns=(0, 2 * np.pi), most_objects=5, visible=0.5, small=0.12, empty=0.04, crowds=0.06
    ),
    # For the demo: a small detector learns this style in two minutes on one core.
    "easy": Style(
        {name: SHAPES[name]._replace(diameters=(0.3, 0.5)) for name in ("triangle", "ring", "cross")},
        stretch=0.1, turns=(-0.2, 0.2), most_objects=3, visible=0.9, small=0.0, empty=0.04, crowds=0.0,
    ),
}  # fmt: skip


# ---- one image -----------------------------------------------------------------------------------


class Thing(NamedTuple):
    """An object or a crowd. Each has a single annotation."""

    category_id: int
    outlines: list[Outline]  # in pixels
    is_crowd: bool


def _place(style: Style, shape: Shape, diameter: float, centre: np.ndarray, rng: Generator) -> Outline:
    """Return the outline of a shape in pixels, randomly stretched and rotated around `centre`."""
    stretch = np.exp(rng.uniform(-style.stretch, style.stretch))
    angle = rng.uniform(*style.turns)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return shape.outline * [stretch, 1 / stretch] @ turn * (diameter / 2) + centre


def _object(style: Style, side: int, rng: Generator) -> Thing:
    shape = list(style.shapes.values())[rng.integers(len(style.shapes))]
    low, high = np.log(shape.diameters)
    diameter = side * np.exp(rng.uniform(low, high))
    if rng.random() < style.small:
        diameter = side * rng.uniform(0.08, 0.13)
    outline = _place(style, shape, diameter, rng.uniform(0.06, 0.94, 2) * side, rng)
    return Thing(shape.category_id, [outline], is_crowd=False)


def _crowd(style: Style, side: int, rng: Generator) -> Thing:
    """Return a heap of 8 to 14 small shapes of one class."""
    shape = list(style.shapes.values())[rng.integers(len(style.shapes))]
    middle = rng.uniform(0.25, 0.75, 2) * side
    spread = rng.uniform(0.06, 0.1, 2) * side
    outlines = [
        _place(style, shape, side * rng.uniform(0.07, 0.11), rng.normal(middle, spread), rng)
        for _ in range(rng.integers(8, 15))
    ]
    return Thing(shape.category_id, outlines, is_crowd=True)


def _fill(outlines: list[Outline], side: int) -> np.ndarray:
    """Return the mask of the outlines on the fine canvas: (FINE * side, FINE * side) bool."""
    canvas = Image.new("1", (side * FINE, side * FINE))
    for outline in outlines:
        # The origin is the centre of the first pixel in Pillow, but its corner in COCO.
        ImageDraw.Draw(canvas).polygon((outline * FINE - 0.5).ravel().tolist(), fill=1)
    return np.asarray(canvas)


def _full_area(outlines: list[Outline]) -> float:
    """Return the total area of the outlines in square pixels (shoelace formula)."""
    return sum(abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2 for x, y in (o.T for o in outlines))


def _arrange(style: Style, side: int, rng: Generator) -> tuple[list[Thing], np.ndarray]:
    """Choose and place the objects and crowds of an image.

    Returns the things from back to front, and a map of the fine canvas: k where the k-th thing is visible, else 0."""
    kind = rng.random()
    if kind < style.empty:
        makers = []
    elif kind < style.empty + style.crowds:
        makers = [_crowd] + [_object] * int(rng.integers(1, 4))
    else:
        makers = [_object] * int(rng.integers(1, style.most_objects + 1))

    things: list[Thing] = []
    visible = np.zeros((side * FINE, side * FINE), np.uint8)
    for make in makers:
        for _ in range(20):  # give up after 20 attempts: the image may be too full
            thing = make(style, side, rng)
            candidate = np.where(_fill(thing.outlines, side), len(things) + 1, visible).astype(np.uint8)
            areas = np.bincount(candidate.ravel(), minlength=len(things) + 2)[1:] / FINE**2
            full = [_full_area(t.outlines) for t in [*things, thing]]
            if np.all(areas >= style.visible * np.array(full)):
                things.append(thing)
                visible = candidate
                break
    return things, visible


def _smooth_noise(cells: int, side: int, rng: Generator) -> np.ndarray:
    """Interpolate a coarse grid of random values. Returns (side, side) float, between about -1 and 1."""
    grid = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC))


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """Convert a colour to (3,) float RGB, 0 to 255. hue: fraction of the colour circle."""
    return np.array(ImageColor.getrgb(f"hsv({hue % 1 * 360:.3f},{saturation:.3%},{value:.3%})"), float)


def _ramp(side: int, rng: Generator) -> np.ndarray:
    """Return a gradient in a random direction: (side, side) float, about -0.5 to 0.5."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    return x * np.cos(angle) + y * np.sin(angle)


def _background(side: int, rng: Generator) -> np.ndarray:
    """Return a background of two pale tints, a texture and random lines: (side, side, 3) float RGB."""
    hue, value = rng.random(), rng.uniform(0.25, 0.8)
    tints = [_hsv(hue + rng.normal(0, 0.08), rng.uniform(0.08, 0.35), v) for v in (value, value + 0.15)]
    clouds = (_smooth_noise(int(rng.integers(3, 7)), side, rng) + 1) / 2
    image = tints[0] + clouds[..., None] * (tints[1] - tints[0])

    waves = [np.sin(2 * np.pi * rng.uniform(6, 16) * _ramp(side, rng)) for _ in range(2)]
    texture = [
        lambda: waves[0],  # stripes
        lambda: waves[0] * waves[1],  # weave
        lambda: np.sign(waves[0] * waves[1]),  # tiles
        lambda: _smooth_noise(side // 4, side, rng),  # grain
    ][rng.integers(4)]()
    image = image + texture[..., None] * rng.uniform(3, 12)

    lines = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    for _ in range(rng.integers(0, 4)):
        ends = rng.uniform(-0.1, 1.1, 4) * side
        colour = _hsv(rng.random(), rng.uniform(0.2, 0.7), rng.uniform(0.2, 0.9))
        width = max(1, round(side * rng.uniform(0.006, 0.025)))
        ImageDraw.Draw(lines).line(ends.tolist(), fill=tuple(colour.astype(int).tolist()), width=width)
    return np.asarray(lines.filter(ImageFilter.GaussianBlur(side * 0.004)), float)


def _paint(things: list[Thing], side: int, rng: Generator) -> Image.Image:
    """Draw the things, from back to front, over a background."""
    image = _background(side, rng)
    light = rng.normal(0, 0.025, 2) * side  # all shadows of an image have the same offset
    darkness = rng.uniform(0.25, 0.55)
    for thing in things:
        hue = rng.random()
        for outline in thing.outlines:
            colour = _hsv(hue + rng.normal(0, 0.03), rng.uniform(0.45, 1.0), rng.uniform(0.45, 1.0))
            cover = Image.fromarray(_fill([outline], side).astype(np.uint8) * 255).reduce(FINE)
            shadow = Image.fromarray(_fill([outline + light], side).astype(np.uint8) * 255).reduce(FINE)
            shadow = np.asarray(shadow.filter(ImageFilter.GaussianBlur(side * 0.02)), float) / 255
            image *= 1 - darkness * shadow[..., None]
            shading = 1 + rng.uniform(0.2, 0.8) * _ramp(side, rng)
            shading += 0.08 * _smooth_noise(side // 6, side, rng)
            alpha = np.asarray(cover, float)[..., None] / 255
            image += alpha * (colour * shading[..., None] - image)
    image += rng.normal(0, rng.uniform(3, 12), image.shape)
    return Image.fromarray(image.clip(0, 255).round().astype(np.uint8))


# ---- COCO's records ------------------------------------------------------------------------------


def _rle(mask: np.ndarray) -> dict:
    """Encode a (height, width) bool mask as COCO's uncompressed RLE: column by column, the first run is zeros."""
    pixels = np.concatenate([[False], mask.ravel(order="F")])  # the first run, of zeros, may be empty
    starts = np.flatnonzero(np.diff(pixels))
    return {"counts": np.diff([0, *starts, mask.size]).tolist(), "size": list(mask.shape)}


def _annotate(thing: Thing, visible: np.ndarray) -> dict:
    """Return the COCO annotation of the visible part of a thing, without ids.

    visible: (FINE * side, FINE * side) bool, visible pixels of the thing on the fine canvas."""
    side = len(visible) // FINE
    rows, columns = (np.flatnonzero(visible.any(axis=axis)) for axis in (1, 0))
    x, y = columns[0] / FINE, rows[0] / FINE
    width, height = (columns[-1] + 1) / FINE - x, (rows[-1] + 1) / FINE - y
    hidden = np.any(_fill(thing.outlines, side) != visible)
    cut_off = any(outline.min() < 0 or outline.max() > side for outline in thing.outlines)
    if thing.is_crowd or hidden or cut_off:
        coverage = visible.reshape(side, FINE, side, FINE).mean(axis=(1, 3))
        segmentation = _rle(coverage >= 0.5)
    else:
        segmentation = [outline.round(2).ravel().tolist() for outline in thing.outlines]
    return {
        "category_id": thing.category_id,
        "bbox": [float(x), float(y), float(width), float(height)],
        "area": float(visible.sum() / FINE**2),
        "iscrowd": int(thing.is_crowd),
        "segmentation": segmentation,
    }


def generate(
    root: str | Path,
    seed: int = 0,
    num_train: int = 600,
    num_val: int = 150,
    image_size: int = 128,
    style: str = "full",
) -> Path:
    """Draw the sample set into root/images/{train,val} and root/annotations/instances_{train,val}.json.

    image_size: side of the square images in pixels. style: a key of STYLES. A split is kept if it is complete and has
    the same parameters. The annotations are written last, so an interrupted split is drawn again.
    Returns root. Raises ValueError if a number is out of range, and FileExistsError if a different program wrote the
    annotations. In both cases, nothing is drawn."""
    minima = {"seed": (seed, 0), "num_train": (num_train, 1), "num_val": (num_val, 1), "image_size": (image_size, 32)}
    for name, (number, minimum) in minima.items():
        if number < minimum:
            raise ValueError(f"{name} {number}: expected {minimum} or more")
    root = Path(root)
    recipe = {"description": DESCRIPTION, "version": VERSION, "seed": seed, "image_size": image_size}
    recipe |= {"style": style} if style != "full" else {}
    infos = {"train": recipe | {"num_images": num_train}, "val": recipe | {"num_images": num_val}}
    for split in [split for split, info in infos.items() if not _is_finished(root, split, info)]:
        _draw_split(root, split, infos[split])
    return root


def _is_finished(root: Path, split: str, info: dict) -> bool:
    """Return whether the split described by `info` is complete. Raises FileExistsError if another program wrote it."""
    annotations_path = root / f"annotations/instances_{split}.json"
    if not annotations_path.exists():
        return False
    text = annotations_path.read_text()
    if f'"description": "{DESCRIPTION}"' not in text:
        raise FileExistsError(f"{annotations_path}: not made by detection.sample; choose a different folder")
    found = json.loads(text)
    names = [record["file_name"] for record in found["images"]]
    return found["info"] == info and all((root / f"images/{split}" / name).is_file() for name in names)


def _draw_split(root: Path, split: str, info: dict) -> None:
    images_dir, annotations_path = root / f"images/{split}", root / f"annotations/instances_{split}.json"
    with describe_write_errors(annotations_path):
        annotations_path.unlink(missing_ok=True)  # may be of a different version or seed than the new images
        images_dir.mkdir(parents=True, exist_ok=True)
        annotations_path.parent.mkdir(parents=True, exist_ok=True)

    side, split_number, style = info["image_size"], ("train", "val").index(split), STYLES[info.get("style", "full")]
    images, annotations = [], []
    bar = {"desc": f"drawing {split} images", "unit": "image", "leave": False, "disable": None}  # None: not in a file
    for index in tqdm(range(info["num_images"]), **bar):
        rng = np.random.default_rng((info["seed"], split_number, index))
        image_id = 3 * index + 1 + split_number  # ids have gaps, and no id is in both splits
        file_name = f"{image_id:06d}.jpg"
        things, visible = _arrange(style, side, rng)
        with describe_write_errors(images_dir / file_name):
            _paint(things, side, rng).save(images_dir / file_name, quality=92)
        images.append({"id": image_id, "file_name": file_name, "width": side, "height": side, "license": 1})
        for number, thing in enumerate(things, start=1):
            ids = {"id": len(annotations) + 1, "image_id": image_id}
            annotations.append(ids | _annotate(thing, visible == number))

    categories = [(shape.category_id, name) for name, shape in style.shapes.items()]
    content = {
        "info": info,
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name, "supercategory": "shape"} for number, name in categories],
    }
    write_text(annotations_path, json.dumps(content))
