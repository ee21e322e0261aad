"""The mean of what adapters add, split again, against whole products and a whole decomposition."""

from __future__ import annotations

import numpy as np
import pytest

from fedgraft.common.protocol.instructions import Update
from fedgraft.common.study.plan import Gradient, Role, Stage, Tag, named
from fedgraft.common.study.stages.aggregates import AdaptersProduct, Aggregation, Mean
from fedgraft.server.aggregation.aggregator import aggregator_for

RANK = 2
A, B = "backbone.up.lora_a.weight", "backbone.up.lora_b.weight"
TAGS = {
    "backbone.up.weight": Tag(Role.BODY, 1),
    A: Tag(Role.ADAPTER_A, 1),
    B: Tag(Role.ADAPTER_B, 1),
    "heads.cls.weight": Tag(Role.HEAD, 2, "cls"),
}
WEIGHTS = [10.0, 30.0, 20.0]


def states(
    shape_a: tuple[int, ...], shape_b: tuple[int, ...]
) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """The coordinator's entries, and three sites' updates."""
    rng = np.random.default_rng(2)
    shapes = {A: shape_a, B: shape_b, "heads.cls.weight": (2, 3)}
    drawn = [{key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()} for _ in range(4)]
    return drawn[0] | {"backbone.up.weight": np.zeros((9, 7), np.float32)}, drawn[1:]


def aggregated(
    aggregate: Aggregation, state: dict[str, np.ndarray], updates: list[dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    both = named("adapters_and_heads")
    stage = Stage(name="t", local=Gradient(steps=1, train=both), share=both, aggregate=aggregate)
    aggregator = aggregator_for(stage, TAGS)
    for tensors, weight in zip(updates, WEIGHTS, strict=True):
        aggregator.add(Update(1, tensors, {"*": weight, "cls": weight}, {}, {}))
    return aggregator.result(state)


def whole(entries: dict[str, np.ndarray]) -> np.ndarray:
    """B A, made in full."""
    a, b = entries[A].astype(np.float64), entries[B].astype(np.float64)
    return np.einsum("or,ri->oi", b.reshape(-1, RANK), a.reshape(RANK, -1))


@pytest.mark.parametrize(("shape_a", "shape_b"), [((RANK, 7), (9, RANK)), ((RANK, 3, 3, 3), (9, RANK, 1, 1))])
@pytest.mark.parametrize("weight", ["examples", "equal"])
def test_the_product_is_the_nearest_of_its_rank_to_the_mean_of_products(
    shape_a: tuple[int, ...], shape_b: tuple[int, ...], weight: str
) -> None:
    state, updates = states(shape_a, shape_b)
    found = aggregated(AdaptersProduct(weight=weight), state, updates)  # type: ignore[arg-type]
    shares = np.array(WEIGHTS) / sum(WEIGHTS) if weight == "examples" else np.full(3, 1 / 3)
    mean = sum(share * whole(one) for share, one in zip(shares, updates, strict=True))
    left, sizes, right = np.linalg.svd(mean)
    nearest = (left[:, :RANK] * sizes[:RANK]) @ right[:RANK]
    np.testing.assert_allclose(whole(found), nearest, atol=1e-5)
    assert {key: (array.shape, array.dtype) for key, array in found.items()} == {
        key: (state[key].shape, state[key].dtype) for key in (A, B, "heads.cls.weight")
    }
    head = sum(share * one["heads.cls.weight"] for share, one in zip(shares, updates, strict=True))
    np.testing.assert_allclose(found["heads.cls.weight"], head, atol=1e-6)


def test_the_mean_of_factors_is_another_thing_unless_all_have_one_a() -> None:
    state, updates = states((RANK, 7), (9, RANK))
    shares = np.array(WEIGHTS) / sum(WEIGHTS)

    def apart(sites: list[dict[str, np.ndarray]], aggregate: Aggregation) -> float:
        mean = sum(share * whole(one) for share, one in zip(shares, sites, strict=True))
        return float(np.abs(whole(aggregated(aggregate, state, sites)) - mean).max())

    assert apart(updates, Mean()) > 0.5
    frozen = [one | {A: state[A]} for one in updates]
    assert apart(frozen, Mean()) < 1e-5, "FFA-LoRA: with one A the means agree"
    assert apart(frozen, AdaptersProduct()) < 1e-5


def test_where_nothing_is_left_to_add_a_can_still_be_learnt_from() -> None:
    """B is 0 at first, or sites may cancel: were A then 0 as well, no gradient would ever come back."""
    state, updates = states((RANK, 7), (9, RANK))
    for one in updates:
        one[B] = np.zeros_like(one[B])
    found = aggregated(AdaptersProduct(), state, updates)
    assert not whole(found).any()
    rows = found[A].astype(np.float64)
    length = np.linalg.norm(state[A]) / np.sqrt(RANK)
    np.testing.assert_allclose(rows @ rows.T, length**2 * np.eye(RANK), atol=1e-5)


def test_a_layer_narrower_than_its_adapter_keeps_its_shape() -> None:
    state, updates = states((RANK, 7), (1, RANK))
    found = aggregated(AdaptersProduct(), state, updates)
    mean = sum(w / sum(WEIGHTS) * whole(one) for w, one in zip(WEIGHTS, updates, strict=True))
    np.testing.assert_allclose(whole(found), mean, atol=1e-5)


def test_the_same_updates_give_the_same_factors_to_the_last_bit() -> None:
    state, updates = states((RANK, 7), (9, RANK))
    one, other = (aggregated(AdaptersProduct(), state, updates) for _ in range(2))
    assert all(np.array_equal(one[key], other[key]) for key in one)
