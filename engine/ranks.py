"""The variables that make a process one of several, as torchrun sets them; read before torch is imported.

engine/distributed.py is for the messages between the processes."""

import os
import subprocess
import sys

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
    MASTER_ADDR and MASTER_PORT stay as they are if set. Leaves with exit code 2 and one line if the first node of the
    step cannot be found out."""
    step = os.environ
    tasks = int(step.get("SLURM_STEP_NUM_TASKS", "1"))
    if "RANK" in step or "SLURM_PTY_PORT" in step or tasks == 1:
        return
    nodes = int(step["SLURM_STEP_NUM_NODES"])
    settings = {
        # A step with --gpus-per-task=1 shows each process its own GPU only, as the first.
        "LOCAL_RANK": "0" if step.get("SLURM_GPUS_PER_TASK") == "1" else step["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(-(-tasks // nodes)),
        "MASTER_ADDR": step.get("MASTER_ADDR") or _first_host(step["SLURM_STEP_NODELIST"], nodes),
        "MASTER_PORT": step.get("MASTER_PORT") or _port(int(step["SLURM_JOB_ID"]), int(step["SLURM_STEP_ID"])),
        "RANK": step["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
    }
    os.environ.update(settings)


def _first_host(nodes: str, count: int) -> str:
    if count == 1:
        return "127.0.0.1"
    try:
        done = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"error: scontrol show hostnames {nodes}: {error}; set MASTER_ADDR to the first of them", file=sys.stderr)
        sys.exit(2)
    return done.stdout.split()[0]


def _port(job: int, step: int) -> str:
    """Return a port that no other job, and no other step at the same time, is likely to use."""
    return str(FIRST_PORT + (10 * job + step) % PORTS)
