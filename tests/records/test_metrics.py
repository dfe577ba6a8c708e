"""records/metrics.py: metrics come back, are restored from a checkpoint, and are drawn."""

import pytest

from records.metrics import draw_curves, read_metrics, restore_metrics, write_metrics


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
