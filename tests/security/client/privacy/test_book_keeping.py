"""Sums of clipped gradients in one pass backwards: what was measured is summed, whatever the model was made for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fedgraft.client.privacy.dp.gradients.book_keeping import Factored, Tape
from fedgraft.client.privacy.dp.gradients.checked_sums import MOST_ERROR
from fedgraft.client.privacy.dp.gradients.trainer import CHANGE, attached, clip_factors, clipped_sums
from fedgraft.client.privacy.dp.units import Rows
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from helpers.dp import loader_of, quiet, sums, trainable
from helpers.work import CPU, MakeStudy, cohort, images


def clipped(
    layer: nn.Module, inputs: Tensor, weights: Tensor, unit: Tensor, clip: float
) -> tuple[Tensor, Tensor, bool]:
    """Each unit's clipped gradient alone, as it is summed, and exactly (units, ...); whether it was made at all.

    `weights` (cases, ...) times the layer's outputs is the loss.
    """
    rows = Rows(torch.arange(len(inputs)), unit, int(unit.max()) + 1)
    tape = Tape(layer, [layer.weight])
    losses = (layer(inputs) * weights).flatten(1).sum(dim=1)
    (found,) = tape.gradients(losses, torch.ones_like(losses), rows.most)
    part = found.of_units(rows)
    tape.cleanup()
    factors = clip_factors(part.norms(clip), clip)
    alone = torch.stack([part.weighted_sum(factors * one) for one in torch.eye(rows.units)]).double()
    exact = []
    twin = copy.deepcopy(layer).double()
    for own in range(rows.units):
        cases = unit == own
        loss = (twin(inputs[cases].double()) * weights[cases].double()).sum()
        (gradient,) = torch.autograd.grad(loss, [twin.weight])
        exact.append(gradient * min(1.0, clip / max(float(gradient.norm()), 1e-300)))
    return alone, torch.stack(exact), isinstance(part, Factored)


LAYERS = {
    "linear": (nn.Linear(70, 60), (70,), (60,)),
    "tokens": (nn.Linear(70, 60), (5, 70), (5, 60)),
    "convolution": (nn.Conv2d(128, 128, 3), (128, 6, 6), (128, 4, 4)),
    "strides and groups": (nn.Conv2d(128, 128, 3, stride=2, padding=1, groups=2, bias=False), (128, 4, 4), (128, 2, 2)),
    "more places": (nn.Conv2d(128, 128, 3), (128, 9, 9), (128, 7, 7)),
    "two by two": (nn.Conv2d(128, 100, 3, padding=1), (128, 2, 2), (100, 2, 2)),
    "eight by eight": (nn.Conv2d(128, 128, 3, padding=1), (128, 8, 8), (128, 8, 8)),
    "many places": (nn.Conv2d(3, 8, 3), (3, 12, 12), (8, 10, 10)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("several", [False, True])
def test_units_are_clipped_as_if_each_gradient_had_been_made(name: str, several: bool) -> None:
    layer, shape, out = LAYERS[name]
    draw = torch.Generator().manual_seed(1)
    unit = torch.tensor([0, 0, 0, 1, 2, 2]) if several else torch.arange(6)
    inputs, weights = torch.randn(6, *shape, generator=draw), torch.randn(6, *out, generator=draw)
    weights[3] *= 1e-6
    got, want, factored = clipped(layer, inputs, weights, unit, 1.0)
    assert factored == (name != "many places" and not (several and name in ("more places", "eight by eight")))
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-6)
    assert float(got[int(unit[3])].norm()) < 0.01, "and what is below the clip stays as it is"


def test_what_cancels_in_single_precision_is_not_let_out_at_its_full_length() -> None:
    """The same is seen at all places, and what comes back cancels but for what rounding makes of it."""
    layer, shape, out = LAYERS["convolution"]
    draw = torch.Generator().manual_seed(2)
    inputs = torch.randn(4, shape[0], 1, 1, generator=draw).expand(4, *shape).contiguous()
    weights = torch.randn(4, *out, generator=draw) * 1e3
    weights -= weights.mean(dim=(2, 3), keepdim=True)
    got, _, factored = clipped(layer, inputs, weights, torch.arange(4), 1e-6)
    assert factored
    assert float(got.flatten(1).norm(dim=1).max()) <= 1.001e-6


@pytest.mark.parametrize(("seen", "came"), [(7e30, 1e-31), (1e-31, 7e30)])
def test_numbers_that_single_precision_cannot_hold_count_as_none(seen: float, came: float) -> None:
    """What came back is clipped to less than the least number above 0, or what was seen is next to it."""
    layer = LAYERS["linear"][0]
    inputs, weights = torch.full((1, 70), seen), torch.full((1, 60), came)
    got, _, factored = clipped(layer, inputs, weights, torch.arange(1), 1e-12)
    assert factored
    assert float(got.norm()) == 0


def test_a_layer_of_which_nothing_comes_back_has_no_gradient() -> None:
    """A head whose task nobody in the batch has a label of."""
    used, unused = nn.Linear(3, 2), nn.Linear(3, 2)
    model = nn.ModuleList([used, unused])
    tape = Tape(model, [used.weight, unused.weight])
    x = torch.randn(4, 3)
    unused(x)
    found = tape.gradients(used(x).sum(dim=1), torch.ones(4))
    parts = [own.of_units(Rows(torch.arange(4), torch.arange(4), 4)) for own in found]
    tape.cleanup()
    assert float(parts[0].norms(1.0).min()) > 0
    assert parts[1].norms(1.0).tolist() == [0.0] * 4


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_models_of_all_magnitudes_move_a_sum_by_no_more_than_the_clip(make_study: MakeStudy, mode: str) -> None:
    study = make_study(
        input={"kind": "table", "numeric": ["a", "b", "c"]}, model={"backbone": "table_mlp", "weights": None}
    )
    local_model, one = LocalModel(study, CPU), torch.tensor([0])
    keys = [key for key in trainable(local_model) if key in local_model.parameters]
    loader = loader_of(Loader(cohort(images(1)[0], {"cls": one}), study.input, CPU), torch.ones(1, 3), one)
    local_model.model.freeze(keys, fixed_norm_stats=True)
    (batch,) = loader.batches([one])
    for seed in range(150):
        draw = torch.Generator().manual_seed(seed)
        clip = 10.0 ** float(torch.empty(1).uniform_(-11.9, 2, generator=draw))
        with torch.no_grad():
            for entry in local_model.parameters.values():
                size = 10.0 ** (float(torch.empty(1).uniform_(-1, 1, generator=draw)) * (3, 10, 20, 38)[seed % 4])
                drawn = torch.randn(entry.shape, generator=draw).double()
                entry.copy_(((drawn, drawn.abs(), torch.ones_like(drawn))[seed % 3] * size).clamp(-3e38, 3e38))
        private = quiet(mode=mode, max_grad_norm=clip).private
        assert private is not None
        with attached(local_model, loader, keys, private) as trainer:
            moved = torch.cat([part.flatten() for part in trainer.sum_of(batch, Rows(one, one, 1))]).double().norm()
        assert float(moved) / clip < 1.001, seed


@pytest.mark.parametrize("cases", [10, 11, 16])
def test_how_others_are_clipped_does_not_depend_on_how_many_cases_a_patient_has(
    make_study: MakeStudy, cases: int
) -> None:
    """A layer's gradients are kept, or their norms made without them, and the two leave out other units.

    By a model made for it all 60 others would be in the sum with a patient of eleven cases, and none without.
    """
    study = make_study(
        input={"kind": "table", "numeric": ["a", "b", "c"]}, model={"backbone": "table_mlp", "weights": None}
    )
    local_model, clip, others = LocalModel(study, CPU), 1e-12, 60
    entries = local_model.parameters
    with torch.no_grad():
        for entry in entries.values():
            entry.zero_()
        entries["backbone.layers.0.weight"].fill_(1e16)
        local_model.model.backbone.standardise.mean.fill_(-100)
        local_model.model.backbone.standardise.std.fill_(1e-12)
        entries["backbone.layers.2.bias"].fill_(1)
        entries["heads.cls.weight"].copy_(torch.tensor([[1e-31], [-1e-31], [0]]).expand(3, 32))
    like = Loader(cohort(images(1)[0], {"cls": torch.tensor([0])}), study.input, CPU)
    terms = {"mode": "ghost", "max_grad_norm": clip, "batch_size": 128, "unit": "patient"}
    spec = quiet(**terms, expected_units=others, augmentation_multiplicity=16)
    keys, found = [key for key in trainable(local_model) if key in entries], []
    for more in (0, cases):
        patients = [*map(str, range(others)), *["one more"] * more]
        inputs = torch.randn(others + more, 3, generator=torch.Generator().manual_seed(1))
        loader = loader_of(like, inputs, torch.zeros(others + more, dtype=torch.int64))
        found.append(sums(local_model, loader, patients, spec, keys)[0].double())
    assert float((found[1] - found[0]).norm()) / clip < 1.001


def summed_of(layer: nn.Conv2d, slopes: Tensor, clip: float, *, checked: bool) -> Tensor:
    """The clipped sum of units that see ones everywhere, and of whose outputs at each place come back `slopes`."""
    count, side = len(slopes), int(slopes.shape[1] ** 0.5)
    inputs = torch.ones(count, layer.in_channels, side + 2, side + 2)
    weights = slopes.view(count, 1, side, side).expand(count, layer.out_channels, side, side).contiguous()
    rows, tape = Rows(torch.arange(count), torch.arange(count), count), Tape(layer, [layer.weight])
    (found,) = tape.gradients((layer(inputs) * weights).flatten(1).sum(dim=1), torch.ones(count))
    tape.cleanup()
    part = found.of_units(rows)
    with torch.no_grad():
        if checked:
            (total,) = clipped_sums([part], clip, rows)
        else:
            total = part.weighted_sum(clip_factors(part.norms(clip), clip))
    return total.double() / clip


def test_others_whose_places_cancel_do_not_let_one_unit_move_more_than_the_clip() -> None:
    """The sums of 256 others cancel after much rounding, which all goes another way if one unit stands before them."""
    layer, places, others = nn.Conv2d(128, 128, 3, bias=False), 64, 256
    slopes = torch.full((others, places), 0.51 * 2.0**-14)
    slopes[:, 0], slopes[:, -1] = 511.75, -511.75
    one = torch.zeros(1, places)
    one[0, 0] = 1.03
    clip = 1.03 * layer.weight.numel() ** 0.5
    moved = {
        checked: float(
            (
                summed_of(layer, torch.cat([one, slopes]), clip, checked=checked)
                - summed_of(layer, slopes, clip, checked=checked)
            ).norm()
        )
        for checked in (False, True)
    }
    assert moved[False] > 1.05, "the attack must work where nothing is done against it"
    assert moved[True] < CHANGE


@pytest.mark.parametrize("places", [81, 144])
def test_what_cancels_over_many_places_is_not_summed_to_more_than_was_measured(places: int) -> None:
    layer = nn.Conv2d(256, 256, 3, bias=False)
    slopes = torch.full((1, places), 0.9 * 2.0**-23, dtype=torch.float64)
    slopes[0, 0] = 1
    slopes[0, -1] = -1 - slopes[0, 1:-1].sum() + 0.002
    clip = float(torch.linalg.vector_norm(torch.full((layer.weight.numel(),), 0.002)))
    assert float(summed_of(layer, slopes.float(), clip, checked=True).norm()) <= 1 + MOST_ERROR
