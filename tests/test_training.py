"""training.py: the loop on a toy task small enough to reason about."""

import math
import re
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, default_collate

from engine.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    step_path,
    trained_weights,
)
from engine.command import RunError
from engine.optim import OptimConfig
from engine.signals import Stopped
from records.metrics import read_metrics
from training import TrainConfig, check_feasible, emulation_factor, fit, rehearse

CPU = torch.device("cpu")


class Points(Dataset):
    """Noisy points of a plane; the noise depends on the epoch, as augmentation does."""

    def __len__(self):
        return 22

    def __getitem__(self, key):
        epoch, index = key
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        x = torch.randn(3, generator=torch.Generator().manual_seed(index)) + 0.1 * torch.randn(3, generator=generator)
        return {"x": x, "y": x @ torch.tensor([1.0, -2.0, 0.5]), "image_ids": index}


class PlaneTask:
    metrics = ("score",)
    lower_is_better = False
    workers = 0
    collate = staticmethod(default_collate)

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1))
        self.train_set = Points()
        self.data = {"points": "a plane's"}
        self.loading_cure = "draw fewer points"
        self.reference_losses = {"square": 5.25}
        self.fail_at = math.inf
        self.calls = 0
        self.signals = {}  # number of the call of `losses`, or "evaluate", to the signal that comes then

    def compile(self):
        self.compiled = True

    def losses(self, model, batch):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        for number in self.signals.get(self.calls, ()):
            signal.raise_signal(number)
        return {"square": (model(batch["x"])[:, 0] - batch["y"]).square().sum()}, torch.tensor(len(batch["x"]))

    def evaluate(self, model, device, stop_if_asked):
        for number in self.signals.get("evaluate", ()):
            signal.raise_signal(number)
        stop_if_asked()
        points = torch.stack([self.train_set[(0, i)]["x"] for i in range(len(self.train_set))])
        return {"score": 1 / (1 + model.eval()(points).square().mean().item())}

    def draw(self, experiment, epoch):
        (experiment / f"epoch_{epoch}.txt").touch()


CONFIG = TrainConfig(epochs=3, batch_size=4, precision="fp32", ema_decay=0.9, checkpoint_every_steps=1)
OPTIM = OptimConfig(optimizer="adamw", learning_rate=0.01, reference_batch_size=4, warmup_epochs=1, schedule="cosine")


@pytest.fixture(autouse=True)
def _curves_are_not_drawn(monkeypatch):
    """They would take four fifths of the time of these tests; test_logbook.py draws some."""
    monkeypatch.setattr("training.draw_curves", lambda experiment, *_: (experiment / "curves.png").touch())


def newest_state(experiment):
    return load_checkpoint(list_checkpoints(experiment / "checkpoints")[-1])


