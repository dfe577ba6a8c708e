"""The pages of documentation, and what writes docs/configs.md."""
