"""Noised sums of a table's columns: what one patient can change, how much noise there is, what is charged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedgraft.client.data.cohorts.cohort import Cohort
from fedgraft.client.privacy.dp.dp_statistics import CONSTANT, column_rows, columns_bound, noised_columns
from fedgraft.client.privacy.dp.units import units_of
from fedgraft.client.privacy.ledger.held import Held
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.training.model.loader import Loader
from fedgraft.common.base.errors import InputError
from fedgraft.common.checks.check import check
from fedgraft.common.closed_form.closed_form import scale_from_sums
from fedgraft.common.models.initialise import initialise, make_model
from fedgraft.common.privacy.accountant import Event
from fedgraft.common.protocol.instructions import NOISE, Code, Instruction, Refusal, Update
from fedgraft.common.study.inputs import TableInput
from fedgraft.common.study.stages.private_sums import PrivateSums
from fedgraft.common.study.study import Study, parse_study
from helpers.work import CPU, a_site

RANGES = {"age": (0.0, 120.0), "crp": (-1.0, 500.0), "size": (1e3, 1e3 + 1e-3)}
TABLE = TableInput(numeric=("age", "crp", "size"), categorical={"sex": ("f", "m")}, ranges=RANGES)
WIDE = TABLE.width
STRICT = SitePolicy(min_patients=1)
QUIET = PrivateSums(noise_multiplier=1e-9)


def a_cohort(values: np.ndarray, patients: Sequence[str], labels: Sequence[int] | None = None) -> Cohort:
    """Rows of columns, all for training."""
    nothing = torch.arange(0)
    splits = {"train": torch.arange(len(values)), "val": nothing, "test": nothing}
    targets = {"cls": torch.tensor(labels if labels is not None else [at % 2 for at in range(len(values))])}
    return Cohort("north", torch.from_numpy(values.astype(np.float32)), targets, tuple(patients), splits, (), {})


def summed(values: np.ndarray, patients: Sequence[str], private: PrivateSums = QUIET, **more: Any) -> dict[str, Any]:
    return noised_columns(TABLE, Loader(a_cohort(values, patients, **more), TABLE, CPU), patients, private)


ANY = st.one_of(st.floats(-1e30, 1e30), st.sampled_from([math.nan, 0.0, 120.0, 1e3, -3.4e38, 3.4e38]))


@given(
    arrays(np.float64, (7, WIDE), elements=ANY),
    st.lists(st.sampled_from("abc"), min_size=7, max_size=7),
    st.sampled_from(["patient", "image"]),
)
@settings(max_examples=200, deadline=None)
def test_one_patient_more_or_less_changes_the_sums_by_at_most_the_bound(values, patients, unit) -> None:
    """Exactly: whatever the patient's rows hold, however many there are."""
    indices = torch.arange(len(values))
    whole = column_rows(TABLE, values, [np.array(own) for own in units_of(indices, patients, unit)])
    for gone in range(len(whole)):
        rest = np.delete(whole, gone, axis=0)
        change = np.linalg.norm(whole.sum(axis=0) - rest.sum(axis=0))
        assert change <= columns_bound(3) * (1 + 1e-12)
    everybody = units_of(indices, patients, unit)
    kept = everybody[1:]
    alone = column_rows(TABLE, values, [np.array(own) for own in kept]) if kept else np.zeros((0, 3, 3))
    np.testing.assert_array_equal(alone, whole[1:])  # and nobody else's row follows from who is there


def test_the_bound_is_reached() -> None:
    values = np.array([[1e9, -1e9, 1e9, 1.0, 0.0]])
    assert np.linalg.norm(column_rows(TABLE, values, [np.array([0])])) == pytest.approx(columns_bound(3))


