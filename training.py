"""The training loop of all tasks.

A task, such as detection, provides a model, a data set, losses and an evaluation. Random numbers depend only on
(seed, epoch, image) in the data, and on (seed, step, rank) in the model. So a resumed run draws the same numbers.
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
from records.experiment import format_score
from records.metrics import draw_curves, write_metrics
from records.results import InitialWeights
from records.status import training_bar
from records.trackers import TrackerName

INITIAL_LOSS_SCALE = 2.0**10  # for fp16; low, because losses are sums over a batch, which are divided after backward
MAX_DATA_WAIT = 0.2  # fraction of the time of an epoch; if waiting for data takes more, log a warning


class TrainConfig(Config):
    """Length of training, batch size, precision, evaluation and checkpoints."""

    epochs: int = Field(ge=1, description="number of passes over the training images")
    batch_size: int = Field(ge=1, description="number of images per process in one forward and backward pass")
    accumulation_steps: int = Field(1, ge=1, description="number of backward passes per optimizer step")
    precision: Precision = Field(
        "auto",
        description="precision of matrix products and convolutions; auto: bf16 if the hardware supports it, else fp16 "
        "with loss scaling on a GPU, else fp32",
    )
    channels_last: bool = Field(False, description="channels-last memory layout, faster for convnets")
    compile: bool = Field(False, description="torch.compile for model and losses: a slower start, then faster steps")
    batch_norm: BatchNorm = Field(
        "local", description="BatchNorm statistics: per process (local), over all (sync, GPU only), or fixed (frozen)"
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="decay of a moving average of the weights, used in evaluation; null: no average"
    )
    seed: int = Field(0, ge=0, lt=2**20, description="seed of initial weights, image order, augmentation, drop path")
    eval_every_epochs: int = Field(1, ge=1, description="number of epochs between evaluations")
    checkpoint_every_steps: int = Field(1000, ge=1, description="optimizer steps between checkpoints within an epoch")
    keep_checkpoints: int = Field(2, ge=1, description="number of newest checkpoints to keep, besides the best one")
    trackers: tuple[TrackerName, ...] = Field((), description="experiment trackers to use besides metrics.jsonl")


class Evaluation(NamedTuple):
    """Scores of a model on the validation images, and the predictions that were scored."""

    scores: dict[str, float | None]  # identical on all ranks; None if undefined
    predictions: Any  # task-specific on rank 0, None on the other ranks


class Task(Protocol):
    """Interface between a task and the training loop.

    The constructor is `Task(config, train, val, *, from_checkpoint=False)`. If `from_checkpoint` is true, a
    checkpoint will replace the initial weights, so the weight files named in the config may be missing."""

    config: Config  # with sections `train` and `optim`
    model: nn.Module
    # The pretrained part, whose learning rate optim.backbone_lr_ratio scales; None if the task has none.
    trunk: nn.Module | None
    initial_weights: InitialWeights | None  # None if they are random, or if a checkpoint replaced them
    train_set: Dataset  # indexed by (epoch, index)
    collate: Callable[[list], dict[str, Tensor]]
    workers: int  # loader processes per training process
    inputs: Inputs  # the files that the task has read
    data: dict  # identifies the data; a run can only resume if this is unchanged
    metrics: tuple[str, ...]  # names of the scores to plot; the first score selects the best checkpoint
    lower_is_better: bool  # whether lower values of the first metric are better
    reference_losses: dict[str, float]  # from loss name to the loss of the best constant predictor

    def compile(self) -> None:
        """Compile the parts of `losses` that run outside the model."""
        ...

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return each loss, summed over the batch, and the count to divide the losses by.

        Losses and count are scalars on the device. The training loss is the sum of all losses over the global batch,
        divided by the sum of the counts. `model` is self.model, possibly wrapped (DDP, torch.compile)."""
        ...

    def evaluate(
        self, model: nn.Module, device: torch.device, stop_if_requested: Callable[[], None] = lambda: None
    ) -> Evaluation:
        """Evaluate a model on all validation images; all ranks must call it.

        stop_if_requested: called between batches; raises an exception if a signal requested the run to stop."""
        ...

    def draw(self, experiment: Path, epoch: int, evaluation: Evaluation) -> None:
        """Draw pictures of the evaluation after `epoch` epochs; called on rank 0. Exceptions are only logged."""
        ...


