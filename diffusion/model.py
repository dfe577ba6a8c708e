"""Swin-UNet, the denoiser: a U-Net (arXiv 1505.04597) with Swin blocks (arXiv 2103.14030) at every level.

    images, labels, timesteps
      -> encoder     the Swin of model.py, stage by stage
      -> middle      two more blocks on the last feature map
      -> decoder     per level: patch expanding, concatenation with the encoder's map, a linear layer, two blocks
      -> output      patch expanding to pixels, and a convolution whose weights are initialized to zero

Every stage adds the time embedding to its input, through its own linear layer (Ho et al., arXiv 2006.11239). The class
is given in additional input channels: a learned vector per class, repeated at every pixel. An extra vector stands for
"no class" (Ho and Salimans, arXiv 2207.12598).

Any image size works: model.py pads the feature maps, and the decoder crops them.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import PatchExpanding, SwinBlock, SwinTransformer, load_swin_weights, swin_state_dict

MAX_PERIOD = 10_000  # the longest period of the time embedding is almost 2 pi times as many timesteps
CLASS_CHANNELS = 4  # length of the class vector: number of additional input channels
FIRST_CONVOLUTION = "patch_embed.proj.weight"


def sinusoidal_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Return sinusoidal timestep embeddings, cosines first (arXiv 1706.03762, section 3.5).

    timesteps: (B,) int64. dim: even. Returns (B, dim) float32."""
    exponents = torch.arange(dim // 2, device=timesteps.device) / (dim // 2)
    angles = timesteps[:, None].float() * torch.exp(-math.log(MAX_PERIOD) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Sequential):
    """Embed timesteps, (B,) int64, as vectors for the linear layers of all stages, (B, 4 * dim)."""

    def __init__(self, dim: int):
        super().__init__(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, 4 * dim), nn.SiLU())
        self.dim = dim
        self.out_channels = 4 * dim

    def forward(self, timesteps: Tensor) -> Tensor:
        return super().forward(sinusoidal_embedding(timesteps, self.dim))


def swin_pair(dim: int, num_heads: int, window_size: int) -> nn.Sequential:
    """Return two Swin blocks, the second with shifted windows. They map (B, H, W, dim) to the same shape."""
    blocks = [
        SwinBlock(
            dim, num_heads, window_size=window_size, shift_size=shift, mlp_ratio=4.0, drop_path=0.0,
            relative_position=True,
        )
        for shift in (0, window_size // 2)
    ]  # fmt: skip
    return nn.Sequential(*blocks)


class DecoderLevel(nn.Module):
    """Upsample x, (B, H, W, 2 * dim), and fuse it with the encoder's map `skip`. skip and result: (B, H', W', dim)."""

    def __init__(self, dim: int, num_heads: int, window_size: int, time_dim: int):
        super().__init__()
        self.expand = PatchExpanding(2 * dim)
        self.fuse = nn.Linear(2 * dim, dim)
        self.time = nn.Linear(time_dim, dim)
        self.blocks = swin_pair(dim, num_heads, window_size)

    def forward(self, x: Tensor, skip: Tensor, time: Tensor) -> Tensor:
        height, width = skip.shape[1:3]
        x = self.expand(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B, 2H, 2W, dim)
        x = torch.cat([x[:, :height, :width], skip], dim=-1)  # a side of 7 was padded to 8, merged to 4, expanded to 8
        return self.blocks(self.fuse(x) + self.time(time)[:, None, None])


class SwinUNet(nn.Module):
    """Predict the noise in images, or v (see diffusion/schedule.py).

    embed_dim, depths, num_heads, window_size, patch_size: sizes of the encoder, see model.SwinTransformer.
    image_channels: channels of images and predictions. num_classes: label `num_classes` means "no class".
    Stochastic depth is off, because the noise regularizes enough.
    """

    def __init__(
        self,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        *,
        image_channels: int,
        num_classes: int,
        window_size: int = 7,
        patch_size: int = 4,
    ):
        super().__init__()
        self.image_channels, self.no_class = image_channels, num_classes
        dims = [embed_dim * 2**stage for stage in range(len(depths))]
        self.time = TimeEmbedding(embed_dim)
        time_dim = self.time.out_channels
        self.class_embedding = nn.Embedding(num_classes + 1, CLASS_CHANNELS)
        self.encoder = SwinTransformer(
            embed_dim,
            tuple(depths),
            tuple(num_heads),
            window_size=window_size,
            patch_size=patch_size,
            in_channels=image_channels + CLASS_CHANNELS,
            drop_path_rate=0.0,
        ).cut([f"stage{len(depths)}"])
        self.encoder_times = nn.ModuleList(nn.Linear(time_dim, dim) for dim in dims)
        self.middle_time = nn.Linear(time_dim, dims[-1])
        self.middle = swin_pair(dims[-1], num_heads[-1], window_size)
        levels = list(zip(dims, num_heads, strict=True))[-2::-1]  # coarse to fine
        self.decoder = nn.ModuleList(DecoderLevel(dim, heads, window_size, time_dim) for dim, heads in levels)
        self.to_pixels = PatchExpanding(embed_dim, scale=patch_size)
        self.output = nn.Conv2d(self.to_pixels.out_channels, image_channels, kernel_size=3, padding=1)

        blocks = [self.middle, *(part for level in self.decoder for part in (level.fuse, level.blocks))]
        for module in (module for part in blocks for module in part.modules()):
            if isinstance(module, nn.Linear):  # initialized as in the encoder
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.output.weight)  # before training, all predictions are zero
        nn.init.zeros_(self.output.bias)

    def forward(self, images: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """Predict the target of noisy images, (B, image_channels, H, W) float. Returns the same shape.

        timesteps: (B,) int64. labels: (B,) int64, self.no_class for no class."""
        height, width = images.shape[-2:]
        time = self.time(timesteps)
        classes = self.class_embedding(labels)[:, :, None, None].expand(-1, -1, height, width)
        x = self.encoder.embed(torch.cat([images, classes], dim=1))  # (B, H / patch, W / patch, embed_dim)
        maps = []
        for stage, to_stage in zip(self.encoder.layers, self.encoder_times, strict=True):
            x = stage.blocks(x + to_stage(time)[:, None, None])
            if stage.downsample is not None:
                maps.append(x)
                x = stage.downsample(x)
        x = self.middle(x + self.middle_time(time)[:, None, None])
        for level in self.decoder:
            x = level(x, maps.pop(), time)
        x = self.to_pixels(x.permute(0, 3, 1, 2))[:, :, :height, :width]
        return self.output(F.silu(x))


def load_encoder_weights(model: SwinUNet, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Load the weights of a trained classifier into the encoder.

    state_dict: as for `model.load_swin_weights`. The first convolution is adapted: its weights are summed over the
    colours for grey images, and are zero for the class channels.
    Returns a line for each resized tensor: its name, old and new shape.
    Raises ValueError, leaving the model unchanged, if a tensor is missing, unexpected or has a different shape."""
    weights = swin_state_dict(state_dict)
    if FIRST_CONVOLUTION in weights:
        kernel, channels = weights[FIRST_CONVOLUTION], model.image_channels
        if channels == 1:
            kernel = kernel.sum(dim=1, keepdim=True)  # the same response as to a grey image with three channels
        if kernel.shape[1] != channels:
            raise ValueError(
                f"weights for images with {kernel.shape[1]} channels, expected {channels}: use other weights, or null"
            )
        weights[FIRST_CONVOLUTION] = F.pad(kernel, (0, 0, 0, 0, 0, CLASS_CHANNELS))
    resized, _ = load_swin_weights(model.encoder, weights)
    return resized
