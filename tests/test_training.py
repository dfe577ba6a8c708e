"""training.py: the training loop on a toy task."""

import math
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
from engine.command import DivergedError
from engine.optim import OptimConfig
from engine.signals import Stopped
from records.metrics import read_metrics
from training import Evaluation, TrainConfig, fit

CPU = torch.device("cpu")
CONFIG = TrainConfig(epochs=3, batch_size=4, precision="fp32", ema_decay=0.9, checkpoint_every_steps=1)
OPTIM = OptimConfig(optimizer="adamw", learning_rate=0.01, reference_batch_size=4, warmup_epochs=1, schedule="cosine")


def changed(config=CONFIG, **fields) -> TrainConfig:
    return config.model_copy(update=fields)


class Points(Dataset):
    """Noisy points on a plane. The noise depends on the epoch, like random augmentation."""

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
    initial_weights = None
    workers = 0
    collate = staticmethod(default_collate)

    def __init__(self, config=CONFIG, optim=OPTIM):
        self.config = SimpleNamespace(train=config, optim=optim)
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1))
        self.trunk = None
        self.train_set = Points()
        self.data = {"points": "a plane's"}
        self.reference_losses = {"square": 5.25}
        self.fail_at = math.inf
        self.calls = 0
        self.signals = {}  # number of a call of `losses`, or "evaluate", to the signals raised in it

    def compile(self):
        self.compiled = True

    def losses(self, model, batch):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        for number in self.signals.get(self.calls, ()):
            signal.raise_signal(number)
        return {"square": (model(batch["x"])[:, 0] - batch["y"]).square().sum()}, torch.tensor(len(batch["x"]))

    def evaluate(self, model, device, stop_if_requested=lambda: None):
        for number in self.signals.get("evaluate", ()):
            signal.raise_signal(number)
        stop_if_requested()
        points = torch.stack([self.train_set[(0, i)]["x"] for i in range(len(self.train_set))])
        predictions = model.eval()(points)
        return Evaluation({"score": 1 / (1 + predictions.square().mean().item())}, predictions)

    def draw(self, experiment, epoch, evaluation):
        (experiment / f"epoch_{epoch}.txt").touch()


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    """Do not draw curves, which would take 80% of the time of these tests; tests/records/test_metrics.py draws some."""
    monkeypatch.setattr("training.draw_curves", lambda experiment, *_: (experiment / "curves.png").touch())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Directory of an uninterrupted run of CONFIG."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.draw_curves", lambda *_: None)
        fit(PlaneTask(), folder, CPU, resume=False)
    return folder


def newest_state(experiment):
    return load_checkpoint(list_checkpoints(experiment / "checkpoints")[-1])


def metrics_without_times(experiment):
    return [{k: v for k, v in line.items() if "second" not in k} for line in read_metrics(experiment)]


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


def assert_same_run(one, other):
    """Assert that two runs have a bit-identical final checkpoint and the same metrics, except for times."""
    assert_equal(newest_state(one), newest_state(other))
    assert metrics_without_times(one) == metrics_without_times(other)


def stop_after(folder, calls, task=None):
    """Train until just after this number of calls of `losses`, and end like a killed run."""
    task = task or PlaneTask()
    task.fail_at = calls + 1
    with pytest.raises(KeyboardInterrupt):
        fit(task, folder, CPU, resume=False)


# ---- an uninterrupted run --------------------------------------------------------------------------------------


def test_the_loss_falls_and_every_epoch_is_logged_and_tracked(tmp_path):
    tracked = []
    task = PlaneTask(changed(epochs=30))
    fit(task, tmp_path, CPU, resume=False, on_epoch_end=lambda line: tracked.append(dict(line)))
    lines = read_metrics(tmp_path)
    assert [line["epoch"] for line in lines] == list(range(1, 31))
    assert lines[-1]["step"] == 150
    assert lines[-1]["train_loss_square"] < 0.5 * lines[0]["train_loss_square"]
    assert tracked == lines
    assert (tmp_path / "curves.png").exists()


def test_fit_returns_the_moving_average_and_its_last_evaluation_also_for_a_finished_run(tmp_path):
    model, evaluation = fit(PlaneTask(), tmp_path, CPU, resume=False)
    again, same = fit(PlaneTask(), tmp_path, CPU, resume=True)
    state = newest_state(tmp_path)
    assert_equal(dict(trained_weights(state)), dict(model.state_dict()))  # the moving average
    assert not torch.equal(state["model"]["0.weight"], model.state_dict()["0.weight"])
    assert_equal(dict(again.state_dict()), dict(model.state_dict()))
    assert same.scores == evaluation.scores == {"score": read_metrics(tmp_path)[-1]["score"]}
    assert torch.equal(same.predictions, evaluation.predictions)


