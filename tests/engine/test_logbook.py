"""engine/logbook.py: metrics come back, are restored from a checkpoint, and are drawn."""

import json
import os

import pytest

from engine import logbook
from engine.logbook import (
    draw_curves,
    logger,
    progress_bar,
    read_metrics,
    read_status,
    restore_metrics,
    start_logging,
    training_bar,
    write_metrics,
)


def line(epoch: int, score: float | None) -> dict:
    return {
        "epoch": epoch, "step": 10 * epoch, "train_loss_total": 1 / epoch, "train_loss_classification": 0.5 / epoch,
        "learning_rate": 1e-3, "mAP": score,
    }  # fmt: skip


LINES = [line(1, None), line(2, 0.2), line(3, 0.3)]


@pytest.fixture
def experiment(tmp_path):
    write_metrics(tmp_path, LINES)
    return tmp_path


def test_a_bar_in_a_log_file_is_lines_of_plain_text(capsys):
    with progress_bar(total=10, unit="step", desc="epoch 1", delay=0, mininterval=0) as bar:
        bar.update(3)
        with progress_bar(total=2, desc="scoring", delay=0, mininterval=0, leave=False) as inner:
            inner.update()
    text = capsys.readouterr().err
    assert "epoch 1:  30%" in text
    assert "scoring:  50%" in text
    assert not set("\r\x1b") & set(text)
    assert all(line.startswith(("epoch 1:", "scoring:")) for line in text.splitlines())


def test_a_bar_in_a_log_file_waits_a_minute_before_it_says_anything(capsys):
    for _ in progress_bar(range(5)):
        pass
    assert capsys.readouterr().err == ""


def test_a_run_says_in_status_json_where_it_is_while_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(logbook, "STATUS_SECONDS", 0)
    with training_bar(tmp_path, step=9, steps_per_epoch=10, epochs=3, metric="mAP") as bar:
        assert read_status(tmp_path) is None
        bar.update()
        assert read_status(tmp_path)["epoch"] == 1  # its last step
        bar.update()
        status = json.loads((tmp_path / "status.json").read_text())
    del status["host"], status["updated"]
    assert status == {
        "state": "running", "step": 11, "total_steps": 30, "epoch": 2, "epochs": 3, "metric": "mAP", "pid": os.getpid()
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_the_status_is_not_written_at_every_step(tmp_path, monkeypatch):
    monkeypatch.setattr(logbook, "STATUS_SECONDS", 1000)
    with training_bar(tmp_path, step=0, steps_per_epoch=10, epochs=1, metric="mAP") as bar:
        bar.update()
        bar.update()
        assert read_status(tmp_path)["step"] == 1


def test_a_status_that_cannot_be_written_ends_no_run(tmp_path):
    with training_bar(tmp_path / "gone", step=0, steps_per_epoch=10, epochs=1, metric="mAP") as bar:
        bar.update()
    assert bar.n == 1


def test_a_status_cut_by_a_power_failure_says_nothing(tmp_path):
    (tmp_path / "status.json").touch()
    assert read_status(tmp_path) is None


def test_metrics_come_back_in_order(experiment):
    assert [entry["epoch"] for entry in read_metrics(experiment)] == [1, 2, 3]


def test_restoring_forgets_the_epochs_after_a_checkpoint_without_a_word(experiment, caplog):
    restore_metrics(experiment, LINES[:2])
    assert read_metrics(experiment) == LINES[:2]
    assert [row.split(",")[0] for row in (experiment / "metrics.csv").read_text().splitlines()] == ["epoch", "1", "2"]
    assert not caplog.records


def test_a_line_cut_by_a_kill_is_forgotten(experiment, caplog):
    path = experiment / "metrics.jsonl"
    path.write_text(path.read_text() + '{"epoch": 4, "st')
    restore_metrics(experiment, LINES)
    assert read_metrics(experiment) == LINES
    assert not caplog.records


@pytest.mark.parametrize(
    "content", [b"", b"not JSON\n", b"\xff\0\n", b'{"epoch": 1}\n', b"[" * 100_000 + b"\n", b'{"step": 10}\n']
)
def test_a_damaged_file_is_kept_aside_and_written_again_from_the_checkpoint(experiment, caplog, content):
    (experiment / "metrics.jsonl").write_bytes(content)
    restore_metrics(experiment, LINES)
    assert read_metrics(experiment) == LINES
    assert (experiment / "metrics.jsonl.damaged").read_bytes() == content
    assert "metrics.jsonl.damaged" in caplog.text


@pytest.mark.parametrize("lose", [lambda path: path.unlink(), lambda path: (path.unlink(), path.mkdir())])
def test_a_lost_file_is_written_again_from_the_checkpoint(experiment, caplog, lose):
    lose(experiment / "metrics.jsonl")
    restore_metrics(experiment, LINES)
    assert read_metrics(experiment) == LINES
    assert "metrics.jsonl" in caplog.text


def test_the_table_has_a_row_for_each_epoch_and_a_column_for_each_number_that_any_of_them_has(experiment):
    write_metrics(experiment, [*LINES, {"epoch": 4, "step": 40, "AP50": 0.5}])
    header, first, *_, last = (experiment / "metrics.csv").read_text().splitlines()
    assert header == "epoch,step,train_loss_total,train_loss_classification,learning_rate,mAP,AP50"
    assert first == "1,10,1.0,0.5,0.001,,"
    assert last == "4,40,,,,,0.5"


def test_before_the_first_epoch_there_is_no_table(experiment):
    write_metrics(experiment, [])
    assert not (experiment / "metrics.csv").exists()


def test_curves_are_drawn_even_where_a_score_is_undefined(experiment):
    draw_curves(experiment, ("mAP",), {"classification": 0.4})
    assert (experiment / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_messages_go_to_the_log_file_of_the_experiment(tmp_path):
    start_logging(tmp_path, verbose=False)
    logger.info("learning %s", "now")
    start_logging(None, verbose=False)
    logger.info("not here")
    text = (tmp_path / "train.log").read_text()
    assert text.endswith("INFO learning now\n")
