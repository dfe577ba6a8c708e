"""The detector: backbones, necks, SSD heads and default boxes, with matching, loss and post-processing."""