def test_pictures_are_drawn_after_every_evaluation(tmp_path):
    fit(PlaneTask(changed(eval_every_epochs=2)), tmp_path, CPU, resume=False)
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == ["epoch_2.txt", "epoch_3.txt"]


def test_a_run_warns_only_once_about_failed_pictures_and_about_waiting_for_data(tmp_path, monkeypatch, caplog):
    def draw(*_):
        raise OSError("no space left")

    task = PlaneTask()
    task.draw = draw
    monkeypatch.setattr("training.MAX_DATA_WAIT", 0)
    fit(task, tmp_path, CPU, resume=False)
    assert len(read_metrics(tmp_path)) == 3
    assert caplog.text.count("no space left") == caplog.text.count("raise data.workers") == 1


def test_only_the_newest_checkpoints_and_the_best_are_kept(uninterrupted):
    names = sorted(path.name for path in (uninterrupted / "checkpoints").iterdir())
    assert names == ["best.pt", "step_000000014.pt", "step_000000015.pt"]


@pytest.mark.parametrize(("lower_is_better", "best"), [(False, 1), (True, 2)])
def test_the_best_epoch_has_the_highest_score_or_the_lowest_if_lower_is_better(tmp_path, lower_is_better, best):
    task, scores = PlaneTask(), iter([3.0, 1.0, 2.0])
    task.lower_is_better = lower_is_better
    task.evaluate = lambda *arguments: Evaluation({"score": next(scores)}, None)
    fit(task, tmp_path, CPU, resume=False)
    assert newest_state(tmp_path)["best"]["epoch"] == best


def test_the_frequency_of_evaluations_does_not_change_the_weights(uninterrupted, tmp_path):
    fit(PlaneTask(changed(eval_every_epochs=3)), tmp_path, CPU, resume=False)
    for part in ("model", "ema", "optimizer", "scheduler"):
        assert_equal(newest_state(tmp_path)[part], newest_state(uninterrupted)[part])


def test_accumulated_batches_give_the_same_weights_as_one_large_batch(tmp_path):
    results = []
    for batch_size, accumulation_steps in ((10, 1), (5, 2)):
        task = PlaneTask(changed(batch_size=batch_size, accumulation_steps=accumulation_steps))
        task.model[1].p = 0.0
        fit(task, tmp_path / str(batch_size), CPU, resume=False)
        results.append(newest_state(tmp_path / str(batch_size)))
    assert results[0]["step"] == results[1]["step"]
    for one, other in zip(results[0]["model"].values(), results[1]["model"].values(), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_clipped_to_clip_norm(tmp_path):
    sgd = OptimConfig(
        optimizer="sgd", learning_rate=1.0, reference_batch_size=22, momentum=0.0, weight_decay=0.0,
        warmup_epochs=0, clip_norm=1e-3,
    )  # fmt: skip
    task = PlaneTask(changed(epochs=1, batch_size=22), sgd)
    before = [parameter.detach().clone() for parameter in task.model.parameters()]
    fit(task, tmp_path, CPU, resume=False)
    updates = [(a.detach() - b).flatten() for a, b in zip(task.model.parameters(), before, strict=True)]
    assert float(torch.cat(updates).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_frozen_batch_norm_keeps_its_statistics_and_weights(tmp_path):
    task = PlaneTask(changed(batch_norm="frozen"))
    task.model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    before = {name: value.clone() for name, value in task.model[1].state_dict().items()}
    fit(task, tmp_path, CPU, resume=False)
    assert_equal(before, dict(task.model[1].state_dict()))


def test_the_logged_learning_rate_is_that_of_the_last_step(tmp_path):
    steps = OptimConfig(learning_rate=1.0, reference_batch_size=4, warmup_epochs=0, drop_epochs=(1, 2))
    fit(PlaneTask(optim=steps), tmp_path, CPU, resume=False)
    assert [line["learning_rate"] for line in read_metrics(tmp_path)] == pytest.approx([1.0, 0.1, 0.01])


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
@pytest.mark.usefixtures("compiler_cache")
def test_a_compiled_run_learns_nearly_the_same_weights_as_an_eager_one(tmp_path):
    weights = []
    for compiled in (False, True):
        task = PlaneTask(changed(compile=compiled))
        task.model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))  # dropout would draw different numbers
        fit(task, tmp_path / str(compiled), CPU, resume=False)
        weights.append(newest_state(tmp_path / str(compiled))["model"])
    assert task.compiled
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5)


