"""records/trackers.py: who is told what, and that none of them is worth a run."""

import numpy as np
import pytest
from PIL import Image

from records import trackers
from records.metrics import read_metrics, write_metrics
from records.trackers import Trackers, check_installed, grouped, run_id
from stats.image_statistics import Matches


class Recorder:
    """A tracker that remembers what it is told; the calls named in `failing` fail."""

    failing: tuple[str, ...] = ()

    def __init__(self, experiment, step):
        self.calls = []
        self.note("open", step)

    def note(self, *call):
        if call[0] in self.failing:
            raise OSError("no space left")
        self.calls.append(call)

    def log(self, numbers, pictures, step):
        self.note("log", dict(numbers), sorted(pictures), step)

    def draw_precision(self, matches, step):
        self.note("draw_precision", step)

    def close(self, failed):
        self.note("close", failed)


@pytest.fixture
def experiment(tmp_path):
    (tmp_path / "config.yaml").write_text("train:\n  epochs: 3\n")
    return tmp_path


@pytest.fixture
def recorder(monkeypatch):
    """A class of its own for each test, known as "tensorboard"."""
    cls = type("Recorder", (Recorder,), {})
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", cls)
    return cls


def line(epoch):
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "train_loss_total": 1 / epoch,
        "mAP": None if epoch == 1 else 0.1 * epoch,
    }


def epoch(told, number):
    write_metrics(told.experiment, [*read_metrics(told.experiment), line(number)])
    told.log(line(number))


def picture(path, grey):
    Image.new("RGB", (4, 4), (grey, grey, grey)).save(path)


def statistics(experiment):
    """One object, found."""
    Matches(
        np.array([1]), np.array(["cat"]), np.array([0.5]), np.zeros(1, np.int32), np.zeros(1, np.int16),
        np.array([0.9]), np.ones((1, 1), bool), np.zeros((1, 1), bool), np.zeros(1, np.int32), np.zeros(1, np.int16),
    ).save(experiment)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("train_loss_total", "train/loss_total"), ("learning_rate", "train/learning_rate"),
        ("epoch_seconds", "speed/epoch_seconds"), ("images_per_second", "speed/images_per_second"),
        ("mAP", "validation/mAP"), ("val_loss", "validation/val_loss"),
    ],
)  # fmt: skip
def test_numbers_stand_in_groups(name, shown):
    assert grouped(name) == shown


def test_numbers_that_nothing_defines_are_left_out(experiment, recorder):
    with Trackers(["tensorboard"], experiment) as told:
        told.start()
        epoch(told, 1)
        calls = told.open["tensorboard"].calls
    assert calls[1] == ("log", {"train/epoch": 1, "train/loss_total": 1.0}, [], 10)


def test_a_picture_is_sent_when_it_is_new_and_curves_never_are(experiment, recorder):
    picture(experiment / "old.png", 0)
    with Trackers(["tensorboard"], experiment) as told:
        told.start()
        picture(experiment / "samples.png", 10)
        picture(experiment / "curves.png", 10)
        epoch(told, 1)
        epoch(told, 2)
        picture(experiment / "samples.png", 20)
        epoch(told, 3)
        calls = told.open["tensorboard"].calls
    assert [call[2] for call in calls if call[0] == "log"] == [["samples"], [], ["samples"]]


