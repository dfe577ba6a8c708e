"""What `python -m detection.predict` does: find objects in images and videos, and write what was found."""

import argparse
import glob
import importlib.util
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch

from data import IMAGE_SUFFIXES, DatasetError, read_image
from detection.coco.detections import Detections
from detection.detector import BATCH_SIZE, Detector, load, weights_file
from detection.drawing.overlay import LEAST_SIDE, draw_found, undrawable
from detection.drawing.pictures import MADE_BY, is_ours
from engine.files import write_text, write_whole, writing
from engine.logbook import logger, progress_bar
from engine.strict_yaml import ConfigError
from engine.text import listed

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
X264_OPTIONS = {"crf": "20"}  # a good picture
JSON_NAMES = ("images.json", "detections.json")
LISTED_CLASSES = 8


class Job(NamedTuple):
    """A file to look at, and where the picture or video of what was found belongs."""

    source: Path
    target: Path

    @property
    def is_video(self) -> bool:
        return self.target.suffix == ".mp4"


@dataclass
class Findings:
    """What was found so far, in COCO's words, too, if these are to be written."""

    with_json: bool
    output: Path  # the folder
    num_images: int = 0
    num_frames: int = 0  # of those, of videos
    num_enlarged: int = 0  # of those, drawn larger than they are
    counts: Counter[str] = field(default_factory=Counter)  # objects by class
    images: list[dict] = field(default_factory=list)  # images.json, see detection/predict.py
    detections: list[dict] = field(default_factory=list)  # image_id, category_id, bbox, score

    def add(self, found: Detections, shape: tuple[int, int, int], job: Job, **frame: int) -> None:
        """One more image, of this height and width, and what was found in it; of a video, which frame it is."""
        self.num_images += 1
        self.num_frames += job.is_video
        self.num_enlarged += max(shape) < LEAST_SIDE
        self.counts.update(found.class_names)
        if self.with_json:
            places = {"file_name": str(job.source), "picture": job.target.relative_to(self.output).as_posix()}
            size = {"width": shape[1], "height": shape[0]}
            self.images.append({"id": self.num_images, **places, **frame, **size})
            self.detections += found.to_coco(self.num_images)


# ---- the command ----------------------------------------------------------------------------------------------


def predict(arguments: argparse.Namespace, device: torch.device) -> None:
    """Find objects as the command line says."""
    weights = weights_file(Path(arguments.detector))
    jobs = find_jobs(arguments.sources, arguments.output)
    jsons = [arguments.output / name for name in JSON_NAMES] if arguments.json else []
    for target in [job.target for job in jobs] + jsons:
        if target.exists() and not _is_ours(target):
            raise FileExistsError(f"{target}: not made by detection.predict; give another folder by --output")
    renamed = [f"{job.source} as {job.target.name}" for job in jobs if job.source.stem != job.target.stem]
    if renamed:
        logger.info("drawn under another name, for theirs is taken: %s", listed(renamed, LISTED_CLASSES))
    logger.info("loading %s", weights)
    detector = load(weights, device)
    logger.info(
        "step %d, on %s; it knows %s; objects of score %g or more count (--score)",
        detector.step, device.type, listed(detector.class_names, LISTED_CLASSES), arguments.score,
    )  # fmt: skip
    if names := undrawable(detector.class_names):
        logger.warning("the labels' font, DejaVu Sans, lacks letters of these classes: %s", listed(names))
    with writing(arguments.output):
        arguments.output.mkdir(parents=True, exist_ok=True)
    results, started = Findings(arguments.json, arguments.output), time.perf_counter()
    unread = predict_images(detector, [job for job in jobs if not job.is_video], arguments.score, results)
    for job in jobs:
        if job.is_video:
            unread += predict_video(detector, job, arguments.score, results)
    if results.num_images:
        if arguments.json:
            write_json(arguments.output, results, detector)
        print(summary(results, arguments, time.perf_counter() - started))
    if unread:
        raise DatasetError(
            f"{len(unread)} of {len(jobs)} files left out, as told above: {listed([str(path) for path in unread], 4)}"
        )