def test_a_run_trains_eagerly_with_a_warning_if_torch_compile_does_not_work(tmp_path, monkeypatch, caplog):
    def fail(model):
        raise RuntimeError("no compiler found\nand a long story")

    monkeypatch.setattr(torch, "compile", fail)
    fit(PlaneTask(changed(compile=True)), tmp_path, CPU, resume=False)
    assert caplog.text.count("train.compile") == caplog.text.count("(no compiler found)") == 1


# ---- interrupted runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("calls", [2, 7, 11, 14])
def test_a_resumed_run_ends_bit_identical_to_an_uninterrupted_one(tmp_path, calls, accumulation_steps):
    config = changed(epochs=4, accumulation_steps=accumulation_steps)
    fit(PlaneTask(config), tmp_path / "uninterrupted", CPU, resume=False)
    stop_after(tmp_path / "resumed", calls + accumulation_steps - 1, PlaneTask(config))
    torch.manual_seed(99)  # the result must not depend on random numbers drawn before
    fit(PlaneTask(config), tmp_path / "resumed", CPU, resume=True)
    assert_same_run(tmp_path / "resumed", tmp_path / "uninterrupted")


class TrunkTask(PlaneTask):
    """A PlaneTask whose first layer is the trunk, with a tenth of the learning rate of the rest."""

    def __init__(self, schedule):
        super().__init__(optim=OPTIM.model_copy(update={"backbone_lr_ratio": 0.1, **schedule}))
        self.trunk = self.model[0]


@pytest.mark.parametrize("calls", [2, 5, 7, 14])  # in the warm-up, at its end, after it, before the last step
@pytest.mark.parametrize(
    "schedule", [{"min_learning_rate": 0.002}, {"schedule": "steps", "drop_epochs": (2,), "optimizer": "sgd"}]
)
def test_a_resumed_run_with_a_slower_trunk_ends_bit_identical_to_an_uninterrupted_one(tmp_path, calls, schedule):
    fit(TrunkTask(schedule), tmp_path / "uninterrupted", CPU, resume=False)
    stop_after(tmp_path / "resumed", calls, TrunkTask(schedule))
    fit(TrunkTask(schedule), tmp_path / "resumed", CPU, resume=True)
    assert_same_run(tmp_path / "resumed", tmp_path / "uninterrupted")
    rates = [group["lr"] for group in newest_state(tmp_path / "resumed")["optimizer"]["param_groups"]]
    assert rates == [rates[0], rates[0], 0.1 * rates[0], 0.1 * rates[0]]


TERM, USR1, INT = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT


@pytest.mark.parametrize(
    ("when", "signals", "error", "step"),
    [
        *((step, numbers, Stopped, step) for step in (1, 7, 14) for numbers in ([USR1], [TERM], [USR1, TERM, TERM])),
        *((step, [INT], KeyboardInterrupt, step) for step in (1, 7, 14)),
        (15, [USR1], Stopped, 15),  # before the last evaluation
        ("evaluate", [USR1], Stopped, 5),  # during the first evaluation
    ],
)
def test_a_signal_stops_the_run_after_a_save_and_no_step_is_lost(uninterrupted, tmp_path, when, signals, error, step):
    task = PlaneTask(changed(checkpoint_every_steps=1000))
    task.signals = {when: signals}
    before = [signal.getsignal(number) for number in (TERM, USR1, INT)]
    with pytest.raises(error):
        fit(task, tmp_path, CPU, resume=False)
    assert [signal.getsignal(number) for number in (TERM, USR1, INT)] == before
    stopped = newest_state(tmp_path)
    assert stopped["step"] == step
    assert step % 5 or stopped["line"]["step"] == step
    fit(PlaneTask(changed(checkpoint_every_steps=1000)), tmp_path, CPU, resume=True)
    assert_same_run(tmp_path, uninterrupted)


def test_a_second_interrupt_from_the_keyboard_stops_at_once(tmp_path):
    task = PlaneTask()
    task.signals = {3: [INT, INT]}
    with pytest.raises(KeyboardInterrupt):
        fit(task, tmp_path, CPU, resume=False)
    assert newest_state(tmp_path)["step"] == 2


def test_a_checkpoint_is_not_resumed_on_different_data(uninterrupted):
    task = PlaneTask()
    task.data = {"points": "a sphere's"}
    with pytest.raises(CheckpointError, match=r"step_000000015\.pt: .* data: points \"a plane's\", now \"a sphere's"):
        fit(task, uninterrupted, CPU, resume=True, on_start=lambda: pytest.fail("training started"))


