"""Images per second on one GPU: the ten cells of the published table, what limits them, and peers in the same run.

    python -m benchmarks.gpu [--seconds 570]

Training is training.Trainer's whole step: colours, forward, matching, losses, backward, clipping, update. Inference is
forward and post-processing. Both repeat one batch that lies on the device, in bf16, convnets in channels_last, eager
and compiled. Then the same step fed from JPEG files of the size of COCO's, decoded by one loader process for each CPU
core, colours on the device.

Peers: torchvision's ssd300_vgg16, training and inference, and the plain loop that this project's design began with,
re-created from torchvision's SSD (a loss image by image) around our ResNet-50 trunk. Both are in fp32 as PyTorch
comes: convolutions in TF32, matrix products not. An untrained detector finds nothing, or everything, so post-processing
is timed on the drawn outputs of benchmarks.postprocess ("trained"), the peer's as well.

Limits, measured here: bf16 matrix products, against 3 times the operations of a forward pass (engine.compute.cost); a
copy, against the bytes that the operators of an eager step read and write. A share of the latter near 1 leaves only
fusion.

Asked: 1,500 images/s for ResNet50Backbone_B and 1,400 for SwinTBackbone_B, in training, on one H200.

What matters most comes first, and the page is written anew after every figure: a run that is cut off leaves what it
had. A figure for which too little of --seconds is left is named as not measured. Without a GPU this is a smoke run:
slim backbones, single steps, no page, and no figure that means anything.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.ssd import SSD as TorchvisionSSD

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python benchmarks/gpu.py`

from benchmarks.comparison import Row, table, write_page
from benchmarks.postprocess import ANCHORS, NUM_CLASSES, draw
from benchmarks.training_step import first_batch, make_run, torchvision_ssd, torchvision_step
from data import normalize_images
from detection.network.postprocess import PostprocessConfig, postprocess
from engine.command import RunError, run_command
from engine.compute.cost import forward_gflops, peak_memory_mib
from engine.compute.precision import autocast
from training import Trainer

PROFILE_ROWS = 15  # operators
PICTURE_SIZE = (640, 480)  # of COCO's images, most of them
MEAN_OBJECTS = 7.3  # on an image of COCO
# What a figure is taken to need until one of its kind was measured.
EXPECTED_SECONDS = {"quick": 10.0, "eager": 25.0, "files": 40.0, "compiled": 100.0}
# They read and write nothing, though their signatures do not say so.
FREE_OPERATORS = ("aten::empty", "aten::new_empty", "aten::_unsafe_view")


class Cell(NamedTuple):
    """A place of the published table."""

    backbone: str
    neck: str = "none"

    def __str__(self) -> str:
        return self.backbone if self.neck == "none" else f"{self.backbone} x {self.neck}"


class Plan(NamedTuple):
    """What is measured, and on how much."""

    asked: dict[Cell, float]  # images/s in training
    others: tuple[Cell, ...]
    train_batch: int
    eval_batch: int
    warmup: int  # steps before any that is timed
    steps: int  # in one repetition
    repetitions: int
    files: int  # different JPEGs
    batches: int  # from files, in an epoch
    workers: int  # loader processes
    limit_side: int  # of the matrices, and of the square of bytes that is copied
    compiles: bool


NECKS = ("fpn", "pan", "dense_fpn")
PUBLISHED = Plan(
    asked={Cell("ResNet50Backbone_B"): 1500, Cell("SwinTBackbone_B"): 1400},
    others=(
        Cell("ResNet50Backbone_A"),
        Cell("SwinTBackbone_A"),
        *(Cell(backbone, neck) for neck in NECKS for backbone in ("ResNet50Backbone_B", "SwinTBackbone_B")),
    ),
    train_batch=128, eval_batch=64, warmup=5, steps=20, repetitions=3, files=128, batches=128,
    workers=os.cpu_count() or 1, limit_side=8192, compiles=True,
)  # fmt: skip
SMOKE = Plan(
    asked={Cell("ResNet18SlimBackbone_B"): 1500, Cell("SwinSlimBackbone_B"): 1400}, others=(),
    train_batch=2, eval_batch=2, warmup=0, steps=1, repetitions=1, files=4, batches=4, workers=1, limit_side=256,
    compiles=False,
)  # fmt: skip


# ---- measuring -----------------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(step: Callable[[], object], plan: Plan, device: torch.device) -> float:
    """Wall-clock seconds of a step: the median of the repetitions, each of many steps between two waits."""
    for _ in range(plan.warmup):
        step()
    taken = []
    for _ in range(plan.repetitions):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(plan.steps):
            step()
        synchronize(device)
        taken.append((time.perf_counter() - started) / plan.steps)
    return statistics.median(taken)


class Traffic(TorchDispatchMode):
    """Counts the bytes of all tensors that operators read and write, without those that only view or make room."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        is_view = any(value.alias_info and not value.alias_info.is_write for value in func._schema.returns)
        if not is_view and not func.name().startswith(FREE_OPERATORS):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            # An expanded tensor has more elements than memory.
            self.bytes += sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in tensors)
        return result


