"""Models made so that the last digit of a sum decides every answer: how many cases there are must still not show.

Libraries sum a product of few rows in another order than one of many. Entries that cancel but for their last digit turn
that into another answer for every case of a group, so that one patient more would change what all others count for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedgraft.client.privacy.dp.gradients import trainer
from fedgraft.client.privacy.dp.gradients.trainer import CHANGE
from fedgraft.client.training.device.alike import room
from fedgraft.client.training.model.evaluate import predictions
from fedgraft.client.training.model.features import Features
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from helpers.dp import loader_of, quiet, sums, trainable
from helpers.work import CPU, MakeStudy, cohort, images

TABLE = {"kind": "table", "numeric": ["a", "b", "c"]}
COUNTS = (1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 15, 16, 17, 23, 31, 32, 33, 64, 65)


def answers_by_count(weight: Tensor, bias: Tensor, seen: Tensor) -> dict[int, Tensor]:
    """The first output's signs of a layer for so many equal rows, as the library computes them."""
    return {n: F.linear(seen.expand(n, -1).contiguous(), weight, bias)[:, 0] > 0 for n in COUNTS}


def tell_tale(width: int) -> tuple[Tensor, Tensor, Tensor]:
    """A head, its bias and features for which some number of rows gives other answers than another."""
    draw = torch.Generator().manual_seed(0)
    seen = torch.rand(width, generator=draw) + 0.5
    for _ in range(20_000):
        weight = torch.randn(3, width, generator=draw) * 1e10
        weight[1:] = 0
        bias = torch.zeros(3)
        bias[0] = -float((weight[0].double() * seen.double()).sum())
        signs = answers_by_count(weight, bias, seen)
        if all(len(set(own.tolist())) == 1 for own in signs.values()) and any(
            bool(signs[less][0]) != bool(signs[n][0]) for less, n in pairwise(COUNTS) if less > 3 * (n - less)
        ):
            return weight, bias, seen
    pytest.skip("this machine's library sums any number of rows in one order")


def crafted(make_study: MakeStudy) -> LocalModel:
    """A model whose features are the same for everybody, and whose head answers by the number of rows."""
    local_model = LocalModel(make_study(input=TABLE, model={"backbone": "table_mlp", "weights": None}), CPU)
    weight, bias, seen = tell_tale(32)
    entries = local_model.parameters
    with torch.no_grad():
        for entry in entries.values():
            entry.zero_()
        entries["backbone.layers.0.bias"].fill_(1)
        entries["backbone.layers.2.bias"].copy_(seen)
        entries["heads.cls.weight"].copy_(weight)
        entries["heads.cls.bias"].copy_(bias)
    return local_model


def of_cases(local_model: LocalModel, make_study: MakeStudy, count: int) -> Loader:
    like = Loader(cohort(images(1)[0], {"cls": torch.tensor([0])}), make_study(input=TABLE).input, CPU)
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
    return loader_of(like, x, torch.zeros(count, dtype=torch.long))


def ids(count: int) -> Sequence[str]:
    return [str(number) for number in range(count)]


def moved_by_one(found: dict[int, Tensor]) -> float:
    """The most that a patient more moved the sums of so many patients, in clips."""
    return max(float((found[n] - found[less]).norm()) / (n - less) for less, n in pairwise(COUNTS))


def moved_in_training(make_study: MakeStudy, mode: str, batch_size: int) -> float:
    local_model = crafted(make_study)
    keys = [key for key in trainable(local_model) if key in local_model.parameters]
    spec = quiet(mode=mode, batch_size=batch_size, expected_units=40)
    return moved_by_one(
        {n: sums(local_model, of_cases(local_model, make_study, n), ids(n), spec, keys)[0] for n in COUNTS}
    )


@pytest.mark.parametrize("batch_size", [1, 4, 10, 32, 100])
@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_one_patient_more_moves_a_sum_by_no_more_than_the_clip(
    make_study: MakeStudy, mode: str, batch_size: int
) -> None:
    assert moved_in_training(make_study, mode, batch_size) < CHANGE


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_the_attack_works_where_any_number_of_rows_will_do(
    make_study: MakeStudy, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "sizes_for", lambda *_: tuple(range(1, 101)))
    assert moved_in_training(make_study, mode, 100) > 2


def moved_on_features(make_study: MakeStudy, batch_size: int, *, alike: bool) -> float:
    local_model, found = crafted(make_study), {}
    heads = [key for key, tag in local_model.tags.items() if tag.task]
    for n in COUNTS:
        loader = of_cases(local_model, make_study, n)
        seen = Features(loader, Path(), "", keep=False, alike=alike).loader(local_model, "its", "train")
        spec = quiet(batch_size=batch_size, expected_units=40)
        found[n] = sums(local_model, seen, ids(n), spec, heads)[0]
    return moved_by_one(found)


@pytest.mark.parametrize("batch_size", [1, 32, 1024])
def test_heads_on_features_do_not_tell_either(make_study: MakeStudy, batch_size: int) -> None:
    assert moved_on_features(make_study, batch_size, alike=True) < CHANGE