@pytest.mark.parametrize("state", [{}, [], None, {"step": 7, "model": {}}])
def test_a_checkpoint_that_is_not_the_state_of_a_run_is_rejected(tmp_path, state):
    save_checkpoint(step_path(tmp_path / "checkpoints", 7), state)
    with pytest.raises(CheckpointError, match=r"step_000000007\.pt: not the state of a run"):
        fit(PlaneTask(), tmp_path, CPU, resume=True, on_start=lambda: pytest.fail("training started"))


def test_a_run_falls_back_to_the_previous_checkpoint_if_the_newest_is_damaged(uninterrupted, tmp_path):
    stop_after(tmp_path, 8)
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    fit(PlaneTask(), tmp_path, CPU, resume=True)
    assert_equal(newest_state(tmp_path), newest_state(uninterrupted))


@pytest.mark.parametrize("damage", ["", "{", "[1]\n"])
def test_a_resumed_run_restores_corrupt_metrics(uninterrupted, tmp_path, caplog, damage):
    stop_after(tmp_path, 12)
    (tmp_path / "metrics.jsonl").write_text(damage)
    fit(PlaneTask(), tmp_path, CPU, resume=True)
    assert_same_run(tmp_path, uninterrupted)


def test_metrics_deleted_during_training_are_restored_after_the_next_epoch(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    fit(PlaneTask(), tmp_path, CPU, resume=False, on_epoch_end=lambda line: line["epoch"] < 3 and metrics.unlink())
    assert [line["epoch"] for line in read_metrics(tmp_path)] == [1, 2, 3]


# ---- numbers that are not finite --------------------------------------------------------------------------------

FP16 = changed(precision="fp16")


def with_fault(task, change, calls):
    """Return the task, whose losses are replaced by change(losses, weight) in these calls of `losses`."""
    losses = task.losses

    def faulty(model, batch):
        sums, count = losses(model, batch)
        return change(sums, model[0].weight) if task.calls in calls else sums, count

    task.losses = faulty
    return task


def overflowing(task, calls):
    """Return the task, whose loss is finite but has a huge gradient in these calls of `losses`."""
    return with_fault(task, lambda sums, weight: sums | {"huge": (weight - weight.detach()).sum() * 1e38}, calls)


@pytest.mark.parametrize("config", [CONFIG, FP16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_change(tmp_path, config, factor):
    task = with_fault(PlaneTask(config), lambda sums, _: {"square": sums["square"] * factor}, {7})
    with pytest.raises(DivergedError, match=r"step 7: .* rank 0: .* image ids \["):
        fit(task, tmp_path, CPU, resume=False)
    assert newest_state(tmp_path)["step"] == 6
    assert_equal(dict(task.model.state_dict()), dict(newest_state(tmp_path)["model"]))


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    optim = OptimConfig(optimizer="sgd", learning_rate=3e38, reference_batch_size=4, warmup_epochs=0, clip_norm=None)
    with pytest.raises(DivergedError, match=r"step 1: .*weights are not finite"):
        fit(PlaneTask(optim=optim), tmp_path, CPU, resume=False)
    assert not list_checkpoints(tmp_path / "checkpoints")


def test_a_step_that_overflows_fp16_is_skipped_and_counted_and_halves_the_loss_scale(tmp_path):
    fit(overflowing(PlaneTask(changed(FP16, epochs=1)), {5}), tmp_path, CPU, resume=False)
    before, after = map(load_checkpoint, list_checkpoints(tmp_path / "checkpoints"))
    assert (before["step"], after["step"]) == (4, 5)
    for name in ("model", "optimizer"):
        assert_equal(after[name], before[name])
    assert after["scheduler"]["last_epoch"] == before["scheduler"]["last_epoch"] + 1  # the schedule continues
    assert after["scaler"]["scale"] == before["scaler"]["scale"] / 2
    assert read_metrics(tmp_path)[0]["overflowed_steps"] == 1


def test_an_fp16_run_that_is_resumed_between_overflows_ends_bit_identical(tmp_path):
    fit(overflowing(PlaneTask(FP16), {6, 7, 8}), tmp_path / "uninterrupted", CPU, resume=False)
    stop_after(tmp_path / "resumed", 7, overflowing(PlaneTask(FP16), {6, 7}))
    fit(overflowing(PlaneTask(FP16), {1}), tmp_path / "resumed", CPU, resume=True)
    assert_equal(newest_state(tmp_path / "resumed"), newest_state(tmp_path / "uninterrupted"))


def test_twenty_consecutive_overflows_end_the_run(tmp_path):
    task = overflowing(PlaneTask(changed(FP16, epochs=10)), range(5, 100))
    with pytest.raises(DivergedError, match=r"step 24: loss or gradient is not finite"):
        fit(task, tmp_path, CPU, resume=False)
    assert all(weight.isfinite().all() for weight in newest_state(tmp_path)["model"].values())