def summary(results: Findings, arguments: argparse.Namespace, seconds: float) -> str:
    """What was done, for the terminal."""
    objects, images = results.counts.total(), results.num_images
    classes = [f"{count} {name}" for name, count in results.counts.most_common()]
    of_classes = f" ({listed(classes, LISTED_CLASSES)})" if classes else ""
    frames = results.num_frames
    of_videos = f" ({frames:,} of them video frames)" if frames else ""
    lines = [
        f"{images:,} image{'s' * (images != 1)}{of_videos}, {objects:,} object{'s' * (objects != 1)} of score "
        f"{arguments.score:g} or more{of_classes}",
        f"{images / seconds:.1f} images/s, reading and drawing included; written to {arguments.output}/",
    ]
    if results.num_enlarged:
        lines.append(
            f"{results.num_enlarged:,} smaller than {LEAST_SIDE} pixels, so drawn at that size, for labels to be "
            "legible; --json has boxes in pixels of the originals"
        )
    return "\n".join(lines)


def write_json(folder: Path, results: Findings, detector: Detector) -> None:
    """images.json and detections.json: see detection/predict.py. The former is marked, for `_is_ours`."""
    classes = zip(detector.category_ids, detector.class_names, strict=True)
    categories = [{"id": number, "name": name} for number, name in classes]
    header = {"info": {"description": MADE_BY}, "images": results.images, "categories": categories}
    texts = json.dumps(header, indent=1), json.dumps(results.detections)
    for name, text in zip(JSON_NAMES, texts, strict=True):
        write_text(folder / name, text + "\n")


def _is_ours(path: Path) -> bool:
    """Whether this command wrote a file. A list of detections cannot be marked; images.json answers for it."""
    if path.suffix == ".jpg":
        return is_ours(path)
    if path.suffix == ".json":
        try:
            return json.loads(path.with_name(JSON_NAMES[0]).read_bytes())["info"]["description"] == MADE_BY
        except (OSError, ValueError, LookupError, TypeError):
            return False
    import av

    try:
        with av.open(path, metadata_errors="replace") as video:
            return video.metadata.get("comment") == MADE_BY
    except (OSError, av.FFmpegError):
        return False


# ---- what to look at ------------------------------------------------------------------------------------------


def find_jobs(sources: Sequence[str], output: Path) -> list[Job]:
    """Every file that is named, or that lies in a folder or fits a pattern that is; not what is in `output` already.

    Raises ValueError if a folder or pattern has nothing, if an original would be written over, or if there are
    videos and no PyAV."""
    places: dict[Path, Path] = {}
    for source in sources:
        for path, place in _files(source):
            places.setdefault(path, place)
    written = Path(os.path.realpath(output))  # resolve() breaks on a circle of links
    jobs: dict[Path, Job] = {}  # by target
    for path, place in places.items():
        if written in path.resolve().parents and str(path) not in sources:
            continue
        suffix = ".mp4" if path.suffix.lower() in VIDEO_SUFFIXES else ".jpg"
        target, number = output / place.with_suffix(suffix), 2
        while target in jobs:  # of originals that differ in folder or suffix only
            target, number = output / place.with_name(f"{place.stem}_{number}{suffix}"), number + 1
        jobs[target] = Job(path, target)
    if not jobs:
        raise ConfigError(f"--output {output}: all that was named lies in it, so is not looked at; name another folder")
    originals = {job.source.resolve() for job in jobs.values()}
    if over := [target for target in jobs if Path(os.path.realpath(target)) in originals]:
        raise ConfigError(f"--output {output}: {over[0]}, an original, would be written over; name another folder")
    videos = [job.source for job in jobs.values() if job.is_video]
    if videos and not importlib.util.find_spec("av"):
        raise ConfigError(f"{videos[0]}: to read videos takes PyAV, which is not installed: pip install -e '.[video]'")
    return list(jobs.values())


def _files(source: str) -> Iterator[tuple[Path, Path]]:
    """The files that a word on the command line means, each with its place below the output folder."""
    path = Path(source)
    if path.is_dir():
        suffixes = IMAGE_SUFFIXES + VIDEO_SUFFIXES
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
        if not found:
            names = ", ".join(IMAGE_SUFFIXES + VIDEO_SUFFIXES[:1])
            raise DatasetError(
                f"{path}: no image or video in this folder, by their ends ({names}, ...); name another, or the files"
            )
        yield from ((file, file.relative_to(path)) for file in found)
    elif glob.has_magic(source) and not path.exists():
        found = sorted(file for file in map(Path, glob.glob(source, recursive=True)) if file.is_file())
        if not found:
            raise DatasetError(f"{source}: no file fits this pattern")
        yield from ((file, Path(file.name)) for file in found)
    else:
        yield path, Path(path.name)


