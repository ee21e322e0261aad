"""AdamW on the CPU against torch's own: the same entries to the last bit, whatever is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from fedgraft.client.training.model.plain_adamw import PlainAdamW

ALONE = """
import sys, torch
from fedgraft.client.training.model.plain_adamw import PlainAdamW
parameter = torch.nn.Parameter(torch.ones(3))
optimiser = PlainAdamW([{"params": [parameter], "lr": 0.1}], 0.1)
parameter.grad = torch.ones(3)
optimiser.step()
print("torch._dynamo" in sys.modules, parameter.tolist() != [1.0, 1.0, 1.0])
"""


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_bit_is_that_of_torch(weight_decay: float, layout: torch.memory_format) -> None:
    """Two groups with rates that change, and one entry that gets no gradient in some steps."""
    ours, theirs = net().to(memory_format=layout), net().to(memory_format=layout)
    mine, wanted = list(ours.parameters()), list(theirs.parameters())
    plain = PlainAdamW([{"params": mine[:4], "lr": 0.003}, {"params": mine[4:], "lr": 0.03}], weight_decay)
    torchs = torch.optim.AdamW(
        [{"params": wanted[:4], "lr": 0.003}, {"params": wanted[4:], "lr": 0.03}], lr=1.0, weight_decay=weight_decay
    )
    for step in range(12):
        draw = torch.Generator().manual_seed(step)
        images, labels = torch.randn(5, 1, 8, 8, generator=draw), torch.randint(0, 3, (5,), generator=draw)
        for model, optimiser in ((ours, plain), (theirs, torchs)):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            if step % 2:
                next(model.parameters()).grad = None
            for group in optimiser.param_groups:
                group["lr"] *= 0.9
            optimiser.step()
    assert all(torch.equal(one, other) for one, other in zip(mine, wanted, strict=True))
    assert not torch.equal(mine[0], next(net().parameters()))


def test_gradients_are_let_go_and_left_as_they_were() -> None:
    """A method may keep a gradient that it has put there: nothing is written into it."""
    parameter = nn.Parameter(torch.ones(3))
    kept = torch.tensor([1.0, 2.0, 3.0])
    optimiser = PlainAdamW([{"params": [parameter], "lr": 0.1}], weight_decay=0.1)
    for _ in range(3):
        parameter.grad = kept
        optimiser.step()
        optimiser.zero_grad()
    assert parameter.grad is None
    assert torch.equal(kept, torch.tensor([1.0, 2.0, 3.0]))


def test_a_step_does_without_the_compiler() -> None:
    said = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "True"]
