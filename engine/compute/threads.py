"""How many threads torch uses, and how they wait.

PyTorch's wheels for Linux bring GCC's OpenMP, which reads OMP_WAIT_POLICY (unless GOMP_SPINCOUNT is set) when torch is
imported, and ignores LLVM's KMP_BLOCKTIME. LLVM's OpenMP reads OMP_WAIT_POLICY, too."""

import os
from collections.abc import Mapping

from engine.compute.machine import allowed_cores, usable_cores


def fit_threads() -> None:
    """Import torch with threads that wait passively, and as many of them as `thread_count` says.

    Threads that spin while they wait take the cores from other processes."""
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    if count := thread_count(os.environ, usable_cores(), allowed_cores()):
        torch.set_num_threads(count)


def thread_count(environ: Mapping[str, str], usable: float, allowed: int) -> int | None:
    """Return the number of threads to set, or None to leave it to the library.

    What the user or torchrun (1 for each of several ranks) has set is kept. Else it is what Slurm grants each task, or
    this rank's share of the usable cores. If that is all the cores that the process may run on, the library chooses,
    because it knows which of them share a physical core.
    usable: cores that the machine leaves to this process, see usable_cores. allowed: cores that it may run on."""
    if "OMP_NUM_THREADS" in environ:
        return None
    share = float(environ.get("SLURM_CPUS_PER_TASK", usable / int(environ.get("LOCAL_WORLD_SIZE", "1"))))
    threads = max(1, int(min(usable, share)))
    return threads if threads < allowed else None