def assert_equal(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            if "second" not in str(key):
                assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def test_the_loop_learns_and_logs_every_epoch(tmp_path):
    config = CONFIG.model_copy(update={"epochs": 30})
    fit(PlaneTask(), config, OPTIM, tmp_path, CPU, resume=False)
    lines = read_metrics(tmp_path)
    assert [line["epoch"] for line in lines] == list(range(1, 31))
    assert lines[-1]["step"] == 150
    assert all(line["images_loaded_per_core_second"] > 0 for line in lines)
    assert lines[-1]["train_loss_square"] < 0.5 * lines[0]["train_loss_square"]
    assert (tmp_path / "curves.png").exists()


def test_whoever_follows_a_run_is_told_each_line_that_is_logged(tmp_path):
    told = []
    fit(PlaneTask(), CONFIG, OPTIM, tmp_path, CPU, resume=False, track=lambda line: told.append(dict(line)))
    assert told == read_metrics(tmp_path)


def test_pictures_that_cannot_be_drawn_are_warned_of_once_and_end_nothing(tmp_path, caplog):
    task = PlaneTask()

    def draw(experiment, epoch):
        raise OSError("no space left")

    task.draw = draw
    fit(task, CONFIG, OPTIM, tmp_path, CPU, resume=False)
    assert len(read_metrics(tmp_path)) == 3
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["the pictures of epoch 1 cannot be drawn; training goes on (no space left)"]


def test_a_rehearsal_takes_two_steps_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = PlaneTask()
    before = task.model[0].weight.detach().clone()
    assert len(rehearse(task, CONFIG, OPTIM, CPU)) == task.calls == 2
    assert not torch.equal(task.model[0].weight, before)
    assert not list(tmp_path.iterdir())


def test_a_rehearsal_without_enough_memory_names_the_field_to_lower():
    task = PlaneTask()
    task.losses = lambda *_: torch.empty(2**60)
    with pytest.raises(RunError, match=r"^train\.batch_size 4 does not fit the memory: lower it"):
        rehearse(task, CONFIG, OPTIM, CPU)


def timeless_metrics(experiment):
    return [{k: v for k, v in line.items() if "second" not in k} for line in read_metrics(experiment)]


def stop_and_resume(folder, signals, error):
    """Train with these signals, then to the end; the checkpoint's state in between."""
    task = PlaneTask()
    task.signals = signals
    config = CONFIG.model_copy(update={"checkpoint_every_steps": 1000})
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with pytest.raises(error):
        fit(task, config, OPTIM, folder, CPU, resume=False)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before
    stopped = newest_state(folder)
    fit(PlaneTask(), config, OPTIM, folder, CPU, resume=True)
    return stopped


@pytest.mark.parametrize(
    ("signals", "error"),
    [
        ([signal.SIGUSR1], Stopped),
        ([signal.SIGTERM], Stopped),
        ([signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM], Stopped),
        ([signal.SIGINT], KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 14])
def test_a_signal_ends_the_run_after_its_step_and_a_save(tmp_path, signals, error, step):
    stopped = stop_and_resume(tmp_path / "parts", {step: signals}, error)
    assert stopped["step"] == step
    fit(PlaneTask(), CONFIG, OPTIM, tmp_path / "whole", CPU, resume=False)
    assert_equal(newest_state(tmp_path / "parts"), newest_state(tmp_path / "whole"))
    assert timeless_metrics(tmp_path / "parts") == timeless_metrics(tmp_path / "whole")


@pytest.mark.parametrize("when", [15, "evaluate"])
def test_a_signal_before_or_while_scoring_ends_the_run_at_once_and_no_step_is_done_again(tmp_path, when):
    stopped = stop_and_resume(tmp_path / "parts", {when: [signal.SIGUSR1]}, Stopped)
    assert stopped["step"] == (15 if when == 15 else 5)
    assert stopped["line"]["step"] == stopped["step"]
    fit(PlaneTask(), CONFIG, OPTIM, tmp_path / "whole", CPU, resume=False)
    assert_equal(newest_state(tmp_path / "parts"), newest_state(tmp_path / "whole"))
    assert timeless_metrics(tmp_path / "parts") == timeless_metrics(tmp_path / "whole")


def test_a_second_interrupt_from_the_keyboard_does_not_wait(tmp_path):
    task = PlaneTask()
    task.signals = {3: [signal.SIGINT, signal.SIGINT]}
    with pytest.raises(KeyboardInterrupt):
        fit(task, CONFIG, OPTIM, tmp_path, CPU, resume=False)
    assert newest_state(tmp_path)["step"] == 2


@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("fail_at", [2, 7, 11, 14])
def test_a_resumed_run_ends_bit_identical_to_an_uninterrupted_one(tmp_path, fail_at, accumulation_steps):
    config = CONFIG.model_copy(update={"epochs": 4, "accumulation_steps": accumulation_steps})
    fit(PlaneTask(), config, OPTIM, tmp_path / "whole", CPU, resume=False)
    interrupted = PlaneTask()
    interrupted.fail_at = fail_at + accumulation_steps
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, config, OPTIM, tmp_path / "parts", CPU, resume=False)
    torch.manual_seed(99)  # nothing may depend on what ran before
    fit(PlaneTask(), config, OPTIM, tmp_path / "parts", CPU, resume=True)
    assert_equal(newest_state(tmp_path / "parts"), newest_state(tmp_path / "whole"))
    assert timeless_metrics(tmp_path / "parts") == timeless_metrics(tmp_path / "whole")


def test_what_is_learned_does_not_depend_on_how_often_it_is_scored(tmp_path):
    for every in (1, 3):
        config = CONFIG.model_copy(update={"eval_every_epochs": every})
        fit(PlaneTask(), config, OPTIM, tmp_path / str(every), CPU, resume=False)
    often, once = (newest_state(tmp_path / str(every)) for every in (1, 3))
    for part in ("model", "ema", "optimizer", "scheduler"):
        assert_equal(often[part], once[part])


def test_accumulated_batches_take_the_step_of_one_large_batch(tmp_path):
    results = []
    for batch_size, accumulation_steps in ((10, 1), (5, 2)):
        task = PlaneTask()
        task.model[1].p = 0.0
        config = CONFIG.model_copy(update={"batch_size": batch_size, "accumulation_steps": accumulation_steps})
        fit(task, config, OPTIM, tmp_path / str(batch_size), CPU, resume=False)
        results.append(newest_state(tmp_path / str(batch_size)))
    assert results[0]["step"] == results[1]["step"]
    for one, other in zip(results[0]["model"].values(), results[1]["model"].values(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(tmp_path, monkeypatch):
    task = PlaneTask()
    losses = task.losses

    def poisoned(model, batch):
        sums, count = losses(model, batch)
        return {"square": sums["square"] * (math.nan if task.calls == 7 else 1)}, count

    monkeypatch.setattr(task, "losses", poisoned)
    with pytest.raises(RunError, match=r"step 7: loss or gradient is not finite; rank 0: .* image ids \["):
        fit(task, CONFIG, OPTIM, tmp_path, CPU, resume=False)
    assert newest_state(tmp_path)["step"] == 6
    assert_equal(dict(task.model.state_dict()), dict(newest_state(tmp_path)["model"]))


def test_weights_that_an_update_breaks_are_never_saved(tmp_path):
    optim = OptimConfig(
        optimizer="sgd", learning_rate=3e38, reference_batch_size=4, warmup_epochs=0, schedule="cosine", clip_norm=None
    )
    with pytest.raises(RunError, match="step 1: its update made weights that are not finite"):
        fit(PlaneTask(), CONFIG, optim, tmp_path, CPU, resume=False)
    assert not list_checkpoints(tmp_path / "checkpoints")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_timing_an_emulated_precision_changes_neither_the_model_nor_the_random_numbers(precision):
    task = PlaneTask()
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    factor = emulation_factor(task, CONFIG.model_copy(update={"precision": precision}), CPU)
    assert 0 < factor < math.inf
    assert task.calls == 4  # two steps in each precision
    assert torch.rand(1) == expected
    assert_equal(task.model.state_dict(), before)
    assert all(parameter.grad is None for parameter in task.model.parameters())


FP16 = CONFIG.model_copy(update={"precision": "fp16"})


def overflowing(task, calls):
    """The task with a huge gradient, of a finite loss, in these calls of `losses`."""
    losses = task.losses

    def overflowed(model, batch):
        sums, count = losses(model, batch)
        weight = model[0].weight
        return sums | ({"huge": (weight - weight.detach()).sum() * 1e38} if task.calls in calls else {}), count

    task.losses = overflowed
    return task


def test_a_step_that_overflows_fp16_is_skipped_and_counted_and_its_loss_scale_halved(tmp_path):
    fit(overflowing(PlaneTask(), {5}), FP16.model_copy(update={"epochs": 1}), OPTIM, tmp_path, CPU, resume=False)
    before, after = map(load_checkpoint, list_checkpoints(tmp_path / "checkpoints"))
    assert (before["step"], after["step"]) == (4, 5)
    for name in ("model", "optimizer"):
        assert_equal(after[name], before[name])
    assert after["scheduler"]["last_epoch"] == before["scheduler"]["last_epoch"] + 1  # the schedule goes on
    assert after["scaler"]["scale"] == before["scaler"]["scale"] / 2
    assert read_metrics(tmp_path)[0]["overflowed_steps"] == 1


def test_a_run_in_fp16_resumes_bit_identical_also_between_overflows(tmp_path):
    fit(overflowing(PlaneTask(), {6, 7, 8}), FP16, OPTIM, tmp_path / "whole", CPU, resume=False)
    interrupted = overflowing(PlaneTask(), {6, 7})
    interrupted.fail_at = 8
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, FP16, OPTIM, tmp_path / "parts", CPU, resume=False)
    fit(overflowing(PlaneTask(), {1}), FP16, OPTIM, tmp_path / "parts", CPU, resume=True)
    assert_equal(newest_state(tmp_path / "parts"), newest_state(tmp_path / "whole"))


def test_twenty_overflows_in_a_row_end_the_run(tmp_path):
    task = overflowing(PlaneTask(), range(5, 100))
    config = FP16.model_copy(update={"epochs": 10})
    with pytest.raises(RunError, match=r"step 24: loss or gradient is not finite"):
        fit(task, config, OPTIM, tmp_path, CPU, resume=False)
    assert all(weight.isfinite().all() for weight in newest_state(tmp_path)["model"].values())


def test_a_loss_that_is_not_finite_is_no_overflow(tmp_path):
    task = PlaneTask()
    losses = task.losses
    task.losses = lambda model, batch: ({"square": losses(model, batch)[0]["square"] * math.inf}, torch.tensor(4))
    with pytest.raises(RunError, match="step 1: loss or gradient is not finite"):
        fit(task, FP16, OPTIM, tmp_path, CPU, resume=False)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
@pytest.mark.usefixtures("compiler_cache")
def test_a_compiled_run_ends_near_the_eager_one(tmp_path):
    ends = []
    for compiled in (False, True):
        task = PlaneTask()
        task.model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))  # no dropout: other random numbers
        fit(task, CONFIG.model_copy(update={"compile": compiled}), OPTIM, tmp_path / str(compiled), CPU, resume=False)
        ends.append(newest_state(tmp_path / str(compiled))["model"])
    assert task.compiled
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-5)


