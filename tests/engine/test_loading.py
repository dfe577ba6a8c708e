"""engine/loading.py: load all weights, or none with an error that lists the differences."""

import pytest
import torch
from torch import nn

from engine.loading import load_matching


def body_and_head(outputs: int) -> nn.ModuleDict:
    return nn.ModuleDict({"body": nn.Linear(2, 3), "head": nn.Linear(3, outputs)})


def test_weights_that_may_differ_in_shape_are_kept_and_the_rest_is_loaded():
    module, other = body_and_head(2), body_and_head(5)
    head = module["head"].weight.clone()
    skipped = load_matching(module, other.state_dict(), shape_mismatch_prefixes=("head.",))
    assert skipped == ["head.weight (5, 3) instead of (2, 3)", "head.bias (5,) instead of (2,)"]
    assert torch.equal(module["body"].weight, other["body"].weight)
    assert torch.equal(module["head"].weight, head)


def test_optional_weights_may_be_missing_because_the_module_sets_them():
    module, other = body_and_head(2), body_and_head(2)
    module.optional_weights = {"head.bias"}
    module.register_load_state_dict_pre_hook(lambda _, weights, *__: weights.setdefault("head.bias", torch.ones(2)))
    state = other.state_dict()
    del state["head.bias"]
    assert load_matching(module, state, shape_mismatch_prefixes=()) == []
    assert torch.equal(module["head"].weight, other["head"].weight)
    assert module["head"].bias.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("head.bias"), "1 missing: head.bias"),
        (lambda state: state.update({"neck.weight": torch.ones(1)}), "1 unexpected: neck.weight"),
        (
            lambda state: state.update({"body.bias": torch.ones(4)}),
            r"1 of a different shape: body.bias \(4,\) instead of \(3",
        ),
    ],
)
def test_any_other_mismatch_is_listed_and_nothing_is_loaded(change, named):
    module, state = body_and_head(2), body_and_head(5).state_dict()
    before = module["body"].weight.clone()
    change(state)
    with pytest.raises(ValueError, match=f"nothing was loaded: {named}"):
        load_matching(module, state, shape_mismatch_prefixes=("head.",))
    assert torch.equal(module["body"].weight, before)
