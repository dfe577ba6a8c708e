"""The variables that make a process one of several, as torchrun sets them; read before torch is imported.

engine/distributed.py is for the messages between the processes."""

import os
import re

FIRST_PORT, PORTS = 10_000, 20_000  # the ports below those that systems assign by themselves


def is_first() -> bool:
    """Return whether this process is rank 0; a process alone is."""
    return os.environ.get("RANK", "0") == "0"


def is_first_on_node() -> bool:
    """Return whether no other process of this run has a lower rank on this machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def read_slurm_step() -> None:
    """Set torchrun's variables from Slurm's, if srun started this process as one of several tasks.

    A batch script, and a shell that srun started (--pty), have similar variables, but are single processes.
    MASTER_ADDR and MASTER_PORT stay as they are if set."""
    step = os.environ
    tasks = int(step.get("SLURM_STEP_NUM_TASKS", "1"))
    if "RANK" in step or "SLURM_PTY_PORT" in step or tasks == 1:
        return
    job, number, nodes = int(step["SLURM_JOB_ID"]), int(step["SLURM_STEP_ID"]), int(step["SLURM_STEP_NUM_NODES"])
    settings = {
        # A step with --gpus-per-task=1 shows each process its own GPU only, as the first.
        "LOCAL_RANK": "0" if step.get("SLURM_GPUS_PER_TASK") == "1" else step["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(-(-tasks // nodes)),
        "MASTER_ADDR": "127.0.0.1" if nodes == 1 else first_host(step["SLURM_STEP_NODELIST"]),
        # A port that no other job, and no other step at the same time, is likely to use.
        "MASTER_PORT": str(FIRST_PORT + (10 * job + number) % PORTS),
        "RANK": step["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
    }
    os.environ.update(settings | {name: step[name] for name in ("MASTER_ADDR", "MASTER_PORT") if step.get(name)})


def first_host(nodes: str) -> str:
    """Return the first name of a list of nodes as Slurm writes it: node07 of `node[07-08,11],login`."""
    return re.sub(r"\[(\w+).*?\]", r"\1", nodes).partition(",")[0]
