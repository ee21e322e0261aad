"""Metrics of a careful site: what one patient changes, how much noise there is, what it costs; and that nobody reads
labels out of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgraft.client.data.cohorts.cohort import Cohort, learning_patients
from fedgraft.client.privacy.dp.units import units_of
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.ledger.held import Held
from fedgraft.client.privacy.ledger.public_counts import coarse
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.privacy.release import metric_release as shown
from fedgraft.client.privacy.release.metric_release import (
    LEAST,
    bound,
    counts,
    noised_counts,
    suppressed,
)
from fedgraft.client.runtime.site import Site
from fedgraft.client.training.model.local_model import LocalModel
from fedgraft.common.base.errors import InputError
from fedgraft.common.metrics.sums.class_metrics import ClassificationSums
from fedgraft.common.models.model import state_arrays
from fedgraft.common.privacy.accountant import default_delta, epsilon
from fedgraft.common.protocol.instructions import (
    Arrays,
    Code,
    Instruction,
    Refusal,
    Update,
)
from fedgraft.common.study.study import Study
from fedgraft.common.study.tasks import Task
from helpers.work import CPU, MakeStudy, local_model_input

COLUMNS = tuple(f"c{number:03d}" for number in range(100))
CASES = 100


def predictions(cases: int, classes: int, seed: int = 0, skill: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, cases)
    return (rng.normal(size=(cases, classes)) + skill * np.eye(classes)[truth]).astype(np.float32), truth


def classes(count: int) -> Task:
    return Task(name="cls", classes=tuple(map(str, range(count))))


def released(answers: dict, patients: list[str], noise_multiplier: float, kept: list[int] | None = None) -> dict:
    labelled = torch.tensor(kept if kept is not None else range(len(patients)))
    some = {task: (logits[labelled], targets[labelled]) for task, (logits, targets) in answers.items()}
    tasks = {task: classes(logits.shape[1]) for task, (logits, _) in some.items()}
    return noised_counts(some, labelled, units_of(labelled, patients, "patient"), noise_multiplier, tasks)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The counts as they are before they become whole numbers."""
    found: list[np.ndarray] = []
    real = shown._whole
    monkeypatch.setattr(shown, "_whole", lambda part: found.append(part.copy()) or real(part))
    return found


def test_one_patient_changes_the_counts_by_at_most_the_bound(seen: list[np.ndarray]) -> None:
    """However many images a patient has, and whether their labels agree."""
    largest = 0.0
    for lot in range(6):
        answers = {"cls": predictions(40, 3, lot), "side": predictions(40, 2, lot + 50)}
        answers["side"][1][::3] = -1
        patients = [str(max(0, case - (0, 19)[lot % 2])) for case in range(40)]
        parts = []
        for kept in (list(range(40)), [case for case in range(40) if patients[case] != "0"]):
            seen.clear()
            released(answers, patients, 1e-12, kept)
            parts.append(np.concatenate([part.ravel() for part in seen]))
        change = float(np.linalg.norm(parts[0] - parts[1])) / bound([classes(3), classes(2)])
        assert change <= 1 + 1e-6
        largest = max(largest, change)
    assert largest > 0.7
    logits, truth = predictions(1, 4)
    confusion, rows = counts(logits, truth, np.ones(1))
    alone = np.concatenate([part.ravel() for part in (confusion, *rows)])
    assert np.linalg.norm(alone) == pytest.approx(bound([classes(4)]))


def test_the_noise_has_the_deviation_that_is_paid_for_and_is_fresh(seen: list[np.ndarray]) -> None:
    answers, patients = {"cls": predictions(50, 4)}, list(map(str, range(50)))
    drawn = []
    for noise_multiplier in (1e-12, 3.0, 3.0):
        seen.clear()
        for _ in range(64):
            released(answers, patients, noise_multiplier)
        drawn.append(np.concatenate([part.ravel() for part in seen]))
    noise, again = drawn[1] - drawn[0], drawn[2] - drawn[0]
    assert len(noise) == 64 * (16 + 4 * 32)
    assert noise.std() == pytest.approx(3.0 * math.sqrt(5), rel=0.05)  # 6.8 deviations
    assert abs(np.corrcoef(noise, again)[0, 1]) < 6 / math.sqrt(len(noise))


