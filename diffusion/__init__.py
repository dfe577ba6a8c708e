"""Class-conditional diffusion with a U-Net of Swin blocks: the model, the training task and its commands."""

from engine.signals import interrupt_imports_silently

interrupt_imports_silently()
