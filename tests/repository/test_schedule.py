"""How the suite is shared out: one worker waits for servers while the others compute, and all is carried out once."""

from __future__ import annotations

import importlib.util
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from helpers.schedule import by_file

ALONE = [f"tests/unit/test_{name}.py::test_{number}" for name in "efghijk" for number in range(4)]
TESTS = [f"tests/deployment/test_{name}.py::test_{number}" for name in "abcd" for number in range(4)] + ALONE


class Worker:
    """Takes tests by their numbers, as a process of xdist does, and has them carried out one by one."""

    shutting_down = False
    gateway = SimpleNamespace(id="gw")

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.done: list[str] = []

    def send_runtest_some(self, numbers: list[int]) -> None:
        self.waiting += numbers

    def shutdown(self) -> None:
        self.shutting_down = True


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_worker_waits_while_there_is_something_to_compute(count: int) -> None:
    config = SimpleNamespace(option=SimpleNamespace(), getvalue=lambda _: [f"{count}*popen"])
    shared = by_file(config, None)
    workers = [Worker() for _ in range(count)]
    for worker in workers:
        shared.add_node(worker)
        shared.add_node_collection(worker, TESTS)
    shared.schedule()
    turns: list[list[str]] = []
    while busy := [worker for worker in workers if worker.waiting]:
        turns.append([TESTS[worker.waiting.pop(0)] for worker in busy])
        for worker, test in zip(busy, turns[-1], strict=True):
            worker.done.append(test)
            shared.mark_test_complete(worker, TESTS.index(test))
    assert sorted(test for worker in workers for test in worker.done) == sorted(TESTS)
    files = [file for worker in workers for file in {test.split("::")[0] for test in worker.done}]
    assert len(files) == len(set(files)), "the tests of one file are one worker's"
    begun = [place for place, turn in enumerate(turns) for test in turn if test in ALONE and test.endswith("::test_0")]
    before = turns[: max(begun)]  # from then on all that computes is given out
    assert count == 1 or len(before) >= 4
    assert all(sum(test not in ALONE for test in turn) <= 1 for turn in before)


@given(strategies.integers())
@settings(max_examples=1)
def test_no_law_is_broken_by_a_machine_that_is_busy(number: int) -> None:
    """Hypothesis has 200 ms for each example, and gives up where examples come slowly, unless it is told otherwise."""
    now = settings.default
    assert (now.deadline, HealthCheck.too_slow in now.suppress_health_check) == (None, True)
    time.sleep(0.25)


def test_what_is_compiled_before_the_tests_is_what_they_start() -> None:
    """Each can be imported, and does nothing by that; the parts of a consortium and the workers are among them."""
    text = (Path(__file__).parents[2] / "Makefile").read_text()
    (listed,) = re.findall(r"^STARTED := (.*?[^\\])$", text, re.MULTILINE | re.DOTALL)
    names = re.findall(r"[\w.]+", listed)
    assert [name for name in names if importlib.util.find_spec(name) is None or name.endswith("__main__")] == []
    assert {
        "fedgraft.client.runtime.app",
        "fedgraft.server.rounds.app",
        "fedgraft.server.operations.superlink",
        "fedgraft.simulations.engines.workers.worker",
        "fedgraft.client.data.decoding.worker",
        "torch._dynamo",
    } <= set(names)
    recipe = text.partition("\ntest: ")[2].partition("\n\n")[0]
    assert recipe.index("env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -c") < recipe.index("pytest")
