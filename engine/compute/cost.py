"""What a model costs to run: arithmetic and memory, for every task."""

import resource
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engine.compute.inference import evaluation_mode

# Kernels of scaled_dot_product_attention, on a CPU, a GPU and other devices. torch 2.10 and 2.14 count that of the CPU
# as 0, so all of them are counted here by one formula, and the number depends neither on the device nor on the version.
ATTENTION_KERNELS = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
FLOPS_COUNTER = f"torch {torch.__version__} + sdpa formula"


@torch.inference_mode()
def forward_gflops(model: nn.Module, input_size: int, channels: int = 3, further: Sequence[Tensor] = ()) -> float:
    """Return the arithmetic of one forward pass over one image, in 10**9 operations; a multiply-add is two.

    Matrix products and convolutions, by torch.utils.flop_counter, and attention, by `attention_flops`. Not counted:
    biases, normalisation, activations, softmax, pooling, resizing and whatever comes after the model, such as NMS.

    model: takes (1, channels, input_size, input_size), and what is in `further`, on its device."""
    parameter = next(model.parameters())
    image = torch.zeros(1, channels, input_size, input_size, dtype=parameter.dtype, device=parameter.device)
    aten = torch.ops.aten
    formulas = {getattr(aten, name): attention_flops for name in ATTENTION_KERNELS if hasattr(aten, name)}
    # The fast path of nn.MultiheadAttention and nn.TransformerEncoderLayer is one operator that nothing counts.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluation_mode(model), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            model(image, *further)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.get_total_flops() / 1e9


def attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object) -> int:
    """Operations of attention by the shapes of its inputs: queries with keys, then probabilities with values.

    query: (B, heads, L, E). key: (B, heads or fewer, S, E). value: the same heads, (.., S, V). A mask saves nothing.
    torch's counter passes shapes in the place of tensors, and the operator's other arguments."""
    batch, heads, num_queries, channels = query
    return 2 * batch * heads * num_queries * key[2] * (channels + value[3])


def peak_memory_mib(device: torch.device) -> float:
    """The most memory that this process has held so far, in MiB: on a GPU what tensors took of it (the CUDA context
    and PyTorch's reserve come on top), on a CPU the whole resident process, its loader processes not included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
