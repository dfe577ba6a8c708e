"""The one loop that every task trains with.

`fit` reads top-down: build what moves the weights, go on where a checkpoint ended, then per epoch train, score,
log, save. A task (detection, ...) brings a model, a data set, its losses on a batch and its scores; it knows
nothing of steps, ranks, accumulation or files, and the loop knows nothing of boxes.

Randomness is a function of (seed, epoch, image) in the data and of (seed, step, rank) in the model, never of
what ran before. So a resumed run draws what the uninterrupted run would have drawn.
"""

import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
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
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    step_path,
)
from engine.command import RunError
from engine.config import Config
from engine.experiment import shown_score
from engine.logbook import append_metrics, draw_curves, logger, rewind_metrics
from engine.optim import OptimConfig, build_optimizer, build_scheduler, moving_average, scaled_learning_rate


class TrainConfig(Config):
    """How long, in what batches and in what arithmetic to train."""

    epochs: int = Field(ge=1, description="passes over the training images")
    batch_size: int = Field(ge=1, description="images per process and backward pass")
    accumulation_steps: int = Field(1, ge=1, description="backward passes per optimizer step")
    precision: Literal["fp32", "bf16"] = Field("bf16", description="of matrix products and convolutions")
    channels_last: bool = Field(False, description="memory layout; faster for convnets")
    batch_norm: Literal["local", "sync", "frozen"] = Field(
        "local", description="statistics per process, over all processes (GPU only), or never updated"
    )
    ema_decay: float | None = Field(None, gt=0, lt=1, description="score a moving average of the weights")
    seed: int = Field(0, ge=0, lt=2**20, description="of initial weights, image order, augmentation, drop path")
    eval_every_epochs: int = Field(1, ge=1, description="epochs between scores on the validation images")
    checkpoint_every_steps: int = Field(1000, ge=1, description="optimizer steps between saves inside an epoch")
    keep_checkpoints: int = Field(2, ge=1, description="how many of the newest checkpoints to keep")