def test_with_little_noise_the_figures_are_nearly_the_exact_ones() -> None:
    answers, patients = {"cls": predictions(4000, 3), "side": predictions(4000, 2)}, list(map(str, range(4000)))
    noisy, plain = released(answers, patients, 0.5), released(answers, patients, 1e-9)
    for task, sums in noisy.items():
        exact, coarse, got = ClassificationSums.of(*answers[task]).values(), plain[task].values(), sums.values()
        assert coarse["accuracy"] == exact["accuracy"]
        assert coarse["auroc"] == pytest.approx(exact["auroc"], abs=0.008)
        # Over 300 draws with this noise the figures had deviations of .0006 and .0015.
        assert got["accuracy"] == pytest.approx(coarse["accuracy"], abs=0.005)
        assert got["auroc"] == pytest.approx(coarse["auroc"], abs=0.01)
        assert (got["loss"], got["brier"], got["ece"]) == (None, None, None)


@pytest.mark.parametrize("separation", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("prevalence", [0.5, 0.2])
def test_coarse_scores_lower_the_auroc_of_calibrated_ones_by_little(separation: float, prevalence: float) -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random(4000) < prevalence).astype(int)
    odds = separation * (rng.normal(size=4000) + separation * (truth - 0.5)) + math.log(prevalence / (1 - prevalence))
    exact = ClassificationSums.of(np.stack([np.zeros(4000), odds], axis=1).astype(np.float32), truth)
    assert -0.01 < suppressed(exact).values()["auroc"] - exact.values()["auroc"] < 0.002


def test_what_is_told_travels_and_adds_up() -> None:
    answers, patients = {"cls": predictions(400, 3)}, list(map(str, range(400)))
    noisy = released(answers, patients, 3.0)["cls"]
    exact = ClassificationSums.of(*answers["cls"])
    for one in (noisy, suppressed(exact), suppressed(ClassificationSums.zero(3))):
        back = ClassificationSums.from_arrays(one.arrays(), 3)
        assert back.values() == one.values()
        both = exact + back
        assert both.n == exact.n + one.n
        assert both.values()["loss"] is None
    lying = noisy.arrays() | {"calibration_cases": np.ones(15, np.int64)}
    with pytest.raises(InputError):
        ClassificationSums.from_arrays(lying, 3)
    with pytest.raises(InputError):
        ClassificationSums.from_arrays(exact.arrays() | {"loss": np.array([math.nan])}, 3)


def test_small_cells_and_their_ranking_are_suppressed() -> None:
    logits, truth = predictions(300, 3)
    truth[truth == 2] = 0
    truth[:9] = 2
    sums = suppressed(ClassificationSums.of(logits, truth))
    confusion = sums.confusion
    assert ((confusion == 0) | (confusion >= LEAST)).all()
    assert sums.scores.ranked(2)[0].sum() == 0  # nine cases: no AUROC
    smaller, larger = sorted((0, 1), key=lambda row: int((truth == row).sum()))
    assert sums.scores.ranked(smaller)[0].sum() == 0  # the nine would be all cases less these two classes
    for side in sums.scores.ranked(larger):
        assert len(side) > 2
        assert (side >= LEAST).all()
    exact = ClassificationSums.of(logits, truth)
    assert sums.scores.totals()[0].tolist() == exact.scores.totals()[0].tolist()
    few = suppressed(ClassificationSums.of(*predictions(18, 2)))
    assert few.values()["auroc"] is None


# A coordinator that wants to know labels.


