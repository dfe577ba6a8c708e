"""Class-conditional diffusion with a U-Net of Swin blocks: the model, the training task and its commands."""
