"""Arrays end in other code than they begin with: no case that counts stands there, in whatever net, loss or thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedgraft as fg
from fedgraft.client.privacy.dp.gradients.private_losses import PrivateLosses
from fedgraft.client.training.device.alike import SPARE, alike_sizes
from fedgraft.client.training.device.row_ends import end_well, row_widths
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.study.stages.losses import SUPERVISED, PluggedLoss
from helpers.dp import loader_of, quiet, sums, trainable
from helpers.plugins import fresh
from helpers.work import CPU, MakeStudy, cohort, images

assert fresh
TABLE = {"kind": "table", "numeric": ["a", "b", "c"]}


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Gate(nn.Module):
    """A squeeze to two numbers for each case, as small networks have it, with functions of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(64, 2), nn.Linear(2, 64)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.out(F.silu(self.into(x))))


def test_widths_are_those_of_functions_forwards_and_backwards() -> None:
    gate, x = Gate(), torch.randn(7, 64, requires_grad=True)
    assert row_widths(lambda: gate(x), 7) == {2, 64}
    assert row_widths(lambda: torch.autograd.grad(F.mish(x[:, :6]).sum(), [x]), 7) == {6}
    assert row_widths(lambda: F.relu(nn.Linear(64, 3)(x)) * 2 + 1, 7) == set(), "what is exact may end anywhere"
    assert row_widths(lambda: torch.add(x[:, :5], x[:, 5:10], alpha=0.3), 7) == {5}, "this is not"
    assert row_widths(lambda: torch.special.bessel_j0(x.detach()[:, :3]), 7) == {3}, "nor what nobody thought of"


def test_no_array_ends_among_cases_that_count() -> None:
    with threads(1):
        assert not end_well(24, {2}, SPARE)
        assert not end_well(28, {2}, SPARE)
        assert all(end_well(size, {2}, SPARE) for size in (16, 20, 32, 36))
        assert all(end_well(size, {8, 48, 64}, SPARE) for size in range(8, 100, 4))


def test_no_threads_share_ends_among_cases_or_within_one() -> None:
    with threads(4):
        assert end_well(40, {512}, SPARE), "so few numbers are one thread's"
        assert not end_well(40, {2048}, SPARE), "81,920 numbers are three threads', and 40 cases have no thirds"
        assert end_well(48, {2048}, SPARE)
        assert not end_well(48, {1501}, SPARE), "nor have 1,501 times 16 numbers an end of 32"
    with threads(2):
        assert end_well(40, {2048}, SPARE)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_rows_of_a_narrow_net_come_out_alike_in_all_sizes_that_are_used(count: int) -> None:
    """Looked at for long: to two numbers a case the end is seldom another."""
    gate = Gate()
    with threads(count):
        widths = row_widths(lambda: gate(torch.randn(7, 64)), 7)
        sizes = alike_sizes([], CPU, 32, 8, widths)
        assert sizes[-1] >= 36
        draw = torch.Generator().manual_seed(0)
        for _ in range(500):
            squeezed = torch.randn(sizes[-1], 2, generator=draw) * 2
            whole = F.silu(squeezed)
            for size in sizes[:-1]:
                assert torch.equal(F.silu(squeezed[:size].clone())[:-SPARE], whole[: size - SPARE])


class Powers:
    """A loss per case of functions whose ends are made otherwise."""

    scope = "per_sample"
    requires = ("labels",)
    tasks = ("multiclass",)

    def __call__(self, *, outputs: Tensor, targets: Tensor) -> Tensor:
        own = outputs.gather(1, targets[:, None])[:, 0]
        return F.softplus(-own) ** 1.9 + torch.sigmoid(outputs).pow(0.7).sum(dim=1)


@pytest.mark.usefixtures("fresh")
def test_a_plug_ins_loss_of_a_case_does_not_tell_how_many_others_have_labels(make_study: MakeStudy) -> None:
    """It was shown the cases with a label alone: as many rows as there are of them."""
    fg.register_loss("powers", Powers)
    found = PrivateLosses((PluggedLoss(kind="powers", options={}),), LocalModel(make_study(), CPU))
    draw = torch.Generator().manual_seed(0)
    for _ in range(30):
        outputs, slopes = torch.randn(40, 3, generator=draw) * 3, []
        for known in (1, 3, 15, 16, 17, 31, 32, 33, 39):
            labels = torch.where(torch.arange(40) < known, 1, -1)
            free = outputs.clone().requires_grad_()
            losses = found.by_case({"cls": free}, {"cls": labels})
            assert not losses[known:].any()
            (slope,) = torch.autograd.grad(losses.sum(), [free])
            assert not slope[known:].any()
            slopes.append(torch.cat([losses.detach()[:known, None], slope[:known]], dim=1))
        assert all(torch.equal(one, slopes[-1][: len(one)]) for one in slopes)


@pytest.mark.parametrize("labels", [3, 1000, 1025, 2100])
def test_a_loss_of_many_labels_does_not_depend_on_other_cases(make_study: MakeStudy, labels: int) -> None:
    """Of 1,025 labels 32 cases are too many numbers for one thread, and where its share ends is an end."""
    tasks = [{"name": "signs", "kind": "multilabel", "labels": [f"l{number}" for number in range(labels)]}]
    found = PrivateLosses(SUPERVISED, LocalModel(make_study(tasks=tasks), CPU))
    outputs, known = torch.randn(65, labels) * 3, (torch.rand(65, labels) > 0.5).float()

    def slopes(first: int, last: int) -> Tensor:
        free = outputs[first:last].clone().requires_grad_()
        losses = found.by_case({"signs": free}, {"signs": known[first:last]})
        return torch.autograd.grad(losses.sum(), [free])[0]

    with threads(2):
        whole = slopes(0, 65)
        for first, last in product(range(4), (5, 16, 31, 32, 33, 64, 65)):
            assert torch.equal(slopes(first, last), whole[first:last])


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize(("cases", "batch_size"), [(16, 8), (9, 1), (40, 8)])
def test_a_unit_of_more_cases_than_a_pass_has_room_for_counts_with_all_of_them(
    make_study: MakeStudy, mode: str, cases: int, batch_size: int
) -> None:
    local_model = LocalModel(make_study(input=TABLE, model={"backbone": "table_mlp", "weights": None}), CPU)
    keys = [key for key in trainable(local_model) if key in local_model.parameters]
    local_model.model.freeze(keys, fixed_norm_stats=True)
    x, labels = torch.randn(cases, 3), torch.arange(cases) % 3
    F.cross_entropy(local_model.model(x)["cls"], labels).backward()
    wanted = torch.cat([local_model.parameters[key].grad.flatten() for key in keys])
    like = Loader(cohort(images(1)[0], {"cls": torch.tensor([0])}), make_study(input=TABLE).input, CPU)
    asked = partial(quiet, max_grad_norm=1e3, augmentation_multiplicity=cases, expected_units=1, noise_multiplier=1e-12)
    got = sums(local_model, loader_of(like, x, labels), ["one"] * cases, asked(mode=mode, batch_size=batch_size), keys)
    assert float((got[0] - wanted).norm() / wanted.norm()) < 1e-5
