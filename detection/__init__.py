"""Single-shot detectors: the parts, the training task and its commands."""

from engine.signals import interrupt_imports_silently

interrupt_imports_silently()
