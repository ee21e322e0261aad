"""SGD on the CPU against torch's own: the same entries to the last bit, whatever is asked for."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from fedgraft.client.training.model.plain_sgd import PlainSgd


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.parametrize(("momentum", "weight_decay"), [*product((0.0, 0.9), (0.0, 0.05))])
def test_every_bit_is_that_of_torch(momentum: float, weight_decay: float) -> None:
    """Two groups with rates that change, and one entry that gets no gradient in some steps."""
    ours, theirs = net(), net()
    mine, wanted = list(ours.parameters()), list(theirs.parameters())
    plain = PlainSgd([{"params": mine[:4], "lr": 0.03}, {"params": mine[4:], "lr": 0.3}], momentum, weight_decay)
    torchs = torch.optim.SGD(
        [{"params": wanted[:4], "lr": 0.03}, {"params": wanted[4:], "lr": 0.3}],
        lr=1.0,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    for step in range(6):
        draw = torch.Generator().manual_seed(step)
        images, labels = torch.randn(5, 1, 8, 8, generator=draw), torch.randint(0, 3, (5,), generator=draw)
        for model, optimiser in ((ours, plain), (theirs, torchs)):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            if step % 2:
                next(model.parameters()).grad = None
            for group in optimiser.param_groups:
                group["lr"] *= 0.7
            optimiser.step()
    assert all(torch.equal(one, other) for one, other in zip(mine, wanted, strict=True))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_gradients_are_let_go_and_left_as_they_were(weight_decay: float) -> None:
    """A method may keep a gradient that it has put there: neither decay nor momentum is written into it."""
    parameter = nn.Parameter(torch.ones(3))
    kept = torch.tensor([1.0, 2.0, 3.0])
    optimiser = PlainSgd([{"params": [parameter], "lr": 0.1}], momentum=0.9, weight_decay=weight_decay)
    for _ in range(3):
        parameter.grad = kept
        optimiser.step()
        optimiser.zero_grad()
    assert parameter.grad is None
    assert torch.equal(kept, torch.tensor([1.0, 2.0, 3.0]))
