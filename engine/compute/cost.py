"""Cost of running a model: number of operations, and memory."""

import resource
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engine.compute.inference import evaluation_mode

# Kernels of scaled_dot_product_attention on CPUs, GPUs and other devices. torch 2.10 and 2.14 count 0 operations for
# the CPU kernel. Here one formula counts all kernels, so the result depends on neither device nor version.
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
    """Return the cost of a forward pass on one image, in 10**9 operations; a multiply-add counts as two.

    Counts matrix products and convolutions (torch.utils.flop_counter) and attention (`attention_flops`). Does not count
    biases, normalisation, activations, softmax, pooling, resizing, and steps after the model, such as NMS.

    model: called with a (1, channels, input_size, input_size) image and the tensors in `further`, on its device."""
    parameter = next(model.parameters())
    image = torch.zeros(1, channels, input_size, input_size, dtype=parameter.dtype, device=parameter.device)
    aten = torch.ops.aten
    formulas = {getattr(aten, name): attention_flops for name in ATTENTION_KERNELS if hasattr(aten, name)}
    # The fast path of nn.MultiheadAttention and nn.TransformerEncoderLayer is an operator that is not counted.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluation_mode(model), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            model(image, *further)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.get_total_flops() / 1e9


def attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object) -> int:
    """Return the number of operations of attention: products of queries and keys, and of probabilities and values.

    The arguments are shapes: query (B, heads, L, E), key (B, heads or fewer, S, E), value (B, heads of key, S, V).
    A mask does not reduce the count. The operator's remaining arguments are ignored."""
    batch, heads, num_queries, channels = query
    return 2 * batch * heads * num_queries * key[2] * (channels + value[3])


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory of this process so far, in MiB.

    GPU: tensors only, without the CUDA context and PyTorch's cache. CPU: resident memory, without loader processes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
