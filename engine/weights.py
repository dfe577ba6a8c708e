"""Weights into a module: all of them, or none and the list of what differs."""

from collections.abc import Mapping

from torch import Tensor, nn

MAX_LISTED_KEYS = 12  # of each kind, in the message about weights that do not fit


def load_exactly(module: nn.Module, state_dict: Mapping[str, Tensor], may_be_left_over: tuple[str, ...] = ()) -> None:
    """Load weights, all of them or none.

    may_be_left_over: prefixes of keys that the module does not want.
    Raises ValueError naming the keys that are missing, unexpected or of another shape.
    """
    expected = module.state_dict()
    given = {key: value for key, value in state_dict.items() if not key.startswith(may_be_left_over)}
    # BatchNorm's step counter is younger than some public checkpoints; PyTorch fills it in.
    missing = [key for key in expected if key not in given and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in given if key not in expected]
    misshaped = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in given and given[key].shape != tensor.shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    if any(problems.values()):
        found = "; ".join(
            f"{len(keys)} {kind}: {', '.join(keys[:MAX_LISTED_KEYS])}{', ...' * (len(keys) > MAX_LISTED_KEYS)}"
            for kind, keys in problems.items()
            if keys
        )
        raise ValueError(
            f"weights do not fit {type(module).__name__}, nothing was loaded: {found}. "
            "Use a checkpoint of exactly this variant."
        )
    module.load_state_dict(given)
