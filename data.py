"""Data loading for all tasks: image decoding, samplers, worker processes, transfer to the device, labelled images.

Data sets are indexed by `(epoch, index)`. Random augmentation depends only on the seed, the epoch and the image, so a
run that resumes within an epoch loads the same batches as an uninterrupted one, with any number of workers.
"""

import contextlib
import functools
import hashlib
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from engine import distributed
from engine.config import Config
from engine.files import file_sha256, user_path
from engine.inputs import Inputs, Repeats, find_shared_files, identify_images, repeats
from engine.logbook import logger
from engine.signals import SIGNALS
from engine.terminal import printable

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # for red, green and blue, with pixel values from 0 to 1
IMAGENET_STD = (0.229, 0.224, 0.225)

# In a folder of images, only files with these suffixes are read.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm", ".pgm")

LOADER_TIMEOUT_SECONDS = 120  # a worker counts as dead or hung after this time without a batch
WORKER_EXIT_SECONDS = 20  # how long a worker survives SIGTERM, so that the training process can save
LOADER_GRACE_SECONDS = 10  # time for PyTorch to notice the timeout before the workers are killed

Key = tuple[int, int]  # index into a data set: (epoch, index)


class DatasetError(ValueError):
    """Raised for a data set that cannot be used; the message names the file and the problem."""


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode (grey, CMYK, palette, transparent, more than 8 bits) to 8-bit RGB.

    Raises DatasetError, without the file name, if the values cannot be scaled to 8 bits."""
    if is_high_bit_depth(image):
        image = Image.fromarray(to_8_bits(np.asarray(image)))
    return image if image.mode == "RGB" else image.convert("RGB")


def is_high_bit_depth(image: Image.Image) -> bool:
    """Return whether an image is grey with more than 8 bits; call `as_rgb` before cropping such an image."""
    return image.mode.startswith(("I", "F"))  # modes I;16, I and F


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale a grey image to 8 bits.

    values: (H, W) floats or integers. Floats from 0 to 1 are multiplied by 255. Other values are shifted right, so that
    the largest value fits in 8 bits. Returns (H, W) uint8.
    Raises DatasetError if values are negative or not finite, or are floats whose maximum is between 1 and 16."""
    low, high = values.min().item(), values.max().item()
    is_float = values.dtype.kind == "f"
    if not (low >= 0 and high < 2**32) or (is_float and 1 < high < 16):
        wanted = "no negative value, and a maximum <= 1 or >= 16" if is_float else "no negative value"
        raise DatasetError(
            f"{8 * values.dtype.itemsize}-bit grey values from {low:g} to {high:g}, expected {wanted}; convert all "
            "images to 8 bits with the same scale"
        )
    if is_float and high <= 1:
        return np.rint(values * 255).astype(np.uint8)
    surplus_bits = max(int(high).bit_length() - 8, 0)
    return (values.astype(np.int64) >> surplus_bits).astype(np.uint8)


