"""Detect objects in images and videos and write the results, for `python -m detection.predict`."""

import argparse
import glob
import importlib.util
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch

from data import IMAGE_SUFFIXES, DatasetError, read_image
from detection.coco.detections import Detections
from detection.detector import BATCH_SIZE, Detector, load, weights_file
from detection.drawing.boxes import draw_predictions
from detection.drawing.pictures import save_jpeg
from engine.charts import MADE_BY
from engine.files import describe_write_errors, write_atomically, write_text
from engine.logbook import logger, progress_bar
from engine.strict_yaml import ConfigError
from engine.terminal import counted
from engine.text import listed

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
X264_OPTIONS = {"crf": "20"}  # high visual quality
JSON_NAMES = ("images.json", "detections.json")
LISTED_CLASSES = 8


class Item(NamedTuple):
    """An image or video file, and the path of the copy in which its detections are drawn."""

    source: Path
    target: Path

    @property
    def is_video(self) -> bool:
        return self.target.suffix == ".mp4"


@dataclass
class CocoJson:
    """Content of images.json and detections.json so far, see detection/predict.py."""

    output: Path  # the output folder
    images: list[dict] = field(default_factory=list)  # records of images.json
    detections: list[dict] = field(default_factory=list)  # image_id, category_id, bbox, score

    def add(self, detections: Detections, shape: tuple[int, int, int], item: Item, **frame: int) -> None:
        """Add the detections in an image of this shape (H, W, 3). frame: the index of a video frame."""
        image_id, picture = len(self.images) + 1, item.target.relative_to(self.output).as_posix()
        names = {"file_name": str(item.source), "picture": picture}
        self.images.append({"id": image_id, **names, **frame, "width": shape[1], "height": shape[0]})
        self.detections += detections.to_coco(image_id)


def predict(arguments: argparse.Namespace, device: torch.device) -> None:
    """Detect objects in the files that the command line names, and write the results."""
    output, score = arguments.output, arguments.score
    weights = weights_file(Path(arguments.detector))
    items = find_items(arguments.sources, output)
    jsons = [output / name for name in JSON_NAMES] if arguments.json else []
    for target in [item.target for item in items] + jsons:
        if target.exists() and not _is_ours(target):
            raise FileExistsError(f"{target}: not made by detection.predict; use a different --output folder")
    detector = load(weights, device)
    classes = listed(detector.class_names, LISTED_CLASSES)
    logger.info("%s, step %d, on %s; classes: %s", weights, detector.step, device.type, classes)
    with describe_write_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    results = CocoJson(output)
    skipped = predict_images(detector, [item for item in items if not item.is_video], score, results)
    for item in items:
        if item.is_video and not predict_video(detector, item, score, results):
            skipped.append(item.source)
    name_of = dict(zip(detector.category_ids, detector.class_names, strict=True))
    if results.images:
        if arguments.json:
            categories = [{"id": number, "name": name} for number, name in name_of.items()]
            info = {"description": MADE_BY, "score_function": detector.model.score_function}
            header = {"info": info, "images": results.images, "categories": categories}
            write_text(output / "images.json", json.dumps(header, indent=1) + "\n")
            write_text(output / "detections.json", json.dumps(results.detections) + "\n")
        counts = Counter(name_of[each["category_id"]] for each in results.detections)
        objects = f"{counted(counts.total(), 'object', 'objects')} with score {score:g} or more"
        class_counts = listed([f"{count} {name}" for name, count in counts.most_common()] or ["none"], LISTED_CLASSES)
        print(f"{counted(len(results.images), 'image', 'images')}, {objects}: {class_counts}\nwritten to {output}/")
    if skipped:
        raise DatasetError(
            f"{len(skipped)} of {len(items)} files skipped, see above: {listed([str(path) for path in skipped], 4)}"
        )


def _is_ours(path: Path) -> bool:
    """Return whether this command wrote a file. Both JSON files are recognised by MADE_BY in images.json."""
    marked_file = path.with_name("images.json") if path.suffix == ".json" else path
    return marked_file.is_file() and MADE_BY.encode() in marked_file.read_bytes()


# ---- input files ----------------------------------------------------------------------------------------------


def find_items(sources: Sequence[str], output: Path) -> list[Item]:
    """Return the image and video files in the sources (files, folders, glob patterns), without duplicates.

    Files in `output` are ignored unless a source names them directly. Raises ValueError if a folder or pattern has no
    file, if an input file would be overwritten, or if there are videos but PyAV is not installed."""
    places: dict[Path, Path] = {}
    for source in sources:
        for path, place in _files(source):
            places.setdefault(path, place)
    items: dict[Path, Item] = {}  # by target
    for path, place in places.items():
        if output.resolve() in path.resolve().parents and str(path) not in sources:
            continue
        suffix = ".mp4" if path.suffix.lower() in VIDEO_SUFFIXES else ".jpg"
        target, number = output / place.with_suffix(suffix), 2
        while target in items:  # because input files may differ only in folder or suffix
            target, number = output / place.with_name(f"{place.stem}_{number}{suffix}"), number + 1
        items[target] = Item(path, target)
    if not items:
        raise ConfigError(f"--output {output}: this folder contains all input files; choose a different folder")
    originals = {item.source.resolve() for item in items.values()}
    if overwritten := [target for target in items if target.resolve() in originals]:
        raise ConfigError(f"--output {output}: input {overwritten[0]} would be overwritten; choose a different folder")
    videos = [item.source for item in items.values() if item.is_video]
    if videos and not importlib.util.find_spec("av"):
        raise ConfigError(f"{videos[0]}: reading a video needs PyAV, which is not installed: pip install -e '.[video]'")
    return list(items.values())