def test_where_nothing_can_be_compiled_the_run_is_eager_and_says_so(tmp_path, monkeypatch, caplog):
    def refuse(model):
        raise RuntimeError("no compiler found\nand a long story")

    monkeypatch.setattr(torch, "compile", refuse)
    fit(PlaneTask(), CONFIG.model_copy(update={"compile": True}), OPTIM, tmp_path, CPU, resume=False)
    assert caplog.text.count("train.compile: not possible here, so it is left out (no compiler found)") == 1


def test_a_run_that_waits_for_its_data_says_so_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("training.MOST_WAITING", 0)
    fit(PlaneTask(), CONFIG, OPTIM, tmp_path, CPU, resume=False)
    assert len(re.findall(r"training waits for data \d+% of its time: draw fewer points", caplog.text)) == 1


def test_only_the_newest_checkpoints_and_the_best_are_kept(tmp_path):
    fit(PlaneTask(), CONFIG, OPTIM, tmp_path, CPU, resume=False)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.pt", "step_000000014.pt", "step_000000015.pt"]


@pytest.mark.parametrize(("lower_is_better", "best"), [(False, 1), (True, 2)])
def test_the_best_epoch_is_that_of_the_highest_score_or_of_the_lowest_loss(tmp_path, lower_is_better, best):
    task, scores = PlaneTask(), iter([3.0, 1.0, 2.0])
    task.lower_is_better = lower_is_better
    task.evaluate = lambda *arguments: {"score": next(scores)}
    fit(task, CONFIG, OPTIM, tmp_path, CPU, resume=False)
    assert newest_state(tmp_path)["best"]["epoch"] == best


