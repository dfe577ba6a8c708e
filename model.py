"""Swin Transformer: classification, and feature maps from every stage, at any input size.

Paper: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", arXiv 2103.14030.
Parameters have the names used in Microsoft's checkpoints. `load_swin_weights` also accepts torchvision's and timm's.

To support any input size, zeros are padded at the bottom and right, as in Microsoft's detection code. Images are padded
to a multiple of the patch size. After the norm and before attention, maps are padded to a multiple of the window size.
This padding takes part in attention and is then cropped. Before patch merging, odd sides are padded: 21 becomes 11.

Public implementations differ in two details, which do not affect inputs of 224 pixels. First, this code and torchvision
do not shift windows along a side that fits in one window. Second, this code, Microsoft's code and torchvision pad maps
before shifting them; timm shifts them first.
"""

import functools
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.loading import load_matching

SWIN_VARIANTS = {
    "swin_t": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "swin_s": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "swin_b": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "swin_l": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
    # Not in the paper: for small images, and for training with small data sets on a CPU.
    "swin_slim": {"embed_dim": 32, "depths": (2, 2, 6, 2), "num_heads": (1, 2, 4, 8), "window_size": 4},
}

POSITIONS = ("none", "abs", "rel", "abs+rel")

STAGES = range(8)  # more stages than any Swin has
# Applied in order, these replacements give Microsoft's names. timm's stages start with patch merging; ours end with it.
TORCHVISION_NAMES = {
    "features.0.0.": "patch_embed.proj.",
    "features.0.2.": "patch_embed.norm.",
    **{f"features.{2 * stage + 1}.": f"layers.{stage}.blocks." for stage in STAGES},
    **{f"features.{2 * stage + 2}.": f"layers.{stage}.downsample." for stage in STAGES},
    ".mlp.0.": ".mlp.fc1.",
    ".mlp.3.": ".mlp.fc2.",
}
TIMM_NAMES = {
    **{f"layers.{stage + 1}.downsample.": f"layers.{stage}.downsample." for stage in STAGES},
    "head.fc.": "head.",
}


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """Partition maps (B, H, W, C), with sides divisible by window_size, into (B, windows, window_size^2, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window_size, window_size, width // window_size, window_size, channels)
    return x.transpose(2, 3).reshape(batch, -1, window_size**2, channels)


def window_reverse(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """Join windows (B, windows, window_size^2, C) into maps (B, H, W, C); inverts `window_partition`."""
    batch, _, _, channels = windows.shape
    x = windows.view(batch, height // window_size, width // window_size, window_size, window_size, channels)
    return x.transpose(2, 3).reshape(batch, height, width, channels)


def eager_cache(function: Callable) -> Callable:
    """Cache a function's results in eager mode only, because torch.compile cannot trace a cached function."""
    cached = functools.lru_cache(maxsize=256)(function)

    @functools.wraps(function)
    def call(*args):
        return function(*args) if torch.compiler.is_compiling() else cached(*args)

    return call


@eager_cache
def shifted_window_mask(
    height: int, width: int, window_size: int, shifts: tuple[int, int], device: torch.device
) -> Tensor:
    """Return the attention mask that separates tokens which share a window only because of the cyclic shift.

    See section 3.2. Returns (windows, 1, N, N) float32, to be added to the attention logits: 0 for pairs of tokens that
    may attend to each other, -100 for all other pairs. The mask is built on the device and cached there."""

    def regions(side: int, shift: int) -> Tensor:
        position = torch.arange(side, device=device)
        return (position >= side - window_size).long() + (position >= side - shift).long()  # 0, 1 or 2

    region = 3 * regions(height, shifts[0])[:, None] + regions(width, shifts[1])  # (H, W)
    region = window_partition(region[None, :, :, None], window_size)[0, :, :, 0]  # (windows, N)
    differs = region[:, None, :, None] != region[:, None, None, :]  # (windows, 1, N, N)
    return torch.where(differs, -100.0, 0.0)


