"""Sums that leave with noise: what one patient can change, how much noise there is, what it costs and is good for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedgraft.client.data.cohorts.cohort import Cohort, learning_patients
from fedgraft.client.privacy.dp import secret
from fedgraft.client.privacy.dp.dp_statistics import CONSTANT, bound, noised_sums
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.ledger.held import Held
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.runtime.site import Site
from fedgraft.client.training.model.loader import Loader
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.client.training.statistics import feature_sums
from fedgraft.common.base.errors import InputError
from fedgraft.common.closed_form.closed_form import discriminant_head, nearest_mean_head, ridge_head
from fedgraft.common.models.model import state_arrays
from fedgraft.common.privacy.accountant import Event, epsilon
from fedgraft.common.protocol.instructions import (
    NOISE,
    Code,
    Instruction,
    Refusal,
    Update,
)
from fedgraft.common.study.stages.private_sums import PrivateSums
from fedgraft.common.study.study import Study
from helpers.work import CPU, MakeStudy, cohort, images

TASKS = [{"name": "cls", "classes": ["a", "b", "c"]}, {"name": "side", "classes": ["l", "r"]}]
DIM = 128


class NoisedSite:
    """Cases whose features are given, and what their sums are without and with noise."""

    def __init__(self, make_study: MakeStudy, features: Tensor, labels: Tensor, side: Tensor | None = None) -> None:
        study = make_study(tasks=TASKS)
        self.local_model = LocalModel(study, CPU)
        targets = {"cls": labels, "side": labels % 2 if side is None else side}
        self.loader = Loader(cohort(images(len(labels))[0], targets), study.input, CPU).through(features)

    def sums(
        self, patients: Sequence[str], noise_multiplier: float = 1e-9, max_norm: float = 1.0, unit: str = "patient"
    ):
        private = PrivateSums(noise_multiplier=noise_multiplier, max_norm=max_norm, unit=unit)  # type: ignore[arg-type]
        return noised_sums(self.local_model, self.loader, patients, private)

    def without(self, patients: Sequence[str], who: str) -> NoisedSite:
        self.loader._labelled["train"] = torch.tensor([at for at, name in enumerate(patients) if name != who])
        return self


def flat(sums: dict[str, np.ndarray], max_norm: float) -> np.ndarray:
    """All sums in the units in which noise is added; off the diagonal a gram's entries count twice, as they stand."""
    back = np.append(np.full(DIM, max_norm), 1 / CONSTANT)
    parts = [
        (value / (np.outer(back, back) if key.endswith("gram") else back[:, None])).ravel()
        for key, value in sums.items()
        if key != NOISE
    ]
    return np.concatenate(parts)


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_one_patient_changes_the_sums_by_at_most_the_bound(make_study: MakeStudy, unit: str) -> None:
    """However many images, however large, whatever their labels; and a patient of large features comes close to it."""
    largest = 0.0
    for lot in range(12):
        draw = torch.Generator().manual_seed(lot)
        features = torch.randn(20, DIM, generator=draw) * (1e-3, 1.0, 1e4)[lot % 3]
        labels = torch.randint(0, 3, (20,), generator=draw)
        patients = [str(max(0, case - 9)) if unit == "patient" else str(case) for case in range(20)]
        max_norm = (0.5, 1.0, 20.0)[lot // 4]
        whole = flat(NoisedSite(make_study, features, labels).sums(patients, max_norm=max_norm, unit=unit), max_norm)
        rest = flat(
            NoisedSite(make_study, features, labels)
            .without(patients, "0")
            .sums(patients, max_norm=max_norm, unit=unit),
            max_norm,
        )
        change = float(np.linalg.norm(whole - rest)) / bound(2)
        assert change <= 1 + 1e-6
        largest = max(largest, change)
    assert largest > (0.85 if unit == "patient" else 0.99)  # ten images with different labels have a shorter mean


def deviates(noise: np.ndarray, deviation: float) -> bool:
    """Whether noise has this deviation, as far as so many independent numbers can tell: to six standard errors."""
    return bool(abs(noise.std() / deviation - 1) < 6 / math.sqrt(2 * noise.size))


def test_the_noise_is_symmetric_of_the_deviation_that_it_says_and_fresh(make_study: MakeStudy) -> None:
    features, labels = torch.zeros(12, DIM), torch.arange(12) % 3
    attack_target, patients, max_norm, noise_multiplier = (
        NoisedSite(make_study, features, labels),
        list(map(str, range(12))),
        3.0,
        2.0,
    )
    quiet, first, second = (
        attack_target.sums(patients, each, max_norm) for each in (1e-9, noise_multiplier, noise_multiplier)
    )
    more = [first, second, *(attack_target.sums(patients, noise_multiplier, max_norm) for _ in range(10))]
    deviation = noise_multiplier * bound(2) * max_norm**2
    assert first[NOISE] == pytest.approx(np.array([deviation**2]))
    for task in ("cls", "side"):
        noise = np.stack([one[f"{task}/gram"] - quiet[f"{task}/gram"] for one in more])
        assert np.array_equal(first[f"{task}/gram"], first[f"{task}/gram"].T)
        inner = noise[0, :DIM, :DIM]
        rows, columns = np.triu_indices(DIM, 1)
        assert deviates(noise[:, range(DIM), range(DIM)], deviation)
        assert deviates(noise[:, rows, columns], deviation / math.sqrt(2))
        assert deviates(noise[:, :DIM, -1], noise_multiplier * bound(2) * max_norm / CONSTANT / math.sqrt(2))
        cross = np.stack([one[f"{task}/cross"] - quiet[f"{task}/cross"] for one in more])[:, :DIM]
        assert deviates(cross, noise_multiplier * bound(2) * max_norm)
        other = (second[f"{task}/gram"] - quiet[f"{task}/gram"])[:DIM, :DIM]
        assert abs(np.corrcoef(inner.ravel(), other.ravel())[0, 1]) < 0.06
    same = np.corrcoef(
        (first["cls/gram"] - quiet["cls/gram"]).ravel(), (first["side/gram"] - quiet["side/gram"]).ravel()
    )
    assert abs(same[0, 1]) < 0.06


def test_noise_comes_from_the_operating_system(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    attack_target, patients = NoisedSite(make_study, torch.ones(6, DIM), torch.arange(6) % 3), list(map(str, range(6)))
    torch.manual_seed(0)
    np.random.seed(0)
    first = attack_target.sums(patients, 1.0)
    torch.manual_seed(0)
    np.random.seed(0)
    # On the grid of the noise two of 387 numbers meet once in 200,000 runs.
    assert (attack_target.sums(patients, 1.0)["cls/cross"] == first["cls/cross"]).sum() <= 1
    monkeypatch.setattr(secret, "_key", lambda: bytes(32))
    assert (attack_target.sums(patients, 1.0)["cls/cross"] == attack_target.sums(patients, 1.0)["cls/cross"]).all()


def test_a_broken_image_counts_nothing_and_says_nothing(make_study: MakeStudy) -> None:
    features, labels = torch.randn(9, DIM), torch.arange(9) % 3
    patients = list(map(str, range(9)))
    want = NoisedSite(make_study, features.clone(), labels).without(patients, "4").sums(patients)
    features[4] = math.nan
    got = NoisedSite(make_study, features, labels).sums(patients)
    assert np.allclose(flat(got, 1.0), flat(want, 1.0), atol=1e-6)


def test_without_noise_nothing_is_released_and_without_labels_noise_alone(make_study: MakeStudy) -> None:
    attack_target = NoisedSite(make_study, torch.randn(6, DIM), torch.arange(6) % 3)
    for bad in ({"noise_multiplier": None}, {"noise_multiplier": 0.0}, {"max_norm": 0.0}):
        private = PrivateSums(noise_multiplier=1.0).model_copy(update=bad)
        with pytest.raises(InputError):
            noised_sums(attack_target.local_model, attack_target.loader, list("abcdef"), private)
    empty = NoisedSite(make_study, torch.randn(6, DIM), torch.full((6,), -1), torch.full((6,), -1))
    told = empty.sums(list("abcdef"))
    assert told.keys() == attack_target.sums(list("abcdef")).keys(), "a refusal would say that nobody has a label"
    assert not np.array_equal(told["cls/gram"], empty.sums(list("abcdef"))["cls/gram"]), "noise, and fresh"


def test_a_patient_with_copies_of_an_image_counts_as_with_one(make_study: MakeStudy) -> None:
    draw = torch.Generator().manual_seed(3)
    one, labels = torch.randn(8, 128, generator=draw), torch.arange(8) % 3
    thrice = NoisedSite(make_study, one.repeat(3, 1), labels.repeat(3)).sums(list("abcdefgh") * 3, max_norm=50.0)
    once = NoisedSite(make_study, one, labels).sums(list("abcdefgh"), max_norm=50.0)
    for key, value in once.items():
        np.testing.assert_allclose(thrice[key], value, rtol=1e-4, atol=1e-3)


# Heads from noised sums.


def gaussians(count: int, seed: int = 0, dim: int = DIM, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes around their means, in features of unlike scales."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(99).normal(size=(3, dim)) * apart
    labels = rng.integers(0, 3, count)
    return (means[labels] + rng.normal(size=(count, dim)) * 2) * np.linspace(0.2, 1.0, dim) + 1.0, labels


def accuracy(head: tuple[np.ndarray, np.ndarray], seed: int = 7) -> float:
    x, y = gaussians(3000, seed)
    return float(((x @ head[0].T + head[1]).argmax(axis=1) == y).mean())


def noised(make_study: MakeStudy, count: int, noise_multiplier: float, max_norm: float) -> dict[str, np.ndarray]:
    x, y = gaussians(count)
    attack_target = NoisedSite(make_study, torch.from_numpy(x).float(), torch.from_numpy(y))
    return attack_target.sums(list(map(str, range(count))), noise_multiplier, max_norm)


def test_with_hardly_any_noise_the_heads_are_the_plain_ones(make_study: MakeStudy) -> None:
    x, y = gaussians(500)
    attack_target = NoisedSite(make_study, torch.from_numpy(x).float(), torch.from_numpy(y))
    plain = feature_sums(attack_target.local_model, attack_target.loader)
    private = attack_target.sums(list(map(str, range(500))), 1e-9, 1e3)
    noise = float(private[NOISE][0])
    for solve, setting in ((ridge_head, 0.1), (nearest_mean_head, 0.05), (discriminant_head, 0.1)):
        want = solve(plain["cls/gram"], plain["cls/cross"], setting)
        got = solve(private["cls/gram"], private["cls/cross"], setting, noise)
        for ours, theirs in zip(got, want, strict=True):
            assert np.abs(ours - theirs).max() < 1e-2 * np.abs(theirs).max()
        assert accuracy(want) > 0.9


@pytest.mark.parametrize("solve", [ridge_head, nearest_mean_head, discriminant_head])
def test_heads_stay_usable_under_noise_and_lose_little_by_little(make_study: MakeStudy, solve) -> None:
    """At 2,000 patients; from noise alone nothing breaks, and nothing is learnt."""
    setting = 0.05 if solve is nearest_mean_head else 0.1
    reached = []
    for noise_multiplier in (0.3, 3.0, 1e4):
        sums = noised(make_study, 2000, noise_multiplier, 15.0)
        head = solve(sums["cls/gram"], sums["cls/cross"], setting, float(sums[NOISE][0]))
        assert all(np.isfinite(part).all() for part in head)
        reached.append(accuracy(head))
    assert reached[0] > 0.85
    assert reached[0] > reached[2] + 0.3


# The site: policy, ledger, replay.


STRICT = SitePolicy(min_patients=1, epsilon_per_study=3.0)


def probe(make_study: MakeStudy, **terms: object) -> Study:
    return make_study(method={"name": "ridge_probe", "sums": terms or {"epsilon": 2.0}})


def a_cohort() -> Cohort:
    inputs, known = images(60)
    splits = {"train": torch.arange(60), "val": torch.arange(0), "test": torch.arange(0)}
    return Cohort("north", inputs, {"cls": known}, tuple(str(case // 2) for case in range(60)), splits, (), {})


def a_site(study: Study, folder: Path, policy: SitePolicy = STRICT) -> Site:
    mine = a_cohort()
    return Site(
        study, mine, LocalModel(study, CPU), folder, PrivacyGuard(study, policy, folder, learning_patients(study, mine))
    )


def instruction(study: Study, exchange: int = 1) -> Instruction:
    state = {key: array.copy() for key, array in state_arrays(LocalModel(study, CPU).model).items()}
    return Instruction(study.digest, exchange, 0, 1, True, None, state)


def test_a_closed_site_releases_noised_sums_and_charges_them_once(make_study: MakeStudy, tmp_path: Path) -> None:
    study = probe(make_study)
    site = a_site(study, tmp_path)
    first = site.visit(instruction(study))
    assert isinstance(first, Update)
    assert set(first.tensors) == {"cls/triangle", "cls/cross", NOISE}
    assert not first.metrics
    (row,) = Held.of(tmp_path).open(8.0).rows()
    assert (row.facts.release, row.facts.unit, row.facts.patients) == ("sums", "patient", 30)
    assert row.event == Event(row.event.noise_multiplier, 1.0, 1)
    assert first.spent is not None
    assert first.spent.epsilon == pytest.approx(epsilon([row.event], first.spent.delta))
    assert 1.9 < first.spent.epsilon <= 2.0
    again = a_site(study, tmp_path).visit(instruction(study))
    assert isinstance(again, Update)
    assert all(again.tensors[key].tobytes() == array.tobytes() for key, array in first.tensors.items())
    assert len(Held.of(tmp_path).open(8.0).rows()) == 1
    assert "sums noised with differential privacy" in site.grounds(instruction(study))


def test_the_charge_is_made_before_anything_is_computed(make_study, tmp_path: Path, monkeypatch) -> None:
    study = probe(make_study)
    site = a_site(study, tmp_path)

    def stop(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("fedgraft.client.runtime.visit.work.noised_sums", stop)
    assert site.visit(instruction(study)) == Refusal(1, Code.FAILED)
    assert len(Held.of(tmp_path).open(8.0).rows()) == 1
    monkeypatch.undo()
    assert a_site(study, tmp_path).visit(instruction(study)) == Refusal(1, Code.BUDGET)  # paid for, and lost


def test_a_short_budget_refuses_and_more_noise_is_put_where_less_was_asked(make_study, tmp_path: Path) -> None:
    dear = probe(make_study, noise_multiplier=0.2)
    a_site(dear, tmp_path / "one").visit(instruction(dear))
    (row,) = Held.of(tmp_path / "one").open(8.0).rows()
    assert epsilon([row.event], Held.of(tmp_path / "one").open(8.0).delta) <= 3.0
    study = probe(make_study, epsilon=2.5)
    site = a_site(study, tmp_path / "two", STRICT.model_copy(update={"epsilon_lifetime": 3.0}))
    assert isinstance(site.visit(instruction(study)), Update)
    other = make_study(method={"name": "ridge_probe", "sums": {"epsilon": 2.5}}, seed=9)
    late = a_site(other, tmp_path / "two", STRICT.model_copy(update={"epsilon_lifetime": 3.0}))
    assert late.visit(instruction(other)) == Refusal(1, Code.BUDGET)
    assert len(Held.of(tmp_path / "two").open(3.0).rows()) == 1


def test_plain_sums_still_need_the_sites_word(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(method="ridge_probe")
    assert a_site(study, tmp_path).visit(instruction(study)) == Refusal(1, Code.POLICY)