@contextlib.contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Context manager that opens an image. Raises DatasetError, without the file name, if opening or decoding fails."""
    try:
        with Image.open(path) as image:
            if image.format == "EPS":
                raise DatasetError("EPS files are not supported: Pillow would run them as programs in Ghostscript")
            yield image
    except DatasetError:
        raise
    except UnidentifiedImageError:
        what = "not an image, or an unsupported format" if path.stat().st_size else "empty, 0 bytes"
        raise DatasetError(f"cannot be decoded: {what}") from None
    except Exception as error:  # Pillow's decoders raise many types of exception for corrupt files
        what = re.sub(r" \(\d+ bytes not processed\)", "", str(error))  # misleading, not the number of missing bytes
        raise DatasetError(f"cannot be decoded: {what or type(error).__name__}") from None


@functools.cache
def _pixel_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ImageNet's mean and standard deviation of 8-bit pixels, (3, 1, 1) each; cached to avoid copies."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std


def to_layout(images: Tensor, channels_last: bool) -> Tensor:
    """Return images (B, 3, H, W) in the channels-last memory layout, which is faster for convnets, or unchanged.

    Call it while the images are uint8, because that is cheaper than after the conversion to float."""
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images


def normalize_images(images: Tensor, channels_last: bool = False) -> Tensor:
    """Normalize images with ImageNet's mean and standard deviation, on the device of the images.

    Detectors normalize images themselves, because each has its own statistics (detection.network.ssd).
    images: (B, 3, H, W) uint8. channels_last: whether to return this memory layout. Returns (B, 3, H, W) float32."""
    mean, std = _pixel_statistics(images.device)
    return (to_layout(images, channels_last).float() - mean) / std


class EpochBatchSampler:
    """Sampler of one rank's training batches; set `epoch` before each epoch.

    The images are shuffled by (seed, epoch) and split into global batches. Rank r takes every world_size-th image of a
    global batch, starting at image r. An incomplete last global batch is dropped.

    batch_size: images per process. epoch: epoch to yield. first_batch: index of the first batch to yield."""

    def __init__(self, num_samples: int, batch_size: int, rank: int, world_size: int, seed: int) -> None:
        """Create the sampler. Raises ValueError if `num_samples` is smaller than a global batch."""
        self.num_samples, self.batch_size, self.rank, self.world_size = num_samples, batch_size, rank, world_size
        self.seed = seed
        self.epoch = 0
        self.first_batch = 0
        if len(self) == 0:
            raise ValueError(
                f"batch_size {batch_size}: a global batch has {world_size} x {batch_size} images, but there are only "
                f"{num_samples} training images; lower batch_size to at most {num_samples // world_size}"
            )

    def __len__(self) -> int:
        """Return the number of batches in a full epoch; `first_batch` does not change it."""
        return self.num_samples // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_samples)
        global_batch_size = self.batch_size * self.world_size
        for batch in range(self.first_batch, len(self)):
            images = order[batch * global_batch_size : (batch + 1) * global_batch_size]
            yield [(self.epoch, int(index)) for index in images[self.rank :: self.world_size]]


def eval_batches(num_samples: int, batch_size: int, rank: int, world_size: int) -> list[list[Key]]:
    """Return the evaluation batches of a rank: every world_size-th batch, starting at batch `rank`.

    A batch has the same images for any number of processes, so that scores are bit-identical."""
    starts = range(rank * batch_size, num_samples, world_size * batch_size)
    return [[(0, index) for index in range(start, min(start + batch_size, num_samples))] for start in starts]


def build_loader(
    dataset: Dataset,
    batches: Iterable[list[Key]],
    collate: Callable[[list], dict[str, Tensor]],
    workers: int,
    device: torch.device,
) -> DataLoader:
    """Return a data loader for `batches`.

    workers: number of worker processes; with 0, this process loads the data. Batches for a GPU are in pinned memory.
    Iteration raises RuntimeError if no batch arrives for LOADER_TIMEOUT_SECONDS."""
    parallel = {}
    if workers > 0:
        # Forked workers start at once and share the parent's memory. Outside Linux, fork is missing or unsafe.
        parallel = {
            "persistent_workers": True,
            "timeout": LOADER_TIMEOUT_SECONDS,
            "multiprocessing_context": "fork" if sys.platform == "linux" else None,
            "worker_init_fn": _ignore_signals,
        }
    pin_memory = device.type == "cuda"
    return _WatchedLoader(
        dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers, pin_memory=pin_memory, **parallel
    )


class _WatchedLoader(DataLoader):
    """Loader that kills its workers if one freezes while transferring a batch. PyTorch would wait forever."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        batches = super().__iter__()
        while True:
            watch = threading.Timer(LOADER_TIMEOUT_SECONDS + LOADER_GRACE_SECONDS, _kill_workers)
            watch.daemon = True
            if self.num_workers:
                watch.start()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                watch.cancel()
            yield batch


def _kill_workers() -> None:
    logger.warning("no batch for %d s: a loader process hangs", LOADER_TIMEOUT_SECONDS)
    for process in multiprocessing.active_children():
        process.kill()


def _ignore_signals(worker: int) -> None:
    """Ignore signals in a worker: if a worker died, the run would end before it saves a checkpoint."""
    os.setpgrp()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # Delay SIGTERM instead of ignoring it, because an exiting parent sends SIGTERM to its workers and waits for them.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_EXIT_SECONDS))
    default = sys.excepthook  # the thread that transfers tensors raises OSError if the training process has ended
    sys.excepthook = lambda kind, *rest: None if issubclass(kind, OSError) else default(kind, *rest)