def relative_position_index(window_size: int) -> Tensor:
    """Return an index into the bias table for each pair of tokens in a window, (N, N) int64, N = window_size^2."""
    axis = torch.arange(window_size)
    y, x = (axis.flatten() for axis in torch.meshgrid(axis, axis, indexing="ij"))
    dy, dx = (c[:, None] - c[None, :] + window_size - 1 for c in (y, x))  # 0 .. 2 * window_size - 2
    return dy * (2 * window_size - 1) + dx


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learned bias per head and relative position (eq. 4)."""

    def __init__(self, dim: int, num_heads: int, window_size: int, relative_position: bool):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = None
        if relative_position:
            self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
            nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
            self.register_buffer("relative_position_index", relative_position_index(window_size), persistent=False)

    def logit_bias(self, mask: Tensor | None) -> Tensor | None:
        """Return the relative position bias plus the mask, or None if there is no bias and no mask.

        Shape: (heads, N, N) for only a bias, (windows, 1, N, N) for only a mask, (windows, heads, N, N) for both."""
        if self.relative_position_bias_table is None:
            return mask
        # An embedding lookup is faster than indexing, whose backward pass on CUDA sorts the indices every time.
        bias = F.embedding(self.relative_position_index, self.relative_position_bias_table)  # (N, N, heads)
        bias = bias.permute(2, 0, 1)
        return bias if mask is None else bias + mask

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Apply attention to windows (B, windows, N, C), with mask (windows, 1, N, N) or None. Keeps the shape."""
        qkv = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1))  # (B, windows, N, 3, heads, C / heads)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)  # (B, windows, heads, N, C / heads)
        logits = (q * self.scale) @ k.transpose(-2, -1)  # (B, windows, heads, N, N)
        bias = self.logit_bias(mask)
        if bias is not None:
            logits += bias  # in place to save memory: logits is the largest tensor. matmul's backward does not need it.
        # The explicit dtype keeps autocast from storing the probabilities in float32; the kernel still sums in float32.
        attention = logits.softmax(dim=-1, dtype=logits.dtype)
        return self.proj((attention @ v).transpose(2, 3).flatten(-2))


class DropPath(nn.Module):
    """Randomly set a residual branch to zero, per sample, in training (stochastic depth, arXiv 1603.09382)."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Set each sample of x (B, ...) to zero with this probability. Scale the rest to keep the expected value."""
        if not self.training or self.probability == 0.0:
            return x
        keep_probability = 1.0 - self.probability
        mask = torch.empty((len(x), *[1] * (x.ndim - 1)), dtype=x.dtype, device=x.device).bernoulli_(keep_probability)
        return x * (mask.div_(keep_probability) if keep_probability > 0.0 else mask)


class SwinBlock(nn.Module):
    """Window attention and an MLP, each with pre-norm and stochastic depth (eq. 3)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int,
        shift_size: int,
        mlp_ratio: float,
        drop_path: float,
        relative_position: bool,
    ):
        super().__init__()
        self.window_size = window_size
        self.shift_size = shift_size
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size, relative_position)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(dim, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, dim)))
        self.drop_path = DropPath(drop_path)

    def attend(self, x: Tensor) -> Tensor:
        """Apply attention within the (shifted) windows of x (B, H, W, C). Keeps the shape."""
        _, height, width, _ = x.shape
        pad_bottom, pad_right = -height % self.window_size, -width % self.window_size
        if pad_bottom or pad_right:  # F.pad copies even if the padding is zero
            x = F.pad(x, (0, 0, 0, pad_right, 0, pad_bottom))
        padded = height + pad_bottom, width + pad_right
        shifts = tuple(self.shift_size if side > self.window_size else 0 for side in padded)

        mask = None
        if any(shifts):
            mask = shifted_window_mask(*padded, self.window_size, shifts, x.device)
            x = x.roll((-shifts[0], -shifts[1]), dims=(1, 2))
        windows = window_partition(x, self.window_size)  # (B, windows, N, C)
        x = window_reverse(self.attn(windows, mask), self.window_size, *padded)  # (B, H + pad, W + pad, C)
        if any(shifts):
            x = x.roll(shifts, dims=(1, 2))
        return x[:, :height, :width]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attend(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # (B, H, W, C)


class PatchEmbed(nn.Module):
    """Embed images (B, in_channels, H, W) as one token per patch: (B, ceil(H / patch), ceil(W / patch), C)."""

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            images = F.pad(images, (0, -width % self.patch_size, 0, -height % self.patch_size))
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PatchMerging(nn.Module):
    """Concatenate 2x2 neighbours and project: (B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), 2C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H / 2, row, W / 2, column, C)
        # Published weights expect the order top left, bottom left, top right, bottom right.
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # (B, H / 2, W / 2, 4C)
        return self.reduction(self.norm(x))


