"""Processes that train together: start-up, who am I, and the few messages they exchange.

The only module that communicates through torch.distributed. `torchrun`, or Slurm's `srun` (engine/ranks.py), starts one
process per GPU (NCCL), or several on the CPU (gloo). A plain `python -m ...` is a world of one without a process group,
in which every function here works too.
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
PR_SET_PDEATHSIG = 1  # of Linux' prctl: a signal to this process when its parent dies

_store: dist.Store | None = None  # what all ranks of a run can read and write


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the processes that torchrun or srun started, if one did; yields this process's device.

    CUDA device LOCAL_RANK where there is one, else the CPU. Gloo carries CPU tensors and Python objects,
    NCCL the CUDA tensors. Raises ValueError if the processes cannot meet."""
    global _store
    _end_with_torchrun()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if device.index >= torch.cuda.device_count():
            raise ValueError(
                f"process {device.index} of this node has no GPU, there are {torch.cuda.device_count()}: start at most "
                "that many (torchrun --nproc_per_node), or hide them all to train on the CPU (CUDA_VISIBLE_DEVICES=)"
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
        raise ValueError(f"processes cannot meet at {place}: {str(error).splitlines()[0]}") from error
    yield device
    # Not after an error: other ranks may be waiting inside a collective, and so would this.
    any_rank(False)  # leave together: srun --wait ends all ranks soon after the first, and rank 0 may still be writing
    dist.destroy_process_group()


def is_from_another_rank(error: Exception) -> bool:
    """Return whether an error was raised here because another rank has died, or has hung for TIMEOUT."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)  # gloo's has no class of its own


def is_first_failure() -> bool:
    """Return whether this rank is the first that asks, so the one to report its error.

    If rank 0 has ended, it or the launcher has reported that; if it hangs, nobody else may report it."""
    if _store is None:
        return True
    answer = ThreadPoolExecutor(1).submit(_store.add, "failures", 1)
    try:
        return answer.result(CLAIM_SECONDS) == 1
    except TimeoutError:
        return True
    except dist.DistError:
        return False


def _end_with_torchrun() -> None:
    """Have SIGTERM, which saves, sent here when torchrun dies, as by a signal that it does not handle (SIGUSR1).

    Without it the ranks would continue without a launcher. Does nothing elsewhere than on Linux."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def rank() -> int:
    """Return this process's number, 0 to world_size - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this is the process that writes files and prints."""
    return rank() == 0


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all processes, detached."""
    total = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def any_rank(flag: bool) -> bool:
    """Return on every process whether `flag` is true on any."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)  # on the CPU: nothing waits for the device
    return bool(flags)


def gather(value: object) -> list | None:
    """Return the picklable `value` of every rank, in rank order, on rank 0; None on the others."""
    if world_size() == 1:
        return [value]
    values: list | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values


def broadcast(value: object) -> object:
    """Return rank 0's picklable `value` on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def share_buffers(model: nn.Module) -> None:
    """Give every rank rank 0's buffers: BatchNorm's statistics differ, because each saw different images."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def data_parallel(model: nn.Module, device: torch.device, static_graph: bool) -> nn.Module:
    """Return `model` wrapped so that backward averages the gradients over ranks; `model` itself in a world of one.

    static_graph: whether every backward pass exchanges the gradients of the same parameters."""
    if world_size() == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        static_graph=static_graph,
    )
