"""The Swin trunk in other people's models: encoders for segmentation_models_pytorch, backbones for torchvision."""

from engine.signals import interrupt_imports_silently

interrupt_imports_silently()
