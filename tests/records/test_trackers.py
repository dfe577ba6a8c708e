"""records/trackers.py: what each tracker logs, and that a failing tracker does not end the run."""

import os

import pytest
from PIL import Image

from records import trackers
from records.metrics import read_metrics, write_metrics
from records.trackers import Trackers, check_installed, run_id


class Recorder:
    """A tracker that records its calls. Calls named in `failing` raise an error."""

    failing: tuple[str, ...] = ()

    def __init__(self, experiment, step):
        self.calls = []
        self.note("open", step)

    def note(self, *call):
        if call[0] in self.failing:
            raise OSError("no space left")
        self.calls.append(call)

    def log(self, numbers, pictures, step):
        self.note("log", numbers, sorted(pictures), step)

    def close(self, failed):
        self.note("close", failed)


@pytest.fixture
def experiment(tmp_path):
    (tmp_path / "config.yaml").write_text("train:\n  epochs: 3\n")
    return tmp_path


@pytest.fixture
def recorder(monkeypatch):
    """Register a new Recorder class as "tensorboard" for each test."""
    cls = type("Recorder", (Recorder,), {})
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", cls)
    return cls


def line(epoch):
    score = None if epoch == 1 else 0.1 * epoch
    return {"epoch": epoch, "step": 10 * epoch, "train_loss_total": 1 / epoch, "mAP": score}


def epoch(opened, number):
    write_metrics(opened.experiment, [*read_metrics(opened.experiment), line(number)])
    opened.log(line(number))


def picture(path, time):
    Image.new("RGB", (4, 4)).save(path)
    os.utime(path, (time, time))


def test_every_epoch_is_logged_with_its_new_pictures(experiment, recorder):
    picture(experiment / "old.png", 1)
    with Trackers(["tensorboard"], experiment) as opened:
        opened.start()
        calls = opened.open["tensorboard"].calls
        picture(experiment / "samples.png", 1)
        picture(experiment / "curves.png", 1)
        for number in (1, 2):
            epoch(opened, number)
        picture(experiment / "samples.png", 2)
        opened.finish()
    assert calls == [
        ("open", 0),
        ("log", {"train/epoch": 1, "train/loss_total": 1.0}, ["samples"], 10),
        ("log", {"train/epoch": 2, "train/loss_total": 0.5, "validation/mAP": 0.2}, [], 20),
        ("log", {}, ["samples"], 20),
        ("close", False),
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_ends_early_is_marked_as_failed(experiment, recorder, error):
    opened = Trackers(["tensorboard"], experiment)

    def run():
        with opened:
            opened.start()
            raise error

    with pytest.raises(error):
        run()
    assert opened.open["tensorboard"].calls[-1] == ("close", True)


@pytest.mark.parametrize("failing", ["open", "log", "close"])
def test_a_tracker_that_fails_is_disabled_with_one_warning(experiment, recorder, monkeypatch, caplog, failing):
    recorder.failing = (failing,)
    monkeypatch.setitem(trackers.TRACKERS, "wandb", type("Working", (Recorder,), {}))
    with Trackers(["tensorboard", "wandb"], experiment) as opened:
        opened.start()
        for number in (1, 2):
            epoch(opened, number)
        opened.finish()
        working = opened.open["wandb"]
    [message] = caplog.messages
    assert "tensorboard" in message
    assert "no space left" in message
    assert [call[0] for call in working.calls] == ["open", "log", "log", "log", "close"]


def test_the_error_for_a_missing_package_has_the_install_command(monkeypatch):
    def version(name):
        raise trackers.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(trackers.metadata, "version", version)
    with pytest.raises(ValueError, match=r"tensorboard is not installed; pip install -e '\.\[tensorboard\]'"):
        check_installed(["tensorboard"])


# ---- TensorBoard -------------------------------------------------------------------------------------------


def test_tensorboard_shows_each_step_once_after_a_resume(experiment):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Trackers(["tensorboard"], experiment) as opened:
        opened.start()
        for number in (1, 2, 3):
            picture(experiment / "samples.png", number)
            epoch(opened, number)
    write_metrics(experiment, [line(1)])
    with Trackers(["tensorboard"], experiment) as opened:
        opened.start()
        epoch(opened, 2)
    events = EventAccumulator(str(experiment / "tensorboard"), {"scalars": 0, "images": 0}).Reload()
    assert [(each.step, each.value) for each in events.Scalars("train/loss_total")] == [(10, 1.0), (20, 0.5)]
    assert [(each.step, each.value) for each in events.Scalars("validation/mAP")] == [(20, pytest.approx(0.2))]
    assert [(each.step, each.width) for each in events.Images("samples")] == [(10, 4)]


# ---- W&B ---------------------------------------------------------------------------------------------------


@pytest.fixture
def wandb(monkeypatch, tmp_path_factory):
    """Import wandb without an API key or settings of this machine."""
    import wandb

    for name in ("WANDB_MODE", "WANDB_API_KEY", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    yield wandb
    wandb.teardown()


def starts(experiment):
    """Return the ids in the folder names of all starts: offline-run-DATE-ID, or -DATE-ID-1 within the same second."""
    return [path.name.split("-")[3] for path in sorted(experiment.glob("wandb/offline-run-*"))]


def test_wandb_is_offline_without_a_key_and_a_resumed_run_keeps_its_id(experiment, wandb):
    for number in (1, 2):
        with Trackers(["wandb"], experiment) as opened:
            opened.start()
            picture(experiment / "samples.png", number)
            epoch(opened, number)
            opened.finish()
            assert opened.open
    assert set(starts(experiment)) == {run_id(experiment)}


def test_wandb_is_offline_under_slurm_even_with_a_key(experiment, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with Trackers(["wandb"], experiment) as opened:
        opened.start()
    assert starts(experiment) == [run_id(experiment)]
