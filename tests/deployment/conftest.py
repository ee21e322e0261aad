"""Three of the small sites, and federations of them that end with their test module."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from fedgraft.client.governance.approval import approve
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.run import Hospitals
from helpers.federation import Federation

SITES = ("east", "north", "south")
_FAILED = pytest.StashKey[bool]()
Found = Callable[..., Federation]


_LIMIT_S = 1800


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A machine that is three times slower has three times as long, for these tests alone.

    Files that share the standing federation come first: it is founded once, and those that take the longest are not
    what everybody waits for in the end.
    """
    sharing = {item.path for item in items if isinstance(item, pytest.Function) and "stand" in item.fixturenames}
    items.sort(key=lambda item: item.path not in sharing)
    for item in items:
        if item.get_closest_marker("deployment") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_LIMIT_S))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
    return report


@pytest.fixture(autouse=True)
def _leaves_nothing_running(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that fails leaves the federations that others share as it found them, and no study that goes on."""
    before = {id(one): one.running() for one in Federation.living}
    yield
    if request.node.stash.get(_FAILED, False):
        for federation in list(Federation.living):
            if id(federation) in before:
                federation.recover(before[id(federation)])


@pytest.fixture(scope="session")
def three(hospitals: Hospitals) -> Hospitals:
    return replace(hospitals, cohorts={name: hospitals.cohorts[name] for name in SITES})


@pytest.fixture(scope="module")
def found(hospitals: Hospitals, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    """Founds a federation whose server runs, and whose `running` sites take part in a study."""
    with ExitStack() as made:

        def make(study: Study, running: Sequence[str] = SITES, **server: Any) -> Federation:
            federation = Federation(tmp_path_factory.mktemp("federation"), hospitals, SITES, **server)
            made.callback(federation.end)
            start(federation, study, running)
            return federation

        yield make


def start(federation: Federation, study: Study, running: Sequence[str]) -> None:
    federation.start_server()
    federation.admit(study, *running)
    for name in running:
        federation.start_site(name)


Stand = Callable[[Study], Federation]


@pytest.fixture(scope="session")
def stand(hospitals: Hospitals, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Gives one federation to all modules that leave its server and its sites running; those approve the study.

    If it is whole no more, since a test failed or was the last to use it, it ends and another one is founded.
    """
    standing: list[Federation] = []

    def give(study: Study) -> Federation:
        if standing and not standing[0].whole(*SITES):
            standing.pop().end()
        if not standing:
            standing.append(Federation(tmp_path_factory.mktemp("standing"), hospitals, SITES))
            start(standing[0], study, SITES)
        for name in SITES:
            approve(standing[0].site(name), study.digest)
        return standing[0]

    yield give
    for federation in standing:
        federation.end()
