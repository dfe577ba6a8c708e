"""engine/command.py: exit codes, and one line per error."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine.command import DivergedError, RunError, run_command
from engine.logbook import start_logging

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (ValueError("x.yaml: bad"), 2),
        (FileNotFoundError("x"), 2),
        (RunError("step 3"), 1),
        (DivergedError("step 3"), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_sets_the_exit_code_and_is_one_line_on_the_terminal_and_in_the_log(raised, code, tmp_path, capsys):
    def main(device):
        start_logging(tmp_path, verbose=True)
        raise raised

    with pytest.raises(SystemExit) as exit_:
        run_command(main)
    assert exit_.value.code == code
    assert capsys.readouterr().err == ("" if code == 130 else f"error: {raised}\n")
    assert (f" ERROR error: {raised}\n" in (tmp_path / "train.log").read_text()) == (code != 130)


LOADER = """
import os, sys, time
from torch.utils.data import DataLoader
from engine.command import run_command

class Samples:
    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index == 4:
            {end}
        return index

def main(device):
    for _ in DataLoader(Samples(), num_workers=2, timeout=2, multiprocessing_context="fork"):
        pass

run_command(main)
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "time.sleep(60)"])
def test_a_loader_process_that_dies_or_hangs_ends_the_run_with_a_one_line_error(end):
    code = LOADER.format(end=end)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "lower data.workers" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_bug_prints_its_traceback(capsys):
    def main(device):
        raise KeyError("bug")

    with pytest.raises(SystemExit) as exit_:
        run_command(main)
    assert exit_.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.endswith("\nerror: a bug: KeyError: 'bug'\n")
    assert "raise KeyError" in error
