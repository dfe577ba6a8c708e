"""The detector: backbones, necks, heads and default boxes, with assignment, losses and post-processing."""
