"""The Swin trunk as a backbone in other libraries' models."""
