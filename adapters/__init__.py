"""Adapters for using the Swin trunk in models of other libraries."""
