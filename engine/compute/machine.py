"""Cores, memory and GPUs that this process may use.

A container or a Slurm job sees all cores and memory of its node. But its CPU affinity and its control group (cgroup,
version 1 or 2), including the parents of that group, limit what it may use. psutil does not report those limits.
"""

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def allowed_cores() -> int:
    """Return the number of cores in the CPU affinity of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> float:
    """Return the number of cores that this process may use at a time: `allowed_cores` or a lower cgroup quota."""
    quotas = [
        float(quota) / float(period)
        for quota, period in (text.split() for text in _limits("cpu.max"))  # cgroup version 2: "quota period"
        if quota != "max"
    ]
    version_1 = zip(_limits("cpu.cfs_quota_us"), _limits("cpu.cfs_period_us"), strict=True)
    quotas += [float(quota) / float(period) for quota, period in version_1 if float(quota) > 0]
    return min([allowed_cores(), *quotas])


def visible_gpus() -> list[str]:
    """Return the GPUs that torch can use, as named in CUDA_VISIBLE_DEVICES."""
    import torch  # imported here, because it takes seconds and not every caller needs it

    count, names = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",")[:count] if names else [str(index) for index in range(count)]


def memory_limit() -> int:
    """Return the bytes of memory that this process may use: all memory of the machine, or a lower cgroup limit."""
    limits = [int(text) for name in ("memory.max", "memory.limit_in_bytes") for text in _limits(name) if text != "max"]
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *limits])


def _limits(name: str) -> Iterator[str]:
    """Yield the content of the file `name` in this process's cgroup and in each of its parents."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:  # version 2: "0::/user.slice/job"; version 1: "4:memory:/job", below a folder named "memory"
        _, controller, own = line.split(":", 2)
        top = CGROUPS / controller
        for folder in (top / own.lstrip("/"), *(top / own.lstrip("/")).parents):
            if folder.is_relative_to(top) and (folder / name).is_file():
                yield (folder / name).read_text().strip()