def test_a_patient_with_many_rows_counts_once_and_a_missing_value_not_at_all() -> None:
    rng = np.random.default_rng(0)
    once = np.column_stack([rng.uniform(0, 120, 9), rng.uniform(-1, 500, 9), np.full(9, 1e3), np.zeros((9, 2))])
    once[4, 1] = math.nan
    names = [f"p{at}" for at in range(9)]
    one, many = summed(once, names), summed(np.repeat(once, 5, axis=0), [name for name in names for _ in range(5)])
    for key in ("count", "sum", "squares"):
        np.testing.assert_allclose(many[key], one[key], atol=1e-6)
    assert one["count"][:3] == pytest.approx([9, 8, 9], abs=1e-6)
    assert not any(one[key][3:].any() for key in ("count", "sum", "squares")), "categories are not summed"


def test_the_noise_is_what_is_charged_for_and_fresh() -> None:
    """To six standard errors: sound noise is off by chance once in 100 million runs."""
    values, names = np.zeros((6, WIDE)), list("abcdef")
    quiet = summed(values, names)
    private = PrivateSums(noise_multiplier=2.0)
    drawn = [summed(values, names, private) for _ in range(1700)]
    deviation = 2.0 * columns_bound(3)
    assert drawn[0][NOISE] == pytest.approx([deviation**2])
    half = np.stack([one["count"][:3] - quiet["count"][:3] for one in drawn]) * CONSTANT
    mean = np.stack([one["sum"][:3] - quiet["sum"][:3] for one in drawn])
    square = np.stack([one["squares"][:3] - quiet["squares"][:3] for one in drawn]) - half
    for noise in (half, mean, square):
        assert noise.std() == pytest.approx(deviation, rel=0.06)
        assert abs(noise.mean()) < 6 * deviation / math.sqrt(noise.size)
    assert abs(np.corrcoef(half.ravel(), mean.ravel())[0, 1]) < 0.1
    assert abs(np.corrcoef(mean.ravel(), square.ravel())[0, 1]) < 0.1
    assert len({one["sum"].tobytes() for one in drawn}) == 1700


def test_without_noise_or_ranges_nothing_is_released_and_without_labels_noise_alone() -> None:
    values = np.zeros((4, WIDE))
    for bad in ({"noise_multiplier": None}, {"noise_multiplier": 0.0}):
        with pytest.raises(InputError):
            summed(values, list("abcd"), QUIET.model_copy(update=bad))
    bare = TABLE.model_copy(update={"ranges": {}})
    with pytest.raises(InputError, match="ranges"):
        noised_columns(bare, Loader(a_cohort(values, "abcd"), bare, CPU), list("abcd"), QUIET)
    told = summed(values, list("abcd"), labels=[-1] * 4)
    assert told.keys() == summed(values, list("abcd")).keys(), "a refusal would say that nobody has a label"


def a_study(**changes: Any) -> Study:
    scale = {
        "name": "scale",
        "local": {"kind": "statistics", "of": "columns", "private": {"epsilon": 1.0}},
        "aggregate": {"kind": "standardise"},
    }
    base = {
        "name": "columns",
        "tasks": [{"name": "cls", "classes": ["no", "yes"]}],
        "input": TABLE.model_dump(mode="json"),
        "model": {"backbone": "table_linear", "weights": None},
        "plan": [scale, TRAIN],
    }
    return parse_study(base | changes, "test")


TRAIN: dict[str, Any] = {
    "name": "train",
    "where": "labelled",
    "local": {
        "kind": "gradient", "train": "heads", "steps": 2, "fixed_norm_stats": True,
        "private": {"epsilon": 1.0, "sample_rate": 0.5},
    },
    "share": "heads",
    "aggregate": {"kind": "mean"},
}  # fmt: skip


def mine() -> Cohort:
    rng = np.random.default_rng(1)
    values = np.column_stack([rng.uniform(0, 120, 60), rng.uniform(-1, 500, 60), np.full(60, 1e3), np.zeros((60, 2))])
    return a_cohort(values, [f"p{at // 2}" for at in range(60)])