def fit(
    task: Task,
    experiment: Path,
    device: torch.device,
    resume: bool,
    on_start: Callable[[], None] = lambda: None,
    on_epoch_end: Callable[[dict], None] = lambda line: None,
) -> tuple[nn.Module, Evaluation]:
    """Train `task.model`; return the trained model (the moving average if there is one) and its last evaluation.

    experiment: directory for metrics.jsonl, curves.png and checkpoints/. resume: continue from the newest checkpoint.
    on_start: called after the checkpoint is loaded, before the first step. on_epoch_end: called with the new metrics.
    Raises DivergedError if a loss or gradient is not finite, and CheckpointError if no checkpoint can be resumed.
    If any rank receives a signal, saves a checkpoint and raises Stopped or KeyboardInterrupt."""
    trainer, config = Trainer(task, experiment, device), task.config.train
    if resume:
        trainer.resume()
    on_start()
    state, evaluation = trainer.state, None
    epochs_done = (state.step - bool(state.line)) // trainer.steps_per_epoch  # trained, evaluated and logged
    bar = training_bar(experiment, state.step, trainer.steps_per_epoch, config.epochs, task.metrics[0])
    with trainer.stop_request.catch_signals(), bar:
        for epoch in range(epochs_done, config.epochs):
            bar.set_description(f"epoch {epoch + 1}/{config.epochs}", refresh=False)
            line = state.line = state.line or trainer.train_epoch(epoch, bar)
            evaluation, improved = None, False
            if epoch + 1 == config.epochs or (epoch + 1) % config.eval_every_epochs == 0:
                trainer.save()  # because a time limit may end the run during the evaluation
                trainer.stop_if_requested()
                evaluation = trainer.evaluate(line)
                improved = state.update_best(line["epoch"], line[task.metrics[0]], task.lower_is_better)
            trainer.log(line, evaluation)
            on_epoch_end(line)
            state.line = None
            if improved:  # before the checkpoint, because a run resumed from it would not write best.pt
                trainer.save("best.pt")
            trainer.save()
            trainer.stop_if_requested()
    if evaluation is None:
        logger.info("all %d epochs are already trained: evaluating the final weights again", config.epochs)
        evaluation = task.evaluate(state.scored_model, device)
    return state.scored_model, evaluation