# ---- images ---------------------------------------------------------------------------------------------------


def predict_images(detector: Detector, jobs: Sequence[Job], score_threshold: float, results: Findings) -> list[Path]:
    """Find objects in images and write the pictures; returns those that cannot be read, which are told."""
    unread = []
    bar = progress_bar(total=len(jobs), desc="images", unit="image", leave=False)
    with bar, ThreadPoolExecutor() as pool:  # Pillow lets the others run while it decodes and encodes
        reading = pool.map(_read, jobs[:BATCH_SIZE])
        for start in range(0, len(jobs), BATCH_SIZE):
            batch, read = list(zip(jobs[start : start + BATCH_SIZE], reading, strict=True)), []
            reading = pool.map(_read, jobs[start + BATCH_SIZE : start + 2 * BATCH_SIZE])  # while these are looked at
            for job, content in batch:
                if isinstance(content, DatasetError):
                    logger.warning(str(content))
                    unread.append(job.source)
                else:
                    read.append((job, *content))
            if read:
                found = detector.detect([pixels for _, pixels, _ in read], score_threshold)
                list(pool.map(_write_picture, read, found))
                for (job, pixels, _), each in zip(read, found, strict=True):
                    results.add(each, pixels.shape, job)
            bar.update(len(batch))
    return unread


def _read(job: Job) -> tuple[np.ndarray, bytes] | DatasetError:
    """The pixels of an image, (H, W, 3) uint8, and its colour profile, if that is of RGB."""
    try:
        image = read_image(job.source)
    except DatasetError as error:
        if job.source.is_file() and job.source.suffix.lower() not in IMAGE_SUFFIXES:
            return DatasetError(f"{error}; by its name it is no image or video (.jpg, .png, .mp4, ...)")
        return error
    profile = image.info.get("icc_profile") or b""  # without it, the colours of many telephones look dull
    return np.array(image), profile if profile[16:20] == b"RGB " else b""


def _write_picture(read: tuple[Job, np.ndarray, bytes], found: Detections) -> None:
    job, pixels, profile = read
    picture = draw_found(pixels, found)
    job.target.parent.mkdir(parents=True, exist_ok=True)
    # Without chroma subsampling, which would smear coloured lines and small letters.
    options = {"quality": 92, "subsampling": 0, "icc_profile": profile, "comment": MADE_BY}
    write_whole(job.target, partial(picture.save, format="JPEG", **options))


# ---- videos ---------------------------------------------------------------------------------------------------


def predict_video(detector: Detector, job: Job, score_threshold: float, results: Findings) -> list[Path]:
    """Find objects in every frame of a video, and write it with them, without its sound.

    Returns the file if it cannot be read to its end, which is told; nothing is kept of it then."""
    seen: list[tuple[Detections, tuple[int, int, int]]] = []
    job.target.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_whole(job.target, partial(_write_video, detector, job.source, score_threshold, seen))
    except DatasetError as error:
        logger.warning(str(error))
        return [job.source]
    for frame, (found, shape) in enumerate(seen):
        results.add(found, shape, job, frame=frame)
    return []


def _write_video(
    detector: Detector,
    source: Path,
    score_threshold: float,
    seen: list[tuple[Detections, tuple[int, int, int]]],
    file: BinaryIO,
) -> None:
    """Write the video with what is found, in H.264; `seen` gets the detections and the shape of every frame."""
    import av

    with av.open(file, "w", format="mp4") as output:
        output.metadata["comment"] = MADE_BY
        stream = None
        for rate, pictures in _frames(source):
            for pixels, found in zip(pictures, detector.detect(pictures, score_threshold), strict=True):
                drawn = draw_found(pixels, found)
                if stream is None:
                    stream = output.add_stream("libx264", rate, options=X264_OPTIONS)
                    stream.width, stream.height = (side // 2 * 2 for side in drawn.size)  # the format wants even ones
                    stream.pix_fmt = "yuv420p"
                output.mux(stream.encode(av.VideoFrame.from_image(drawn)))
                seen.append((found, pixels.shape))
        if stream is None:
            raise DatasetError(f"{source}: cannot be read as a video: no picture in it")
        output.mux(stream.encode())


def _frames(source: Path) -> Iterator[tuple[Fraction, list[np.ndarray]]]:
    """The frames of a video in batches, upright, (H, W, 3) uint8 RGB each, and how many of them make a second.

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
            total = streams[0].frames or None  # 0 where the file does not tell
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