def test_a_closed_site_takes_part_is_charged_and_says_the_same_again(tmp_path: Path) -> None:
    """The site's own policy lets nothing out without noise: before, no table study could pass it."""
    study = a_study()
    instruction = Instruction(study.digest, 1, 0, 1, True, None, initialise(study).state())
    first = a_site(study, mine(), tmp_path, STRICT).visit(instruction)
    assert isinstance(first, Update)
    assert set(first.tensors) == {"count", "sum", "squares", NOISE}
    (row,) = Held.of(tmp_path).open(8.0).rows()
    assert row.event == Event(row.event.noise_multiplier, 1.0, 1)
    assert (row.facts.release, row.facts.unit, row.facts.patients) == ("sums", "patient", 30)
    assert first.tensors[NOISE] == pytest.approx([(row.event.noise_multiplier * columns_bound(3)) ** 2])
    again = a_site(study, mine(), tmp_path, STRICT).visit(instruction)
    assert isinstance(again, Update)
    assert all(again.tensors[key].tobytes() == array.tobytes() for key, array in first.tensors.items())
    assert len(Held.of(tmp_path).open(8.0).rows()) == 1


def test_a_scale_that_the_coordinator_sends_changes_nothing_of_the_sums(tmp_path: Path, monkeypatch) -> None:
    """A tiny deviation in the model would blow one patient up, if the site took it for the study's range."""
    study, seen = a_study(), []
    for name, factor in (("honest", 1.0), ("lying", 1e-12)):
        state = initialise(study).state()
        for key in state:
            if key.endswith((".std", ".mean")):
                state[key] = state[key] * np.float32(factor)
        with monkeypatch.context() as patch:
            patch.setattr("fedgraft.client.privacy.dp.secret.normal", np.zeros)
            update = a_site(study, mine(), tmp_path / name, STRICT).visit(
                Instruction(study.digest, 1, 0, 1, True, None, state)
            )
        assert isinstance(update, Update)
        seen.append(update.tensors)
    assert all(seen[0][key].tobytes() == seen[1][key].tobytes() for key in seen[0])


def test_plain_sums_of_columns_still_need_the_sites_word(tmp_path: Path) -> None:
    plain = {"name": "scale", "local": {"kind": "statistics", "of": "columns"}, "aggregate": {"kind": "standardise"}}
    study = a_study(plan=[plain, TRAIN])
    instruction = Instruction(study.digest, 1, 0, 1, True, None, initialise(study).state())
    assert a_site(study, mine(), tmp_path, STRICT).visit(instruction) == Refusal(1, Code.POLICY)


