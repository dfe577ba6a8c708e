"""Cost, precision, placement and threads of a model's computation, and the limits of the machine."""