def _files(source: str) -> Iterator[tuple[Path, Path]]:
    """Yield the path of each file in a source, and the path of the file's copy relative to the output folder."""
    path = Path(source)
    if path.is_dir():
        suffixes = IMAGE_SUFFIXES + VIDEO_SUFFIXES
        found = [file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file()]
        problem = "no image or video in this folder (*.jpg, *.png, *.mp4, ...)"
    elif glob.has_magic(source) and not path.exists():
        found = [file for file in map(Path, glob.glob(source, recursive=True)) if file.is_file()]
        problem = "no file matches this pattern"
    else:
        found, problem = [path], ""
    if not found:
        raise DatasetError(f"{source}: {problem}")
    for file in sorted(found):
        yield file, file.relative_to(path) if path.is_dir() else Path(file.name)


# ---- images ---------------------------------------------------------------------------------------------------


def predict_images(detector: Detector, items: Sequence[Item], score_threshold: float, results: CocoJson) -> list[Path]:
    """Detect objects in images and write copies with the detections. Logs unreadable files and returns them."""
    unreadable = []
    bar = progress_bar(total=len(items), desc="images", unit="image", leave=False)
    with bar, ThreadPoolExecutor() as pool:  # Pillow releases the GIL while decoding and encoding
        reading = pool.map(_read, items[:BATCH_SIZE])
        for start in range(0, len(items), BATCH_SIZE):
            batch, decoded = items[start : start + BATCH_SIZE], []
            contents = list(reading)
            reading = pool.map(_read, items[start + BATCH_SIZE : start + 2 * BATCH_SIZE])  # while the network computes
            for item, pixels in zip(batch, contents, strict=True):
                if isinstance(pixels, DatasetError):
                    logger.warning(str(pixels))
                    unreadable.append(item.source)
                else:
                    decoded.append((item, pixels))
            detections = detector.detect([pixels for _, pixels in decoded], score_threshold) if decoded else []
            list(pool.map(_write_picture, decoded, detections))
            for (item, pixels), each in zip(decoded, detections, strict=True):
                results.add(each, pixels.shape, item)
            bar.update(len(batch))
    return unreadable


def _read(item: Item) -> np.ndarray | DatasetError:
    """Return the pixels of an image, (H, W, 3) uint8, or the error if it cannot be read."""
    try:
        return np.array(read_image(item.source))
    except DatasetError as error:
        return error


def _write_picture(decoded: tuple[Item, np.ndarray], detections: Detections) -> None:
    item, pixels = decoded
    item.target.parent.mkdir(parents=True, exist_ok=True)
    save_jpeg(item.target, draw_predictions(pixels, detections), quality=92)


# ---- videos ---------------------------------------------------------------------------------------------------


def predict_video(detector: Detector, item: Item, score_threshold: float, results: CocoJson) -> bool:
    """Detect objects in every frame of a video and write a copy with the detections, as H.264 without sound.

    If the video cannot be read to its end, log the reason, write nothing and return False."""
    import av

    by_frame: list[tuple[Detections, tuple[int, int, int]]] = []

    def write(file: BinaryIO) -> None:
        with av.open(file, "w", format="mp4") as output:
            output.metadata["comment"] = MADE_BY
            stream = None
            for rate, pictures in _frames(item.source):
                for pixels, detections in zip(pictures, detector.detect(pictures, score_threshold), strict=True):
                    drawn = draw_predictions(pixels, detections)
                    if stream is None:
                        stream = output.add_stream("libx264", rate, options=X264_OPTIONS)
                        stream.width, stream.height = (side // 2 * 2 for side in drawn.size)  # H.264 needs even sides
                        stream.pix_fmt = "yuv420p"
                    output.mux(stream.encode(av.VideoFrame.from_image(drawn)))
                    by_frame.append((detections, pixels.shape))
            if stream is None:
                raise DatasetError(f"{item.source}: cannot be read as a video: it has no frames")
            output.mux(stream.encode())

    item.target.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_atomically(item.target, write)
    except DatasetError as error:
        logger.warning(str(error))
        return False
    for frame, (detections, shape) in enumerate(by_frame):
        results.add(detections, shape, item, frame=frame)
    return True


def _frames(source: Path) -> Iterator[tuple[Fraction, list[np.ndarray]]]:
    """Yield (frame rate, frames) for each batch of a video. The frames are upright (H, W, 3) uint8 RGB.

    Raises DatasetError naming the file if it cannot be read or is truncated."""
    import av

    try:
        with av.open(source, metadata_errors="replace") as video:  # titles may have any encoding
            streams = video.streams.video
            if not streams:
                return
            streams[0].thread_type = "AUTO"
            rate, pictures = streams[0].average_rate or Fraction(25), []
            frames = video.decode(streams[0])
            total = streams[0].frames or None  # 0 if the file does not state the number
            for frame in progress_bar(frames, total=total, desc=source.name, unit="image", leave=False):
                pixels = frame.to_ndarray(format="rgb24")
                pictures.append(np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90))))
                if len(pictures) == BATCH_SIZE:
                    yield rate, pictures
                    pictures = []
            if pictures:
                yield rate, pictures
    except av.FFmpegError as error:
        raise DatasetError(f"{source}: cannot be read as a video: {error.strerror}") from None
