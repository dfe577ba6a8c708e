"""Images per second on one GPU, for ten detectors (cells of the published table) and torchvision's ssd300_vgg16.

    python -m benchmarks.gpu [--seconds 570]

A cell is a backbone with a neck. Training measures complete steps. Inference measures the forward pass and
post-processing. Post-processing gets random outputs from benchmarks.postprocess, because an untrained detector detects
nothing or everything. Both repeat one batch that is on the device, in bf16; ResNets use channels_last. "From files"
trains on JPEG files of COCO's size, with one loader process per CPU core. torchvision's detector runs in fp32.

The page is updated after every measurement. Without a GPU this is a smoke test: slim backbones, single steps, no page.
"""

import gc
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.nn.utils import clip_grad_norm_
from torch.utils.benchmark import Timer
from torchvision.models.detection import ssd300_vgg16

from benchmarks.comparison import Page, Row, run_benchmark, table, write_page
from benchmarks.evaluation import IMAGE_SIZE, random_boxes, records, write_coco
from benchmarks.peers import ANCHORS, NUM_CLASSES
from benchmarks.postprocess import random_outputs
from benchmarks.training_step import first_batch, make_run
from data import to_layout
from detection.network.postprocess import PostprocessConfig, postprocess
from engine.command import RunError
from engine.compute.precision import autocast
from engine.optim import build_optimizer
from training import Trainer

NECKS = ("fpn", "pan", "dense_fpn")
FIRST_SECONDS = 60  # assumed time of a measurement before the first one has finished
WARMUP_BATCHES = 48  # not timed, because the first batches from files were prefetched


class Plan(NamedTuple):
    """What to measure, and how long."""

    targets: dict[str, float]  # backbone -> target of images/s in training
    more_cells: tuple[str, ...]  # cells without a target: "backbone" or "backbone x neck"
    train_batch: int
    eval_batch: int
    steps: int
    batches: int  # batches per epoch when training from files
    modes: tuple[str, ...]


PUBLISHED = Plan(
    {"ResNet50Backbone_B": 1500, "SwinTBackbone_B": 1400},
    (
        "ResNet50Backbone_A", "SwinTBackbone_A",
        *(f"{backbone} x {neck}" for neck in NECKS for backbone in ("ResNet50Backbone_B", "SwinTBackbone_B")),
    ),
    train_batch=128, eval_batch=64, steps=60, batches=128, modes=("eager", "compiled"),
)  # fmt: skip
SMOKE = Plan(
    {"ResNet18SlimBackbone_B": 1500, "SwinSlimBackbone_B": 1400}, (), train_batch=2, eval_batch=2, steps=1,
    batches=4, modes=("eager",),
)  # fmt: skip


