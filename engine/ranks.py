"""What a process knows of the ranks it belongs to before torch is imported, and what it leaves to engine.launch.

engine/distributed.py is for what they say to each other."""

import json
import os
from pathlib import Path
from typing import NamedTuple

# Environment variables of the processes that engine.launch starts: its process id; a folder for their last words.
LAUNCHER, LAST_WORDS = "WORKBENCH_LAUNCHER", "WORKBENCH_LAST_WORDS"


def is_first() -> bool:
    """Return whether torchrun, if it started this process, made it rank 0."""
    return os.environ.get("RANK", "0") == "0"


class LastWord(NamedTuple):
    """What a process leaves to engine.launch, which speaks for all."""

    code: int  # its exit code, not 0
    line: str = ""  # the error, if it was one
    of_another: bool = False  # whether another process is to blame, which may have said more


def leave_word(word: LastWord) -> bool:
    """Whether there is a launcher to leave it to."""
    try:
        (Path(os.environ[LAST_WORDS]) / os.environ["RANK"]).write_text(json.dumps(word))
    except (KeyError, OSError):  # not started by it; it has ended already
        return False
    return True
