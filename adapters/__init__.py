"""The Swin trunk in other people's models: encoders for segmentation_models_pytorch, backbones for torchvision."""
