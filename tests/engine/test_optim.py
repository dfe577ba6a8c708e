"""engine/optim.py: parameter groups; schedules and the moving average compared with closed forms."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, SequentialLR
from torch.optim.swa_utils import AveragedModel

from engine.optim import TRUNK_GROUPS, OptimConfig, build_optimizer, build_scheduler, parameter_groups, update_average


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.register_buffer("index", torch.arange(7))


def learning_rates(config: OptimConfig, batch: int, steps_per_epoch: int, epochs: int) -> list[float]:
    optimizer = build_optimizer(nn.Linear(2, 2), config, batch)
    scheduler = build_scheduler(optimizer, config, batch, steps_per_epoch, epochs)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(steps_per_epoch * epochs):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return rates


def test_only_kernels_and_matrices_have_weight_decay():
    net = Net()
    decayed, free = parameter_groups(net, 0.05)
    assert [p is net.conv.weight for p in decayed["params"]] == [True]
    assert decayed["weight_decay"] == 0.05
    assert {id(p) for p in free["params"]} == {
        id(p) for p in (net.conv.bias, net.norm.weight, net.norm.bias, net.relative_position_bias_table)
    }
    assert free["weight_decay"] == 0.0
    net.norm.requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups(net, 0.1)) == 3  # frozen parameters are in no group


def test_steps_schedule_warms_up_linearly_then_drops_at_drop_epochs():
    config = OptimConfig(learning_rate=1.0, reference_batch_size=8, warmup_epochs=2, drop_epochs=(4, 6))
    rates = learning_rates(config, 8, steps_per_epoch=5, epochs=8)
    expected = [(i + 1) / 10 for i in range(10)] + [1.0] * 10 + [0.1] * 10 + [0.01] * 10
    assert rates == pytest.approx(expected)
    config = OptimConfig(learning_rate=1.0, reference_batch_size=8, warmup_epochs=0)
    assert learning_rates(config, 8, steps_per_epoch=2, epochs=2) == [1.0] * 4


def test_cosine_schedule_warms_up_then_falls_to_the_minimum():
    config = OptimConfig(
        learning_rate=1.0, reference_batch_size=8, warmup_epochs=1, schedule="cosine", min_learning_rate=0.02
    )
    rates = learning_rates(config, 16, steps_per_epoch=10, epochs=6)
    cosine = [0.04 + (2 - 0.04) * (1 + math.cos(math.pi * i / 50)) / 2 for i in range(50)]
    assert rates == pytest.approx([2 * (i + 1) / 10 for i in range(10)] + cosine)


# ---- the learning rate of the trunk --------------------------------------------------------------------------------


def names_of_groups(model: nn.Module, groups: list[dict]) -> list[list[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names[parameter] for parameter in group["params"]] for group in groups]


def test_the_trunk_has_groups_of_its_own_after_those_of_the_rest():
    model = nn.ModuleDict({"trunk": Net(), "head": nn.Linear(4, 2)})
    model["trunk"].conv.bias.requires_grad_(False)
    groups = parameter_groups(model, 0.05, model["trunk"])
    assert names_of_groups(model, groups) == [
        ["head.weight"],
        ["head.bias"],
        ["trunk.conv.weight"],
        ["trunk.relative_position_bias_table", "trunk.norm.weight", "trunk.norm.bias"],
    ]
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0, 0.05, 0.0]
    assert groups[TRUNK_GROUPS] == groups[2:]


@pytest.mark.parametrize("algorithm", ["sgd", "adamw"])
def test_with_ratio_1_optimizer_and_schedule_have_the_same_state_as_without_a_trunk(algorithm):
    model = nn.ModuleDict({"trunk": Net(), "head": nn.Linear(4, 2)})
    config = OptimConfig(optimizer=algorithm, schedule="cosine")
    optimizer, other = (build_optimizer(model, config, 8, trunk) for trunk in (model["trunk"], None))
    assert names_of_groups(model, optimizer.param_groups) == names_of_groups(model, parameter_groups(model, 5e-4))
    assert optimizer.state_dict()["param_groups"] == other.state_dict()["param_groups"]
    schedule, main = (build_scheduler(optimizer, config, 8, steps, 4) for steps in (5, 1))
    assert (type(schedule), type(main)) == (SequentialLR, CosineAnnealingLR)  # as before the ratio was added


@pytest.mark.parametrize("ratio", [0.1, 0.37])
@pytest.mark.parametrize("warmup_epochs", [0, 0.2, 3, 99])  # none, one step, 15 steps, until the end
@pytest.mark.parametrize(
    "schedule",
    [
        {"schedule": "steps", "drop_epochs": (4, 6), "drop_factor": 0.3},
        {"schedule": "cosine"},
        {"schedule": "cosine", "min_learning_rate": 0.02},
    ],
)
@pytest.mark.parametrize("algorithm", ["sgd", "adamw"])
def test_the_learning_rate_of_the_trunk_has_the_ratio_in_every_step(algorithm, schedule, warmup_epochs, ratio):
    config = OptimConfig(
        optimizer=algorithm, learning_rate=0.7, reference_batch_size=8, warmup_epochs=warmup_epochs, **schedule
    )
    scaled = config.model_copy(update={"backbone_lr_ratio": ratio})
    model = nn.ModuleDict({"trunk": Net(), "head": nn.Linear(4, 2)})
    optimizer = build_optimizer(model, scaled, 24, model["trunk"])
    scheduler = build_scheduler(optimizer, scaled, 24, steps_per_epoch=5, epochs=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rate in learning_rates(config, 24, steps_per_epoch=5, epochs=8):
            assert [group["lr"] for group in optimizer.param_groups] == [rate, rate, ratio * rate, ratio * rate]
            optimizer.step()
            scheduler.step()


def test_a_step_moves_the_trunk_by_the_ratio():
    model = nn.ModuleDict({"trunk": nn.Linear(1, 1, bias=False), "head": nn.Linear(1, 1, bias=False)})
    config = OptimConfig(learning_rate=1.0, reference_batch_size=1, weight_decay=0, momentum=0, backbone_lr_ratio=0.125)
    optimizer = build_optimizer(model, config, 1, model["trunk"])
    before = [parameter.item() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = [old - parameter.item() for old, parameter in zip(before, model.parameters(), strict=True)]
    assert moved == pytest.approx([0.125, 1.0])


# ---- the moving average --------------------------------------------------------------------------------------------


def test_moving_average_follows_the_rising_decay():
    net = Net()
    average = AveragedModel(net, use_buffers=True)
    expected = None
    for count, value in enumerate((1.0, 2.0, 4.0, 8.0)):
        nn.init.constant_(net.conv.weight, value)
        update_average(average, net, 0.5)
        decay = min(0.5, (1 + count) / (10 + count))
        expected = value if expected is None else decay * expected + (1 - decay) * value
        torch.testing.assert_close(average.module.conv.weight, torch.full_like(net.conv.weight, expected))


def test_moving_average_copies_index_tables_and_counters():
    net = Net()
    average = AveragedModel(net, use_buffers=True)
    for _ in range(20):
        net.norm.num_batches_tracked += 1
        update_average(average, net, 0.999)
    assert torch.equal(average.module.index, torch.arange(7))
    assert average.module.norm.num_batches_tracked == 20
