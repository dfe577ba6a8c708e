"""Class-conditional diffusion with a U-Net of Swin blocks: model, training, sampling and evaluation."""
