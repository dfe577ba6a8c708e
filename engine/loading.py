"""Load weights into a module: all of them, or none and the list of what differs."""

from collections.abc import Mapping

from torch import Tensor, nn

from engine.text import listed

LISTED_PROBLEMS = 4  # of each kind, in the message about weights that do not fit


def load_exactly(module: nn.Module, state_dict: Mapping[str, Tensor], may_be_left_over: tuple[str, ...] = ()) -> None:
    """Load all weights, or none.

    may_be_left_over: prefixes of keys that the module may lack.
    Raises ValueError naming the keys that are missing, unexpected or of a different shape.
    """
    given = {key: value for key, value in state_dict.items() if not key.startswith(may_be_left_over)}
    load_matching(module, given, may_be_misshaped=())


def load_matching(module: nn.Module, state_dict: Mapping[str, Tensor], may_be_misshaped: tuple[str, ...]) -> list[str]:
    """Load all weights, except those of a different shape under the given prefixes; or none.

    may_be_misshaped: prefixes of keys whose weights stay as they are in the module if the shapes differ.
    Returns what was not loaded, with both shapes.
    Raises ValueError naming the keys that are missing, unexpected, or of a different shape elsewhere.
    """
    expected = module.state_dict()
    # Some public checkpoints are older than BatchNorm's step counter; PyTorch fills it in.
    missing = [key for key in expected if key not in state_dict and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in state_dict if key not in expected]
    misshaped = {
        key: f"{key} {tuple(state_dict[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state_dict and state_dict[key].shape != tensor.shape
    }
    left_out = [key for key in misshaped if key.startswith(may_be_misshaped)]
    refused = [text for key, text in misshaped.items() if key not in left_out]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": refused}
    if any(problems.values()):
        found = [f"{len(keys)} {kind}: {listed(keys, LISTED_PROBLEMS)}" for kind, keys in problems.items() if keys]
        raise ValueError(
            f"weights do not fit {type(module).__name__}, nothing was loaded: {'; '.join(found)}. "
            "Use a checkpoint of exactly this variant (`python -m weights inspect FILE` tells what one is)."
        )
    module.load_state_dict({**state_dict, **{key: expected[key] for key in left_out}})
    return [misshaped[key] for key in left_out]