def batch_to(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the batch on `device`; copies from pinned memory are asynchronous."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


# ---- labelled images ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelledImages:
    """One split of a data set.

    place: folder of the split. labels: (N,) int64. class_ids, class_names: identifier and readable name of each label.
    images: (N,) bytes, file names below `place`; or (N, H, W[, 3]) uint8 pixels. Loader processes share these arrays.
    digest: SHA-256 of the labels and of the file names or pixels.
    inputs: dict from each file of CIFAR-10 or MNIST to its SHA-256; empty for folders of images."""

    place: Path
    images: np.ndarray
    labels: np.ndarray
    class_ids: list[str]
    class_names: list[str]
    digest: str
    inputs: dict[Path, str]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return the name of an image: its file name below `place`, or its index."""
        return os.fsdecode(self.images[index]) if self.images.dtype.kind == "S" else str(index)

    def read(self, index: int) -> Image.Image:
        """Return an image, upright and in 8-bit RGB. Raises DatasetError naming the file if it cannot be decoded."""
        if self.images.dtype.kind == "S":
            return read_image(self.place / self.name(index))
        return as_rgb(Image.fromarray(self.images[index]))

    def mean_by_class(self, name: str, values: np.ndarray) -> dict[str, dict[str, float | None]]:
        """Return a dict from class name to {`name`: mean of `values`, "images": number of images of the class}.

        values: (N,), one per image. The mean is None for a class without images."""
        by_class = {}
        for label, class_name in enumerate(self.class_names):
            own = values[self.labels == label]
            by_class[class_name] = {name: float(own.mean()) if len(own) else None, "images": len(own)}
        return by_class


def read_image(path: Path) -> Image.Image:
    """Decode a file to an upright 8-bit RGB image. Raises DatasetError naming the file if decoding fails."""
    if not path.is_file():
        raise DatasetError(f"{printable(str(path))}: no such file")
    try:
        with open_image(path) as image:
            return as_rgb(ImageOps.exif_transpose(image))
    except DatasetError as error:
        cure = "; replace or remove the file" if str(error).startswith("cannot be decoded") else ""
        raise DatasetError(f"{printable(str(path))}: {error}{cure}") from None


def identify_inputs(root: str, train: LabelledImages, val: LabelledImages) -> Inputs:
    """Identify the data that a run reads: the files of CIFAR-10 or MNIST, or the image files of both splits."""
    splits = {"train": train, "val": val}
    return Inputs(
        root,
        files={str(path): digest for each in splits.values() for path, digest in each.inputs.items()},
        images={
            split: identify_images(each.place, map(each.name, range(len(each))))
            for split, each in splits.items()
            if each.images.dtype.kind == "S"
        },
    )


def log_images(train: LabelledImages, val: LabelledImages) -> None:
    """Log the size of both splits; warn if validation images are also training images."""
    for images in (train, val):
        logger.info("%s: %d images, %d classes", images.place, len(images), len(images.class_ids))
    if distributed.is_main() and (shared := find_shared_images(train, val)):
        logger.warning(shared)


def find_shared_images(train: LabelledImages, val: LabelledImages) -> Repeats | None:
    """Return the validation images that are also training images, compared by file content or by pixels."""
    if train.images.dtype.kind == "S":
        paths = ([each.place / each.name(index) for index in range(len(each))] for each in (train, val))
        return find_shared_files(*paths)
    known = {image.tobytes() for image in train.images}
    return repeats("splits", [val.name(k) for k, image in enumerate(val.images) if image.tobytes() in known], len(val))


def split_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Return the SHA-256 of the images (file names or pixels) and labels of a split."""
    digest = hashlib.sha256(images.tobytes())
    digest.update(labels)
    return digest.hexdigest()


# From data.format to (torchvision's folder below the root, training files, validation files).
FORMATS = {
    "cifar10": ("cifar-10-batches-py", [f"data_batch_{number}" for number in range(1, 6)], ["test_batch"]),
    "mnist": (
        "MNIST/raw",
        ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"],
        ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"],
    ),
}


def read_binary_dataset(kind: str, root: Path, train: bool) -> LabelledImages:
    """Read one split of CIFAR-10 or MNIST. Raises DatasetError if files are missing or cannot be read."""
    from torchvision import datasets  # imported here, because it takes seconds

    class AnyCifar10(datasets.CIFAR10):
        """Reader that skips checksums, so that it also reads modified files, such as a subset."""

        train_list = [[name, None] for name, _ in datasets.CIFAR10.train_list]  # noqa: RUF012 (as in the base)
        test_list = [[name, None] for name, _ in datasets.CIFAR10.test_list]  # noqa: RUF012
        meta = datasets.CIFAR10.meta | {"md5": None}

    name, *splits = FORMATS[kind]
    folder = root / name
    if missing := [file for split in splits for file in split if not (folder / file).is_file()]:
        raise DatasetError(f"{folder}: missing {', '.join(missing)}; unpack the archive there (tar -xf, gunzip -k)")
    files = [folder / file for file in splits[0 if train else 1]]
    try:
        found = (AnyCifar10 if kind == "cifar10" else datasets.MNIST)(root, train=train)
    except Exception as error:  # parsing and unpickling raise many types
        names = ", ".join(file.name for file in files)
        raise DatasetError(f"{folder}: {names}: cannot be read ({error}); download them again") from None
    pixels, labels = torch.as_tensor(found.data).numpy(), torch.as_tensor(found.targets).numpy()
    classes = found.classes if kind == "cifar10" else list("0123456789")
    if len(pixels) != len(labels) or not np.isin(labels, range(len(classes))).all():
        what = f"{len(pixels)} images, {len(labels)} labels from {min(labels)} to {max(labels)}"
        raise DatasetError(f"{folder}: corrupt ({what}); download the files again")
    hashes = {file: file_sha256(file) for file in files}
    return LabelledImages(folder, pixels, labels, classes, classes, split_digest(pixels, labels), hashes)


def data_folder(root: str) -> Path:
    """Return data.root as a path. Raises DatasetError if it is not a folder."""
    folder = user_path(root, "data.root")
    if not folder.is_dir():
        what = "a file, not a folder" if folder.exists() else "no such folder"
        raise DatasetError(f"data.root {root}: {what}; set it to the folder of the data set")
    return folder


Transform = Callable[[Image.Image], Image.Image]


def image_tensor(image: Image.Image) -> Tensor:
    """Return the pixels of an image as (C, H, W) uint8."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def derive_seed(*numbers: int) -> int:
    """Return a seed for torch that depends on all the numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class LabelledSamples(Dataset):
    """Data set of images and labels. The sample for (epoch, index) is deterministic."""

    def __init__(self, images: LabelledImages, transform: Transform, seed: int) -> None:
        """Create the data set; `transform` may draw from torch's global generator, which is seeded per sample."""
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> dict[str, Tensor | int]:
        """Return a dict: "image" (C, S, S) uint8, "label" int, "image_id" int (index of the image in the split)."""
        epoch, index = key
        image = self.images.read(index)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, epoch, index))
            image = self.transform(image)
        return {"image": image_tensor(image), "label": int(self.images.labels[index]), "image_id": index}