def profile_table(step: Callable[[], object], device: torch.device) -> str:
    """The operators in which a step spends the device's time, without those that they call."""
    on_gpu = device.type == "cuda"
    synchronize(device)
    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        step()
        synchronize(device)
    wall = time.perf_counter() - started
    operators = [
        (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count, event.key)
        for event in profiled.key_averages()
        if event.device_type == DeviceType.CPU  # not the kernels that they launch, which would count twice
    ]
    busy = sum(taken for taken, _, _ in operators)
    lines = [f"{busy / 1e3:.1f} ms of {device.type} time (the profiled step took {wall * 1e3:.1f} ms)"]
    for taken, count, name in sorted(operators, reverse=True)[:PROFILE_ROWS]:
        lines.append(f"{taken / 1e3:9.2f} ms {taken / max(busy, 1e-9):7.1%} {count:6d} x  {name[:70]}")
    return "\n".join(lines)


# ---- the figures ---------------------------------------------------------------------------------------------------


class Bench:
    """What was measured so far, and what was not."""

    def __init__(self, plan: Plan, root: Path, device: torch.device, seconds: float) -> None:
        self.plan, self.root, self.device = plan, root, device
        self.deadline = time.monotonic() + seconds
        self.figures: dict[str, float] = {}
        self.profiles: dict[str, str] = {}
        self.missing: dict[str, str] = {}  # why
        self.failed = False
        self.longest: dict[str, float] = {}  # seconds that a figure has taken, by kind

    def figures_in_order(self) -> list[tuple[str, str, Callable[[], dict[str, float]]]]:
        """Name, kind (a key of EXPECTED_SECONDS) and measurement of all, those that matter most first."""
        plan = self.plan
        modes = ("eager", "compiled") if plan.compiles else ("eager",)
        resnet, _ = plan.asked

        def cells(use: str, cells: tuple[Cell, ...], modes: tuple[str, ...]) -> list:
            measure = self.training if use == "training" else self.inference
            return [
                (f"{cell}, {use}, {mode}", mode, lambda cell=cell, mode=mode: measure(cell, mode))
                for mode in modes
                for cell in cells
            ]

        asked = tuple(plan.asked)
        return [
            ("limits of the device", "quick", self.limits),
            *cells("training", asked, modes),
            ("ssd300_vgg16, training", "eager", lambda: self.peer_training("ssd300_vgg16", self.vgg())),
            ("reference loop, training", "eager", lambda: self.peer_training("reference loop", self.reference(resnet))),
            *((f"{cell}, from files", "files", lambda cell=cell: self.from_files(cell)) for cell in asked),
            *cells("inference", asked, ("eager",)),
            ("ssd300_vgg16, inference", "eager", self.peer_inference),
            *cells("training", plan.others, ("eager",)),
            *cells("inference", plan.others, ("eager",)),
            *cells("inference", asked, modes[1:]),
            *cells("training", plan.others, modes[1:]),
            *cells("inference", plan.others, modes[1:]),
        ]

    def measure_all(self) -> None:
        """As many figures as there is time for; the page after each."""
        in_order = self.figures_in_order()
        self.missing = {name: "not begun" for name, _, _ in in_order}
        for name, kind, measure in in_order:
            if self.deadline - time.monotonic() < self.longest.get(kind, EXPECTED_SECONDS[kind]):
                self.missing[name] = "no time left"
                continue
            started = time.monotonic()
            try:
                self.figures |= measure()
                del self.missing[name]
            except Exception as error:  # whatever it is, the others may still be had
                traceback.print_exc()
                self.missing[name], self.failed = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", True
            torch._dynamo.reset()  # which keeps the weights, and gives up compiling after a few cells
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            taken = time.monotonic() - started
            self.longest[kind] = max(self.longest.get(kind, 0), taken)
            print(f"{name}: {taken:.0f} s, {self.missing.get(name, 'done')}", file=sys.stderr)
            self.write()
        self.write(quietly=False)

    def limits(self) -> dict[str, float]:
        """TFLOP/s of a product of bf16 matrices, GB/s of a copy (what is read and what is written)."""
        side, device = self.plan.limit_side, self.device
        a, b = torch.randn(2, side, side, device=device).bfloat16()
        product = seconds_of(lambda: a @ b, self.plan, device)
        block = torch.empty(16 * side * side, dtype=torch.uint8, device=device)
        target = torch.empty_like(block)
        copy = seconds_of(lambda: target.copy_(block), self.plan, device)
        return {"TFLOP/s": 2 * side**3 / product / 1e12, "GB/s": 2 * block.nbytes / copy / 1e9}

    def run(self, cell: Cell, *, compiled: bool = False, workers: int = 0) -> Trainer:
        """Of a cell, on the set of JPEGs."""
        return make_run(
            self.root, self.device, backbone=cell.backbone, neck=cell.neck, workers=workers,
            batch_size=self.plan.train_batch, precision="bf16", compile=compiled,
        )  # fmt: skip

    def training(self, cell: Cell, mode: str) -> dict[str, float]:
        """Images/s, peak memory; of an eager step also its cost, and where its time goes if figures are asked of it."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        run = self.run(cell, compiled=mode == "compiled")
        if mode == "compiled" and run.parallel_model is run.state.model:
            raise RunError("torch.compile does not work here")
        batch = first_batch(run)
        rate = self.plan.train_batch / seconds_of(lambda: run.train_step([batch]), self.plan, self.device)
        figures = {f"{cell}, training, {mode}": rate, f"{cell}, GiB, {mode}": peak_memory_mib(self.device) / 1024}
        if mode == "eager":
            with Traffic() as traffic:
                run.train_step([batch])
            figures[f"{cell}, GB"] = traffic.bytes / self.plan.train_batch / 1e9
            figures[f"{cell}, GFLOP"] = 3 * forward_gflops(run.task.model, run.task.model.input_size)
            if cell in self.plan.asked:
                self.profiles[str(cell)] = profile_table(lambda: run.train_step([batch]), self.device)
        run.finite.check()
        return figures

    def inference(self, cell: Cell, mode: str) -> dict[str, float]:
        """Images/s of forward and post-processing."""
        run, size = self.run(cell), self.plan.eval_batch
        model = run.task.model.eval()
        forward = torch.compile(model) if mode == "compiled" else model
        images = first_batch(run)["images"]
        images = images.repeat(-(-size // len(images)), 1, 1, 1)[:size]
        drawn, anchors = self.drawn_outputs(), ANCHORS.to(self.device)

        @torch.inference_mode()
        def step() -> None:
            with autocast(self.device, "bf16"):
                outputs = forward(normalize_images(images, run.config.channels_last))
            postprocess(
                *(of_trained.to(of_untrained.dtype) for of_trained, of_untrained in zip(drawn, outputs, strict=True)),
                anchors, **PostprocessConfig().model_dump(),
            )  # fmt: skip

        return {f"{cell}, inference, {mode}": size / seconds_of(step, self.plan, self.device)}

    def from_files(self, cell: Cell) -> dict[str, float]:
        """Images/s that the loaders decode, and that are trained on as they come; and how long training waits."""
        run = self.run(cell, workers=self.plan.workers)
        unsteady = min(3 * self.plan.workers, self.plan.batches // 2)  # batches, until loaders are in mid-stream
        waits = []

        def rate(step: Callable[[dict[str, Tensor]], object]) -> float:
            loaded = iter(run.loader)
            for batch in islice(loaded, unsteady):
                step(batch)
            synchronize(self.device)
            started, waited, count = time.perf_counter(), 0.0, 0
            while True:
                asked = time.perf_counter()
                batch = next(loaded, None)
                waited += time.perf_counter() - asked
                if batch is None:
                    break
                step(batch)
                count += len(batch["images"])
            synchronize(self.device)
            seconds = time.perf_counter() - started
            waits.append(waited / seconds)
            return count / seconds

        return {
            f"{cell}, loaders alone": rate(lambda batch: None),
            f"{cell}, from files": rate(lambda batch: run.train_step([batch])),
            f"{cell}, waiting": waits[-1],
        }

    def vgg(self) -> TorchvisionSSD:
        """torchvision's own detector of this kind, from random weights."""
        return ssd300_vgg16(weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1)

    def reference(self, cell: Cell) -> TorchvisionSSD:
        """What the plain loop trains."""
        return torchvision_ssd(cell.backbone, NUM_CLASSES)

    def peer_training(self, name: str, model: TorchvisionSSD) -> dict[str, float]:
        """Images/s of torchvision's step, on the batch of the first cell asked for."""
        run = self.run(next(iter(self.plan.asked)))
        step = torchvision_step(model, first_batch(run), run.task.config.optim, self.device)
        return {f"{name}, training": self.plan.train_batch / seconds_of(step, self.plan, self.device)}

    def peer_inference(self) -> dict[str, float]:
        """Images/s of ssd300_vgg16."""
        model = self.vgg().to(self.device).eval()
        model.score_thresh = PostprocessConfig().score_threshold
        model.head = _HeadOfATrained(model.head, *self.drawn_outputs())
        side, size = model.transform.min_size[0], self.plan.eval_batch
        images = list(torch.rand(size, 3, side, side, device=self.device).unbind())
        step = torch.inference_mode()(lambda: model(images))
        return {"ssd300_vgg16, inference": size / seconds_of(step, self.plan, self.device)}

    def drawn_outputs(self) -> tuple[Tensor, Tensor]:
        """box_deltas (B, A, 4) and class_logits (B, A, 81) as a trained detector's, for benchmarks.postprocess.ANCHORS:
        eight different images, again and again."""
        images = [draw("trained", seed % 8) for seed in range(self.plan.eval_batch)]
        box_deltas, class_logits = (torch.cat(outputs).to(self.device) for outputs in zip(*images, strict=True))
        return box_deltas, class_logits

    # ---- the page --------------------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """What is asked, and peers."""
        rows, figures = [], self.figures
        resnet, _ = self.plan.asked
        for cell, asked in self.plan.asked.items():
            rates = {mode: figures.get(f"{cell}, training, {mode}", 0) for mode in ("compiled", "eager")}
            mode = max(rates, key=rates.get)
            if rates[mode]:
                rows.append(Row(f"{cell}, training, {mode}", "asked", asked, rates[mode], "images/s", 1.0))
            for ours, theirs, peer in (
                (f"{cell}, training, compiled", f"{cell}, training, eager", "own eager"),
                (f"{cell}, from files", f"{cell}, training, eager", "own, the same batch again and again"),
            ):
                if ours in figures and theirs in figures:
                    rows.append(Row(ours, peer, figures[theirs], figures[ours], "images/s"))
        for ours, theirs, peer in (
            ("training, eager", "ssd300_vgg16, training", "torchvision's ssd300_vgg16, fp32"),
            ("training, eager", "reference loop, training", "reference loop, fp32"),
            ("inference, eager", "ssd300_vgg16, inference", "torchvision's ssd300_vgg16, fp32"),
        ):
            if f"{resnet}, {ours}" in figures and theirs in figures:
                rows.append(Row(f"{resnet}, {ours}", peer, figures[theirs], figures[f"{resnet}, {ours}"], "images/s"))
        return rows

    def cell_table(self) -> str:
        """All cells."""
        uses = [f"{use}, {mode}" for use in ("training", "inference") for mode in ("eager", "compiled")]
        names = [*uses, "GiB, eager", "GiB, compiled", "GFLOP", "GB", "of TFLOP/s", "of GB/s"]
        lines = [f"| cell | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
        for cell in (*self.plan.asked, *self.plan.others):
            values = {name: self.figures.get(f"{cell}, {name}") for name in names}
            eager, fastest = values["training, eager"], max(values[use] or 0 for use in uses[:2])
            shown = ["" if values[name] is None else f"{values[name]:,.4g}" for name in names[:-2]]
            if eager and "TFLOP/s" in self.figures:
                compute = values["GFLOP"] * fastest / 1e3 / self.figures["TFLOP/s"]
                shown += [f"{compute:.0%}", f"{values['GB'] * eager / self.figures['GB/s']:.0%}"]
            else:
                shown += ["", ""]
            lines.append(f"| {cell} | {' | '.join(shown)} |")
        return "\n".join(lines)

    def text(self) -> str:
        """The page, with "{rows}" where the first table goes."""
        plan, figures = self.plan, self.figures
        limits = (
            f"{figures['TFLOP/s']:,.4g} TFLOP/s in a product of bf16 matrices of side {plan.limit_side}, "
            f"{figures['GB/s']:,.4g} GB/s in a copy, read and written"
            if "TFLOP/s" in figures
            else "not measured"
        )
        files = [
            f"- {cell}: {figures[f'{cell}, from files']:,.4g} images/s, waiting for data "
            f"{figures[f'{cell}, waiting']:.0%} of the time; the loaders alone "
            f"{figures[f'{cell}, loaders alone']:,.4g} images/s."
            for cell in plan.asked
            if f"{cell}, from files" in figures
        ]
        profiles = [f"{cell}:\n\n```text\n{lines}\n```" for cell, lines in self.profiles.items()]
        missing = [f"- {name}: {why}" for name, why in self.missing.items()]
        page = f"""# One GPU

bf16; training in batches of {plan.train_batch}, inference in batches of {plan.eval_batch}; wall-clock time of \
{plan.steps} steps, the median of {plan.repetitions} repetitions.

{{rows}}

## The cells

Images/s; memory of training; operations and bytes of an eager training step per image; the share of the device's \
limits: of its arithmetic in the faster of both ways to train, of its bandwidth in the eager one.

{self.cell_table()}

Limits of the device: {limits}.

## From JPEG files

{plan.files} different files of {PICTURE_SIZE[0]} x {PICTURE_SIZE[1]} pixels, loader processes: {plan.workers}, eager \
training; without the first batches, until the loaders are in mid-stream.

{chr(10).join(files) or "Not measured."}

## Where the time goes

One eager training step; operators by their own time.

{(2 * chr(10)).join(profiles) or "Not measured."}

## Not measured

{chr(10).join(missing) or "Nothing is missing."}
"""
        return page.replace("{", "{{").replace("}", "}}").replace("{{rows}}", "{rows}")  # C++ names have braces

    def write(self, quietly: bool = True) -> None:
        """Write the page, and print it unless `quietly`; a smoke run prints only."""
        with contextlib.redirect_stdout(io.StringIO() if quietly else sys.stdout):
            if self.device.type == "cuda":
                write_page(__file__, self.text(), self.rows(), self.device)
            else:
                print("Smoke run on a CPU: NO FIGURE BELOW IS A MEASUREMENT, and no page is written.\n")
                print(self.text().format(rows=table(self.rows())))


class _HeadOfATrained(nn.Module):
    """Does a head's work, and returns drawn outputs instead, as a trained detector would."""

    def __init__(self, head: nn.Module, box_deltas: Tensor, class_logits: Tensor) -> None:
        super().__init__()
        self.head = head
        self.outputs = {"bbox_regression": box_deltas, "cls_logits": class_logits}

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        self.head(maps)
        return self.outputs


# ---- the command ---------------------------------------------------------------------------------------------------


def draw_set(root: Path, files: int, images: int) -> None:
    """A data set of noise in the shape of COCO: the size of its images and files, 80 classes, its number of objects.

    The same files again and again, under as many ids as there are to be images."""
    (root / "images/train").mkdir(parents=True)
    (root / "annotations").mkdir()
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    for number in range(files):
        save_picture(root / f"images/train/{number}.jpg", generator)
    size = np.array(PICTURE_SIZE)
    annotations = []
    for image in range(images):
        for _ in range(rng.poisson(MEAN_OBJECTS)):
            extent = size * np.exp(rng.normal(-1.7, 0.8, 2)).clip(0.02, 0.95)
            bbox = [*((size - extent) * rng.random(2)), *extent]
            category = int(rng.integers(NUM_CLASSES)) + 1
            record = {"image_id": image, "category_id": category, "bbox": np.round(bbox, 2).tolist()}
            annotations.append({"id": len(annotations) + 1} | record)
    width, height = PICTURE_SIZE
    content = {
        "images": [
            {"id": image, "file_name": f"{image % files}.jpg", "width": width, "height": height}
            for image in range(images)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, NUM_CLASSES + 1)],
    }
    (root / "annotations/instances_train.json").write_text(json.dumps(content))


