"""Train smp's U-Net with a Swin as its encoder to find drawn discs: python -m examples.segmentation_with_swin"""

import segmentation_models_pytorch as smp
import torch

from adapters.segmentation_models import register_swins


def draw_discs(count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images with a bright disc each, (count, 3, side, side), and its mask, (count, 1, side, side)."""
    centres = torch.randint(side // 4, 3 * side // 4, (2, count, 1, 1, 1))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    masks = ((y - centres[0]) ** 2 + (x - centres[1]) ** 2 < (side // 5) ** 2).float()
    return 2 * masks.expand(-1, 3, -1, -1) + 0.5 * torch.randn(count, 3, side, side), masks


torch.manual_seed(0)
register_swins()
model = smp.Unet(encoder_name="swin_t", encoder_weights=None, classes=1)  # or encoder_weights="imagenet"
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(1, 9):
    images, masks = draw_discs(count=4, side=64)
    loss = smp.losses.DiceLoss("binary")(model(images), masks)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: Dice loss {loss.item():.3f}")