def test_with_hardly_any_noise_the_scale_is_that_of_the_patients() -> None:
    rng = np.random.default_rng(2)
    values = np.column_stack([rng.normal(60, 10, 500), rng.normal(200, 50, 500), np.full(500, 1e3), np.zeros((500, 2))])
    values[:, 2] += rng.uniform(0, 1e-3, 500)
    values = values.astype(np.float32).astype(np.float64)
    sums = summed(values, [str(at) for at in range(500)])
    state = initialise(a_study()).state()
    found = scale_from_sums(sums, state)
    mean, std = (next(array for key, array in found.items() if key.endswith(name)) for name in (".mean", ".std"))
    np.testing.assert_allclose(mean[:2], values[:, :2].mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(std[:2], values[:, :2].std(axis=0), rtol=1e-3)
    assert (mean[3:].tolist(), std[3:].tolist()) == ([0, 0], [1, 1])  # categories stay as they are


def test_from_noise_alone_the_scale_is_that_of_the_range_and_never_broken() -> None:
    state, at_the_edge = initialise(a_study()).state(), 0
    for _ in range(100):
        sums = summed(np.zeros((3, WIDE)), list("abc"), PrivateSums(noise_multiplier=1e4))
        found = scale_from_sums(sums, state)
        for key, array in found.items():
            limits = np.array([RANGES[name] for name in TABLE.numeric])
            assert np.isfinite(array).all()
            if key.endswith(".std"):
                assert (array[:2] > 0).all()
                assert (array[:2] <= (limits[:2, 1] - limits[:2, 0]) / 2 * 1.001).all()
            else:
                assert (array[:2] >= limits[:2, 0] - 0.01).all()
                assert (array[:2] <= limits[:2, 1] + 0.01).all()
                middle, half = limits[:2].mean(axis=1), (limits[:2, 1] - limits[:2, 0]) / 2
                at_the_edge += int((np.abs(array[:2] - middle) > 0.99 * half).sum())
    assert at_the_edge < 30, "a count that is noise divides what is noise"


def faults(**changes: Any) -> str:
    study = a_study(**changes)
    return "\n".join(check(study, make_model(study).tags()))


SCALE = a_study().model_dump(mode="json")["plan"][0]
BARE = {"kind": "table", "numeric": ["age", "crp"]}
PUBLIC = BARE | {"standardise": {"age": {"mean": 60, "std": 15}, "crp": {"mean": 20, "std": 30}}}
PLAIN = SCALE | {"local": {"kind": "statistics", "of": "columns"}}
NORM = SCALE | {"local": SCALE["local"] | {"private": {"epsilon": 1.0, "max_norm": 2.0}}}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no scale": (
        {"input": BARE, "plan": [TRAIN]},
        "plan.0: a table needs its columns on one scale: public numbers (input.s",
    ),
    "two scales": (
        {"input": PUBLIC, "plan": [PLAIN, TRAIN]},
        "input.standardise: gives the columns' scale, and a stage",
    ),
    "no ranges": (
        {"input": BARE},
        "plan.0 (scale).local.private: needs public limits for every numeric column, in input.r",
    ),
    "idle ranges": ({"plan": [PLAIN]}, "input.ranges: bounds noised sums of columns, and no stage takes any"),
    "silent": ({"plan": [PLAIN, TRAIN]}, "plan.0 (scale).local.private: the plan works with differential privacy, but"),
    "late": (
        {"plan": [PLAIN, SCALE | {"name": "again"}]},
        "plan.1 (again): noised sums of columns start from input.ranges",
    ),
    "a norm": ({"plan": [NORM, TRAIN]}, "plan.0 (scale).local.private.max_norm: is for features"),
    "unlabelled": (
        {"plan": [SCALE | {"where": "unlabelled"}]},
        "plan.0 (scale).where: noised sums are taken over patients",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_refused_with_its_key_and_the_next_step(case: str) -> None:
    changes, says = WRONG[case]
    assert says in faults(**changes)


@pytest.mark.parametrize("changes", [{}, {"input": PUBLIC, "plan": [TRAIN]}, {"input": BARE, "plan": [PLAIN]}])
def test_what_can_work_is_not_refused(changes: dict[str, Any]) -> None:
    assert faults(**changes) == ""


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            {"standardise": {"age": {"mean": 1, "std": 1}}},
            "standardise names all numeric columns or none, and lacks crp",
        ),
        ({"ranges": {"age": [0, 1], "crp": [0, 1], "x": [0, 1]}}, "ranges names x, which is no numeric column"),
        ({"ranges": {"age": [0, 1], "crp": [1, 1]}}, "ranges of crp: the first number must be below the second"),
        ({"standardise": {"age": {"mean": 1, "std": 0}, "crp": {"mean": 1, "std": 1}}}, "greater than 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(columns: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TableInput.model_validate(BARE | columns)


def test_public_numbers_are_in_the_model_and_a_preset_asks_nobody() -> None:
    study = a_study(input=PUBLIC, plan=[TRAIN])
    state = initialise(study).state()
    assert next(array for key, array in state.items() if key.endswith(".mean")).tolist() == [60, 20]
    assert next(array for key, array in state.items() if key.endswith(".std")).tolist() == [15, 30]
    base = {key: value for key, value in study.model_dump(mode="json").items() if key != "plan"}
    for columns, first in ((PUBLIC, "train"), (BARE, "standardise"), (TABLE.model_dump(mode="json"), "standardise")):
        method = {"name": "linear_probe", "local": TRAIN["local"], "columns": {"epsilon": 0.5}}
        preset = parse_study(base | {"input": columns, "method": method}, "test")
        assert preset.plan[0].name == first
    assert preset.plan[0].local.private == PrivateSums(epsilon=0.5)
    assert not check(preset, make_model(preset).tags())
