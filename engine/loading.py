"""Load weights into a module: either all weights, or none and an error that lists the differences."""

from collections.abc import Mapping

from torch import Tensor, nn

from engine.text import listed

LISTED_PROBLEMS = 4  # number of keys of each kind to list in an error


def load_exactly(module: nn.Module, state_dict: Mapping[str, Tensor], ignored_prefixes: tuple[str, ...] = ()) -> None:
    """Load all weights, or none if keys or shapes do not match.

    ignored_prefixes: prefixes of keys to ignore in `state_dict`.
    Raises ValueError naming the keys that are missing, unexpected or of a different shape.
    """
    given = {key: value for key, value in state_dict.items() if not key.startswith(ignored_prefixes)}
    load_matching(module, given, shape_mismatch_prefixes=())


def load_matching(
    module: nn.Module, state_dict: Mapping[str, Tensor], shape_mismatch_prefixes: tuple[str, ...]
) -> list[str]:
    """Load all weights, but skip weights whose shapes differ if that is allowed for their prefix.

    shape_mismatch_prefixes: prefixes of keys whose weights stay unchanged in the module if the shapes differ.
    The keys in `module.optional_weights`, if it has this attribute, may be missing; the module then sets these weights.
    Returns the keys that were not loaded, with both shapes.
    Raises ValueError, and loads nothing, if other keys are missing, unexpected or of a different shape.
    """
    expected = module.state_dict()
    optional = getattr(module, "optional_weights", ())
    # Some public checkpoints are older than BatchNorm's step counter; PyTorch adds it.
    missing = [
        key
        for key in expected
        if key not in state_dict and key not in optional and not key.endswith(".num_batches_tracked")
    ]
    unexpected = [key for key in state_dict if key not in expected]
    misshaped = {
        key: f"{key} {tuple(state_dict[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state_dict and state_dict[key].shape != tensor.shape
    }
    skipped = [key for key in misshaped if key.startswith(shape_mismatch_prefixes)]
    rejected = [text for key, text in misshaped.items() if key not in skipped]
    problems = {"missing": missing, "unexpected": unexpected, "of a different shape": rejected}
    if any(problems.values()):
        texts = [f"{len(keys)} {kind}: {listed(keys, LISTED_PROBLEMS)}" for kind, keys in problems.items() if keys]
        raise ValueError(
            f"weights do not fit {type(module).__name__}, nothing was loaded: {'; '.join(texts)}. "
            "Use a checkpoint of the same model variant (`python -m weights inspect FILE` shows the variant)."
        )
    module.load_state_dict({**state_dict, **{key: expected[key] for key in skipped}})
    return [misshaped[key] for key in skipped]
