"""How many threads OpenMP starts, and how they wait: environment variables, which it reads when torch is imported.

PyTorch's wheels for Linux bring GCC's OpenMP, which obeys OMP_WAIT_POLICY (unless GOMP_SPINCOUNT is set) and ignores
LLVM's KMP_BLOCKTIME. LLVM's OpenMP obeys OMP_WAIT_POLICY, too."""

import os
from collections.abc import Mapping

from engine.compute.machine import allowed_cores, usable_cores

WAIT_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # by which a user chooses how threads wait
# The second holds the number if a command of this project chose it, so that those it starts choose theirs.
THREADS, CHOSEN_THREADS = "OMP_NUM_THREADS", "WORKBENCH_CHOSEN_THREADS"


def fit_threads() -> None:
    """Set the variables for this process and those that it starts."""
    os.environ.update(thread_settings(os.environ, usable_cores(), allowed_cores()))


def thread_settings(environ: Mapping[str, str], usable: float, allowed: int) -> dict[str, str]:
    """Return the variables to set; those that the user, or torchrun (1 for each of several ranks), has set are kept.

    Threads wait passively, because threads that spin while they wait take the cores from other processes. Their number
    is what Slurm grants each task, or this rank's share of the usable cores. If that is all the cores that it may run
    on, the library chooses, because it knows which of them share a physical core.
    usable: cores that the machine leaves to this process, see usable_cores. allowed: cores that it may run on."""
    settings = {} if any(name in environ for name in WAIT_SETTINGS) else {"OMP_WAIT_POLICY": "PASSIVE"}
    is_inherited = THREADS in environ and environ[THREADS] == environ.get(CHOSEN_THREADS)
    if THREADS in environ and not is_inherited:
        return settings
    share = _number(environ, "SLURM_CPUS_PER_TASK") or usable / (_number(environ, "LOCAL_WORLD_SIZE") or 1)
    threads = max(1, int(min(usable, share)))
    if is_inherited or threads < allowed:
        settings.update({THREADS: str(threads), CHOSEN_THREADS: str(threads)})
    return settings


def _number(environ: Mapping[str, str], name: str) -> int:
    """Return the value of a variable, or 0 if it is not a number."""
    text = environ.get(name, "")
    return int(text) if text.isdecimal() else 0
