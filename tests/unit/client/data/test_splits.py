"""Splits by patient: nobody in two, shares as asked, the same whatever the order, and nobody ever moves.

What independent splits promise beyond that is in `test_one_patient_more.py`.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.client.data.cohorts.splits import (
    SPLITS,
    Dealing,
    SplitRule,
    TiedSplits,
    alone,
    assign,
    indices,
    keep,
    sealed,
    stratum,
    write,
)
from fedgraft.common.base.errors import DataError
from fedgraft.common.study.inputs import SplitSpec
from fedgraft.common.study.tasks import UNKNOWN

LABELS = st.dictionaries(st.text("abcdef0123456789", min_size=4, max_size=8), st.integers(-1, 3), max_size=60)
SHARES = st.sampled_from([SplitSpec(), SplitSpec(train=0.8, val=0.1, test=0.1), SplitSpec(train=1, val=0, test=0)])
RULES: tuple[SplitRule, ...] = ("independent", "stratified")


def dealing(seed: int = 0, shares: SplitSpec | None = None, rule: SplitRule | None = "stratified") -> Dealing:
    return Dealing(shares or SplitSpec(), seed, b"the site's own key", rule)


@given(LABELS, SHARES, st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_every_patient_has_one_split_whatever_the_order(labels, shares, seed):
    splits = assign(labels, {}, shares, seed)
    assert splits.keys() == labels.keys()
    assert set(splits.values()) <= {name for name in SPLITS if getattr(shares, name) > 0}
    assert assign(dict(reversed(labels.items())), {}, shares, seed) == splits
    each = alone(labels, dealing(seed, shares))
    assert each.keys() == labels.keys()
    assert set(each.values()) <= {name for name in SPLITS if getattr(shares, name) > 0}


@given(LABELS, SHARES, st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_every_class_trains(labels, shares, seed):
    splits = assign(labels, {}, shares, seed)
    trained = {labels[patient] for patient, split in splits.items() if split == "train"}
    assert trained == set(labels.values())


@given(st.lists(st.integers(0, 9), min_size=1, max_size=80), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_no_patient_is_in_two_splits(owners, seed):
    """Several cases of one patient, with several labels, go together."""
    patients = [f"p{owner}" for owner in owners]
    cases: dict[str, list[int]] = {}
    for at, patient in enumerate(patients):
        cases.setdefault(patient, []).append(at % 3)
    splits = assign({patient: stratum(labels) for patient, labels in cases.items()}, {}, SplitSpec(), seed)
    found = indices(patients, splits)
    assert sorted(np.concatenate(list(found.values())).tolist()) == list(range(len(patients)))
    who = [{patients[at] for at in positions} for positions in found.values()]
    assert sum(map(len, who)) == len(set(patients))


@pytest.mark.parametrize("shares", [SplitSpec(), SplitSpec(train=0.7, val=0, test=0.3)])
def test_shares_hold_overall_and_in_each_class(shares):
    labels = {f"{n}": (0 if n % 10 else 1) for n in range(1000)}
    splits = assign(labels, {}, shares, 5)
    for name in SPLITS:
        wanted = getattr(shares, name)
        assert abs(sum(split == name for split in splits.values()) - 1000 * wanted) <= 2
        rare = sum(splits[patient] == name for patient, label in labels.items() if label == 1)
        assert abs(rare - 100 * wanted) <= 2


def dealt_by_hand(sizes: list[int], wanted: dict[str, Fraction]) -> Counter[tuple[int, str]]:
    """How many of each class go to each split, in fractions: where most is lacking in the class, then overall."""
    counts = Counter[tuple[int, str]]()
    for label, size in enumerate(sizes):
        for place in range(size):
            lack = {
                split: (
                    share * (place + 1) - counts[label, split],
                    share * (counts.total() + 1) - sum(counts[other, split] for other in range(len(sizes))),
                )
                for split, share in wanted.items()
                if share
            }
            counts[label, "train" if place == 0 else max(lack, key=lambda split: lack[split])] += 1
    return counts


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 14), min_size=1, max_size=4), st.integers(1, 8), st.integers(0, 7))
def test_patients_are_dealt_as_by_hand(sizes, train, val):
    """Shares in eighths, which floats hold exactly, so that nothing hangs on how a tie is rounded."""
    val = min(val, 8 - train)
    parts = {"train": train, "val": val, "test": 8 - train - val}
    wanted = {name: Fraction(parts[name], 8) for name in SPLITS}
    labels = {f"{label}-{number}": label for label, size in enumerate(sizes) for number in range(size)}
    splits = assign(labels, {}, SplitSpec(**{name: float(share) for name, share in wanted.items()}), 1)
    assert Counter((labels[patient], split) for patient, split in splits.items()) == dealt_by_hand(sizes, wanted)


@pytest.mark.parametrize(("targets", "class_of"), [([UNKNOWN, 0, 2], 2), ([1, UNKNOWN], 1), ([], UNKNOWN), ([0, 1], 1)])
def test_a_patient_stands_among_those_of_its_highest_known_class(targets, class_of):
    assert stratum(targets) == class_of


@pytest.mark.parametrize("shares", [SplitSpec(), SplitSpec(train=0.7, val=0, test=0.3)])
def test_shares_hold_on_average_where_each_stands_alone(shares):
    counts = Counter(alone(map(str, range(20_000)), dealing(5, shares)).values())
    for name in SPLITS:
        wanted = getattr(shares, name)
        assert abs(counts[name] - 20_000 * wanted) <= 4 * (20_000 * wanted * (1 - wanted)) ** 0.5


def test_another_seed_or_key_is_another_split():
    labels = {f"{n}": 0 for n in range(50)}
    assert assign(labels, {}, SplitSpec(), 1) != assign(labels, {}, SplitSpec(), 2)
    assert alone(labels, dealing(1)) != alone(labels, dealing(2))
    assert alone(labels, dealing(1)) != alone(labels, Dealing(SplitSpec(), 1, b"another site's key"))


@given(st.lists(LABELS, min_size=1, max_size=4), st.integers(0, 1000), st.sampled_from(RULES))
@settings(max_examples=30, deadline=None)
def test_nobody_moves_when_others_come_or_labels_change(arrivals, seed, rule):
    with tempfile.TemporaryDirectory() as folder:
        path, before = Path(folder) / "splits.csv", {}
        for labels in arrivals:
            found, stated = keep(path, labels, dealing(seed, rule=rule))
            assert stated == rule
            assert found.keys() == labels.keys()
            assert all(found[patient] == before[patient] for patient in found.keys() & before.keys())
            before |= found


def test_patients_who_come_one_by_one_are_shared_out_too(tmp_path):
    """Each new patient alone must not always train: in the end the shares hold as if all had come at once."""
    labels = {}
    for number in range(40):
        labels[f"{number:03d}"] = number % 2
        splits, _ = keep(tmp_path / "splits.csv", labels, dealing())
    counts = Counter(splits.values())
    assert abs(counts["train"] - 24) <= 2
    assert abs(counts["val"] - 6) <= 2
    assert abs(counts["test"] - 10) <= 2


@pytest.mark.parametrize("rule", RULES)
def test_the_file_is_private_and_tied_to_shares_and_seed(tmp_path, rule):
    path, labels = tmp_path / "splits.csv", {"a": 0, "b": 1, "c": 1}
    first = keep(path, labels, dealing(1, rule=rule))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().splitlines()[0].endswith(f", {rule}")
    assert keep(path, labels, dealing(1, rule=rule)) == keep(path, labels, dealing(1, rule=None)) == first
    for shares, seed in ((SplitSpec(), 2), (SplitSpec(train=0.5, val=0.25, test=0.25), 1)):
        with pytest.raises(DataError, match="other shares or another seed"):
            keep(path, labels, dealing(seed, shares, rule))


@pytest.mark.parametrize(("rule", "said"), [*((rule, rule) for rule in RULES), (None, "independent")])
def test_splits_that_were_made_elsewhere_bear_the_rule_that_made_them(tmp_path, rule, said):
    write(tmp_path / "splits.csv", {"a": "train"}, dealing(rule=rule))
    assert keep(tmp_path / "splits.csv", {"a": 0}, dealing(rule=None)) == ({"a": "train"}, said)


def test_whoever_needs_patients_to_stand_alone_takes_no_file_that_was_dealt(tmp_path):
    path, labels = tmp_path / "splits.csv", {f"{n}": n % 2 for n in range(30)}
    keep(path, labels, dealing())
    before = path.read_bytes()
    with pytest.raises(DataError, match=rf"{path}.*class by class.*many_studies"):
        keep(path, labels, dealing(rule="independent"))
    assert path.read_bytes() == before


def test_a_file_without_a_rule_counts_as_dealt_class_by_class(tmp_path):
    """Nobody in it moves; and where privacy is asked for, patients who were dealt out together are not taken."""
    path, labels = tmp_path / "splits.csv", {f"{n}": n % 2 for n in range(30)}
    old, _ = keep(path, labels, dealing())
    lines = path.read_text().splitlines()
    text = "\n".join([lines[0].removesuffix(", stratified"), *lines[1:-1]]) + "\n"
    path.write_text(sealed(text, dealing().secret))
    more = labels | {f"new {n}": 0 for n in range(30)}
    with pytest.raises(TiedSplits):
        keep(path, more, dealing(rule="independent"))
    found, rule = keep(path, more, dealing(rule=None))
    assert rule == "stratified"
    assert {patient: found[patient] for patient in old} == old
    assert path.read_text().splitlines()[0].endswith(", stratified")
    with pytest.raises(TiedSplits):
        keep(path, more, dealing(rule="independent"))


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00", b"a,train\nb,somewhere\n", b"a,train,x\n"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "splits.csv"
    keep(path, {"a": 0}, dealing(1))
    header = path.read_bytes().split(b"\na,")[0] + b"\n" if damage.startswith(b"a") else b""
    path.write_bytes(header + damage)
    with pytest.raises(DataError, match=str(path)):
        keep(path, {"a": 0}, dealing(1))


def test_one_changed_letter_or_another_key_is_a_damaged_file(tmp_path):
    """Whoever was somebody new by it was dealt out once more: patients of the test split could train."""
    path, labels = tmp_path / "splits.csv", {f"{n}": n % 2 for n in range(12)}
    keep(path, labels, dealing(1))
    whole = path.read_bytes()
    for at in range(len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DataError, match=str(path)):
            keep(path, labels, dealing(1))
    path.write_bytes(whole)
    other = replace(dealing(1), secret=b"another key")
    with pytest.raises(DataError, match=r"patients\.key is another than when it was written"):
        keep(path, labels, other)
    assert path.read_bytes() == whole
