"""Assignments: which default boxes are trained to find which object."""
