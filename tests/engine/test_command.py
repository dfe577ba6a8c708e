"""engine/command.py: exit codes, and one line per error."""

import pytest

from engine.command import RunError, run_command
from engine.logbook import start_logging


@pytest.mark.parametrize(
    ("raised", "code"),
    [(ValueError("x.yaml: bad"), 2), (FileNotFoundError("x"), 2), (RunError("step 3"), 1), (KeyboardInterrupt(), 130)],
)  # fmt: skip
def test_what_went_wrong_is_the_exit_code_and_one_line(raised, code, capsys):
    def main(device):
        raise raised

    with pytest.raises(SystemExit) as exit_:
        run_command(main)
    assert exit_.value.code == code
    assert capsys.readouterr().err == ("" if code == 130 else f"error: {raised}\n")


def test_a_bug_keeps_its_traceback(capsys):
    def main(device):
        raise KeyError("bug")

    with pytest.raises(SystemExit) as exit_:
        run_command(main)
    assert exit_.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: a bug: KeyError: 'bug'\nTraceback")
    assert "raise KeyError" in error


def test_the_log_file_of_the_experiment_says_why_a_run_ended(tmp_path):
    def main(device):
        start_logging(tmp_path, verbose=True)
        raise RunError("step 3: no")

    with pytest.raises(SystemExit):
        run_command(main)
    assert " ERROR error: step 3: no" in (tmp_path / "train.log").read_text().splitlines()[-1]