class PatchExpanding(nn.Module):
    """Upsample by `scale` with a linear layer, the reverse of patch merging (Cao et al., Swin-Unet, arXiv 2105.05537).

    Maps (B, channels, H, W) to (B, out_channels, scale * H, scale * W), where out_channels is half of channels."""

    def __init__(self, channels: int, *, scale: int = 2):
        super().__init__()
        self.scale = scale
        self.out_channels = channels // 2
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, self.out_channels * scale**2, bias=False)
        nn.init.trunc_normal_(self.expand.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(self.norm(x.permute(0, 2, 3, 1)))  # (B, H, W, out_channels * scale^2)
        return F.pixel_shuffle(x.permute(0, 3, 1, 2), self.scale)


class SwinStage(nn.Module):
    """Blocks of one resolution, followed by patch merging (None in the last stage)."""

    def __init__(self, blocks: Iterable[SwinBlock], downsample: PatchMerging | None):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample


def resize_grid(grid: Tensor, size: Sequence[int]) -> Tensor:
    """Resize position tables (1, H, W, C) bicubically to (1, *size, C), as in Microsoft's code."""
    grid = F.interpolate(grid.permute(0, 3, 1, 2), size, mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1)


class SwinTransformer(nn.Module):
    """Swin Transformer with options for the paper's ablations (Table 4).

    embed_dim: channels of the first stage; every later stage has twice as many. depths: number of blocks per stage.
    num_heads: attention heads per stage. num_classes: number of outputs of the classifier.
    window_size: side of a window in tokens. patch_size: side of a patch in pixels.
    image_size: image side in pixels for which the absolute position embedding is stored. It is resized for other sides.
    drop_path_rate: stochastic depth rate of the last block. The rate grows linearly from 0 in the first block.
    shift: whether to shift the windows of every second block by half a window.
    position: none, abs (learned embedding added to the tokens), rel (bias on the attention logits) or abs+rel.
    Raises ValueError for any other `position`."""

    stem_prefixes = ("patch_embed.", "absolute_pos_embed")  # name prefixes of the parameters before the first stage

    def __init__(
        self,
        embed_dim: int,
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        *,
        num_classes: int = 1000,
        window_size: int = 7,
        patch_size: int = 4,
        in_channels: int = 3,
        image_size: int = 224,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.2,
        shift: bool = True,
        position: str = "rel",
    ):
        super().__init__()
        if position not in POSITIONS:
            raise ValueError(f"position {position!r}: expected one of {', '.join(POSITIONS)}")
        self.embed_dim = embed_dim
        self.removed_prefixes: tuple[str, ...] = ()  # name prefixes of the parameters that `cut` removed
        self.patch_embed = PatchEmbed(in_channels, embed_dim, patch_size)
        self.absolute_pos_embed = None
        if "abs" in position:
            self.grid_side = -(-image_size // patch_size)
            self.absolute_pos_embed = nn.Parameter(torch.empty(1, self.grid_side**2, embed_dim))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

        # The explicit CPU device allows building the model on the meta device.
        drop_paths = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.layers = nn.ModuleList()
        for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            dim = embed_dim * 2**stage
            blocks = [
                SwinBlock(
                    dim,
                    heads,
                    window_size=window_size,
                    shift_size=window_size // 2 if shift and index % 2 == 1 else 0,
                    mlp_ratio=mlp_ratio,
                    drop_path=next(drop_paths),
                    relative_position="rel" in position,
                )
                for index in range(depth)
            ]
            is_last = stage == len(depths) - 1
            self.layers.append(SwinStage(blocks, None if is_last else PatchMerging(dim)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def modules_by_tap(self) -> dict[str, nn.Module]:
        """Return the modules in the order of execution, by the name of their output map (the tap)."""
        modules = {}
        for number, layer in enumerate(self.layers, start=1):
            modules[f"stage{number}"] = layer.blocks
            if layer.downsample is not None:
                modules[f"merge{number}"] = layer.downsample
        return modules

    def out_channels(self, tap: str) -> int:
        """Return the number of channels of the feature map at a tap. Raises ValueError for an unknown tap."""
        self._tap_indices([tap])
        number = int(tap[-1])
        return self.embed_dim * 2 ** (number if tap.startswith("merge") else number - 1)

    def cut(self, taps: Sequence[str]) -> "SwinTransformer":
        """Remove all modules after the last of these taps, in place, and return self.

        `features` still works, but the classifier is removed. Raises ValueError for an unknown tap."""
        last = max(self._tap_indices(taps))
        name = list(self.modules_by_tap())[last]
        number = int(name[-1])
        self.removed_prefixes += ("norm.", "head.", *(f"layers.{index}." for index in range(number, len(self.layers))))
        del self.layers[number:]
        if name.startswith("stage") and self.layers[-1].downsample is not None:
            self.removed_prefixes += (f"layers.{number - 1}.downsample.",)
            self.layers[-1].downsample = None
        self.norm = self.head = None
        return self

    def _tap_indices(self, taps: Sequence[str]) -> list[int]:
        known = list(self.modules_by_tap())
        unknown = [tap for tap in taps if tap not in known]
        if unknown:
            raise ValueError(f"tap {unknown[0]!r}: expected one of {', '.join(known)}")
        return [known.index(tap) for tap in taps]

    def embed(self, images: Tensor) -> Tensor:
        """Return the patch tokens (B, H / patch, W / patch, C). Add the absolute position embedding if there is one."""
        x = self.patch_embed(images)
        if self.absolute_pos_embed is None:
            return x
        grid = self.absolute_pos_embed.unflatten(1, (self.grid_side, self.grid_side))
        return x + (grid if x.shape[1:3] == grid.shape[1:3] else resize_grid(grid, x.shape[1:3]))

    def features(self, images: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        """Return a dict from tap to feature map (B, C, H', W'). Taps: "stageN", or "mergeN" after patch merging.

        images: (B, in_channels, H, W) float. Raises ValueError for an unknown tap."""
        last = max(self._tap_indices(taps))
        x = self.embed(images)
        maps = {}
        for tap, module in list(self.modules_by_tap().items())[: last + 1]:
            x = module(x)
            if tap in taps:
                maps[tap] = x.permute(0, 3, 1, 2)
        return {tap: maps[tap] for tap in taps}

    def forward(self, images: Tensor) -> Tensor:
        """Return class logits (B, num_classes) for images (B, in_channels, H, W) float."""
        if self.head is None:
            raise RuntimeError("cut() removed the classifier of this SwinTransformer: call features() instead")
        x = self.embed(images)
        for module in self.modules_by_tap().values():
            x = module(x)
        return self.head(self.norm(x).mean(dim=(1, 2)))


def swin_state_dict(state_dict: Mapping) -> dict[str, Tensor]:
    """Return the weights of a public Swin checkpoint under Microsoft's names, without buffers.

    state_dict: weights from Microsoft, torchvision or timm. A dict {"model": weights} is also accepted."""
    if isinstance(state_dict.get("model"), Mapping):
        state_dict = state_dict["model"]
    names = {}
    if any(key.startswith("features.") for key in state_dict):
        names = TORCHVISION_NAMES
    elif not any(key.startswith("layers.0.downsample.") for key in state_dict):
        names = TIMM_NAMES
    renamed = {}
    for key, tensor in state_dict.items():
        if not key.endswith((".relative_position_index", ".attn_mask")):
            for old, new in names.items():
                key = key.replace(old, new)
            renamed[key] = tensor
    return renamed


def swin_arguments(state_dict: Mapping) -> dict:
    """Infer the arguments of SwinTransformer, except `shift` and `drop_path_rate`, from a classifier's weights.

    state_dict: in a format that `swin_state_dict` accepts. Raises ValueError if it is not a Swin classifier, has no
    relative position bias, or has different window sizes in different stages."""
    shapes = {key: value.shape for key, value in swin_state_dict(state_dict).items() if isinstance(value, Tensor)}
    required = ("patch_embed.proj.weight", "layers.0.blocks.0.mlp.fc1.weight", "norm.weight", "head.weight")
    missing = [key for key in required if key not in shapes]
    if missing:
        raise ValueError(
            f"{missing[0]} is missing in the weights: expected a Swin classifier of Microsoft, torchvision or timm"
        )
    matches = [re.fullmatch(r"layers\.(\d+)\.blocks\.\d+\.norm1\.weight", key) for key in shapes]
    depths = Counter(int(match[1]) for match in matches if match)
    tables = [shapes.get(f"layers.{stage}.blocks.0.attn.relative_position_bias_table") for stage in sorted(depths)]
    if None in tables:
        raise ValueError(
            "cannot infer the number of heads from weights without relative position bias: "
            "build the model from the config with which it was trained"
        )
    windows = [(math.isqrt(rows) + 1) // 2 for rows, _ in tables]
    if len(set(windows)) > 1:
        raise ValueError(f"window sizes {windows} in the stages of these weights: expected the same size in all stages")

    embed_dim, in_channels, patch_size, _ = shapes["patch_embed.proj.weight"]
    hidden, dim = shapes["layers.0.blocks.0.mlp.fc1.weight"]
    arguments = {
        "embed_dim": embed_dim,
        "depths": tuple(depths[stage] for stage in sorted(depths)),
        "num_heads": tuple(heads for _, heads in tables),
        "num_classes": shapes["head.weight"][0],
        "window_size": windows[0],
        "patch_size": patch_size,
        "in_channels": in_channels,
        "mlp_ratio": hidden / dim,
        "position": "rel",
    }
    if "absolute_pos_embed" in shapes:
        image_size = patch_size * math.isqrt(shapes["absolute_pos_embed"][1])
        arguments |= {"position": "abs+rel", "image_size": image_size}
    return arguments


def load_swin_weights(
    model: SwinTransformer, state_dict: Mapping, shape_mismatch_prefixes: tuple[str, ...] = ()
) -> tuple[list[str], list[str]]:
    """Load a public Swin checkpoint in a format that `swin_state_dict` accepts.

    Position tables for a different window or image size are resized. Weights of modules that `cut` removed are ignored.
    shape_mismatch_prefixes: name prefixes of weights that are skipped if the checkpoint has a different shape.
    Returns a list of the resized and a list of the skipped weights, with a text (name and both shapes) for each weight.
    Raises ValueError, and loads nothing, if weights are missing, unexpected or of a shape that cannot be handled."""
    renamed = swin_state_dict(state_dict)
    weights = {key: tensor for key, tensor in renamed.items() if not key.startswith(model.removed_prefixes)}
    resized = []
    for key, expected in model.state_dict().items():
        if key in weights and weights[key].shape != expected.shape:
            table = _resize_positions(key, weights[key], expected.shape)
            if table is not None:
                resized.append(f"{key} {tuple(weights[key].shape)} to {tuple(expected.shape)}")
                weights[key] = table
    skipped = load_matching(model, weights, shape_mismatch_prefixes)
    return resized, skipped


def _resize_positions(key: str, table: Tensor, shape: torch.Size) -> Tensor | None:
    """Resize a relative (rows, heads) or absolute (1, rows, C) position table; return None for other weights."""
    if not key.endswith(("relative_position_bias_table", "absolute_pos_embed")) or table.shape[-1] != shape[-1]:
        return None
    rows, channels = table.shape[-2:]
    side, new_side = math.isqrt(rows), math.isqrt(shape[-2])
    if side**2 != rows:
        return None
    return resize_grid(table.reshape(1, side, side, channels), (new_side, new_side)).reshape(shape)
