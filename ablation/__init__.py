"""Experiments side by side, for every task: what differs, and whether the difference is real."""

from engine.signals import interrupt_imports_silently

interrupt_imports_silently()