class Bench:
    """Run the measurements, store images per second by the name of the measurement, and write the page."""

    def __init__(self, plan: Plan, root: Path, device: torch.device, seconds: float) -> None:
        self.plan, self.root, self.device = plan, root, device
        self.deadline = time.monotonic() + seconds
        self.rates: dict[str, float] = {}
        self.failed: dict[str, str] = {}  # name -> reason

    def measurements(self) -> Iterable[tuple[str, Callable[[], float]]]:
        """Yield the name and the function of every measurement, the most important measurements first."""
        main_cells = tuple(self.plan.targets)
        yield from self.for_cells(self.training, main_cells, self.plan.modes)
        yield "ssd300_vgg16, training", self.peer_training
        yield from self.for_cells(self.from_files, main_cells, ("eager",))
        yield from self.for_cells(self.inference, main_cells, ("eager",))
        for modes in (("eager",), self.plan.modes[1:]):
            yield from self.for_cells(self.training, self.plan.more_cells, modes)
            yield from self.for_cells(self.inference, self.plan.more_cells, modes)

    def for_cells(self, measure: Callable, cells: Iterable[str], modes: Iterable[str]) -> Iterable:
        use = measure.__name__.replace("_", " ")
        for mode in modes:
            for cell in cells:
                yield f"{cell}, {use}, {mode}", lambda cell=cell, mode=mode: measure(cell, mode)

    def measure_all(self) -> None:
        """Run the measurements, and skip those that would probably end after the deadline."""
        longest = 0.0
        for name, measure in self.measurements():
            started = time.monotonic()
            if self.deadline - started < (longest or FIRST_SECONDS):
                self.failed[name] = "no time left"
                continue
            try:
                self.rates[name] = measure()
            except Exception as error:  # continue with the next measurement
                traceback.print_exc()
                self.failed[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            torch._dynamo.reset()  # otherwise torch.compile keeps old weights and stops compiling after a few models
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            longest = max(longest, time.monotonic() - started)
            print(f"{name}: {self.failed.get(name, 'done')}, {time.monotonic() - started:.0f} s", file=sys.stderr)
            if self.device.type == "cuda":
                write_page(__file__, self.page(), self.device)

    def rate(self, step: Callable[[], object], images: int) -> float:
        """Return the images/s of a step that processes `images` images. The timer synchronises with the device."""
        timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
        if self.plan.steps > 1:
            timer.timeit(5)
        return images / timer.timeit(self.plan.steps).median

    def run(self, cell: str, mode: str, workers: int = 0) -> Trainer:
        """Return a Trainer for a cell, on the synthetic data set."""
        backbone, _, neck = cell.partition(" x ")
        return make_run(
            self.root, self.device, backbone=backbone, neck=neck or "none", workers=workers,
            batch_size=self.plan.train_batch, precision="bf16", compile=mode == "compiled",
        )  # fmt: skip

    def training(self, cell: str, mode: str) -> float:
        run = self.run(cell, mode)
        batch = first_batch(run)
        rate = self.rate(lambda: run.train_step([batch]), self.plan.train_batch)
        run.finite.check()
        return rate

    def from_files(self, cell: str, mode: str) -> float:
        run = self.run(cell, mode, workers=os.cpu_count() or 1)
        batches = iter(run.loader)
        for batch in islice(batches, min(WARMUP_BATCHES, self.plan.batches // 2)):
            run.train_step([batch])
        started, images = time.perf_counter(), 0
        for batch in batches:
            run.train_step([batch])
            images += len(batch["images"])
        run.finite.check()  # synchronises with the device
        return images / (time.perf_counter() - started)

    def inference(self, cell: str, mode: str) -> float:
        run, size = self.run(cell, "eager"), self.plan.eval_batch
        model = run.task.model.eval()
        forward = torch.compile(model) if mode == "compiled" else model
        images = first_batch(run)["images"]
        images = images.repeat(-(-size // len(images)), 1, 1, 1)[:size]
        per_image = [random_outputs("trained", seed % 8) for seed in range(size)]
        batched = [torch.cat(outputs).to(self.device) for outputs in zip(*per_image, strict=True)]
        anchors = ANCHORS.to(self.device)

        @torch.inference_mode()
        def step() -> None:
            with autocast(self.device, "bf16"):
                outputs = forward(to_layout(images, run.config.channels_last))
            outputs = [replacement.to(output.dtype) for replacement, output in zip(batched, outputs, strict=True)]
            postprocess(*outputs, anchors, **PostprocessConfig().model_dump())

        return self.rate(step, size)

    def peer_training(self) -> float:
        run = self.run(next(iter(self.plan.targets)), "eager")
        batch = first_batch(run)
        model = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1).to(self.device).train()
        images = list((batch["images"] / 255).unbind())
        optimizer = build_optimizer(model, run.task.config.optim, len(images))
        pairs = zip(batch["boxes_xyxy"] * images[0].shape[-1], batch["labels"], strict=True)
        targets = [{"boxes": boxes[labels > 0], "labels": labels[labels > 0]} for boxes, labels in pairs]

        def step() -> None:
            losses = model(images, targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            clip_grad_norm_(model.parameters(), run.task.config.optim.clip_norm)
            optimizer.step()

        return self.rate(step, len(images))

    def page(self) -> Page:
        """Return the page with everything measured so far."""
        rates, rows = self.rates, []
        for cell, target in self.plan.targets.items():
            best = max(rates.get(f"{cell}, training, {mode}", 0) for mode in self.plan.modes)
            if best:
                rows.append(Row(f"{cell}, training", "target", target, best, "images/s", 1.0))
            ours, theirs = rates.get(f"{cell}, training, eager"), rates.get("ssd300_vgg16, training")
            if ours and theirs:
                rows.append(Row(f"{cell}, training, eager", "ssd300_vgg16, fp32", theirs, ours, "images/s"))
        columns = [f"{use}, {mode}" for use in ("training", "inference") for mode in self.plan.modes]
        columns.append("from files, eager")
        lines = [f"| cell | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
        for cell in (*self.plan.targets, *self.plan.more_cells):
            values = [rates.get(f"{cell}, {column}") for column in columns]
            lines.append(f"| {cell} | {' | '.join('' if v is None else f'{v:,.4g}' for v in values)} |")
        text = f"""# One GPU

bf16; training in batches of {self.plan.train_batch}, inference in batches of {self.plan.eval_batch}; images/s.

{{rows}}

From files: {os.cpu_count()} loader processes.

{chr(10).join(lines)}
"""
        return Page(text, rows, [f"{name}: {why}" for name, why in self.failed.items()])


def write_noise_set(root: Path, files: int, images: int) -> None:
    """Write a data set of noise images with COCO's image size, file size, number of classes and objects per image.

    Only `files` image files are written. There are `images` image ids, which refer to these files in turn."""
    (root / "images/train").mkdir(parents=True)
    (root / "annotations").mkdir()
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    width, height = IMAGE_SIZE
    for number in range(files):
        image = torch.full((1, 3, height, width), 128.0)
        for cells in (4, 16, 64, 256, 640):  # noise at several scales, as in photographs: files of about 160 kB
            noise = torch.randn(1, 3, cells * 3 // 4, cells, generator=generator)
            image += 150 / cells**0.5 * F.interpolate(noise, (height, width), mode="bilinear")
        pixels = image[0].permute(1, 2, 0).clamp(0, 255).byte().numpy()
        Image.fromarray(pixels).save(root / f"images/train/{number}.jpg", quality=95)
    image_ids = np.repeat(np.arange(images) + 1, rng.poisson(7.3, images))  # COCO has 7.3 objects per image
    objects = records(image_ids, rng.integers(1, NUM_CLASSES + 1, len(image_ids)), random_boxes(rng, len(image_ids)))
    names = [f"{index % files}.jpg" for index in range(images)]
    write_coco(root / "annotations/instances_train.json", objects, names)


def measure(device: torch.device, seconds: float) -> Page | None:
    """Run as many measurements as time allows. Raises RunError if a smoke test fails."""
    plan = PUBLISHED if device.type == "cuda" else SMOKE
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(plan, Path(name), device, seconds)
        write_noise_set(bench.root, plan.train_batch, plan.batches * plan.train_batch)
        bench.measure_all()
    page = bench.page()
    if device.type == "cuda":
        return page
    print("Smoke test on a CPU: the numbers below are NOT MEASUREMENTS, and no page is written.\n")
    print(page.text.format(rows=table(page.rows)))
    if bench.failed:
        raise RunError("; ".join(page.failures))
    return None


if __name__ == "__main__":
    options = {"--seconds": {"type": float, "default": 570, "help": "skip measurements ending after this time (570 s)"}}
    run_benchmark(measure, options, on_cpu=False)
