"""The Swin trunk as a backbone in other libraries' models."""

from engine.signals import interrupt_imports_silently

interrupt_imports_silently()