def a_cohort(seed: int = 0) -> tuple[Cohort, np.ndarray]:
    """A test split of 100 patients whose features nobody shares, so that a head can be made to say anything of them."""
    labels = np.random.default_rng(seed).permutation(np.arange(CASES + 60) % 2)
    inputs = torch.cat([torch.eye(CASES) * 10, torch.zeros(60, CASES)])
    splits = {"train": torch.arange(CASES, CASES + 60), "val": torch.arange(0), "test": torch.arange(CASES)}
    patients = tuple(map(str, range(CASES + 60)))
    return Cohort("north", inputs, {"cls": torch.from_numpy(labels)}, patients, splits, (), {}), labels[:CASES]


def a_study(make_study: MakeStudy, rounds: int, seed: int = 0) -> Study:
    private = {"noise_multiplier": 20.0, "sample_rate": 0.1}
    local = {"kind": "gradient", "steps": 1, "train": "heads", "lr": 1e-6, "private": private}
    stage = {"name": "train", "local": local, "share": "heads", "aggregate": {"kind": "mean"}, "rounds": rounds}
    return make_study(
        tasks=[{"name": "cls", "classes": ["no", "yes"]}],
        input=local_model_input(*COLUMNS),
        model={"backbone": "table_linear", "weights": None},
        plan=[stage],
        seed=seed,
    )


def a_site(study: Study, folder: Path, policy: SitePolicy, seed: int = 0) -> Site:
    mine, _ = a_cohort(seed)
    guard = PrivacyGuard(study, policy, folder, learning_patients(study, mine))
    return Site(study, mine, LocalModel(study, CPU), folder, guard)


def crafted(study: Study, asked: np.ndarray) -> Arrays:
    """A model that says "yes" of the cases where `asked` is 1 and "no" of those where it is -1."""
    state = {key: array.copy() for key, array in state_arrays(LocalModel(study, CPU).model).items()}
    state["heads.cls.weight"][:] = np.stack([-asked, asked])
    state["heads.cls.bias"][:] = 0
    return state


def said_of(update: Update | Refusal) -> float | None:
    """How many of the answers were right, less how many were wrong, as far as the site says."""
    if isinstance(update, Refusal) or not update.metrics:
        return None
    sums = ClassificationSums.from_arrays(dict(update.metrics["cls"]), 2)
    return float(2 * np.trace(sums.confusion) - sums.n)


def recovered(asked: np.ndarray, answers: list[float | None], labels: np.ndarray, noise: float = 0.1) -> float:
    """The share of labels that the best linear guess finds: each answer is the sum of asked times label (1 or -1)."""
    heard = np.array([answer is not None for answer in answers])
    if not heard.any():
        return float(max(labels.mean(), 1 - labels.mean()))
    rows, sums = asked[heard], np.array([answer for answer in answers if answer is not None])
    guess = rows.T @ np.linalg.solve(rows @ rows.T + noise**2 * np.eye(len(rows)), sums)
    return float(((guess > 0) == (labels > 0)).mean())


POLICIES = {
    "none": SitePolicy(min_patients=1, metrics="none"),
    "noised": SitePolicy(min_patients=1, metrics="noised"),
    "suppressed": SitePolicy(min_patients=1, metrics="suppressed"),
    "exact": SitePolicy(min_patients=1, metrics="exact"),
}


@pytest.mark.slow
@pytest.mark.parametrize("metrics", POLICIES)
def test_hundred_evaluations_of_one_study_do_not_give_the_labels_away(make_study, tmp_path, metrics: str) -> None:
    """Unless the site lets exact figures out, and then they do."""
    study = a_study(make_study, CASES - 1)
    site, (_, labels) = a_site(study, tmp_path, POLICIES[metrics]), a_cohort()
    asked = np.random.default_rng(5).choice([-1.0, 1.0], (CASES, CASES))
    answers = []
    for wish in asked:  # the last exchange may be asked again, as after a crash of the coordinator
        answers.append(said_of(site.visit(end(study, crafted(study, wish)))))
    share = recovered(asked, answers, labels)
    heard = [answer for answer in answers if answer is not None]
    assert len(heard) == (0 if metrics == "none" else CASES)
    if metrics in ("noised", "suppressed"):
        assert len(set(heard)) == 1  # whatever is asked, it is the answer to the first question again
    by_luck = 0.1 if metrics == "noised" else 0.0  # two deviations of a hundred coins: the noise is never the same
    assert share > 0.95 if metrics == "exact" else share <= 0.6 + by_luck


