"""What `python -m detection.predict` does: find objects in images and videos, and write what was found."""

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
from detection.drawing.boxes import draw_found
from detection.drawing.pictures import save_jpeg
from engine.charts import MADE_BY
from engine.files import write_text, write_whole, writing
from engine.logbook import logger, progress_bar
from engine.strict_yaml import ConfigError
from engine.terminal import counted
from engine.text import listed

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
X264_OPTIONS = {"crf": "20"}  # a good picture
JSON_NAMES = ("images.json", "detections.json")
LISTED_CLASSES = 8


class Item(NamedTuple):
    """A file to find objects in, and where its picture or video is written."""

    source: Path
    target: Path

    @property
    def is_video(self) -> bool:
        return self.target.suffix == ".mp4"


@dataclass
class Findings:
    """What was found so far, see detection/predict.py."""

    output: Path  # the folder
    images: list[dict] = field(default_factory=list)  # of images.json
    detections: list[dict] = field(default_factory=list)  # image_id, category_id, bbox, score

    def add(self, found: Detections, shape: tuple[int, int, int], item: Item, **frame: int) -> None:
        """Add what was found in an image of this height and width. frame: its number, if it is of a video."""
        image_id, picture = len(self.images) + 1, item.target.relative_to(self.output).as_posix()
        names = {"file_name": str(item.source), "picture": picture}
        self.images.append({"id": image_id, **names, **frame, "width": shape[1], "height": shape[0]})
        self.detections += found.to_coco(image_id)


def predict(arguments: argparse.Namespace, device: torch.device) -> None:
    """Find objects as the command line says."""
    output, score = arguments.output, arguments.score
    weights = weights_file(Path(arguments.detector))
    items = find_items(arguments.sources, output)
    jsons = [output / name for name in JSON_NAMES] if arguments.json else []
    for target in [item.target for item in items] + jsons:
        if target.exists() and not _is_ours(target):
            raise FileExistsError(f"{target}: not made by detection.predict; give another folder by --output")
    detector = load(weights, device)
    classes = listed(detector.class_names, LISTED_CLASSES)
    logger.info("%s, step %d, on %s; classes: %s", weights, detector.step, device.type, classes)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    findings = Findings(output)
    unread = predict_images(detector, [item for item in items if not item.is_video], score, findings)
    for item in items:
        if item.is_video and not predict_video(detector, item, score, findings):
            unread.append(item.source)
    name_of = dict(zip(detector.category_ids, detector.class_names, strict=True))
    if findings.images:
        if arguments.json:
            categories = [{"id": number, "name": name} for number, name in name_of.items()]
            header = {"info": {"description": MADE_BY}, "images": findings.images, "categories": categories}
            write_text(output / "images.json", json.dumps(header, indent=1) + "\n")
            write_text(output / "detections.json", json.dumps(findings.detections) + "\n")
        counts = Counter(name_of[found["category_id"]] for found in findings.detections)
        objects = f"{counted(counts.total(), 'object', 'objects')} of score {score:g} or more"
        kinds = listed([f"{count} {name}" for name, count in counts.most_common()] or ["none"], LISTED_CLASSES)
        print(f"{counted(len(findings.images), 'image', 'images')}, {objects}: {kinds}\nwritten to {output}/")
    if unread:
        raise DatasetError(
            f"{len(unread)} of {len(items)} files left out, see above: {listed([str(path) for path in unread], 4)}"
        )


def _is_ours(path: Path) -> bool:
    """Return whether this command wrote a file. A list of detections has no place for a mark; images.json has it."""
    marked = path.with_name("images.json") if path.suffix == ".json" else path
    return marked.is_file() and MADE_BY.encode() in marked.read_bytes()


# ---- files to look at -----------------------------------------------------------------------------------------


def find_items(sources: Sequence[str], output: Path) -> list[Item]:
    """Return each file once that was named, or is in a folder or fits a pattern; not what is in `output` already.

    Raises ValueError if a folder or pattern has nothing, if an original would be overwritten, or if there are videos
    and no PyAV."""
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
        while target in items:  # originals that differ in folder or suffix only
            target, number = output / place.with_name(f"{place.stem}_{number}{suffix}"), number + 1
        items[target] = Item(path, target)
    if not items:
        raise ConfigError(f"--output {output}: all that was named is in it, so it is skipped; name another folder")
    originals = {item.source.resolve() for item in items.values()}
    if over := [target for target in items if target.resolve() in originals]:
        raise ConfigError(f"--output {output}: {over[0]}, an original, would be overwritten; name another folder")
    videos = [item.source for item in items.values() if item.is_video]
    if videos and not importlib.util.find_spec("av"):
        raise ConfigError(f"{videos[0]}: to read videos takes PyAV, which is not installed: pip install -e '.[video]'")
    return list(items.values())


