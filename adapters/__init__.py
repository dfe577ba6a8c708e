"""Adapters between this project and models or weights of other libraries."""
