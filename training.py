"""The one loop that every task trains with.

`fit` reads top-down: build what moves the weights, go on where a checkpoint ended, then per epoch train, score,
log, save. A task (detection, ...) brings a model, a data set, its losses on a batch and its scores; it knows
nothing of steps, ranks, accumulation or files, and the loop knows nothing of boxes.

Randomness is a function of (seed, epoch, image) in the data and of (seed, step, rank) in the model, never of
what ran before. So a resumed run draws what the uninterrupted run would have drawn.
"""

import copy
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset
from tqdm import tqdm

from data import EpochBatchSampler, batch_to, build_loader
from engine import distributed
from engine.checkpoint import (
    CheckpointError,
    check_room,
    load_checkpoint,
    load_newest_whole,
    prune_checkpoints,
    save_checkpoint,
    step_path,
)
from engine.command import RunError
from engine.compute.precision import Precision, autocast, resolve_precision
from engine.config import Config
from engine.loading import load_exactly
from engine.logbook import logger
from engine.optim import (
    STATES_PER_WEIGHT,
    OptimConfig,
    build_optimizer,
    build_scheduler,
    scaled_learning_rate,
    update_average,
)
from engine.signals import StopRequest
from records.experiment import shown_score
from records.metrics import draw_curves, read_metrics, write_metrics
from records.status import training_bar
from records.trackers import TrackerName

FIRST_LOSS_SCALE = 2.0**10  # of fp16; a loss is a sum over a batch until its gradient is divided
MOST_WAITING = 0.2  # of the time of an epoch, for data
MOST_OVERFLOWS = 20  # in a row; each halves the scale

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class TrainConfig(Config):
    """How long, in what batches and in what arithmetic to train."""

    epochs: int = Field(ge=1, description="passes over the training images")
    batch_size: int = Field(ge=1, description="images per process and backward pass")
    accumulation_steps: int = Field(1, ge=1, description="backward passes per optimizer step")
    precision: Precision = Field(
        "auto",
        description="of matrix products and convolutions; auto: bf16 if the hardware has it, else fp16 with loss "
        "scaling on a GPU, else fp32",
    )
    channels_last: bool = Field(False, description="memory layout; faster for convnets")
    compile: bool = Field(False, description="torch.compile the model and the losses: faster after a slow start")
    batch_norm: Literal["local", "sync", "frozen"] = Field(
        "local", description="statistics per process, over all processes (GPU only), or never updated"
    )
    ema_decay: float | None = Field(None, gt=0, lt=1, description="score a moving average of the weights")
    seed: int = Field(0, ge=0, lt=2**20, description="of initial weights, image order, augmentation, drop path")
    eval_every_epochs: int = Field(1, ge=1, description="epochs between scores on the validation images")
    checkpoint_every_steps: int = Field(1000, ge=1, description="optimizer steps between saves inside an epoch")
    keep_checkpoints: int = Field(2, ge=1, description="how many of the newest checkpoints to keep")
    trackers: tuple[TrackerName, ...] = Field((), description="who else is told of each epoch, besides metrics.jsonl")


