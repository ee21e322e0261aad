"""Passes whose rows do not depend on each other: which sizes are found, how cases are parted, what is left of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fedgraft.client.training.device.alike import (
    RowTrial,
    alike_sizes,
    at_random,
    filled,
    narrow_layers,
    passes,
    room,
)
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.models.ensemble import without_an_end
from helpers.work import CPU, MakeStudy, snapshot


def sizes(found, most: int, at_most: int = 6) -> tuple[int, ...]:
    return alike_sizes([RowTrial(lambda inputs: [found(inputs)], (5,))], CPU, most, at_most)


def test_where_rows_are_independent_all_sizes_will_do() -> None:
    assert sizes(lambda x: x * 2, 32) == (16, 20, 24, 28, 32, 36)
    assert sizes(lambda x: x * 2, 100) == (44, 56, 68, 80, 92, 104)
    assert sizes(lambda x: x * 2, 32, 2) == (16, 36)
    assert sizes(lambda x: x * 2, 5) == (8, 12)
    assert sizes(lambda x: x * 2, 3) == (8,)
    assert sizes(lambda x: x * 2, 1) == (1,)


def test_a_size_at_which_a_row_comes_out_otherwise_is_left_out() -> None:
    def otherwise_in_small_ones(x: Tensor) -> Tensor:
        return x + (1e-7 if len(x) < 20 else 0.0)

    assert sizes(otherwise_in_small_ones, 32) == (20, 24, 28, 32, 36)


@pytest.mark.parametrize(
    ("place", "left"), [(0, (40,)), (3, (40,)), (24, (20, 24, 28, 40)), (-1, (20, 24, 28, 32, 36))]
)
def test_a_size_at_which_a_place_matters_is_passed_by(place: int, left: tuple[int, ...]) -> None:
    """But for the last ones, which do not count."""

    def one_place_differs(x: Tensor) -> Tensor:
        out = x.clone()
        out[place:][:1] *= 1 + (2.0**-20 if len(x) < 40 else 0.0)
        return out

    found = sizes(one_place_differs, 32)
    assert set(left) <= set(found)
    assert found[-1] == left[-1]


def test_a_loss_has_no_end_whose_numbers_come_from_other_code() -> None:
    """Of three classes and any number of cases: what is left over after whole registers may differ in a digit."""
    rows = torch.randn(7, 3, requires_grad=True)
    whole = without_an_end(rows)
    assert len(whole) == 32
    assert torch.equal(whole[:7], rows)
    whole.square().sum().backward()
    assert torch.equal(rows.grad, 2 * rows.detach())
    assert without_an_end(whole) is whole


def test_single_rows_are_left_where_a_row_always_depends_on_its_place() -> None:
    assert sizes(lambda x: x + torch.arange(len(x))[:, None], 32) == (1,)
    assert sizes(lambda x: x / x.norm(), 32) == (1,), "or on the other rows"
    assert sizes(lambda x: x * float("nan"), 32) == (1,), "or where nothing can be seen"


@pytest.mark.parametrize("count", [0, 1, 7, 16, 17, 32, 33, 70])
@pytest.mark.parametrize("of", [(16, 24, 32), (8,), (1,)])
def test_all_cases_are_in_some_pass_and_passes_are_full(count: int, of: tuple[int, ...]) -> None:
    found = list(passes(count, of))
    assert [case for start, end, _ in found for case in range(start, end)] == list(range(count))
    assert all(size in of and end - start <= room(size) for start, end, size in found)
    indices = torch.arange(count) + 100
    whole = filled(indices, of)
    assert len(whole) == sum(size for _, _, size in found)
    assert torch.equal(whole[:count], indices)
    assert set(whole.tolist()) == set(indices.tolist())


def test_a_model_is_as_it_was_after_entries_at_random(make_study: MakeStudy) -> None:
    local_model = LocalModel(make_study(), CPU)
    local_model.model.train()
    local_model.model.heads.eval()
    before = snapshot(local_model)
    training = {name: part.training for name, part in local_model.model.named_modules()}
    with at_random(local_model.model):
        assert any(not (value == before[key]).all() for key, value in snapshot(local_model).items())
        assert not any(part.training for part in local_model.model.modules())
    with pytest.raises(KeyError), at_random(local_model.model):
        raise KeyError
    assert all((value == before[key]).all() for key, value in snapshot(local_model).items())
    assert training == {name: part.training for name, part in local_model.model.named_modules()}


def test_whoever_makes_a_model_cannot_hide_that_rows_depend_on_each_other() -> None:
    """With entries of 0 nothing depends on anything; these are not the entries that are looked at."""
    layer = nn.Linear(5, 3)
    nn.init.zeros_(layer.weight)

    def leaking(x: Tensor) -> Tensor:
        return layer(x) * x.mean()

    nn.init.zeros_(layer.bias)
    assert sizes(leaking, 16) == (8, 12, 16, 20)
    with at_random(layer):
        assert sizes(leaking, 16) == (1,)


class Uneven(nn.Linear):
    """Every second row is summed from the other end: with two outputs of 16 numbers, often the same to the digit."""

    def forward(self, x: Tensor) -> Tensor:
        plain, back = super().forward(x), (x.flip(1) @ self.weight.flip(1).T) + self.bias
        other = (torch.arange(len(x)) % 2 == 1)[:, None] & (torch.rand(x.shape[0], 1) < 0.02)
        return torch.where(other, back, plain)


def test_layers_with_few_numbers_are_looked_at_for_longer() -> None:
    model = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), Uneven(200, 2))
    found = narrow_layers(model, lambda: model(torch.randn(3, 300)), 3)
    assert [tuple(trial.shape) for trial in found] == [(200,)]
    assert found[0].times * 2 * 32 >= 1 << 13
    assert alike_sizes(found, CPU, 32, 2) == (1,)
    whole = RowTrial(lambda inputs: [model[:2](inputs)], (300,))
    assert alike_sizes([whole], CPU, 32, 2)[-1] >= 36, "nothing is the matter before"


def test_sizes_are_looked_for_once_in_a_process_for_models_that_differ_in_their_entries_alone(
    make_study: MakeStudy,
) -> None:
    looked: list[object] = []
    one, other = object(), object()

    def found(work: object, **facts: object) -> tuple[int, ...]:
        return LocalModel(make_study(**facts), CPU).alike(work, lambda: looked.append(work) or (len(looked),))

    first, again, other_work = found(one), found(one, seed=9), found(other)
    assert (first, again, other_work) == ((1,), (1,), (2,))
    assert found(one, model={"backbone": "slim_resnet_gn", "weights": None}) == (3,)
    assert found(one, tasks=[{"name": "cls", "classes": ["a", "b", "c", "d", "e"]}]) == (4,)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert found(one) == (5,)
    finally:
        torch.set_num_threads(threads)
    assert found(one) == (1,)