def test_pictures_are_drawn_of_every_scored_epoch(tmp_path):
    fit(PlaneTask(), CONFIG.model_copy(update={"eval_every_epochs": 2}), OPTIM, tmp_path, CPU, resume=False)
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == ["epoch_2.txt", "epoch_3.txt"]


def test_the_scored_weights_are_the_moving_average(tmp_path):
    scored = fit(PlaneTask(), CONFIG, OPTIM, tmp_path, CPU, resume=False)
    assert_equal(dict(trained_weights(newest_state(tmp_path))), dict(scored.state_dict()))
    assert not torch.equal(newest_state(tmp_path)["model"]["0.weight"], scored.state_dict()["0.weight"])


def test_gradients_are_clipped_to_the_norm(tmp_path):
    sgd = OptimConfig(
        optimizer="sgd", learning_rate=1.0, reference_batch_size=4, momentum=0.0, weight_decay=0.0,
        warmup_epochs=0, clip_norm=1e-3,
    )  # fmt: skip
    task = PlaneTask()
    before = [parameter.detach().clone() for parameter in task.model.parameters()]
    config = CONFIG.model_copy(update={"epochs": 1, "batch_size": 22})
    fit(task, config, sgd.model_copy(update={"reference_batch_size": 22}), tmp_path, CPU, resume=False)
    moved = [(a.detach() - b).flatten() for a, b in zip(task.model.parameters(), before, strict=True)]
    assert float(torch.cat(moved).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_frozen_batch_norm_keeps_its_statistics_and_weights(tmp_path):
    task = PlaneTask()
    task.model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    before = {name: value.clone() for name, value in task.model[1].state_dict().items()}
    fit(task, CONFIG.model_copy(update={"batch_norm": "frozen"}), OPTIM, tmp_path, CPU, resume=False)
    assert_equal(before, dict(task.model[1].state_dict()))


def test_too_much_accumulation_for_the_data_is_refused(tmp_path):
    config = CONFIG.model_copy(update={"accumulation_steps": 6})
    with pytest.raises(ValueError, match=r"train\.accumulation_steps 6: an epoch has only 5 batches"):
        fit(PlaneTask(), config, OPTIM, tmp_path, CPU, resume=False)


def test_synchronised_batch_norm_needs_gpus(tmp_path):
    with pytest.raises(ValueError, match=r"train\.batch_norm sync: works on GPUs only"):
        check_feasible(PlaneTask(), CONFIG.model_copy(update={"batch_norm": "sync"}), OPTIM, tmp_path, CPU)


def test_batch_norm_on_single_images_is_refused(tmp_path):
    task = PlaneTask()
    task.model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    with pytest.raises(ValueError, match=r"train\.batch_size 1: BatchNorm needs 2 images"):
        check_feasible(task, CONFIG.model_copy(update={"batch_size": 1}), OPTIM, tmp_path, CPU)


def test_a_checkpoint_is_not_resumed_on_other_data(tmp_path):
    fit(PlaneTask(), CONFIG, OPTIM, tmp_path, CPU, resume=False)
    task = PlaneTask()
    task.data = {"points": "a sphere's"}
    refusal = r"step_000000015\.pt: made on other data: points \"a plane's\", now \"a sphere's\"\. Resume on"
    with pytest.raises(CheckpointError, match=refusal):
        fit(task, CONFIG, OPTIM, tmp_path, CPU, resume=True, begin=lambda: pytest.fail("begun"))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_checkpoint_of_an_optimizer_that_was_not_fused_is_resumed(tmp_path, optimizer):
    optim = OPTIM.model_copy(update={"optimizer": optimizer})
    fit(PlaneTask(), CONFIG.model_copy(update={"epochs": 1}), optim, tmp_path, CPU, resume=False)
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    state = load_checkpoint(newest)
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = None
    save_checkpoint(newest, state)
    fit(PlaneTask(), CONFIG, optim, tmp_path, CPU, resume=True)
    assert newest_state(tmp_path)["step"] == 15


@pytest.mark.parametrize("state", [{}, [], None, {"step": 7, "model": {}}])
def test_something_else_than_the_state_of_a_run_is_refused(tmp_path, state):
    save_checkpoint(step_path(tmp_path / "checkpoints", 7), state)
    with pytest.raises(CheckpointError, match=r"step_000000007\.pt: no state of a run, or of another version"):
        fit(PlaneTask(), CONFIG, OPTIM, tmp_path, CPU, resume=True, begin=lambda: pytest.fail("begun"))


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before_and_ends_the_same(tmp_path):
    fit(PlaneTask(), CONFIG, OPTIM, tmp_path / "whole", CPU, resume=False)
    interrupted = PlaneTask()
    interrupted.fail_at = 9
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, CONFIG, OPTIM, tmp_path / "parts", CPU, resume=False)
    newest = list_checkpoints(tmp_path / "parts/checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    fit(PlaneTask(), CONFIG, OPTIM, tmp_path / "parts", CPU, resume=True)
    assert_equal(newest_state(tmp_path / "parts"), newest_state(tmp_path / "whole"))


def stopped_after(folder, calls):
    """Train until this call of `losses`."""
    interrupted = PlaneTask()
    interrupted.fail_at = calls + 1
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, CONFIG, OPTIM, folder, CPU, resume=False)