class Task(Protocol):
    """What the loop asks of a task."""

    model: nn.Module
    train_set: Dataset  # indexed by (epoch, index)
    data: dict  # plain facts of what is learned from: a run resumes on the same data only
    collate: Callable[[list], dict[str, Tensor]]
    workers: int  # loader processes per training process
    loading_cure: str  # what to do where training waits for data
    metrics: tuple[str, ...]  # scores worth drawing; the first names the best checkpoint
    lower_is_better: bool  # of the first of them, as of a loss
    reference_losses: dict[str, float]  # what a model that learned nothing reaches

    def compile(self) -> None:
        """Compile what `losses` does besides calling the model."""
        ...

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Losses summed over a batch that is on the device, and the number of things summed over, all scalars.

        Minimised is the total of the losses per thing, over the global batch. `model` is self.model, wrapped."""
        ...

    def evaluate(
        self, model: nn.Module, device: torch.device, stop_if_asked: Callable[[], None]
    ) -> dict[str, float | None]:
        """Validation scores, the same on every rank; called by all ranks together.

        stop_if_asked: to be called between batches; raises where a signal asks to end."""
        ...

    def draw(self, experiment: Path, epoch: int) -> None:
        """Leave pictures of what was evaluated last, after this many epochs; called on rank 0.

        What it raises is warned of, and ends nothing."""
        ...


@dataclass
class TrainState:
    """Everything that changes while training, hence everything a checkpoint holds."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: GradScaler  # of losses, in fp16 alone
    ema: AveragedModel | None
    data: dict  # the task's facts of it
    step: int = 0  # batches learned from, and in fp16 skipped
    overflows: int = 0  # steps of this epoch that were skipped, for fp16 has no number for their gradient
    overflows_in_a_row: int = 0
    loss_sums: dict[str, Tensor] = field(default_factory=dict)  # over the steps of this epoch so far, on this rank
    epoch_seconds: float = 0.0  # spent on this epoch so far
    line: dict | None = None  # of metrics.jsonl, for an epoch that is trained but not scored or logged yet
    lines: list[dict] | None = field(default_factory=list)  # of the epochs before; None in checkpoints without them
    best: dict = field(default_factory=dict)  # {"epoch": ..., "score": ...}

    def state_dict(self) -> dict | None:
        """Plain data for `save_checkpoint` on rank 0, None on the others; all ranks call it together."""
        loss_sums = distributed.gather({name: float(value) for name, value in self.loss_sums.items()})
        if loss_sums is None:
            return None
        ema = self.ema and {"count": int(self.ema.n_averaged), "weights": self.ema.module.state_dict()}
        return {
            "processes": distributed.world_size(),
            "data": self.data,
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": ema,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "overflows": [self.overflows, self.overflows_in_a_row],
            "loss_sums": loss_sums,
            "epoch_seconds": self.epoch_seconds,
            "line": self.line,
            "lines": self.lines,
            "best": self.best,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go back to where `state_dict` was taken. Raises CheckpointError if it belongs to another run."""
        if missing := [name for name in STATE if not isinstance(state, dict) or name not in state]:
            raise CheckpointError(
                f"no state of a run, or of another version: it lacks {', '.join(missing)}. Start a new run from the "
                "experiment's config.yaml"
            )
        if state["processes"] != distributed.world_size():
            raise CheckpointError(
                f"made by {state['processes']} processes, this run has {distributed.world_size()}: start as many, for "
                "the batch and the schedule depend on it"
            )
        # Checkpoints of earlier versions lack some of the facts: those say nothing.
        if changed := [name for name, value in self.data.items() if state["data"].get(name, value) != value]:
            told = "; ".join(
                f"{name} {state['data'].get(name)!r:.200}, now {self.data[name]!r:.200}" for name in changed
            )
            raise CheckpointError(f"made on other data: {told}. Resume on the same data, or start a new run")
        load_exactly(self.model, state["model"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"]["weights"])
            self.ema.n_averaged.fill_(state["ema"]["count"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["fused"] = True  # is read back, too, whatever it was
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.overflows, self.overflows_in_a_row = state["overflows"]
        self.step, self.epoch_seconds = state["step"], state["epoch_seconds"]
        # Python's float holds a float32 exactly: the epoch's means come out as if never interrupted.
        self.loss_sums = {
            name: torch.tensor(value, device=next(self.model.parameters()).device)
            for name, value in state["loss_sums"][distributed.rank()].items()
        }
        self.line, self.best = state["line"], state["best"]
        self.lines = state.get("lines")  # checkpoints of earlier versions have none

    @property
    def scored_model(self) -> nn.Module:
        """The weights to evaluate: the moving average if there is one."""
        return self.ema.module if self.ema else self.model


STATE = (
    "processes", "data", "step", "model", "ema", "optimizer", "scheduler", "scaler", "overflows", "loss_sums",
    "epoch_seconds", "line", "best",
)  # fmt: skip


def fit(
    task: Task,
    config: TrainConfig,
    optim: OptimConfig,
    experiment: Path,
    device: torch.device,
    resume: bool,
    begin: Callable[[], None] = lambda: None,
    track: Callable[[dict], None] = lambda line: None,
) -> nn.Module:
    """Train `task.model` and return it (the moving average, if one is kept) after the last epoch.

    experiment: directory that gets metrics.jsonl, curves.png and checkpoints/; with `resume`, training goes on
    after its newest checkpoint. begin: called as soon as that one is accepted, before anything is written. track:
    called with each line of metrics.jsonl, when it is written and pictures are drawn.
    Raises RunError when a loss or gradient is not finite, CheckpointError when there is nothing to resume; Stopped or
    KeyboardInterrupt, after a save, when a signal asked for it on any rank."""
    run = Run(task, config, optim, experiment, device)
    if resume:
        run.resume()
    begin()
    run.announce()
    state = run.state
    bar = training_bar(experiment, state.step, run.steps_per_epoch, config.epochs, task.metrics[0])
    with run.stop.noted(), bar:
        for epoch in range(run.epochs_done, config.epochs):
            bar.set_description(f"epoch {epoch + 1}/{config.epochs}", refresh=False)
            line = state.line = state.line or run.train_epoch(epoch, bar)
            improved = False
            if epoch + 1 == config.epochs or (epoch + 1) % config.eval_every_epochs == 0:
                run.save()  # scoring takes minutes, and may be the last thing that a time limit leaves room for
                run.stop_if_asked()
                improved = run.evaluate(line)
            run.log(line)
            track(line)
            state.line = None
            if improved:  # first, or a run killed between the two would never write it
                run.save("best.pt")
            run.save()
            run.stop_if_asked()
    return state.scored_model


def rehearse(task: Task, config: TrainConfig, optim: OptimConfig, device: torch.device) -> list[float]:
    """Take two steps as `fit` would, both on the first batch of its first epoch; nothing is written.

    Two, because the optimizer makes room for what it keeps of each weight in the first, after the backward pass: the
    second needs the most memory. Returns the seconds of each, that of the first with all that is done only once.
    Raises RunError if there is not enough memory, or as `fit` does."""
    seconds = []
    try:
        run = Run(task, config, optim, Path(), device)
        run.announce()
        set_train_mode(run.parallel_model, config.batch_norm)
        batches = list(islice(run.loader, config.accumulation_steps))
        for _ in range(2):
            started = time.perf_counter()
            run.train_step(batches)
            run.check()  # waits for the device
            seconds.append(time.perf_counter() - started)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise RunError(
            f"train.batch_size {config.batch_size} does not fit the memory: lower it, and raise "
            f"train.accumulation_steps to keep the global batch ({str(error).splitlines()[0]})"
        ) from error
    return seconds


def emulation_factor(task: Task, config: TrainConfig, device: torch.device) -> float:
    """Time two steps in `config.precision` and in fp32; return how many times slower the former is.

    A step is a forward and backward pass of a copy of the model over the first training images, so neither the model
    nor the random numbers of the run change. The second step of each counts: the first one includes set-up."""
    count = min(config.batch_size, len(task.train_set))
    batch = batch_to(task.collate([task.train_set[0, index] for index in range(count)]), device)
    model = place_model(copy.deepcopy(task.model), config, device)
    set_train_mode(model, config.batch_norm)
    seconds = {}
    with torch.random.fork_rng():
        for precision in (config.precision, "fp32"):
            for _ in range(2):
                started = time.perf_counter()
                with autocast(device, precision):
                    sums, _ = task.losses(model, dict(batch))
                sum(sums.values()).backward()
                seconds[precision] = time.perf_counter() - started
    return seconds[config.precision] / seconds["fp32"]


class Run:
    """One run of `fit`: what it trains with, and the parts of its epochs."""

    def __init__(
        self, task: Task, config: TrainConfig, optim: OptimConfig, experiment: Path, device: torch.device
    ) -> None:
        self.task, self.config, self.optim, self.experiment, self.device = task, config, optim, experiment, device
        self.checkpoints = experiment / "checkpoints"
        self.stop = StopRequest()
        self.batches = epoch_batches(len(task.train_set), config)
        self.loader = build_loader(task.train_set, self.batches, task.collate, task.workers, device)
        self.steps_per_epoch = len(self.batches) // config.accumulation_steps
        self.global_batch_size = config.batch_size * distributed.world_size() * config.accumulation_steps

        model = place_model(task.model, config, device)
        optimizer = build_optimizer(model, optim, self.global_batch_size)
        scheduler = build_scheduler(optimizer, optim, self.global_batch_size, self.steps_per_epoch, config.epochs)
        self.precision = resolve_precision(config.precision, device)
        scaler = GradScaler(device.type, FIRST_LOSS_SCALE, enabled=self.precision == "fp16")
        ema = AveragedModel(model, use_buffers=True) if config.ema_decay else None
        self.state = TrainState(model, optimizer, scheduler, scaler, ema, task.data)
        # With accumulation the graph is not the same in every backward pass: DDP exchanges in the last one only.
        self.parallel_model = distributed.data_parallel(model, device, static_graph=config.accumulation_steps == 1)
        if config.compile and can_compile(device):
            task.compile()
            self.parallel_model = torch.compile(self.parallel_model)
        self.unchecked: Outcome | None = None
        self.told_of_waiting = self.told_of_drawing = False

    def resume(self) -> None:
        """Go back to the newest checkpoint, and forget what was logged after it."""
        path, state = load_newest_whole(self.checkpoints) if distributed.is_main() else (None, None)
        path = distributed.broadcast(path)
        state = state or load_checkpoint(path)
        try:
            self.state.load_state_dict(state)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
        logger.info("resumed after step %d from %s", self.state.step, path)
        if self.state.lines is None:
            self.state.lines = distributed.broadcast(distributed.is_main() and self.lines_on_disk())
        if distributed.is_main():
            write_metrics(self.experiment, self.state.lines)

    def lines_on_disk(self) -> list[dict]:
        """The lines of metrics.jsonl up to the step of the state, for a checkpoint that does not hold them."""
        last_step = self.state.step - bool(self.state.line)
        return [line for line in read_metrics(self.experiment) if line["step"] <= last_step]

    @property
    def epochs_done(self) -> int:
        """Epochs that are trained, scored and logged."""
        return (self.state.step - bool(self.state.line)) // self.steps_per_epoch

    def announce(self) -> None:
        """Log what was derived from the config."""
        if not distributed.is_main():  # warnings of other ranks are shown
            return
        config = self.config
        logger.info(
            "%d images, %d steps per epoch, global batch %d (%d images x %d processes x %d accumulated), "
            "peak learning rate %.3g",
            len(self.task.train_set), self.steps_per_epoch, self.global_batch_size, config.batch_size,
            distributed.world_size(), config.accumulation_steps,
            scaled_learning_rate(self.optim, self.global_batch_size),
        )  # fmt: skip
        for name, value in self.task.reference_losses.items():
            logger.info("a model that learned nothing has a %s loss of %.3f", name, value)
        if self.optim.schedule == "steps" and any(epoch >= config.epochs for epoch in self.optim.drop_epochs):
            logger.warning("optim.drop_epochs %s: the last epoch is %d", self.optim.drop_epochs, config.epochs)
        if self.optim.warmup_epochs >= config.epochs:
            logger.warning(
                "optim.warmup_epochs %g: all of the %d epochs, so the learning rate rises to the end; lower it",
                self.optim.warmup_epochs, config.epochs,
            )  # fmt: skip

    def train_epoch(self, epoch: int, bar: tqdm) -> dict:
        """Train to the end of `epoch`, from wherever in it the state is; returns its line of metrics.jsonl."""
        state, config = self.state, self.config
        first_step, waits, load_seconds, started = state.step, [], 0.0, time.perf_counter()
        earlier_seconds = state.epoch_seconds  # before the run was resumed
        steps_done = first_step - epoch * self.steps_per_epoch
        self.batches.epoch = epoch
        self.batches.first_batch = steps_done * config.accumulation_steps
        set_train_mode(self.parallel_model, config.batch_norm)
        loaded = iter(self.loader)
        while True:
            wait_started = time.perf_counter()
            batches = list(islice(loaded, config.accumulation_steps))
            waits.append(0.0 if self.device_is_busy else time.perf_counter() - wait_started)
            load_seconds += sum(float(batch.pop("load_seconds")) for batch in batches)
            learning_rate = self.train_step(batches)
            bar.update()
            if state.step % self.steps_per_epoch == 0:
                break
            stop = distributed.any_rank(self.stop.signal is not None)
            if stop or state.step % config.checkpoint_every_steps == 0:
                state.epoch_seconds = earlier_seconds + time.perf_counter() - started
                self.save()
            if stop:
                self.stop_if_asked()
        self.check()
        means = mean_losses(state.loss_sums, self.steps_per_epoch)  # waits for the device: the epoch is over
        overflows = {"overflowed_steps": state.overflows} if state.scaler.is_enabled() else {}
        state.loss_sums, state.epoch_seconds, state.overflows = {}, 0.0, 0
        seconds = time.perf_counter() - started
        self.tell_of_waiting(sum(waits[1:]) / seconds)  # the first is for the loader to start
        return {
            "epoch": epoch + 1,
            "step": state.step,
            **{f"train_loss_{name}": value for name, value in means.items()},
            "learning_rate": learning_rate,
            **overflows,
            "epoch_seconds": round(earlier_seconds + seconds, 3),
            "images_per_second": round((state.step - first_step) * self.global_batch_size / seconds, 2),
            "data_wait_seconds": round(sum(waits), 3),
            "images_loaded_per_core_second": round(
                (state.step - first_step) * config.accumulation_steps * config.batch_size / max(load_seconds, 1e-9), 2
            ),
        }

    def train_step(self, batches: list[dict[str, Tensor]]) -> float:
        """One optimizer step over the accumulated `batches` of every rank; returns its learning rate.

        Sums are accumulated and divided once by the count of the global batch, so the gradient is that of one large
        batch, however it was cut into ranks and backward passes. Ranks exchange gradients in the last one only.

        Nothing here waits for a GPU: whether the step was one to take is known there, and heeded by the optimizer;
        here it is looked at when the next step is on its way, by `check`. So a step that fp16 skips is one of the
        schedule and of the moving average, with the weights as they were."""
        state, model = self.state, self.parallel_model
        seed_step(self.config.seed, state.step)
        losses: dict[str, Tensor] = {}
        counts = []
        for index, batch in enumerate(batches):
            with ExitStack() as stack:
                if index < len(batches) - 1 and distributed.world_size() > 1:
                    stack.enter_context(model.no_sync())
                with autocast(self.device, self.precision):
                    sums, count = self.task.losses(model, batch_to(batch, self.device))
                state.scaler.scale(sum(sums.values())).backward()
            add_losses(losses, {name: value.detach() for name, value in sums.items()})
            counts.append(count)

        self.check()
        # The total is only looked at: an infinite loss may have a finite gradient, as that of a box far away has.
        # The ranks' gradients have been averaged, hence the factor world_size. Nothing to count: a zero gradient.
        count, total = distributed.sum_over_ranks(torch.stack([sum(counts).float(), sum(losses.values()).float()]))
        scale = distributed.world_size() / count.clamp(min=1)
        state.scaler.unscale_(state.optimizer)
        torch._foreach_mul_([p.grad for p in state.model.parameters() if p.grad is not None], scale)
        losses = {name: value * scale for name, value in losses.items()}
        norm = clip_grad_norm_(state.model.parameters(), self.optim.clip_norm or math.inf)
        finite = torch.isfinite(torch.stack([norm, total]))  # the same on every rank
        learning_rate = state.optimizer.param_groups[0]["lr"]
        state.optimizer.found_inf = 1 - finite.all().float()  # with 1, fused optimizers change nothing
        state.optimizer.step()
        state.scaler.update()
        state.scheduler.step()
        state.optimizer.zero_grad()
        if state.ema:
            update_average(state.ema, state.model, self.config.ema_decay)
        state.step += 1
        add_losses(state.loss_sums, losses)
        self.unchecked = Outcome(state.step, losses, batches, *copied_to_host(finite))
        if state.step == 1:
            means = ", ".join(f"{name} {value:.6f}" for name, value in mean_losses(losses, 1).items())
            logger.info("first step: %s, gradient norm %.6f", means, norm)
        return learning_rate

    def check(self) -> None:
        """Look at how the last step went. Raises RunError, on all ranks together, if loss or gradient was not finite.

        In fp16 a gradient that overflows is counted, and an error only after MOST_OVERFLOWS in a row."""
        last, self.unchecked = self.unchecked, None
        if last is None:
            return
        if last.arrival:
            last.arrival.synchronize()
        finite_norm, finite_total = last.finite.tolist()
        overflow = not finite_norm and self.state.scaler.is_enabled()
        self.state.overflows += overflow
        self.state.overflows_in_a_row = self.state.overflows_in_a_row + 1 if overflow else 0
        if not finite_total or not (finite_norm or overflow) or self.state.overflows_in_a_row == MOST_OVERFLOWS:
            raise RunError(non_finite_message(last.step, last.losses, last.batches))

    @property
    def device_is_busy(self) -> bool:
        """Whether a GPU is still at the last step, so that nothing is lost while its next batch is waited for."""
        return bool(self.unchecked and self.unchecked.arrival and not self.unchecked.arrival.query())

    def tell_of_waiting(self, share: float) -> None:
        """Say once that training is held up by its data, if it waits for it for so much of its time."""
        if share > MOST_WAITING and not self.told_of_waiting:
            self.told_of_waiting = True
            logger.warning("training waits for data %.0f%% of its time: %s", 100 * share, self.task.loading_cure)

    def evaluate(self, line: dict) -> bool:
        """Score the model into the epoch's line; tells whether it is the best so far."""
        started = time.perf_counter()
        distributed.share_buffers(self.state.scored_model)  # or ranks would score another model than rank 0 saves
        line |= self.task.evaluate(self.state.scored_model, self.device, self.stop.stop_if_asked)
        line["eval_seconds"] = round(time.perf_counter() - started, 3)
        score, best = line[self.task.metrics[0]], self.state.best.get("score")
        if score is None or not math.isfinite(score):
            return False
        if best is not None and not (score < best if self.task.lower_is_better else score > best):
            return False
        self.state.best = {"epoch": line["epoch"], "score": score}
        return True

    def log(self, line: dict) -> None:
        """Write the epoch down."""
        logger.info(epoch_summary(line, self.config.epochs, self.task.metrics[0]))
        self.state.lines.append(line)
        if distributed.is_main():
            write_metrics(self.experiment, self.state.lines)
            if self.task.metrics[0] in line:
                draw_curves(self.experiment, self.task.metrics, self.task.reference_losses)
                self.draw(line["epoch"])

    def draw(self, epoch: int) -> None:
        """Have the task draw, or warn once: no run ends for a picture that its record does not rest on."""
        try:
            self.task.draw(self.experiment, epoch)
        except Exception as error:  # an image that has vanished, a full disk
            if not self.told_of_drawing:
                self.told_of_drawing = True
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                logger.warning("the pictures of epoch %d cannot be drawn; training goes on (%s)", epoch, reason)

    def stop_if_asked(self) -> None:
        """Raises Stopped or KeyboardInterrupt on all ranks if a signal has asked any of them to stop.

        Ranks wait for each other here: one that left while rank 0 still writes would have the whole job killed."""
        if distributed.any_rank(self.stop.signal is not None):
            self.stop.stop()

    def save(self, name: str | None = None) -> None:
        """Write a checkpoint, named by its step if not otherwise, and delete step checkpoints too old to keep.

        Raises RunError, on all ranks, before one is lost to a step that was not to be, or that has broken weights."""
        self.check()
        if not torch.stack([weight.isfinite().all() for weight in self.state.model.parameters()]).all():
            raise RunError(
                f"step {self.state.step}: its update made weights that are not finite; the checkpoints are older. "
                "Lower optim.learning_rate"
            )
        state = self.state.state_dict()
        if state is not None:
            save_checkpoint(self.checkpoints / name if name else step_path(self.checkpoints, self.state.step), state)
            prune_checkpoints(self.checkpoints, self.config.keep_checkpoints)


class Outcome(NamedTuple):
    """A step of which it is not known yet whether it was one to take."""

    step: int
    losses: dict[str, Tensor]
    batches: list[dict[str, Tensor]]
    finite: Tensor  # (2,) bool, of gradient norm and loss; on its way to the CPU
    arrival: torch.cuda.Event | None  # when it is there, if it has a way to go


def copied_to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """`values` in the CPU's memory, and the event after which they are there; nothing waits for it here."""
    if values.device.type != "cuda":
        return values, None
    copy = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
    arrival = torch.cuda.Event()
    arrival.record()
    return copy, arrival


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works here; says why not."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
        return True
    except Exception as error:  # of any of the compilers behind it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger.warning("train.compile: not possible here, so it is left out (%s)", reason)
        return False


def epoch_batches(num_images: int, config: TrainConfig) -> EpochBatchSampler:
    """The batches of this rank. Raises ValueError if there are too few images for one optimizer step."""
    world_size = distributed.world_size()
    batches = EpochBatchSampler(num_images, config.batch_size, distributed.rank(), world_size, config.seed)
    if len(batches) < config.accumulation_steps:
        raise ValueError(
            f"train.accumulation_steps {config.accumulation_steps}: an epoch has only {len(batches)} batches of "
            f"{config.batch_size} x {world_size} images; lower it or train.batch_size"
        )
    return batches


def check_feasible(task: Task, config: TrainConfig, optim: OptimConfig, folder: Path, device: torch.device) -> None:
    """Refuse what cannot be trained, before anything is written. Raises ValueError that names the field or file.

    folder: where checkpoints are to be kept; it need not exist yet."""
    weights = sum(tensor.nbytes for tensor in task.model.state_dict().values())
    check_room(folder, weights * (1 + STATES_PER_WEIGHT[optim.optimizer] + (config.ema_decay is not None)))
    epoch_batches(len(task.train_set), config)
    if config.batch_norm == "sync" and device.type != "cuda":
        raise ValueError("train.batch_norm sync: works on GPUs only; on the CPU take local or frozen")
    has_batch_norm = any(isinstance(module, BATCH_NORMS) for module in task.model.modules())
    if config.batch_norm == "local" and config.batch_size == 1 and has_batch_norm:
        raise ValueError("train.batch_size 1: BatchNorm needs 2 images or more, or train.batch_norm frozen")


def place_model(model: nn.Module, config: TrainConfig, device: torch.device) -> nn.Module:
    """Move the model to the device in the configured layout and treat its BatchNorm layers as configured."""
    if config.batch_norm == "sync":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.batch_norm == "frozen":
        for module in model.modules():
            if isinstance(module, BATCH_NORMS):
                module.requires_grad_(False)
    return model.to(device, memory_format=torch.channels_last if config.channels_last else torch.preserve_format)


def set_train_mode(model: nn.Module, batch_norm: str) -> None:
    """Training mode, except that frozen BatchNorm layers keep using their stored statistics."""
    model.train()
    if batch_norm == "frozen":
        for module in model.modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()


def seed_step(seed: int, step: int) -> None:
    """Seed the model's random numbers (drop path, dropout) for one optimizer step on this rank."""
    torch.manual_seed((seed << 40) + step * distributed.world_size() + distributed.rank())


def add_losses(sums: dict[str, Tensor], losses: dict[str, Tensor]) -> None:
    """Add `losses` to `sums` by name, on their device."""
    for name, loss in losses.items():
        sums[name] = sums[name] + loss if name in sums else loss


def mean_losses(sums: dict[str, Tensor], steps: int) -> dict[str, float]:
    """Mean over steps and ranks of each loss, and of their total as "total"."""
    names = list(sums)
    values = torch.stack([sums[name] for name in names]).double() / steps
    values = distributed.sum_over_ranks(values) / distributed.world_size()
    means = dict(zip(names, values.tolist(), strict=True))
    return {"total": sum(means.values()), **means}


def non_finite_message(step: int, losses: dict[str, Tensor], batches: list[dict[str, Tensor]]) -> str:
    """What broke at `step`: losses and images of the ranks whose losses are not finite, else of all (a gradient)."""
    values = {name: float(value) for name, value in losses.items()}
    image_ids = [image_id for batch in batches for image_id in batch["image_ids"].tolist()]
    reports = distributed.broadcast(distributed.gather((distributed.rank(), values, image_ids)))
    culprits = [report for report in reports if not all(map(math.isfinite, report[1].values()))]
    told = "; ".join(f"rank {rank}: {values}, image ids {ids}" for rank, values, ids in culprits or reports)
    return (
        f"step {step}: loss or gradient is not finite; {told}; the weights are those before this step. "
        "Lower optim.learning_rate, or look at these images"
    )


def epoch_summary(line: dict, epochs: int, metric: str) -> str:
    """The line a person reads after each epoch."""
    text = f"epoch {line['epoch']:>3}/{epochs}  loss {line['train_loss_total']:.3f}  lr {line['learning_rate']:.2e}"
    if metric in line:
        text += f"  {metric} {shown_score(line[metric])}"
    if line.get("overflowed_steps"):
        text += f"  {line['overflowed_steps']} steps skipped, too large for fp16"
    return text + f"  {line['epoch_seconds']:.1f} s  {line['images_per_second']:.0f} images/s"
