"""The training loop of all tasks.

A task (detection, ...) brings a model, a data set, its losses on a batch and its scores. Randomness is a function of
(seed, epoch, image) in the data and of (seed, step, rank) in the model, so a resumed run draws the same numbers.
"""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Dataset
from tqdm import tqdm

from data import EpochBatchSampler, batch_to, build_loader
from engine import distributed
from engine.compute.placement import BatchNorm, can_compile, place_model, set_train_mode
from engine.compute.precision import Precision, autocast, resolve_precision
from engine.config import Config
from engine.finite import FiniteCheck
from engine.inputs import Inputs
from engine.logbook import logger
from engine.optim import build_optimizer, build_scheduler, update_average
from engine.signals import StopRequest
from engine.terminal import first_line
from engine.train_state import TrainState, mean_losses
from records.experiment import shown_score
from records.metrics import draw_curves, write_metrics
from records.status import training_bar
from records.trackers import TrackerName

FIRST_LOSS_SCALE = 2.0**10  # of fp16; a loss is a sum over a batch until its gradient is divided
MAX_WAITING = 0.2  # share of an epoch's time spent waiting for data, above which a warning is logged


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
    batch_norm: BatchNorm = Field(
        "local", description="statistics per process, over all processes (GPU only), or never updated"
    )
    ema_decay: float | None = Field(None, gt=0, lt=1, description="score a moving average of the weights")
    seed: int = Field(0, ge=0, lt=2**20, description="of initial weights, image order, augmentation, drop path")
    eval_every_epochs: int = Field(1, ge=1, description="epochs between scores on the validation images")
    checkpoint_every_steps: int = Field(1000, ge=1, description="optimizer steps between saves inside an epoch")
    keep_checkpoints: int = Field(2, ge=1, description="how many of the newest checkpoints to keep")
    trackers: tuple[TrackerName, ...] = Field(
        (), description="extra trackers to log each epoch to, besides metrics.jsonl"
    )


class Evaluation(NamedTuple):
    """What a model scores on the validation images, and the predictions behind the scores."""

    scores: dict[str, float | None]  # the same on every rank; None: undefined
    predictions: Any  # of the task's own type on rank 0, None on the others


