"""The detector itself: trunk and taps, necks, heads and default boxes; and beside it its loss and post-processing."""