class Task(Protocol):
    """What the loop asks of a task."""

    model: nn.Module
    train_set: Dataset  # indexed by (epoch, index)
    collate: Callable[[list], dict[str, Tensor]]
    workers: int  # loader processes per training process
    metric: str  # the score that names the best checkpoint, higher is better
    reference_losses: dict[str, float]  # what a model that learned nothing reaches

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalar losses of a batch on the device; their sum is minimised. `model` is self.model, wrapped."""
        ...

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float | None]:
        """Validation scores, the same on every rank; called by all ranks together."""
        ...


@dataclass
class TrainState:
    """Everything that changes while training, hence everything a checkpoint holds."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    ema: AveragedModel | None
    step: int = 0  # optimizer steps done
    loss_sums: dict[str, Tensor] = field(default_factory=dict)  # of this epoch so far, on this rank
    best: dict = field(default_factory=dict)  # {"epoch": ..., "score": ...}

    def state_dict(self) -> dict | None:
        """Plain data for `save_checkpoint` on rank 0, None on the others; all ranks call it together."""
        loss_sums = distributed.gather({name: float(value) for name, value in self.loss_sums.items()})
        if loss_sums is None:
            return None
        ema = self.ema and {"count": int(self.ema.n_averaged), "weights": self.ema.module.state_dict()}
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": ema,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "loss_sums": loss_sums,
            "best": self.best,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go back to where `state_dict` was taken. Raises CheckpointError if it belongs to another run."""
        if len(state["loss_sums"]) != distributed.world_size():
            raise CheckpointError(
                f"the checkpoint was made by {len(state['loss_sums'])} processes, this run has "
                f"{distributed.world_size()}: start as many, the batch and the schedule depend on it"
            )
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"]["weights"])
            self.ema.n_averaged.fill_(state["ema"]["count"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step = state["step"]
        # Python's float holds a float32 exactly: the epoch's means come out as if never interrupted.
        self.loss_sums = {
            name: torch.tensor(value, device=next(self.model.parameters()).device)
            for name, value in state["loss_sums"][distributed.rank()].items()
        }
        self.best = state["best"]

    @property
    def scored_model(self) -> nn.Module:
        """The weights to evaluate: the moving average if there is one."""
        return self.ema.module if self.ema else self.model


def trained_weights(state: dict) -> dict[str, Tensor]:
    """The weights that were scored, from a checkpoint: the moving average if there is one."""
    return state["ema"]["weights"] if state["ema"] else state["model"]


def fit(
    task: Task, config: TrainConfig, optim: OptimConfig, experiment: Path, device: torch.device, resume: bool
) -> nn.Module:
    """Train `task.model` and return it (the moving average, if one is kept) after the last epoch.

    experiment: directory that gets metrics.jsonl, curves.png and checkpoints/; with `resume`, training goes on
    after its newest checkpoint. Raises RunError when a loss or gradient is not finite, CheckpointError
    when there is nothing to resume."""
    world_size, rank = distributed.world_size(), distributed.rank()
    batches = EpochBatchSampler(len(task.train_set), config.batch_size, rank, world_size, config.seed)
    loader = build_loader(task.train_set, batches, task.collate, task.workers, device)
    steps_per_epoch = len(batches) // config.accumulation_steps
    if steps_per_epoch == 0:
        raise ValueError(
            f"train.accumulation_steps {config.accumulation_steps}: an epoch has only {len(batches)} batches of "
            f"{config.batch_size} x {world_size} images; lower it or train.batch_size"
        )
    global_batch_size = config.batch_size * world_size * config.accumulation_steps

    model = place_model(task.model, config, device)
    optimizer = build_optimizer(model, optim, global_batch_size)
    scheduler = build_scheduler(optimizer, optim, global_batch_size, steps_per_epoch, config.epochs)
    ema = moving_average(model, config.ema_decay) if config.ema_decay else None
    state = TrainState(model, optimizer, scheduler, ema)
    checkpoints = experiment / "checkpoints"
    if resume:
        path = newest_checkpoint(checkpoints)
        state.load_state_dict(load_checkpoint(path))
        logger.info("resumed after step %d from %s", state.step, path)
        if rank == 0:
            rewind_metrics(experiment, state.step)
    parallel_model = distributed.data_parallel(model, device)
    logger.info(
        "%d images, %d steps per epoch, global batch %d (%d x %d processes x %d accumulated), peak learning rate %.3g",
        len(task.train_set), steps_per_epoch, global_batch_size, config.batch_size, world_size,
        config.accumulation_steps, scaled_learning_rate(optim, global_batch_size),
    )  # fmt: skip
    for name, value in task.reference_losses.items():
        logger.info("a model that learned nothing has a %s loss of %.3f", name, value)

    def save(path: Path) -> None:
        values = state.state_dict()
        if values is not None:
            save_checkpoint(path, values)
            prune_checkpoints(checkpoints, config.keep_checkpoints)

    total_steps = config.epochs * steps_per_epoch
    with progress_bar(total_steps, state.step) as bar:
        for epoch in range(state.step // steps_per_epoch, config.epochs):
            batches.epoch = epoch
            batches.first_batch = (state.step % steps_per_epoch) * config.accumulation_steps
            bar.set_description(f"epoch {epoch + 1}/{config.epochs}")
            started, first_step, wait_seconds = time.perf_counter(), state.step, 0.0
            if first_step % steps_per_epoch == 0:
                state.loss_sums = {}
            set_train_mode(parallel_model, config.batch_norm)
            loaded = iter(loader)
            while state.step < (epoch + 1) * steps_per_epoch:
                wait_started = time.perf_counter()
                step_batches = list(islice(loaded, config.accumulation_steps))
                wait_seconds += time.perf_counter() - wait_started
                train_step(task, parallel_model, state, config, optim.clip_norm, step_batches, device)
                bar.update()
                if state.step % config.checkpoint_every_steps == 0 and state.step % steps_per_epoch:
                    save(step_path(checkpoints, state.step))
            means = epoch_means(state.loss_sums, steps_per_epoch)  # waits for the device: the epoch is done
            seconds = time.perf_counter() - started
            line = {
                "epoch": epoch + 1,
                "step": state.step,
                **{f"train_loss_{name}": value for name, value in means.items()},
                "learning_rate": optimizer.param_groups[0]["lr"],
                "epoch_seconds": round(seconds, 3),
                "images_per_second": round((state.step - first_step) * global_batch_size / seconds, 2),
                "data_wait_seconds": round(wait_seconds, 3),
            }
            is_last = epoch + 1 == config.epochs
            improved = False
            if is_last or (epoch + 1) % config.eval_every_epochs == 0:
                eval_started = time.perf_counter()
                scores = task.evaluate(state.scored_model, device)
                line |= {**scores, "eval_seconds": round(time.perf_counter() - eval_started, 3)}
                score = scores[task.metric]
                improved = score is not None and score > state.best.get("score", -math.inf)
                if improved:
                    state.best = {"epoch": epoch + 1, "score": score}
            if rank == 0:
                append_metrics(experiment, line)
                if task.metric in line:
                    draw_curves(experiment, task.metric, task.reference_losses)
                logger.info(epoch_summary(line, config.epochs, task.metric))
            save(step_path(checkpoints, state.step))
            if improved:
                save(checkpoints / "best.pt")
    return state.scored_model


def train_step(
    task: Task,
    parallel_model: nn.Module,
    state: TrainState,
    config: TrainConfig,
    clip_norm: float | None,
    batches: list[dict[str, Tensor]],
    device: torch.device,
) -> None:
    """One optimizer step over the accumulated `batches`.

    The gradient is that of the mean loss over the batches; ranks average theirs in the last backward only."""
    torch.manual_seed((config.seed << 40) + state.step * distributed.world_size() + distributed.rank())
    step_losses: dict[str, Tensor] = {}
    for index, batch in enumerate(batches):
        with ExitStack() as stack:
            if index < len(batches) - 1 and parallel_model is not state.model:
                stack.enter_context(parallel_model.no_sync())
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                losses = task.losses(parallel_model, batch_to(batch, device))
            (sum(losses.values()) / len(batches)).backward()
        for name, loss in losses.items():
            step_losses[name] = step_losses.get(name, 0) + loss.detach() / len(batches)

    # Gradients are already averaged over the ranks, so every rank sees the same norm and stops at the same step.
    norm = clip_grad_norm_(state.model.parameters(), clip_norm or math.inf)
    if not math.isfinite(norm):
        raise RunError(non_finite_message(state.step + 1, step_losses, batches))
    state.optimizer.step()
    state.scheduler.step()
    state.optimizer.zero_grad()
    if state.ema:
        state.ema.update_parameters(state.model)
    state.step += 1
    for name, loss in step_losses.items():
        state.loss_sums[name] = state.loss_sums.get(name, 0) + loss
    if state.step == 1:
        means = epoch_means(step_losses, 1)
        text = ", ".join(f"{name} {value:.6f}" for name, value in means.items())
        logger.info("first step: %s, gradient norm %.3f", text, norm)


def place_model(model: nn.Module, config: TrainConfig, device: torch.device) -> nn.Module:
    """Move the model to the device in the configured layout and treat its BatchNorm layers as configured."""
    if config.batch_norm == "sync":
        if device.type != "cuda":
            raise ValueError("train.batch_norm sync: works on GPUs only; on the CPU take local or frozen")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.batch_norm == "frozen":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.requires_grad_(False)
    return model.to(device, memory_format=torch.channels_last if config.channels_last else torch.preserve_format)


def set_train_mode(model: nn.Module, batch_norm: str) -> None:
    """Training mode, except that frozen BatchNorm layers keep using their stored statistics."""
    model.train()
    if batch_norm == "frozen":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def epoch_means(sums: dict[str, Tensor], steps: int) -> dict[str, float]:
    """Mean over steps and ranks of each loss, and of their total as "total"."""
    names = list(sums)
    values = torch.stack([sums[name] for name in names]).double() / steps
    values = distributed.sum_over_ranks(values) / distributed.world_size()
    means = dict(zip(names, values.tolist(), strict=True))
    return {"total": sum(means.values()), **means}


def non_finite_message(step: int, losses: dict[str, Tensor], batches: list[dict[str, Tensor]]) -> str:
    """What broke at `step` on this rank: its losses, and the images of the step."""
    values = ", ".join(f"{name} {float(value):.4g}" for name, value in losses.items())
    ids = [image_id for batch in batches for image_id in batch.get("image_ids", torch.tensor([])).tolist()]
    return (
        f"step {step}: loss or gradient is not finite on rank {distributed.rank()} ({values}); image ids {ids}; "
        "the weights are those before this step. Lower optim.learning_rate, or look at these images"
    )


def epoch_summary(line: dict, epochs: int, metric: str) -> str:
    """The line a person reads after each epoch."""
    text = f"epoch {line['epoch']:>3}/{epochs}  loss {line['train_loss_total']:.3f}  lr {line['learning_rate']:.2e}"
    if metric in line:
        text += f"  {metric} {shown_score(line[metric])}"
    return text + f"  {line['epoch_seconds']:.1f} s  {line['images_per_second']:.0f} images/s"


def progress_bar(total: int, done: int) -> tqdm:
    """A bar over all steps of the run, on rank 0; once a minute where the output is a file."""
    interactive = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        unit="step",
        smoothing=0.02,
        mininterval=0.2 if interactive else 60,
        disable=not distributed.is_main(),
        dynamic_ncols=True,
    )