@pytest.mark.parametrize("damage", ["lost", "", "{", "[1]\n"])
def test_a_run_whose_metrics_are_lost_or_damaged_is_resumed_and_ends_the_same(tmp_path, damage):
    fit(PlaneTask(), CONFIG, OPTIM, tmp_path / "whole", CPU, resume=False)
    stopped_after(tmp_path / "parts", 12)
    path = tmp_path / "parts/metrics.jsonl"
    path.unlink() if damage == "lost" else path.write_text(damage)
    fit(PlaneTask(), CONFIG, OPTIM, tmp_path / "parts", CPU, resume=True)
    assert_equal(newest_state(tmp_path / "parts"), newest_state(tmp_path / "whole"))
    assert timeless_metrics(tmp_path / "parts") == timeless_metrics(tmp_path / "whole")


def test_metrics_that_are_lost_while_a_run_trains_are_written_again_with_the_next_epoch(tmp_path):
    task = PlaneTask()
    evaluate = task.evaluate

    def lose_and_evaluate(*arguments):
        (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
        return evaluate(*arguments)

    task.evaluate = lose_and_evaluate
    fit(task, CONFIG, OPTIM, tmp_path, CPU, resume=False)
    assert [line["epoch"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_checkpoint_of_an_earlier_version_without_the_epochs_is_resumed_by_what_is_on_the_disk(tmp_path):
    fit(PlaneTask(), CONFIG, OPTIM, tmp_path / "whole", CPU, resume=False)
    stopped_after(tmp_path / "parts", 12)
    newest = list_checkpoints(tmp_path / "parts/checkpoints")[-1]
    state = load_checkpoint(newest)
    assert [line["epoch"] for line in state.pop("lines")] == [1, 2]
    save_checkpoint(newest, state)
    fit(PlaneTask(), CONFIG, OPTIM, tmp_path / "parts", CPU, resume=True)
    assert_equal(newest_state(tmp_path / "parts"), newest_state(tmp_path / "whole"))
    assert timeless_metrics(tmp_path / "parts") == timeless_metrics(tmp_path / "whole")


def test_a_folder_without_room_for_two_checkpoints_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
    with pytest.raises(CheckpointError, match="no space left for two checkpoints"):
        check_feasible(PlaneTask(), CONFIG, OPTIM, tmp_path / "not/yet", CPU)
    assert not (tmp_path / "not").exists()


def test_the_logged_learning_rate_is_the_one_last_used(tmp_path):
    steps = OptimConfig(learning_rate=1.0, reference_batch_size=4, warmup_epochs=0, drop_epochs=(1, 2))
    fit(PlaneTask(), CONFIG, steps, tmp_path, CPU, resume=False)
    assert [line["learning_rate"] for line in read_metrics(tmp_path)] == pytest.approx([1.0, 0.1, 0.01])
