"""Distributed training: start-up, ranks and collectives. Only this module uses torch.distributed.

`torchrun`, or Slurm's `srun` (engine/ranks.py), starts one process per GPU (NCCL), or several processes on the CPU
(gloo). A plain `python -m ...` has world size 1 and no process group; all functions work without a group, too.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = timedelta(minutes=10)  # how long a collective waits for a rank that hangs
CLAIM_SECONDS = 5  # how long is_first_failure waits for rank 0, which may hang
PR_SET_PDEATHSIG = 1  # option of Linux's prctl: send this process a signal when its parent dies

_store: dist.Store | None = None  # key-value store that all ranks share


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Context manager that joins the process group of torchrun or srun, if there is one; yields this process's device.

    The device is the GPU numbered LOCAL_RANK if CUDA is available, else the CPU. Collectives use gloo for CPU tensors
    and Python objects, NCCL for CUDA tensors. Raises ValueError if there are too few GPUs or the rendezvous fails."""
    global _store
    _stop_if_torchrun_dies()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if device.index >= torch.cuda.device_count():
            raise ValueError(
                f"process {device.index} of this node has no GPU (the node has {torch.cuda.device_count()}): start "
                "fewer processes (torchrun --nproc_per_node), or hide all GPUs to use the CPU (CUDA_VISIBLE_DEVICES=)"
            )
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        _store, rank, world_size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        dist.init_process_group(backend, store=_store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    except dist.DistNetworkError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ValueError(f"rendezvous of the processes at {place} failed: {str(error).splitlines()[0]}") from error
    yield device
    # Skipped after an error, because other ranks may be blocked in a collective.
    any_rank(False)  # wait for rank 0, which may still write: srun --wait kills all ranks soon after the first ends
    dist.destroy_process_group()


def is_from_another_rank(error: Exception) -> bool:
    """Return whether an error was raised because another rank has died, or has hung for TIMEOUT."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)  # gloo's errors have no class of their own


def is_first_failure() -> bool:
    """Return whether this rank is the first one to call this function; only the first rank reports its error.

    Returns False if rank 0, which hosts the store, has ended: then rank 0 or the launcher has reported the failure.
    Returns True if rank 0 does not answer: an error that is reported twice is better than one that is lost."""
    if _store is None:
        return True
    answer = ThreadPoolExecutor(1).submit(_store.add, "failures", 1)
    try:
        return answer.result(CLAIM_SECONDS) == 1
    except TimeoutError:
        return True
    except dist.DistError:
        return False


def _stop_if_torchrun_dies() -> None:
    """Make Linux send SIGTERM to this process if torchrun dies, for example of SIGUSR1; the process saves and stops.

    Without SIGTERM, the ranks would continue without a launcher. Does nothing on other systems."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def rank() -> int:
    """Return the rank of this process, 0 to world_size - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this process is rank 0, which writes files and prints."""
    return rank() == 0


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all processes, detached."""
    total = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def any_rank(flag: bool) -> bool:
    """Return on every rank whether `flag` is true on any rank."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)  # a CPU tensor, so nothing waits for the GPU
    return bool(flags)


def gather(value: object) -> list | None:
    """Return the picklable `value` of every rank, in rank order; return None on ranks other than 0."""
    if world_size() == 1:
        return [value]
    values: list | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values


def broadcast(value: object) -> object:
    """Return rank 0's picklable `value` on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def broadcast_buffers(model: nn.Module) -> None:
    """Copy rank 0's buffers to all ranks, because BatchNorm statistics differ: each rank trains on different images."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def data_parallel(model: nn.Module, device: torch.device, static_graph: bool) -> nn.Module:
    """Wrap `model` in DistributedDataParallel, which averages gradients over ranks. With one process, return `model`.

    static_graph: whether every backward pass exchanges the gradients of the same parameters."""
    if world_size() == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        static_graph=static_graph,
    )
