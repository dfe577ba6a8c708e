"""engine/launch.py: torchrun with the exit code of the run, and silent but for it."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from engine.ranks import LastWord, leave_word

def leave(code):
    leave_word(LastWord(code, "error: the file x is bad" if code == 2 else ""))
    sys.exit(code)

rank, end = os.environ["RANK"], sys.argv[1]
if end == "wait":
    signal.signal(signal.SIGUSR1, lambda *_: leave(75))
    signal.signal(signal.SIGINT, lambda *_: leave(130))
    Path(f"{rank}.waiting").touch()
    time.sleep(600)
if end == "kill" and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
if end == "2" and rank == "1":
    leave(2)
if end == "other" and rank == "0":
    leave_word(LastWord(1, "error: another process has died", True))
if end == "other" and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
if end == "hang" and rank == "0":
    leave_word(LastWord(1, "error: another process hangs", True))
    sys.exit(1)
if end != "0":
    time.sleep(600)
"""


@pytest.fixture
def launch(tmp_path):
    """Starts two processes of the script in tmp_path."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(end: str) -> subprocess.Popen:
        words = ["-m", "engine.launch", "--standalone", "--nproc_per_node=2", "script.py", end]
        command = [os.environ["PYTHON_EXEC"], *words]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    return start


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("0", 0, ""),
        ("2", 2, "error: the file x is bad\n"),
        ("other", 1, "error: rank 1 was killed by SIGKILL; out of memory?\n"),
        ("hang", 1, "error: another process hangs\n"),
        ("kill", 1, "error: rank 1 was killed by SIGKILL; out of memory?\n"),
    ],
)
def test_it_ends_with_the_exit_code_and_the_words_of_the_run(launch, end, code, said):
    process = launch(end)
    assert process.communicate(timeout=600)[1] == said
    assert process.returncode == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_signals_reach_the_run_and_end_it_with_its_exit_code(launch, tmp_path, number, code):
    process = launch("wait")
    while len(list(tmp_path.glob("*.waiting"))) < 2:
        time.sleep(0.1)
    process.send_signal(number)
    assert process.communicate(timeout=600)[1] == ""
    assert process.returncode == code
