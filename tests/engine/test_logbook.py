"""engine/logbook.py: progress bars and messages."""

from engine.logbook import logger, progress_bar, start_logging


def test_a_progress_bar_in_a_log_file_is_lines_of_plain_text(capsys):
    with progress_bar(total=10, unit="step", desc="epoch 1", delay=0, mininterval=0) as bar:
        bar.update(3)
        with progress_bar(total=2, desc="scoring", delay=0, mininterval=0, leave=False) as inner:
            inner.update()
    text = capsys.readouterr().err
    assert "epoch 1:  30%" in text
    assert "scoring:  50%" in text
    assert not set("\r\x1b") & set(text)
    assert all(line.startswith(("epoch 1:", "scoring:")) for line in text.splitlines())


def test_messages_go_to_the_log_file_of_the_experiment(tmp_path):
    start_logging(tmp_path, verbose=False)
    logger.info("learning %s", "now")
    start_logging(None, verbose=False)
    logger.info("not here")
    text = (tmp_path / "train.log").read_text()
    assert text.endswith("INFO learning now\n")
