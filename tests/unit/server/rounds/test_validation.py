import numpy as np
import pytest

from fedgraft.common.protocol.instructions import Code, Instruction, Update
from fedgraft.common.protocol.packed_symmetric import packed
from fedgraft.common.study.plan import (
    Gradient,
    Role,
    Stage,
    Statistics,
    Tag,
    named,
)
from fedgraft.common.study.stages.aggregates import Mean, Ridge
from fedgraft.server.rounds.exchange.validation import Limits, fault, squares

TAGS = {
    "backbone.w": Tag(Role.BODY, 1),
    "backbone.v": Tag(Role.NORM_STATS, 1),
    "heads.cls.bias": Tag(Role.HEAD, 2, "cls"),
}
STATE = {
    "backbone.w": np.ones((3, 3), np.float32),
    "backbone.v": np.ones(3, np.float32),
    "heads.cls.bias": np.zeros(2, np.float32),
}
STAGE = Stage(name="s", local=Gradient(epochs=1), share=named("all"), aggregate=Mean())
BAR = Limits(STAGE, TAGS, STATE, {key: (array.shape, "float32") for key, array in STATE.items()}, limit=10.0)
ORDER = Instruction("d", 5, 0, 1, True, None, {})


def update(**changes: np.ndarray) -> Update:
    return Update(5, {**STATE, **changes}, {"*": 10.0, "cls": 10.0}, {"loss": 0.3}, {})


def test_a_good_update_passes():
    assert fault(update(), ORDER, BAR) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", list(STATE))
def test_one_number_that_is_not_finite_is_enough(key: str, value: float):
    bad = STATE[key].copy()
    bad.flat[-1] = value
    assert fault(update(**{key: bad}), ORDER, BAR) is Code.NOT_FINITE


def test_a_change_out_of_all_proportion_is_refused():
    assert fault(update(**{"backbone.w": STATE["backbone.w"] * 100}), ORDER, BAR) is Code.TOO_LARGE
    assert fault(update(**{"backbone.w": STATE["backbone.w"] * 5}), ORDER, BAR) is None


def test_norm_statistics_may_move_far():
    assert fault(update(**{"backbone.v": STATE["backbone.v"] * 1e4}), ORDER, BAR) is None


def test_wrong_names_shapes_types_and_exchanges_are_refused():
    fewer = Update(5, {k: v for k, v in STATE.items() if k != "backbone.v"}, {"*": 1.0}, {}, {})
    more = Update(5, {**STATE, "extra": np.ones(1, np.float32)}, {"*": 1.0}, {}, {})
    assert fault(fewer, ORDER, BAR) is Code.WRONG_KEYS
    assert fault(more, ORDER, BAR) is Code.WRONG_KEYS
    assert fault(update(**{"backbone.w": np.ones((9,), np.float32)}), ORDER, BAR) is Code.WRONG_SHAPE
    assert fault(update(**{"backbone.w": np.ones((3, 3), np.float64)}), ORDER, BAR) is Code.WRONG_SHAPE
    assert fault(Update(4, STATE, {"*": 1.0}, {}, {}), ORDER, BAR) is Code.GARBAGE


@pytest.mark.parametrize("weights", [{}, {"*": 0.0}, {"*": -1.0}, {"*": float("nan")}, {"*": 1e15}, {"cls": 3.0}])
def test_weights_must_be_plausible(weights: dict):
    assert fault(Update(5, STATE, weights, {}, {}), ORDER, BAR) is Code.BAD_WEIGHT


def test_a_reply_to_an_evaluation_may_carry_no_tensors():
    evaluation = Instruction("d", 5, 0, 1, False, "test", {})
    assert fault(Update(5, STATE, {}, {}, {}), evaluation, BAR) is Code.WRONG_KEYS
    assert fault(Update(5, {}, {}, {}, {}), evaluation, BAR) is None


def test_sums_must_be_finite_and_count_something_plausible():
    probe = Stage(name="p", local=Statistics(), share=named("heads"), aggregate=Ridge())
    shapes = {"cls/triangle": ((3,), "float64"), "cls/cross": ((2, 2), "float64")}
    bar = Limits(probe, TAGS, STATE, shapes, 10.0)

    def sums(gram: np.ndarray) -> Update:
        return Update(5, packed({"cls/gram": gram, "cls/cross": np.ones((2, 2))}), {}, {}, {})

    assert fault(sums(np.eye(2)), ORDER, bar) is None
    assert fault(sums(np.full((2, 2), np.nan)), ORDER, bar) is Code.NOT_FINITE
    assert fault(sums(-np.eye(2)), ORDER, bar) is Code.BAD_WEIGHT


def test_squares_in_pieces_are_the_squares():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 200_003)).astype(np.float32)
    assert squares(a, b) == pytest.approx(float(((a.astype(float) - b) ** 2).sum()), rel=1e-5)