def attacked(make_study: MakeStudy, folder: Path, policy: SitePolicy, hospital: int, studies: int) -> tuple[int, float]:
    """How many of so many studies were told anything, and the share of labels that this gives away."""
    _, labels = a_cohort(hospital)
    asked = np.random.default_rng(hospital + 5).choice([-1.0, 1.0], (studies, CASES))
    answers = []
    for number, wish in enumerate(asked):
        study = a_study(make_study, 1, seed=number)
        answers.append(said_of(a_site(study, folder, policy, hospital).visit(end(study, crafted(study, wish)))))
    heard = sum(answer is not None for answer in answers)
    return heard, recovered(asked, answers, labels, 15.0 if policy.metrics == "noised" else 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("metrics", ["noised", "suppressed", "exact"])
def test_nor_do_a_hundred_studies(make_study, tmp_path: Path, metrics: str) -> None:
    """At one hospital a hundred, of which few are told anything; at thirty more those few, as one guess may be lucky.

    With noise .556 of the labels are recovered on average; the mean over 31 hospitals deviates from that by .0065.
    """
    policy = POLICIES[metrics]
    heard, share = attacked(make_study, tmp_path / "0", policy, 0, CASES)
    if metrics == "exact":
        assert (heard, share > 0.95) == (CASES, True)
        return
    assert 0 < heard <= 5
    shares = [share] + [attacked(make_study, tmp_path / str(at), policy, at, heard)[1] for at in range(1, 31)]
    print(f"{metrics}: {heard} answers, {np.mean(shares):.3f} of the labels recovered")
    assert np.mean(shares) <= 0.6


# The site: policy, ledger, replay.


def end(study: Study, state: Arrays) -> Instruction:
    return Instruction(study.digest, 1 + study.plan[0].rounds, 0, study.plan[0].rounds, False, "test", state)


def test_noised_counts_are_charged_once_and_never_in_rounds(make_study: MakeStudy, tmp_path: Path) -> None:
    study, policy = a_study(make_study, 2), POLICIES["noised"]
    site, state = a_site(study, tmp_path, policy), crafted(study, np.ones(CASES))
    for exchange in (1, 2):
        update = site.visit(Instruction(study.digest, exchange, 0, exchange, True, None, state))
        assert isinstance(update, Update)
        assert not update.metrics
    before = len(Held.of(tmp_path).open(8.0).rows())
    first = site.visit(end(study, state))
    assert isinstance(first, Update)
    (row,) = [row for row in Held.of(tmp_path).open(8.0).rows() if row.facts.release == "metrics"]
    assert epsilon([row.event], default_delta(coarse(60))) == pytest.approx(0.5, rel=0.01)
    assert first.spent is not None
    assert first.spent.steps == 3
    assert "counts of test cases, noised" in site.grounds(end(study, state))
    other = crafted(study, -np.ones(CASES))  # another model cannot be asked about
    for again in (site, a_site(study, tmp_path, policy)):
        second = again.visit(end(study, other))
        assert isinstance(second, Update)
        for key, array in first.metrics["cls"].items():
            assert second.metrics["cls"][key].tobytes() == array.tobytes()
    assert len(Held.of(tmp_path).open(8.0).rows()) == before + 1
    for odd in (
        Instruction(study.digest, 3, 0, 2, False, "train", other),
        Instruction(study.digest, 4, 0, 2, False, "test", other),
        Instruction(study.digest, 3, 0, 2, False, None, other),
    ):
        answer = a_site(study, tmp_path, policy).visit(odd)
        assert not (isinstance(answer, Update) and answer.metrics)


def test_room_for_the_metrics_is_left_within_the_studys_budget(make_study: MakeStudy, tmp_path: Path) -> None:
    study = a_study(make_study, 2)
    stage = study.plan[0]
    private = stage.local.private.model_copy(update={"noise_multiplier": 0.01})  # type: ignore[union-attr]
    greedy = study.model_copy(
        update={"plan": (stage.model_copy(update={"local": stage.local.model_copy(update={"private": private})}),)}
    )
    for name, policy in POLICIES.items():
        local_model = LocalModel(greedy, CPU)
        guard = PrivacyGuard(greedy, policy, tmp_path / name, 60)
        ((_, terms),) = guard.planned(local_model.tags)
        guard.admit(local_model.tags)
        cost = epsilon([shape(terms), *guard.metrics_events()], guard.delta)
        assert 2.98 < cost <= 3.0
        alone = epsilon([shape(terms)], guard.delta)
        assert alone < 2.98 if name == "noised" else alone == cost


def shape(terms):
    from fedgraft.common.privacy.accountant import Event

    return Event(terms.noise_multiplier, terms.sample_rate, terms.steps)


def test_a_spent_budget_shows_nothing_and_charges_nothing(make_study: MakeStudy, tmp_path: Path) -> None:
    first, second = a_study(make_study, 1, seed=1), a_study(make_study, 1, seed=2)
    tight = SitePolicy(min_patients=1, metrics="noised", epsilon_per_study=0.6, epsilon_lifetime=0.6)
    assert isinstance(a_site(first, tmp_path, tight).visit(end(first, crafted(first, np.ones(CASES)))), Update)
    site = a_site(second, tmp_path, tight)
    with pytest.raises(Refused) as caught:
        site.greet()
    assert caught.value.code is Code.BUDGET
    update = site.visit(end(second, crafted(second, np.ones(CASES))))
    assert isinstance(update, Update)
    assert not update.metrics
    assert len(Held.of(tmp_path).open(0.6).rows()) == 1


def test_suppressed_counts_are_shown_to_few_studies(make_study: MakeStudy, tmp_path: Path) -> None:
    shown_to = []
    for number in range(4):
        study = a_study(make_study, 1, seed=number)
        for _ in range(2):  # the second time it is the kept answer
            update = a_site(study, tmp_path, POLICIES["suppressed"]).visit(end(study, crafted(study, np.ones(CASES))))
            assert isinstance(update, Update)
        shown_to.append(bool(update.metrics))
    assert shown_to == [True, True, False, False]
    assert not Held.of(tmp_path).exists()


def test_figures_that_are_shown_once_are_not_shown_again_whatever_is_asked_in_between(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    """Replies of later exchanges push old ones out of the store; the release of figures is not among them."""
    study, policy = a_study(make_study, 1), POLICIES["suppressed"]
    rng = np.random.default_rng(0)
    first = a_site(study, tmp_path, policy).visit(end(study, crafted(study, np.ones(CASES))))
    guard = PrivacyGuard(study, policy, tmp_path, CASES)
    for exchange in range(10, 15):
        guard.keep(exchange, {"w": np.ones(3, np.float32)}, {})
    assert isinstance(first, Update)
    assert first.metrics
    for _ in range(3):
        again = a_site(study, tmp_path, policy).visit(end(study, crafted(study, rng.choice([-1.0, 1.0], CASES))))
        assert isinstance(again, Update)
        assert said_of(again) == said_of(first)
    for path in (tmp_path / "releases").rglob("*.safetensors"):
        path.unlink()  # the answer is lost, and stays so
    lost = a_site(study, tmp_path, policy).visit(end(study, crafted(study, -np.ones(CASES))))
    assert isinstance(lost, Update)
    assert not lost.metrics
