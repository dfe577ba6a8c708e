"""What this process may use of the machine that it runs on: cores and memory, as far as Linux tells, and GPUs.

A container or a Slurm job sees all of its node's cores and memory, and is held to less: by its affinity, and by the
limits of its control group (cgroup, of version 1 or 2) and of the groups that this one is in.
"""

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS, OWN_CGROUPS, MEMINFO = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), Path("/proc/meminfo")


def allowed_cores() -> int:
    """Return the number of cores that this process may run on, by its affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> float:
    """Cores that this process may be busy on at a time: those it may run on, or what a quota leaves of them."""
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
    """Bytes that this process may hold before it is killed: all that there is, or what its cgroups leave of it."""
    limits = [int(text) for name in ("memory.max", "memory.limit_in_bytes") for text in _limits(name) if text != "max"]
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *limits])


def free_memory() -> int:
    """Bytes that no process holds, or that the system would give back, of the whole machine."""
    try:
        lines = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # another system
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _limits(name: str) -> Iterator[str]:
    """What a file of that name says in this process's cgroup and in each group that it is in."""
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