def _files(source: str) -> Iterator[tuple[Path, Path]]:
    """Yield the files that a word on the command line means, each with its place below the output folder."""
    path = Path(source)
    if path.is_dir():
        suffixes = IMAGE_SUFFIXES + VIDEO_SUFFIXES
        found = [file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file()]
        problem = "no image or video in this folder (*.jpg, *.png, *.mp4, ...)"
    elif glob.has_magic(source) and not path.exists():
        found = [file for file in map(Path, glob.glob(source, recursive=True)) if file.is_file()]
        problem = "no file fits this pattern"
    else:
        found, problem = [path], ""
    if not found:
        raise DatasetError(f"{source}: {problem}")
    for file in sorted(found):
        yield file, file.relative_to(path) if path.is_dir() else Path(file.name)


# ---- images ---------------------------------------------------------------------------------------------------


def predict_images(detector: Detector, items: Sequence[Item], score_threshold: float, findings: Findings) -> list[Path]:
    """Find objects in images and write the pictures; return, and log, the files that cannot be read."""
    unread = []
    bar = progress_bar(total=len(items), desc="images", unit="image", leave=False)
    with bar, ThreadPoolExecutor() as pool:  # Pillow releases the GIL while it decodes and encodes
        reading = pool.map(_read, items[:BATCH_SIZE])
        for start in range(0, len(items), BATCH_SIZE):
            batch, read = items[start : start + BATCH_SIZE], []
            contents = list(reading)
            reading = pool.map(_read, items[start + BATCH_SIZE : start + 2 * BATCH_SIZE])  # while the network computes
            for item, pixels in zip(batch, contents, strict=True):
                if isinstance(pixels, DatasetError):
                    logger.warning(str(pixels))
                    unread.append(item.source)
                else:
                    read.append((item, pixels))
            found = detector.detect([pixels for _, pixels in read], score_threshold) if read else []
            list(pool.map(_write_picture, read, found))
            for (item, pixels), each in zip(read, found, strict=True):
                findings.add(each, pixels.shape, item)
            bar.update(len(batch))
    return unread


def _read(item: Item) -> np.ndarray | DatasetError:
    """Return the pixels of an image, (H, W, 3) uint8, or why it cannot be read."""
    try:
        return np.array(read_image(item.source))
    except DatasetError as error:
        return error


def _write_picture(read: tuple[Item, np.ndarray], found: Detections) -> None:
    item, pixels = read
    item.target.parent.mkdir(parents=True, exist_ok=True)
    save_jpeg(item.target, draw_found(pixels, found), quality=92)


# ---- videos ---------------------------------------------------------------------------------------------------


def predict_video(detector: Detector, item: Item, score_threshold: float, findings: Findings) -> bool:
    """Find objects in every frame of a video, and write it with them, without its sound, in H.264.

    Returns False, and keeps nothing, if it cannot be read to its end; the reason is logged."""
    import av

    seen: list[tuple[Detections, tuple[int, int, int]]] = []

    def write(file: BinaryIO) -> None:
        with av.open(file, "w", format="mp4") as output:
            output.metadata["comment"] = MADE_BY
            stream = None
            for rate, pictures in _frames(item.source):
                for pixels, found in zip(pictures, detector.detect(pictures, score_threshold), strict=True):
                    drawn = draw_found(pixels, found)
                    if stream is None:
                        stream = output.add_stream("libx264", rate, options=X264_OPTIONS)
                        stream.width, stream.height = (side // 2 * 2 for side in drawn.size)  # H.264 wants even sides
                        stream.pix_fmt = "yuv420p"
                    output.mux(stream.encode(av.VideoFrame.from_image(drawn)))
                    seen.append((found, pixels.shape))
            if stream is None:
                raise DatasetError(f"{item.source}: cannot be read as a video: no picture in it")
            output.mux(stream.encode())

    item.target.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_whole(item.target, write)
    except DatasetError as error:
        logger.warning(str(error))
        return False
    for frame, (found, shape) in enumerate(seen):
        findings.add(found, shape, item, frame=frame)
    return True


def _frames(source: Path) -> Iterator[tuple[Fraction, list[np.ndarray]]]:
    """Yield the frames of a video in batches, upright, (H, W, 3) uint8 RGB each, and the frames per second.

    Raises DatasetError naming the file if it cannot be read, or ends early."""
    import av

    try:
        with av.open(source, metadata_errors="replace") as video:  # titles may be of any encoding
            streams = video.streams.video
            if not streams:
                return
            streams[0].thread_type = "AUTO"
            rate, pictures = streams[0].average_rate or Fraction(25), []
            frames = video.decode(streams[0])
            total = streams[0].frames or None  # 0 where the file does not say
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
