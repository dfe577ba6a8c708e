"""Image classification by Swin: data, the training task, what it leaves, scoring and predicting."""

from engine.signals import interrupt_imports_silently

interrupt_imports_silently()
