"""What the training loop stands on: config, processes, checkpoints, experiments. (See the README for the floors.)"""

from engine.signals import interrupt_imports_silently

interrupt_imports_silently()
