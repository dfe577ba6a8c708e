"""Assignment rules: which default boxes are trained to find which object."""
