"""From what a site sends back to what it trained on: gradients of linear layers give their inputs away.

One case: row k of a layer's gradient is the input times entry k of the bias's gradient. Many cases: a coordinator who
sends a first layer that sorts cases by brightness finds each that is alone in its bin (Fowl et al. 2021, "Robbing the
Fed"). Both are carried out by the site's own trainer and see nothing but the entries before and after.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.special import ndtri
from torch import Tensor

from fedgraft.client.attacks.attack_target import (
    NOW,
    AttackTarget,
    ExampleCases,
    light,
    loader_of,
)
from fedgraft.client.attacks.measurement import Measurement
from fedgraft.client.attacks.reconstruction import RECOGNISED_DB, psnr
from fedgraft.client.privacy.dp.dpsgd import train_private
from fedgraft.client.training.gradient import train
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.study.plan import Gradient

PIXELS = 1024
_BINS = 64
"""Width of the first layer of `table_mlp`."""
_CASES = 32
_PLAIN = Gradient(steps=1, batch_size=_CASES, optimiser="sgd", momentum=0.0, lr=1.0)

Visit = Callable[[LocalModel, ExampleCases], None]
"""One step of a site's trainer at rate 1, on all cases of a site."""


def private_visit(attack_target: AttackTarget) -> Visit:
    """One step with these privacy settings, and everybody in it: the attacker knows that the victim took part."""
    asked = attack_target.asking({"steps": 1, "lr": 1.0, "batch_size": _CASES}, {"sample_rate": 1.0})

    def visit(local_model: LocalModel, cases: ExampleCases) -> None:
        train_private(
            local_model, loader_of(attack_target.study, cases), cases.patients, asked.local, attack_target.changes, NOW
        )

    return visit


def plain_visit(attack_target: AttackTarget) -> Visit:
    """A visit to attack: one step of plain SGD at rate 1, without clip and noise."""

    def visit(local_model: LocalModel, cases: ExampleCases) -> None:
        train(local_model, loader_of(attack_target.study, cases), _PLAIN, attack_target.changes, NOW)

    return visit


def one_case(attack_target: AttackTarget, seed: int, *, private: bool) -> Measurement:
    """How well a case of 1,024 numbers comes out of one step of a linear layer on it alone, as PSNR in dB."""
    small = light(attack_target, PIXELS)
    local_model, cases = small.local_model(), _people(1, seed)
    change = _change(local_model, small, cases, private=private)
    quality = psnr(_solved(change["heads.cls.weight"], change["heads.cls.bias"]), cases.inputs[0])
    words = f"the one patient of a site comes back at {quality:.0f} dB ({'with' if private else 'without'} privacy)"
    return Measurement(quality, 10.0, words) if private else Measurement(quality, 60.0, words, "at least")


def imprint(attack_target: AttackTarget, seed: int, *, private: bool) -> Measurement:
    """The share of 32 cases that come out of one step of a crafted model at more than 25 dB."""
    small = light(attack_target, PIXELS, "table_mlp")
    local_model, cases = small.local_model(), _people(_CASES, seed)
    _craft(local_model)
    change = _change(local_model, small, cases, private=private)
    first = "backbone.layers.0"
    found = _between(change[f"{first}.weight"], change[f"{first}.bias"])
    known = {at for one in found for at in range(_CASES) if psnr(one, cases.inputs[at]) > RECOGNISED_DB}
    share = len(known) / _CASES
    words = f"{len(known)} of {_CASES} patients come back from one sum ({'with' if private else 'without'} privacy)"
    return Measurement(share, 0.0, words) if private else Measurement(share, 0.4, words, "at least")


def _change(
    local_model: LocalModel, attack_target: AttackTarget, cases: ExampleCases, *, private: bool
) -> dict[str, Tensor]:
    """What one visit changed, entry by entry: minus the gradient, at a rate of 1."""
    before = local_model.read(attack_target.changes)
    (private_visit if private else plain_visit)(attack_target)(local_model, cases)
    return {
        key: torch.from_numpy(before[key] - array) for key, array in local_model.read(attack_target.changes).items()
    }


def _solved(weight: Tensor, bias: Tensor) -> Tensor:
    """The input of a linear layer whose gradient comes from one case."""
    row = int(bias.abs().argmax())
    return weight[row] / bias[row]


def _between(weight: Tensor, bias: Tensor) -> Tensor:
    """Per bin, the input that its gradient would come from if one case lay in it."""
    weight, bias = weight - torch.roll(weight, -1, 0), bias - torch.roll(bias, -1)
    weight[-1], bias[-1] = weight[-1] * 0, 1.0
    return weight / bias[:, None]


def _craft(local_model: LocalModel) -> None:
    """Unit k of the first layer is awake for cases brighter than the k-th quantile; what follows treats all alike."""
    quantiles = torch.from_numpy(ndtri((torch.arange(_BINS) + 0.5).numpy() / _BINS)).float()
    with torch.no_grad():
        entries = local_model.parameters
        entries["backbone.layers.0.weight"].fill_(1 / PIXELS)
        entries["backbone.layers.0.bias"].copy_(-(0.5 + quantiles / math.sqrt(12 * PIXELS)))
        entries["backbone.layers.2.weight"].fill_(0.01)
        entries["backbone.layers.2.bias"].zero_()
        entries["heads.cls.weight"].copy_(torch.tensor([[0.1], [-0.1]]).expand(2, 32))
        entries["heads.cls.bias"].zero_()


def _people(count: int, seed: int) -> ExampleCases:
    """Patients of 1,024 numbers, uniform in [0, 1]: nothing in them can be guessed from the rest."""
    draw = torch.Generator().manual_seed(seed)
    return ExampleCases(
        torch.rand(count, PIXELS, generator=draw), torch.arange(count) % 2, tuple(map(str, range(count)))
    )
