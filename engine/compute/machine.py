"""What this process may use of its machine: cores, memory and GPUs.

A container or a Slurm job sees all of its node's cores and memory, but is limited by its affinity, and by its control
group (cgroup, version 1 or 2) and the groups above that one. psutil does not know those limits.
"""

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def allowed_cores() -> int:
    """Return the number of cores that this process may run on, by its affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> float:
    """Return how many cores this process may use at a time: those it may run on, or what a quota leaves of them."""
    quotas = [
        float(quota) / float(period)
        for quota, period in (text.split() for text in _limits("cpu.max"))  # version 2: both in one file
        if quota != "max"
    ]
    version_1 = zip(_limits("cpu.cfs_quota_us"), _limits("cpu.cfs_period_us"), strict=True)
    quotas += [float(quota) / float(period) for quota, period in version_1 if float(quota) > 0]
    return min([allowed_cores(), *quotas])


def visible_gpus() -> list[str]:
    """Return the GPUs that torch can use here, as CUDA_VISIBLE_DEVICES names them."""
    import torch  # takes seconds, and not every caller needs it

    count, names = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",")[:count] if names else [str(index) for index in range(count)]


def memory_limit() -> int:
    """Return the bytes that this process may hold: all of the machine, or what its cgroups allow."""
    limits = [int(text) for name in ("memory.max", "memory.limit_in_bytes") for text in _limits(name) if text != "max"]
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *limits])


def _limits(name: str) -> Iterator[str]:
    """Yield the content of the file `name` in this process's cgroup and in each group above it."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:  # "0::/user.slice/job", or of version 1 "4:memory:/job", whose folder is named by the controller
        _, controller, own = line.split(":", 2)
        top = CGROUPS / controller
        for folder in (top / own.lstrip("/"), *(top / own.lstrip("/")).parents):
            if folder.is_relative_to(top) and (folder / name).is_file():
                yield (folder / name).read_text().strip()
