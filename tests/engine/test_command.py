"""engine/command.py: exit codes, and one line per error."""

import pytest

from engine.command import RunError, run_command


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


def test_a_bug_keeps_its_traceback():
    def main(device):
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run_command(main)