def test_the_end_of_a_detector_tells_its_precision(experiment, recorder):
    with Trackers(["tensorboard"], experiment) as told:
        told.start()
        epoch(told, 1)
        statistics(experiment)
        told.finish()
        calls = told.open["tensorboard"].calls
    assert calls[-2:] == [("draw_precision", 10), ("close", False)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_ends_early_is_told_as_such(experiment, recorder, error):
    told = Trackers(["tensorboard"], experiment)

    def run():
        with told:
            told.start()
            raise error

    with pytest.raises(error):
        run()
    assert told.open["tensorboard"].calls[-1] == ("close", True)


@pytest.mark.parametrize("failing", ["open", "log", "draw_precision", "close"])
def test_a_tracker_that_fails_is_warned_of_once_and_left_out(experiment, recorder, monkeypatch, caplog, failing):
    recorder.failing = (failing,)
    other = type("Other", (Recorder,), {})
    monkeypatch.setitem(trackers.TRACKERS, "wandb", other)
    with Trackers(["tensorboard", "wandb"], experiment) as told:
        told.start()
        for number in (1, 2):
            epoch(told, number)
        statistics(experiment)
        told.finish()
        survivor = told.open["wandb"]
    assert caplog.messages == ["train.trackers: tensorboard fails and is left out from here on (no space left)"]
    assert [call[0] for call in survivor.calls] == ["open", "log", "log", "log", "draw_precision", "close"]


def test_without_names_nothing_is_opened(experiment):
    with Trackers((), experiment) as told:
        told.start()
        epoch(told, 1)
        told.finish()
        assert not told.open


def test_a_missing_package_is_refused_with_the_command_that_installs_it(monkeypatch):
    def version(name):
        raise trackers.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(trackers.metadata, "version", version)
    with pytest.raises(ValueError, match=r"tensorboard is not installed; pip install -e '\.\[tensorboard\]'"):
        check_installed(["tensorboard"])


# ---- TensorBoard -------------------------------------------------------------------------------------------


@pytest.fixture
def events(experiment):
    """Reads what TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read():
        found = EventAccumulator(str(experiment / "tensorboard"), {"scalars": 0, "images": 0, "tensors": 0})
        return found.Reload()

    return read


def test_tensorboard_shows_numbers_and_pictures_by_step(experiment, events):
    with Trackers(["tensorboard"], experiment) as told:
        told.start()
        epoch(told, 1)
        picture(experiment / "samples.png", 10)
        epoch(told, 2)
    assert [(each.step, each.value) for each in events().Scalars("train/loss_total")] == [(10, 1.0), (20, 0.5)]
    assert [(each.step, each.value) for each in events().Scalars("validation/mAP")] == [(20, pytest.approx(0.2))]
    assert [(each.step, each.width) for each in events().Images("samples")] == [(20, 4)]


def test_tensorboard_forgets_what_a_resumed_run_tells_again(experiment, events):
    with Trackers(["tensorboard"], experiment) as told:
        told.start()
        for number in (1, 2, 3):
            epoch(told, number)
    write_metrics(experiment, [line(1)])
    with Trackers(["tensorboard"], experiment) as told:
        told.start()
        epoch(told, 2)
    assert [each.step for each in events().Scalars("train/loss_total")] == [10, 20]


def test_tensorboard_has_the_precision_of_each_class(experiment, events):
    from tensorboard.util.tensor_util import make_ndarray

    statistics(experiment)
    with Trackers(["tensorboard"], experiment) as told:
        told.start()
        epoch(told, 1)
        told.finish()
    curves = make_ndarray(events().Tensors("precision by recall/cat")[0].tensor_proto)
    right, wrong, _, missed, precision, recall = curves[:, [0, -1]].T.tolist()[0]  # at score 0
    assert (right, wrong, missed, precision, recall) == (1, 0, 0, 1, 1)
    assert (curves[0, -1], curves[4, -1]) == (0, 1)  # at score 1: nothing found, and nothing wrong


def test_tensorboard_without_a_folder_to_write_in_does_not_end_the_run(experiment, events, caplog):
    (experiment / "tensorboard").write_text("in its way")
    with Trackers(["tensorboard"], experiment) as told:
        told.start()
        epoch(told, 1)
    assert len(caplog.messages) == 1


# ---- W&B ---------------------------------------------------------------------------------------------------


@pytest.fixture
def wandb(monkeypatch, tmp_path_factory):
    """Without a key or any setting of the machine's own."""
    import wandb

    for name in ("WANDB_MODE", "WANDB_API_KEY", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    yield wandb
    wandb.teardown()


def starts(experiment):
    """The folders of its starts, by the ids in their names: offline-run-DATE-ID, of one second the later -DATE-ID-1."""
    return [path.name.split("-")[3] for path in sorted(experiment.glob("wandb/offline-run-*"))]


def test_wandb_is_offline_where_no_key_is_known_and_a_resumed_run_keeps_its_id(experiment, wandb):
    for number in (1, 2):
        with Trackers(["wandb"], experiment) as told:
            told.start()
            epoch(told, number)
            picture(experiment / "samples.png", number)
            statistics(experiment)
            told.finish()
            assert told.open
    assert set(starts(experiment)) == {run_id(experiment)}


def test_wandb_is_offline_under_slurm_even_with_a_key(experiment, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with Trackers(["wandb"], experiment) as told:
        told.start()
    assert starts(experiment) == [run_id(experiment)]


def test_experiments_have_different_ids(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert run_id(tmp_path / "a") != run_id(tmp_path / "b")
