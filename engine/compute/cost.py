"""What a model costs to run: arithmetic and memory, for every task."""

import resource
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engine.compute.inference import evaluation_mode


@torch.inference_mode()
def forward_gflops(model: nn.Module, input_size: int, channels: int = 3, further: Sequence[Tensor] = ()) -> float:
    """Arithmetic of one forward pass over one image, in 10**9 operations; a multiply-add is two.

    Counted by torch.utils.flop_counter: matrix products, linear layers among them, convolutions, transposed too, and
    attention, whether spelt out or by scaled_dot_product_attention on any device. Not counted: biases, normalisation,
    activations, softmax, pooling, resizing and whatever comes after the model, such as NMS.

    model: takes (1, channels, input_size, input_size), and what is in `further`, on its device; afterwards each of its
    modules is in its former mode."""
    parameter = next(model.parameters())
    image = torch.zeros(1, channels, input_size, input_size, dtype=parameter.dtype, device=parameter.device)
    with evaluation_mode(model), FlopCounterMode(display=False) as counter:
        model(image, *further)
    return counter.get_total_flops() / 1e9


def peak_memory_mib(device: torch.device) -> float:
    """The most memory that this process has held so far, in MiB: on a GPU what tensors took of it (the CUDA context
    and PyTorch's reserve come on top), on a CPU the whole resident process, its loader processes not included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
