"""Environment variables of torchrun that define a process's rank; read without importing torch.

engine/distributed.py contains the communication between ranks."""

import os
import re

FIRST_PORT, PORTS = 10_000, 20_000  # ports 10000 to 29999, below the ports that operating systems assign


def is_first() -> bool:
    """Return whether this process is rank 0, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def is_first_on_node() -> bool:
    """Return whether this process has the lowest rank of the run on this machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def read_slurm_step() -> None:
    """Set torchrun's variables from Slurm's if srun started this process as one of several tasks.

    Batch scripts and shells in srun (--pty) have similar variables, but are single processes, so nothing is set.
    MASTER_ADDR and MASTER_PORT are kept if they are set."""
    step = os.environ
    tasks = int(step.get("SLURM_STEP_NUM_TASKS", "1"))
    if "RANK" in step or "SLURM_PTY_PORT" in step or tasks == 1:
        return
    job, number, nodes = int(step["SLURM_JOB_ID"]), int(step["SLURM_STEP_ID"]), int(step["SLURM_STEP_NUM_NODES"])
    settings = {
        # With --gpus-per-task=1 each process sees only its own GPU, as GPU 0.
        "LOCAL_RANK": "0" if step.get("SLURM_GPUS_PER_TASK") == "1" else step["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(-(-tasks // nodes)),
        "MASTER_ADDR": "127.0.0.1" if nodes == 1 else first_host(step["SLURM_STEP_NODELIST"]),
        # A different port for each job and step, so that two jobs on one machine are unlikely to collide.
        "MASTER_PORT": str(FIRST_PORT + (10 * job + number) % PORTS),
        "RANK": step["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
    }
    os.environ.update(settings | {name: step[name] for name in ("MASTER_ADDR", "MASTER_PORT") if step.get(name)})


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list, for example node07 for `node[07-08,11],login`."""
    return re.sub(r"\[(\w+).*?\]", r"\1", nodes).partition(",")[0]