class Task(Protocol):
    """What the loop asks of a task, which knows nothing of steps, accumulation or files.

    The constructor is `Task(config, train, val, *, from_checkpoint=False)`; with `from_checkpoint` a checkpoint will
    fill the model, so the weights that the config names need not exist any more."""

    config: Config  # with the sections `train` and `optim`
    model: nn.Module
    started_from: str | None  # a line on the weights that the model started from; None: random ones
    train_set: Dataset  # indexed by (epoch, index)
    collate: Callable[[list], dict[str, Tensor]]
    workers: int  # loader processes per training process
    inputs: Inputs  # the files that were read
    data: dict  # plain facts of the data; a run resumes on the same data only
    metrics: tuple[str, ...]  # scores to draw; the first decides which checkpoint is the best
    lower_is_better: bool  # whether the first of them is a loss
    reference_losses: dict[str, float]  # what a model that learned nothing reaches

    def compile(self) -> None:
        """Compile what `losses` does besides calling the model."""
        ...

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return losses summed over a batch on the device, and the number of things summed over, all scalars.

        The loop minimises the total of the losses per thing, over the global batch. `model` is self.model, wrapped."""
        ...

    def evaluate(
        self, model: nn.Module, device: torch.device, stop_if_asked: Callable[[], None] = lambda: None
    ) -> Evaluation:
        """Score a model on every validation image; all ranks call it together.

        stop_if_asked: called between batches; raises if a signal asks the run to end."""
        ...

    def draw(self, experiment: Path, epoch: int, evaluation: Evaluation) -> None:
        """Draw pictures of an evaluation after this many epochs; called on rank 0. An exception is only logged."""
        ...


def fit(
    task: Task,
    experiment: Path,
    device: torch.device,
    resume: bool,
    begin: Callable[[], None] = lambda: None,
    track: Callable[[dict], None] = lambda line: None,
) -> tuple[nn.Module, Evaluation]:
    """Train `task.model`; return it (the moving average, if one is kept) and its evaluation after the last epoch.

    experiment: directory of metrics.jsonl, curves.png and checkpoints/. resume: continue from the newest of these.
    begin: called once that is accepted, before anything is written. track: called with each line of metrics.jsonl.
    Raises RunError when a loss or gradient is not finite, CheckpointError when there is nothing to resume; Stopped or
    KeyboardInterrupt, after a save, when a signal asked for it on any rank."""
    trainer, config = Trainer(task, experiment, device), task.config.train
    if resume:
        trainer.resume()
    begin()
    state, evaluation = trainer.state, None
    epochs_done = (state.step - bool(state.line)) // trainer.steps_per_epoch  # trained, scored and logged
    bar = training_bar(experiment, state.step, trainer.steps_per_epoch, config.epochs, task.metrics[0])
    with trainer.stop.noted(), bar:
        for epoch in range(epochs_done, config.epochs):
            bar.set_description(f"epoch {epoch + 1}/{config.epochs}", refresh=False)
            line = state.line = state.line or trainer.train_epoch(epoch, bar)
            evaluation, improved = None, False
            if epoch + 1 == config.epochs or (epoch + 1) % config.eval_every_epochs == 0:
                trainer.save()  # scoring takes minutes, and may be the last thing that a time limit leaves room for
                trainer.stop_if_asked()
                evaluation = trainer.evaluate(line)
                improved = state.note_score(line["epoch"], line[task.metrics[0]], task.lower_is_better)
            trainer.log(line, evaluation)
            track(line)
            state.line = None
            if improved:  # first, or a run killed between the two would never write it
                trainer.save("best.pt")
            trainer.save()
            trainer.stop_if_asked()
    if evaluation is None:
        logger.info("all %d epochs were trained before; scoring their weights for the record", config.epochs)
        evaluation = task.evaluate(state.scored_model, device)
    return state.scored_model, evaluation


class Trainer:
    """What `fit` trains with, and the parts of its epochs."""

    def __init__(self, task: Task, experiment: Path, device: torch.device) -> None:
        config, optim, world_size = task.config.train, task.config.optim, distributed.world_size()
        self.task, self.config, self.experiment, self.device = task, config, experiment, device
        self.stop = StopRequest()
        self.batches = EpochBatchSampler(
            len(task.train_set), config.batch_size, distributed.rank(), world_size, config.seed
        )
        self.loader = build_loader(task.train_set, self.batches, task.collate, task.workers, device)
        self.steps_per_epoch = len(self.batches) // config.accumulation_steps
        self.global_batch_size = config.batch_size * world_size * config.accumulation_steps

        model = place_model(task.model, device, config.batch_norm, config.channels_last)
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
        self.finite = FiniteCheck(self.state)
        self.warned: set[str] = set()

    def resume(self) -> None:
        """Load the newest checkpoint, and drop what was logged after it."""
        self.state.resume(self.experiment / "checkpoints")
        if distributed.is_main():
            write_metrics(self.experiment, self.state.lines)

    def train_epoch(self, epoch: int, bar: tqdm) -> dict:
        """Train to the end of `epoch`, from wherever in it the state is; return its line of metrics.jsonl."""
        state, config = self.state, self.config
        first_step, waits, started = state.step, [], time.perf_counter()
        earlier_seconds = state.epoch_seconds  # before the run was resumed
        self.batches.epoch = epoch
        self.batches.first_batch = (first_step - epoch * self.steps_per_epoch) * config.accumulation_steps
        set_train_mode(self.parallel_model, config.batch_norm)
        loaded = iter(self.loader)
        while True:
            wait_started = time.perf_counter()
            batches = list(islice(loaded, config.accumulation_steps))
            waits.append(0.0 if self.finite.device_is_busy else time.perf_counter() - wait_started)
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
        self.finite.check()
        means = mean_losses(state.loss_sums, self.steps_per_epoch)  # waits for the device: the epoch is over
        overflows = {"overflowed_steps": state.overflows} if state.scaler.is_enabled() else {}
        state.loss_sums, state.epoch_seconds, state.overflows = {}, 0.0, 0
        seconds, steps = time.perf_counter() - started, state.step - first_step
        waiting = sum(waits[1:]) / seconds  # the first is for the loader to start
        if waiting > MAX_WAITING:
            self.warn_once(
                "waiting", f"training waits for data {waiting:.0%} of its time: raise data.workers, or store smaller "
                "images (docs/performance.md)",
            )  # fmt: skip
        return {
            "epoch": epoch + 1,
            "step": state.step,
            **{f"train_loss_{name}": value for name, value in means.items()},
            "learning_rate": learning_rate,
            **overflows,
            "epoch_seconds": round(earlier_seconds + seconds, 3),
            "images_per_second": round(steps * self.global_batch_size / seconds, 2),
            "data_wait_seconds": round(sum(waits), 3),
        }

    def train_step(self, batches: list[dict[str, Tensor]]) -> float:
        """Take an optimizer step over the accumulated `batches` of every rank; return its learning rate.

        Sums are accumulated and divided once by the count of the global batch, so the gradient is that of one large
        batch, however it was cut. Nothing here waits for a GPU: a step that is not finite is skipped by the optimizer
        there and found by `self.finite` in the next step. It still counts in the schedule and the moving average."""
        state, model = self.state, self.parallel_model
        # For drop path and dropout: whatever ran before, a step has its own random numbers on each rank.
        torch.manual_seed((self.config.seed << 40) + state.step * distributed.world_size() + distributed.rank())
        losses: dict[str, Tensor] = {}
        counts = []
        for index, batch in enumerate(batches):
            with ExitStack() as stack:
                if index < len(batches) - 1 and distributed.world_size() > 1:
                    stack.enter_context(model.no_sync())
                with autocast(self.device, self.precision):
                    sums, count = self.task.losses(model, batch_to(batch, self.device))
                state.scaler.scale(sum(sums.values())).backward()
            losses |= {name: losses.get(name, 0) + value.detach() for name, value in sums.items()}
            counts.append(count)

        self.finite.check()
        # The total is only checked: an infinite loss may have a finite gradient, such as that of a box far away.
        # DDP averaged the ranks' gradients, hence the factor world_size. With nothing to count the gradient is 0.
        count, total = distributed.sum_over_ranks(torch.stack([sum(counts).float(), sum(losses.values()).float()]))
        scale = distributed.world_size() / count.clamp(min=1)
        state.scaler.unscale_(state.optimizer)
        torch._foreach_mul_([p.grad for p in state.model.parameters() if p.grad is not None], scale)
        losses = {name: value * scale for name, value in losses.items()}
        norm = clip_grad_norm_(state.model.parameters(), self.task.config.optim.clip_norm or math.inf)
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
        state.loss_sums |= {name: state.loss_sums.get(name, 0) + value for name, value in losses.items()}
        self.finite.watch(losses, batches, finite)
        if state.step == 1:
            means = ", ".join(f"{name} {value:.6f}" for name, value in mean_losses(losses, 1).items())
            logger.info("first step: %s, gradient norm %.6f", means, norm)
        return learning_rate

    def evaluate(self, line: dict) -> Evaluation:
        """Score the model into the epoch's line."""
        started = time.perf_counter()
        distributed.share_buffers(self.state.scored_model)  # or ranks would score another model than rank 0 saves
        evaluation = self.task.evaluate(self.state.scored_model, self.device, self.stop.stop_if_asked)
        line |= evaluation.scores
        line["eval_seconds"] = round(time.perf_counter() - started, 3)
        return evaluation

    def log(self, line: dict, evaluation: Evaluation | None) -> None:
        """Log the epoch, and draw it if it was evaluated. A run does not end because of a picture."""
        logger.info(epoch_summary(line, self.config.epochs, self.task.metrics[0]))
        self.state.lines.append(line)
        if not distributed.is_main():
            return
        write_metrics(self.experiment, self.state.lines)
        if evaluation is not None:
            draw_curves(self.experiment, self.task.metrics, self.task.reference_losses)
            try:
                self.task.draw(self.experiment, line["epoch"], evaluation)
            except Exception as error:  # an image that has vanished, a full disk
                what = f"the pictures of epoch {line['epoch']} cannot be drawn; training continues"
                self.warn_once("drawing", f"{what} ({first_line(error)})")

    def warn_once(self, kind: str, message: str) -> None:
        """Log a warning, the first of its kind only."""
        if kind not in self.warned:
            self.warned.add(kind)
            logger.warning("%s", message)

    def stop_if_asked(self) -> None:
        """Raise Stopped or KeyboardInterrupt on all ranks, together, if a signal has asked any of them to stop."""
        if distributed.any_rank(self.stop.signal is not None):
            self.stop.stop()

    def save(self, name: str | None = None) -> None:
        """Write a checkpoint, unless the last step was not finite: see `TrainState.save`."""
        self.finite.check()
        self.state.save(self.experiment / "checkpoints", self.config.keep_checkpoints, name)


def epoch_summary(line: dict, epochs: int, metric: str) -> str:
    """Return the line of the log after each epoch."""
    text = f"epoch {line['epoch']:>3}/{epochs}  loss {line['train_loss_total']:.3f}  lr {line['learning_rate']:.2e}"
    if metric in line:
        text += f"  {metric} {shown_score(line[metric])}"
    if line.get("overflowed_steps"):
        text += f"  {line['overflowed_steps']} steps skipped, too large for fp16"
    return text + f"  {line['epoch_seconds']:.1f} s  {line['images_per_second']:.0f} images/s"
