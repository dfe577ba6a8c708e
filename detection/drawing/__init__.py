"""Pictures of images with boxes on them, and charts of scores."""