def collate(samples: list[dict]) -> dict[str, Tensor]:
    """Stack samples: images (B, C, S, S) uint8, labels (B,) int64, image_ids (B,) int64."""
    return {
        "images": torch.stack([sample["image"] for sample in samples]),
        "labels": torch.tensor([sample["label"] for sample in samples]),
        "image_ids": torch.tensor([sample["image_id"] for sample in samples]),
    }


class LabelledTask:
    """Base class of tasks with labelled images; see training.Task."""

    collate = staticmethod(collate)

    def __init__(self, config: Config, train: LabelledImages, val: LabelledImages) -> None:
        """Create the task; `config` must have a section `data`."""
        self.config, self.train, self.val = config, train, val
        self.workers = config.data.workers
        self.inputs = identify_inputs(config.data.root, train, val)
        self.data = {"classes": train.class_ids, "training images": train.digest, "validation images": val.digest}
        self.data |= {f"content of the {split} images": images.sha256 for split, images in self.inputs.images.items()}
        self.val_loader: DataLoader | None = None

    def compile(self) -> None:
        """Do nothing, because `losses` does little besides calling the model."""


def eval_loader(
    images: LabelledImages, transform: Transform, batch_size: int, workers: int, device: torch.device
) -> DataLoader:
    """Return a loader for this rank's evaluation batches."""
    dataset = LabelledSamples(images, transform, seed=0)
    batches = eval_batches(len(dataset), batch_size, distributed.rank(), distributed.world_size())
    return build_loader(dataset, batches, collate, workers, device)


def gather_in_order(results: list[tuple[np.ndarray, ...]]) -> list[np.ndarray] | None:
    """Gather per-image results from all ranks, sorted by image index; return None on ranks other than 0.

    results: for each batch of this rank, a tuple of image indices (B,), then arrays of results (B, ...).
    Returns a list of the same arrays for all N images: image indices (N,), then arrays of results (N, ...)."""
    parts = distributed.gather(results)
    if parts is None:
        return None
    together = [np.concatenate(column) for column in zip(*(batch for part in parts for batch in part), strict=True)]
    order = np.argsort(together[0])
    return [column[order] for column in together]