def save_picture(path: Path, generator: torch.Generator) -> None:
    """Noise with as much of every coarseness as photographs have: a JPEG of some 160 kB, as COCO's on average."""
    width, height = PICTURE_SIZE
    picture = torch.full((1, 3, height, width), 128.0)
    for cells in (4, 16, 64, 256, 640):
        noise = torch.randn(1, 3, cells * 3 // 4, cells, generator=generator)
        picture += 150 / cells**0.5 * F.interpolate(noise, (height, width), mode="bilinear")
    pixels = picture[0].permute(1, 2, 0).clamp(0, 255).byte().numpy()
    Image.fromarray(pixels).save(path, quality=95)


def main(device: torch.device) -> None:
    """Measure what there is time for, page by page. Raises RunError at the end if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=570, help="begin nothing that would not be done by then")
    seconds = parser.parse_args().seconds
    plan = PUBLISHED if device.type == "cuda" else SMOKE
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(plan, Path(name), device, seconds)
        draw_set(bench.root, plan.files, plan.batches * plan.train_batch)
        bench.measure_all()
        if plan is SMOKE:
            in_order = Bench(PUBLISHED, bench.root, device, seconds).figures_in_order()
            print("With a GPU, in this order:\n\n" + "\n".join(f"- {what}" for what, _, _ in in_order))
    if bench.failed:
        raise RunError("; ".join(f"{what}: {why}" for what, why in bench.missing.items()))


if __name__ == "__main__":
    run_command(main)