class Trainer:
    """Model, data, optimizer and state of a run; the methods are the parts of an epoch."""

    def __init__(self, task: Task, experiment: Path, device: torch.device) -> None:
        config, optim, world_size = task.config.train, task.config.optim, distributed.world_size()
        self.task, self.config, self.experiment, self.device = task, config, experiment, device
        self.stop_request = StopRequest()
        self.batches = EpochBatchSampler(
            len(task.train_set), config.batch_size, distributed.rank(), world_size, config.seed
        )
        self.loader = build_loader(task.train_set, self.batches, task.collate, task.workers, device)
        self.steps_per_epoch = len(self.batches) // config.accumulation_steps
        self.global_batch_size = config.batch_size * world_size * config.accumulation_steps

        model = place_model(task.model, device, config.batch_norm, config.channels_last)
        optimizer = build_optimizer(model, optim, self.global_batch_size, task.trunk)
        scheduler = build_scheduler(optimizer, optim, self.global_batch_size, self.steps_per_epoch, config.epochs)
        self.precision = resolve_precision(config.precision, device)
        scaler = GradScaler(device.type, INITIAL_LOSS_SCALE, enabled=self.precision == "fp16")
        ema = AveragedModel(model, use_buffers=True) if config.ema_decay else None
        self.state = TrainState(model, optimizer, scheduler, scaler, ema, task.data)
        # With accumulation the graph is not static: DDP exchanges gradients only in the last backward pass of a step.
        self.parallel_model = distributed.data_parallel(model, device, static_graph=config.accumulation_steps == 1)
        if config.compile and can_compile(device):
            task.compile()
            self.parallel_model = torch.compile(self.parallel_model)
        self.finite = FiniteCheck(self.state)
        self.warned: set[str] = set()

    def resume(self) -> None:
        """Load the newest checkpoint, and remove the epochs after it from metrics.jsonl."""
        self.state.resume(self.experiment / "checkpoints")
        if distributed.is_main():
            write_metrics(self.experiment, self.state.lines)

    def train_epoch(self, epoch: int, bar: tqdm) -> dict:
        """Train from the current step to the end of `epoch`; return its line of metrics.jsonl as a dict."""
        state, config = self.state, self.config
        first_step, waits, started = state.step, [], time.perf_counter()
        earlier_seconds = state.epoch_seconds  # spent on this epoch before the run was resumed
        self.batches.epoch = epoch
        self.batches.first_batch = (first_step - epoch * self.steps_per_epoch) * config.accumulation_steps
        set_train_mode(self.parallel_model, config.batch_norm)
        loaded = iter(self.loader)
        while True:
            wait_started = time.perf_counter()
            batches = list(islice(loaded, config.accumulation_steps))
            waits.append(0.0 if self.finite.is_device_busy else time.perf_counter() - wait_started)
            learning_rate = self.train_step(batches)
            bar.update()
            if state.step % self.steps_per_epoch == 0:
                break
            stop = distributed.any_rank(self.stop_request.signal is not None)
            if stop or state.step % config.checkpoint_every_steps == 0:
                state.epoch_seconds = earlier_seconds + time.perf_counter() - started
                self.save()
            if stop:
                self.stop_if_requested()
        self.finite.check()
        means = mean_losses(state.loss_sums, self.steps_per_epoch)  # waits for the device, once per epoch
        overflows = {"overflowed_steps": state.overflows} if state.scaler.is_enabled() else {}
        state.loss_sums, state.epoch_seconds, state.overflows = {}, 0.0, 0
        seconds, steps = time.perf_counter() - started, state.step - first_step
        waiting = sum(waits[1:]) / seconds  # the first wait is the start of the loader
        if waiting > MAX_DATA_WAIT:
            self.warn_once(
                "waiting", f"training waits for data {waiting:.0%} of the time; raise data.workers, or store smaller "
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
        """Take one optimizer step on the `batches` of all ranks; return the learning rate of the step.

        Gradients of all batches are summed, then divided by the total count: the split into batches has no effect.
        Nothing here waits for a GPU. If loss or gradient is not finite, the optimizer skips the step on the GPU, and
        `self.finite` detects this one step later. The scheduler and the moving average are updated even then."""
        state, model = self.state, self.parallel_model
        # Dropout and drop path depend only on seed, step and rank, so that a resumed run repeats them.
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
        # Check `total`, too, because an infinite loss may have a finite gradient (smooth L1 loss of a huge error).
        # DDP averages gradients over ranks, so multiply by world_size. The count of a batch without objects is 0.
        count, total = distributed.sum_over_ranks(torch.stack([sum(counts).float(), sum(losses.values()).float()]))
        scale = distributed.world_size() / count.clamp(min=1)
        state.scaler.unscale_(state.optimizer)
        torch._foreach_mul_([p.grad for p in state.model.parameters() if p.grad is not None], scale)
        losses = {name: value * scale for name, value in losses.items()}
        norm = clip_grad_norm_(state.model.parameters(), self.task.config.optim.clip_norm or math.inf)
        finite = torch.isfinite(torch.stack([norm, total]))  # identical on all ranks
        learning_rate = state.optimizer.param_groups[0]["lr"]
        state.optimizer.found_inf = 1 - finite.all().float()  # if 1, a fused optimizer skips the step
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
        """Evaluate the model, and add its scores to `line`, the epoch's line of metrics.jsonl."""
        started = time.perf_counter()
        distributed.broadcast_buffers(self.state.scored_model)  # so that all ranks evaluate the same model
        evaluation = self.task.evaluate(self.state.scored_model, self.device, self.stop_request.stop_if_requested)
        line |= evaluation.scores
        line["eval_seconds"] = round(time.perf_counter() - started, 3)
        return evaluation

    def log(self, line: dict, evaluation: Evaluation | None) -> None:
        """Log the epoch; if it was evaluated, draw curves and pictures. If `task.draw` fails, only log a warning."""
        logger.info(epoch_summary(line, self.config.epochs, self.task.metrics[0]))
        self.state.lines.append(line)
        if not distributed.is_main():
            return
        write_metrics(self.experiment, self.state.lines)
        if evaluation is not None:
            draw_curves(self.experiment, self.task.metrics, self.task.reference_losses)
            try:
                self.task.draw(self.experiment, line["epoch"], evaluation)
            except Exception as error:  # for example a missing image, or a full disk
                what = f"cannot draw the pictures of epoch {line['epoch']}; training continues"
                self.warn_once("drawing", f"{what} ({first_line(error)})")

    def warn_once(self, kind: str, message: str) -> None:
        """Log a warning unless one of the same kind was logged before."""
        if kind not in self.warned:
            self.warned.add(kind)
            logger.warning("%s", message)

    def stop_if_requested(self) -> None:
        """Raise Stopped or KeyboardInterrupt on all ranks if any rank has received a signal."""
        if distributed.any_rank(self.stop_request.signal is not None):
            self.stop_request.raise_stop()

    def save(self, name: str | None = None) -> None:
        """Write a checkpoint (`TrainState.save`). Raises DivergedError if the last step was not finite."""
        self.finite.check()
        self.state.save(self.experiment / "checkpoints", self.config.keep_checkpoints, name)


def epoch_summary(line: dict, epochs: int, metric: str) -> str:
    """Return the log message for an epoch."""
    text = f"epoch {line['epoch']:>3}/{epochs}  loss {line['train_loss_total']:.3f}  lr {line['learning_rate']:.2e}"
    if metric in line:
        text += f"  {metric} {format_score(line[metric])}"
    if line.get("overflowed_steps"):
        text += f"  {line['overflowed_steps']} steps skipped (fp16 overflow)"
    return text + f"  {line['epoch_seconds']:.1f} s  {line['images_per_second']:.0f} images/s"
