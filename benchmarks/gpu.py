"""Images per second on one GPU: the ten cells of the published table beside torchvision's ssd300_vgg16.

    python -m benchmarks.gpu [--seconds 570]

Training is a whole step: colours, forward, matching, losses, backward, clipping, update. Inference is forward and
post-processing. Both repeat one batch that is in the device's memory, in bf16, convnets in channels_last, eager and
compiled. "From files" feeds the same step from JPEG files of COCO's size, one loader process per CPU core. An untrained
detector finds nothing or everything, so post-processing is timed on the drawn outputs of benchmarks.postprocess
("trained"), torchvision's as well. torchvision runs in fp32, as it comes.

Asked: 1,500 images/s for ResNet50Backbone_B and 1,400 for SwinTBackbone_B in training, on one H200.

The page is written again after every figure, the most important figures first, so a run that is cut off leaves what it
has. Without a GPU this is a smoke test: slim backbones, single steps, no page.
"""

import argparse
import gc
import json
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
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.ssd import SSD as TorchvisionSSD

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python benchmarks/gpu.py`

from benchmarks.comparison import Row, table, write_page
from benchmarks.postprocess import ANCHORS, NUM_CLASSES, draw
from benchmarks.training_step import first_batch, make_run, torchvision_step
from data import normalize_images
from detection.network.postprocess import PostprocessConfig, postprocess
from engine.command import RunError, run_command
from engine.compute.cost import peak_memory_mib
from engine.compute.precision import autocast

PICTURE_SIZE = (640, 480)  # most of COCO's images
MEAN_OBJECTS = 7.3  # per image of COCO
NECKS = ("fpn", "pan", "dense_fpn")
SECONDS_PER_FIGURE = 60  # what a figure is assumed to need before one was measured
UNSTEADY_BATCHES = 48  # not timed: the first ones from files are prefetched


class Plan(NamedTuple):
    """What is measured, and on how much."""

    asked: dict[str, float]  # backbone to images/s in training
    others: tuple[str, ...]  # backbones, or "backbone x neck"
    train_batch: int
    eval_batch: int
    steps: int
    files: int  # different JPEGs
    batches: int  # from files, in an epoch
    workers: int
    modes: tuple[str, ...]


PUBLISHED = Plan(
    {"ResNet50Backbone_B": 1500, "SwinTBackbone_B": 1400},
    (
        "ResNet50Backbone_A", "SwinTBackbone_A",
        *(f"{backbone} x {neck}" for neck in NECKS for backbone in ("ResNet50Backbone_B", "SwinTBackbone_B")),
    ),
    train_batch=128, eval_batch=64, steps=60, files=128, batches=128, workers=os.cpu_count() or 1,
    modes=("eager", "compiled"),
)  # fmt: skip
SMOKE = Plan(
    {"ResNet18SlimBackbone_B": 1500, "SwinSlimBackbone_B": 1400}, (), train_batch=2, eval_batch=2, steps=1, files=4,
    batches=4, workers=1, modes=("eager",),
)  # fmt: skip


class Bench:
    """Measure images per second by name, and write the page."""

    def __init__(self, plan: Plan, root: Path, device: torch.device, seconds: float) -> None:
        self.plan, self.root, self.device = plan, root, device
        self.deadline = time.monotonic() + seconds
        self.figures: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self.missing: list[str] = []

    def measurements(self) -> Iterable[tuple[str, Callable[[], float]]]:
        """Every figure's name and measurement, the most important first."""
        asked = tuple(self.plan.asked)
        yield from self.of_cells(self.training, asked, self.plan.modes)
        yield "ssd300_vgg16, training", self.peer_training
        yield from self.of_cells(self.from_files, asked, ("eager",))
        yield from self.of_cells(self.inference, asked, ("eager",))
        yield "ssd300_vgg16, inference", self.peer_inference
        for cells, modes in ((self.plan.others, ("eager",)), (self.plan.others, self.plan.modes[1:])):
            yield from self.of_cells(self.training, cells, modes)
            yield from self.of_cells(self.inference, cells, modes)

    def of_cells(self, measure: Callable, cells: Iterable[str], modes: Iterable[str]) -> Iterable:
        use = measure.__name__.replace("_", " ")
        for mode in modes:
            for cell in cells:
                yield f"{cell}, {use}, {mode}", lambda cell=cell, mode=mode: measure(cell, mode)

    def measure_all(self) -> None:
        """Measure as many figures as there is time for."""
        longest = 0.0
        for name, measure in self.measurements():
            if self.deadline - time.monotonic() < (longest or SECONDS_PER_FIGURE):
                self.missing.append(name)
                continue
            started = time.monotonic()
            try:
                self.figures[name] = measure()
            except Exception as error:  # the others may still be measured
                traceback.print_exc()
                self.failed[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            torch._dynamo.reset()  # it keeps the weights, and stops compiling after a few models
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            longest = max(longest, time.monotonic() - started)
            print(f"{name}: {self.failed.get(name, 'done')}, {time.monotonic() - started:.0f} s", file=sys.stderr)
            self.write()

    def rate(self, step: Callable[[], object], images: int) -> float:
        """Images/s of a step. The timer waits for the device."""
        timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
        if self.plan.steps > 1:
            timer.timeit(5)
        return images / timer.timeit(self.plan.steps).median

    def run(self, cell: str, mode: str, workers: int = 0):
        """Return a run of a cell on the drawn set."""
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
        self.figures[f"{cell}, GiB, {mode}"] = peak_memory_mib(self.device) / 1024
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        return rate

    def from_files(self, cell: str, mode: str) -> float:
        run = self.run(cell, mode, workers=self.plan.workers)
        batches = iter(run.loader)
        for batch in islice(batches, min(UNSTEADY_BATCHES, self.plan.batches // 2)):
            run.train_step([batch])
        started, images = time.perf_counter(), 0
        for batch in batches:
            run.train_step([batch])
            images += len(batch["images"])
        run.finite.check()  # waits for the device
        return images / (time.perf_counter() - started)

    def inference(self, cell: str, mode: str) -> float:
        run, size = self.run(cell, "eager"), self.plan.eval_batch
        model = run.task.model.eval()
        forward = torch.compile(model) if mode == "compiled" else model
        images = first_batch(run)["images"]
        images = images.repeat(-(-size // len(images)), 1, 1, 1)[:size]
        drawn, anchors = self.drawn_outputs(), ANCHORS.to(self.device)

        @torch.inference_mode()
        def step() -> None:
            with autocast(self.device, "bf16"):
                outputs = forward(normalize_images(images, run.config.channels_last))
            outputs = [like.to(output.dtype) for like, output in zip(drawn, outputs, strict=True)]
            postprocess(*outputs, anchors, **PostprocessConfig().model_dump())

        return self.rate(step, size)

    def vgg(self) -> TorchvisionSSD:
        return ssd300_vgg16(weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1)

    def peer_training(self) -> float:
        run = self.run(next(iter(self.plan.asked)), "eager")
        step = torchvision_step(self.vgg(), first_batch(run), run.task.config.optim, self.device)
        return self.rate(step, self.plan.train_batch)

    def peer_inference(self) -> float:
        model = self.vgg().to(self.device).eval()
        model.score_thresh = PostprocessConfig().score_threshold
        model.head = _HeadOfATrained(model.head, *self.drawn_outputs())
        images = list(torch.rand(self.plan.eval_batch, 3, 300, 300, device=self.device).unbind())
        return self.rate(torch.inference_mode()(lambda: model(images)), self.plan.eval_batch)

    def drawn_outputs(self) -> tuple[Tensor, Tensor]:
        """Return box_deltas (B, A, 4) and class_logits (B, A, 81) like a trained detector's: eight images, repeated."""
        images = [draw("trained", seed % 8) for seed in range(self.plan.eval_batch)]
        box_deltas, class_logits = (torch.cat(outputs).to(self.device) for outputs in zip(*images, strict=True))
        return box_deltas, class_logits

    # ---- the page --------------------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Return what is asked, and the peers."""
        figures, rows = self.figures, []
        for cell, asked in self.plan.asked.items():
            best = max(figures.get(f"{cell}, training, {mode}", 0) for mode in self.plan.modes)
            if best:
                rows.append(Row(f"{cell}, training", "asked", asked, best, "images/s", 1.0))
            for use in ("training", "inference"):
                ours, theirs = figures.get(f"{cell}, {use}, eager"), figures.get(f"ssd300_vgg16, {use}")
                if ours and theirs:
                    rows.append(Row(f"{cell}, {use}, eager", "ssd300_vgg16, fp32", theirs, ours, "images/s"))
        return rows

    def text(self) -> str:
        """Return the page, with "{rows}" where the first table goes."""
        columns = [f"{use}, {mode}" for use in ("training", "inference") for mode in self.plan.modes]
        columns += ["from files, eager", *(f"GiB, {mode}" for mode in self.plan.modes)]
        lines = [f"| cell | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
        for cell in (*self.plan.asked, *self.plan.others):
            values = [self.figures.get(f"{cell}, {column}") for column in columns]
            lines.append(f"| {cell} | {' | '.join('' if v is None else f'{v:,.4g}' for v in values)} |")
        missing = [f"- {name}: no time left" for name in self.missing]
        missing += [f"- {name}: {why}" for name, why in self.failed.items()]
        return f"""# One GPU

bf16; training in batches of {self.plan.train_batch}, inference in batches of {self.plan.eval_batch}; images/s.

{{rows}}

## The cells

Images/s, and the memory that training needs. From files: {self.plan.workers} loader processes.

{chr(10).join(lines)}

## Not measured

{chr(10).join(missing) or "Nothing is missing."}
"""

    def write(self) -> None:
        if self.device.type == "cuda":
            write_page(__file__, self.text(), self.rows(), self.device)
        else:
            print("Smoke test on a CPU: NO FIGURE BELOW IS A MEASUREMENT, and no page is written.\n")
            print(self.text().format(rows=table(self.rows())))


class _HeadOfATrained(nn.Module):
    """Do a head's work, and return drawn outputs instead, as a trained detector would."""

    def __init__(self, head: nn.Module, box_deltas: Tensor, class_logits: Tensor) -> None:
        super().__init__()
        self.head = head
        self.outputs = {"bbox_regression": box_deltas, "cls_logits": class_logits}

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        self.head(maps)
        return self.outputs


def draw_set(root: Path, files: int, images: int) -> None:
    """Draw noise as a data set like COCO: its image and file sizes, 80 classes, its number of objects per image.

    The same few files are listed under as many ids as there are images."""
    (root / "images/train").mkdir(parents=True)
    (root / "annotations").mkdir()
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    width, height = PICTURE_SIZE
    for number in range(files):
        picture = torch.full((1, 3, height, width), 128.0)
        for cells in (4, 16, 64, 256, 640):  # as much of every coarseness as photographs have: about 160 kB
            noise = torch.randn(1, 3, cells * 3 // 4, cells, generator=generator)
            picture += 150 / cells**0.5 * F.interpolate(noise, (height, width), mode="bilinear")
        pixels = picture[0].permute(1, 2, 0).clamp(0, 255).byte().numpy()
        Image.fromarray(pixels).save(root / f"images/train/{number}.jpg", quality=95)
    annotations = []
    for image in range(images):
        for _ in range(rng.poisson(MEAN_OBJECTS)):
            extent = PICTURE_SIZE * np.exp(rng.normal(-1.7, 0.8, 2)).clip(0.02, 0.95)
            bbox = np.round([*((PICTURE_SIZE - extent) * rng.random(2)), *extent], 2).tolist()
            category = int(rng.integers(NUM_CLASSES)) + 1
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": category, "bbox": bbox})
    content = {
        "images": [
            {"id": image, "file_name": f"{image % files}.jpg", "width": width, "height": height}
            for image in range(images)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, NUM_CLASSES + 1)],
    }
    (root / "annotations/instances_train.json").write_text(json.dumps(content))


def main(device: torch.device) -> None:
    """Measure what there is time for. Raises RunError at the end if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=570, help="start no figure that would end later (570)")
    plan = PUBLISHED if device.type == "cuda" else SMOKE
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(plan, Path(name), device, parser.parse_args().seconds)
        draw_set(bench.root, plan.files, plan.batches * plan.train_batch)
        bench.measure_all()
        bench.write()
    if bench.failed:
        raise RunError("; ".join(f"{what}: {why}" for what, why in bench.failed.items()))


if __name__ == "__main__":
    run_command(main)
