import numpy as np
import pytest

from fedgraft.common.base.errors import RunError
from fedgraft.common.protocol.instructions import Update
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
from fedgraft.server.aggregation.aggregator import aggregator_for

TAGS = {
    "backbone.w": Tag(Role.BODY, 1),
    "backbone.n": Tag(Role.NORM_STATS, 1),
    "heads.cls.weight": Tag(Role.HEAD, 2, "cls"),
    "heads.size.weight": Tag(Role.HEAD, 2, "size"),
}


def stage(weight: str) -> Stage:
    return Stage(name="s", local=Gradient(epochs=1), share=named("all"), aggregate=Mean(weight=weight))


def update(value: float, trunk: float, cls: float, size: float) -> Update:
    tensors = {key: np.full((2, 2), value, dtype=np.float32) for key in TAGS if key != "backbone.n"}
    tensors["backbone.n"] = np.array(int(value * 10), dtype=np.int64)
    return Update(1, tensors, {"*": trunk, "cls": cls, "size": size}, {}, {})


def state() -> dict[str, np.ndarray]:
    return dict(update(0.0, 1, 1, 1).tensors)


def test_the_mean_is_weighted_by_examples():
    aggregator = aggregator_for(stage("examples"), TAGS)
    for one in (update(1.0, 30, 30, 0), update(4.0, 10, 10, 0)):
        aggregator.add(one)
    aggregated = aggregator.result(state())
    assert aggregated["backbone.w"] == pytest.approx(np.full((2, 2), 1.75))
    assert aggregated["backbone.w"].dtype == np.float32


def test_the_mean_may_be_equal():
    aggregator = aggregator_for(stage("equal"), TAGS)
    for one in (update(1.0, 30, 30, 30), update(4.0, 10, 10, 10)):
        aggregator.add(one)
    assert aggregator.result(state())["backbone.w"] == pytest.approx(np.full((2, 2), 2.5))


def test_a_site_without_labels_of_a_task_does_not_dilute_its_head():
    aggregator = aggregator_for(stage("examples"), TAGS)
    for one in (update(1.0, 30, 30, 5), update(4.0, 10, 10, 0)):
        aggregator.add(one)
    assert aggregator.result(state())["heads.size.weight"] == pytest.approx(np.full((2, 2), 1.0))


def test_a_head_that_nobody_has_labels_for_stays_as_it_was():
    aggregator = aggregator_for(stage("examples"), TAGS)
    aggregator.add(update(4.0, 10, 10, 0))
    assert "heads.size.weight" not in aggregator.result(state())


def test_whole_numbers_stay_whole():
    aggregator = aggregator_for(stage("examples"), TAGS)
    for one in (update(1.0, 1, 1, 1), update(1.4, 2, 1, 1)):
        aggregator.add(one)
    aggregated = aggregator.result(state())["backbone.n"]
    assert (aggregated.dtype, int(aggregated)) == (np.dtype(np.int64), 13)  # of 12.67


def test_sums_are_taken_in_float64():
    aggregator = aggregator_for(stage("examples"), TAGS)
    big, small = 2.0**24, 1.0
    for value in [big] + [small] * 64:
        aggregator.add(update(value, 1, 1, 1))
    exact = np.float32((big + 64 * small) / 65)
    assert aggregator.result(state())["backbone.w"][0, 0] == exact


@pytest.mark.parametrize(("local", "aggregate"), [(Gradient(epochs=1), Mean()), (Statistics(), Ridge())])
def test_what_a_site_sent_is_taken_in_and_not_looked_at_again(local, aggregate):
    """The memory that a reply lies in is given back once it is aggregated."""
    start = {"heads.cls.weight": np.zeros((2, 2), np.float32), "heads.cls.bias": np.zeros(2, np.float32)}
    if isinstance(aggregate, Ridge):
        tensors = packed({"cls/gram": np.diag([3.0, 5.0, 4.0]), "cls/cross": np.arange(6.0).reshape(3, 2)})
    else:
        tensors = {key: array + 1 for key, array in start.items()}
    results = []
    for spoil in (False, True):
        tags = {key: Tag(Role.HEAD, 2, "cls") for key in start}
        aggregator = aggregator_for(Stage(name="p", local=local, share=named("heads"), aggregate=aggregate), tags)
        own = {key: array.copy() for key, array in tensors.items()}
        aggregator.add(Update(1, own, {"*": 1.0, "cls": 1.0}, {}, {}))
        for array in own.values() if spoil else ():
            array[...] = 99
        results.append(aggregator.result(start))
    assert all((results[0][key] == results[1][key]).all() for key in start)


def test_a_ridge_without_any_label_is_refused():
    probe = Stage(name="p", local=Statistics(), share=named("heads"), aggregate=Ridge())
    aggregator = aggregator_for(probe, TAGS)
    aggregator.add(Update(1, packed({"cls/gram": np.zeros((3, 3)), "cls/cross": np.zeros((3, 2))}), {}, {}, {}))
    with pytest.raises(RunError, match="cls"):
        aggregator.result({"heads.cls.weight": np.zeros((2, 2), np.float32), "heads.cls.bias": np.zeros(2, np.float32)})
