"""Changes of entries in fewer bytes: what is lost, what is kept for the next time, and what nobody can have written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgraft.common.base.errors import StudyError
from fedgraft.common.checks.explain import check_study, explain, sentence
from fedgraft.common.compression.changes import FEW, Residual, compressed_keys, restored, travelling, written
from fedgraft.common.compression.codecs import CODECS, CompressionError
from fedgraft.common.protocol.routing import forms_of
from fedgraft.common.study.plan import Role, Stage, Tag
from fedgraft.common.study.stages.compression import Compression
from helpers.work import MakeStudy

KINDS = ("bf16", "int8", "topk")
SHAPE = (40, 30)
TAGS = {"body": Tag(Role.BODY, 1), "bias": Tag(Role.BODY, 1), "running_var": Tag(Role.NORM_STATS, 1)}
STATE = {
    "body": np.full(SHAPE, 0.25, np.float32),
    "bias": np.zeros(30, np.float32),
    "running_var": np.ones(2000, np.float32),
}


def stage_of(make_study: MakeStudy, compress: object) -> Stage:
    return (
        make_study(method={"name": "fedavg", "rounds": 2})
        .plan[0]
        .model_copy(update={"compress": Compression.model_validate(compress)})
    )


def trained(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {key: (array + rng.normal(0, 0.01, array.shape)).astype(np.float32) for key, array in STATE.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_both_ends_come_to_the_same_entries_and_small_ones_and_statistics_travel_whole(
    make_study: MakeStudy, kind: str
) -> None:
    stage, after = stage_of(make_study, kind), trained(1)
    keys = compressed_keys(stage, TAGS, forms_of(STATE))
    assert keys == ("body",)
    assert STATE["bias"].size < FEW < STATE["running_var"].size
    sent, residual = written(stage, keys, after, STATE, None)
    assert forms_of(sent) == travelling(stage, TAGS, forms_of(STATE))
    back = restored(stage, TAGS, sent, STATE)
    assert back["bias"] is after["bias"]
    assert back["running_var"] is after["running_var"]
    change = after["body"] - STATE["body"]
    assert np.allclose(back["body"] - STATE["body"] + residual.left["body"].reshape(SHAPE), change, atol=1e-7)
    size = {"bf16": 2.0, "int8": 1.02, "topk": 0.31}[kind] * STATE["body"].size
    assert sum(array.nbytes for name, array in sent.items() if name not in STATE) <= size + 8
    error = np.abs(back["body"] - after["body"]).max() / np.abs(change).max()
    assert error < {"bf16": 2**-8, "int8": 0.51 / 127, "topk": 0.7}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_left_out_comes_later(make_study: MakeStudy, kind: str) -> None:
    """The same change again and again: what arrived and what is left add up to all of it, and little is left."""
    stage, after = stage_of(make_study, {"kind": kind, "share": 0.05}), trained(2)
    change, arrived, residual = after["body"] - STATE["body"], np.zeros(SHAPE), None
    for _ in range(60):
        sent, residual = written(stage, ("body",), after, STATE, residual)
        arrived += restored(stage, TAGS, sent, STATE)["body"] - STATE["body"]
    assert isinstance(residual, Residual)
    assert np.allclose(arrived + residual.left["body"].reshape(SHAPE), 60 * change, atol=1e-4)
    without = sum(
        restored(stage, TAGS, written(stage, ("body",), after, STATE, None)[0], STATE)["body"] - STATE["body"]
        for _ in range(60)
    )
    assert np.abs(arrived - 60 * change).max() < 0.6 * np.abs(without - 60 * change).max()


def naive_int8(values: np.ndarray) -> list[float]:
    found: list[float] = []
    for start in range(0, len(values), 256):
        block = values[start : start + 256]
        scale = np.float32(np.abs(block).max()) / np.float32(127)
        found += [float(np.float32(round(float(value / scale))) * scale) if scale else 0.0 for value in block]
    return found


def test_int8_and_topk_against_twins_that_count_by_hand() -> None:
    values = np.random.default_rng(3).normal(0, 1, 700).astype(np.float32)
    values[256:512] = 0
    int8, topk = CODECS["int8"], CODECS["topk"]
    how = Compression(kind="topk", share=0.1)
    assert np.allclose(int8.read(int8.write(values, how), 700, how), naive_int8(values), atol=1e-6)
    kept = sorted(range(700), key=lambda at: -abs(values[at]))[:70]
    read = topk.read(topk.write(values, how), 700, how)
    assert set(np.flatnonzero(read)) == set(kept)
    assert np.allclose(read[kept], values[kept], rtol=2**-8)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=600))
@pytest.mark.parametrize("kind", KINDS)
def test_any_finite_numbers_can_be_written(kind: str, numbers: list[float]) -> None:
    codec, how = CODECS[kind], Compression(kind=kind)
    values = np.array(numbers, np.float32)
    values[np.abs(values) > 3.38e38] = 0  # beyond what bf16 rounds to
    written_ = codec.write(values, how)
    assert forms_of(written_) == codec.forms(len(values), how)
    assert np.isfinite(codec.read(written_, len(values), how)).all()


BROKEN = {
    "a scale that is no number": ("int8", "scales", lambda a: np.full_like(a, np.nan)),
    "a scale below 0": ("int8", "scales", lambda a: -a - 1),
    "scales of another type": ("int8", "scales", lambda a: a.astype(np.float64)),
    "too few steps": ("int8", "steps", lambda a: a[:-1]),
    "bits of no number": ("bf16", "bits", lambda a: np.full_like(a, 0x7FC0)),
    "a place beyond the end": ("topk", "places", lambda a: a + np.uint32(1 << 20)),
    "one place twice": ("topk", "places", np.zeros_like),
    "places not in order": ("topk", "places", lambda a: a[::-1].copy()),
    "no places": ("topk", "places", None),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_nobody_can_have_written_is_refused(make_study: MakeStudy, name: str) -> None:
    kind, part, breaks = BROKEN[name]
    stage = stage_of(make_study, kind)
    sent, _ = written(stage, ("body",), trained(4), STATE, None)
    address = next(name for name in sent if f"compress-{part}" in name)
    if breaks is None:
        del sent[address]
    else:
        sent[address] = breaks(sent[address])
    with pytest.raises(CompressionError):
        restored(stage, TAGS, sent, STATE)


def test_a_change_that_is_no_number_is_not_written(make_study: MakeStudy) -> None:
    broken = trained(5)
    broken["body"][0, 0] = np.inf
    with pytest.raises(CompressionError):
        written(stage_of(make_study, "int8"), ("body",), broken, STATE, None)


def asked(make_study: MakeStudy, compress: object, **more: object):
    plan = make_study(method={"name": "fedavg", "rounds": 2}).plan[0].model_dump(mode="json")
    return make_study(plan=[plan | {"compress": compress} | more.pop("stage", {})], **more)


def test_where_it_cannot_be_it_is_refused_with_the_reason(make_study: MakeStudy) -> None:
    with pytest.raises(StudyError, match="masked words are as wide whatever they hold"):
        check_study(asked(make_study, "int8", secure_aggregation=True), "study.yaml")
    alone = {"share": "none", "keep": "all", "aggregate": {"kind": "nothing"}}
    with pytest.raises(StudyError, match="nothing is shared"):
        check_study(asked(make_study, "bf16", stage=alone), "study.yaml")
    sums = {"local": {"kind": "statistics"}, "share": "heads", "aggregate": {"kind": "ridge"}, "rounds": 1}
    with pytest.raises(StudyError, match="sums travel as they are"):
        check_study(asked(make_study, {"kind": "topk", "share": 0.1}, stage=sums), "study.yaml")


def test_explain_says_so(make_study: MakeStudy) -> None:
    study = asked(make_study, {"kind": "topk", "share": 0.1})
    said = sentence(study.plan[0], explain(study, "study.yaml").rows[0])
    assert "back as the 10% of each large entry that changed most" in said
