"""Set how many threads torch uses, and how idle threads wait.

PyTorch's Linux wheels contain GCC's OpenMP. It reads OMP_WAIT_POLICY (unless GOMP_SPINCOUNT is set) when torch is
imported, and ignores LLVM's KMP_BLOCKTIME. LLVM's OpenMP reads OMP_WAIT_POLICY, too."""

import os
from collections.abc import Mapping

from engine.compute.machine import allowed_cores, usable_cores


def fit_threads() -> None:
    """Import torch with `thread_count` threads that wait passively.

    Threads that spin while they wait would take CPU time from other processes."""
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    if count := thread_count(os.environ, usable_cores(), allowed_cores()):
        torch.set_num_threads(count)


def thread_count(environ: Mapping[str, str], usable: float, allowed: int) -> int | None:
    """Return the number of threads to set; None to keep the setting in OMP_NUM_THREADS or the library's default.

    OMP_NUM_THREADS comes from the user or from torchrun (1 if there are several ranks). Otherwise the number is Slurm's
    number of cores per task, or this rank's share of the usable cores. If this is not below `allowed`, the library's
    default is kept, because it considers which cores share a physical core.
    usable, allowed: see `usable_cores` and `allowed_cores`."""
    if "OMP_NUM_THREADS" in environ:
        return None
    share = float(environ.get("SLURM_CPUS_PER_TASK", usable / int(environ.get("LOCAL_WORLD_SIZE", "1"))))
    threads = max(1, int(min(usable, share)))
    return threads if threads < allowed else None
