"""records/metrics.py: metrics are written, read and plotted."""

import pytest

from records.metrics import draw_curves, read_metrics, write_metrics


def line(epoch: int, score: float | None) -> dict:
    return {
        "epoch": epoch, "step": 10 * epoch, "train_loss_total": 1 / epoch, "train_loss_classification": 0.5 / epoch,
        "learning_rate": 1e-3, "mAP": score,
    }  # fmt: skip


LINES = [line(1, None), line(2, 0.2), line(3, 0.3)]


def test_metrics_are_read_in_the_order_they_were_written(tmp_path):
    assert read_metrics(tmp_path) == []
    write_metrics(tmp_path, LINES)
    assert read_metrics(tmp_path) == LINES


@pytest.mark.parametrize("content", [b"not JSON\n", b"\xff\0\n", b'{"epoch": 1}\n', b"[1]\n", b'{"step": "x"}\n'])
def test_the_error_for_a_corrupt_file_names_it(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.jsonl: corrupt"):
        read_metrics(tmp_path)


def test_curves_are_drawn_even_if_a_score_is_undefined(tmp_path):
    write_metrics(tmp_path, LINES)
    draw_curves(tmp_path, ("mAP",), {"classification": 0.4})
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