def test_features_and_answers_of_a_case_do_not_depend_on_the_others(make_study: MakeStudy) -> None:
    """Noise on sums of features, or on counts of answers, hides one patient's and no more."""
    local_model = crafted(make_study)
    first = []
    for n in COUNTS:
        loader = of_cases(local_model, make_study, n)
        features = Features(loader, Path(), "", keep=False, alike=True).loader(local_model, "its", "train")._inputs
        answers = predictions(local_model, loader, "train", alike=True)["cls"][0]
        assert answers.shape == (n, 3)
        first.append((features[:1].numpy().tobytes(), answers[:1].tobytes()))
        assert len({row.tobytes() for row in answers}) == 1, "wherever a case stands"
    assert len(set(first)) == 1
    plain = {
        predictions(local_model, of_cases(local_model, make_study, n), "train")["cls"][0][:1].tobytes() for n in COUNTS
    }
    assert len(plain) > 1, "the attack must work where nothing is done against it"


def test_passes_of_alike_rows_say_what_plain_ones_say(make_study: MakeStudy) -> None:
    study = make_study()
    local_model, pixels = LocalModel(study, CPU), images(37)[0]
    loader = Loader(cohort(pixels, {"cls": torch.arange(37) % 3}), study.input, CPU)
    plain = predictions(local_model, loader, "all", labelled=False)["cls"]
    alike = predictions(local_model, loader, "all", labelled=False, alike=True)["cls"]
    assert np.allclose(plain[0], alike[0], atol=1e-5)
    assert (plain[1] == alike[1]).all()
    of_all = [Features(loader, Path(), "", keep=False, alike=how) for how in (False, True)]
    rows = [own.loader(local_model, "its", "train")._inputs[loader.labelled("train")] for own in of_all]
    assert torch.allclose(*rows, atol=1e-5)


@pytest.mark.parametrize("bound", [1, 2])
def test_a_patient_with_two_images_does_not_change_how_others_are_clipped(make_study: MakeStudy, bound: int) -> None:
    """Heads on features have a closed form where each patient has one case; it leaves out others than the long way."""
    local_model, count = LocalModel(make_study(input=TABLE, model={"backbone": "table_mlp", "weights": None}), CPU), 60
    entries = local_model.parameters
    with torch.no_grad():
        for entry in entries.values():
            entry.zero_()
        entries["backbone.layers.0.bias"].fill_(1)
        entries["backbone.layers.2.bias"].fill_(1e25)
        entries["heads.cls.bias"].copy_(torch.tensor([40.0, 0.0, 0.0]))
    heads = [key for key, tag in local_model.tags.items() if tag.task]
    spec = quiet(batch_size=32, expected_units=60, unit="patient", augmentation_multiplicity=bound)
    found = []
    for more in (0, 1, 2):
        loader = of_cases(local_model, make_study, count + more)
        seen = Features(loader, Path(), "", keep=False, alike=True).loader(local_model, "its", "train")
        found.append(sums(local_model, seen, [*ids(count), *["one more"] * more], spec, heads)[0])
    assert max(float((own - found[0]).norm()) for own in found) < CHANGE


@pytest.mark.parametrize(("columns", "classes"), [(2, 2), (3, 3), (4, 3), (3, 5)])
@pytest.mark.parametrize("at_once", [2, 3, 5, 7, 20])
def test_heads_answer_alike_at_all_sizes_that_are_taken(
    make_study: MakeStudy, columns: int, classes: int, at_once: int
) -> None:
    """By two numbers for each of a few rows it seldom shows that every second row is summed in another order."""
    names = [f"c{at}" for at in range(columns)]
    tasks = [{"name": "cls", "classes": [f"k{at}" for at in range(classes)]}]
    study = make_study(input=TABLE | {"numeric": names}, tasks=tasks, model={"backbone": "table_mlp", "weights": None})
    local_model = LocalModel(study, CPU)
    keys = [key for key in trainable(local_model) if key in local_model.parameters]
    local_model.model.freeze(keys, fixed_norm_stats=True)
    like = Loader(cohort(images(1)[0], {"cls": torch.tensor([0])}), study.input, CPU)
    loader = loader_of(like, torch.zeros(2, columns), torch.zeros(2, dtype=torch.long))
    private = quiet().private
    assert private is not None
    with trainer.attached(local_model, loader, keys, private, at_once=at_once) as attached:
        sizes = attached.sizes
    draw = torch.Generator().manual_seed(5)
    for _ in range(1000):
        seen, weight = torch.rand(32, generator=draw) + 0.5, torch.randn(classes, 32, generator=draw) * 2.0**36
        bias = -(weight.double() @ seen.double()).float()
        rows = [F.linear(seen.expand(size, -1).contiguous(), weight, bias)[: room(size)] for size in sizes]
        assert all(bool((own == rows[0][0]).all()) for own in rows)
