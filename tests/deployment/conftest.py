"""Three of the small sites, and federations of them that end with their test module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.run import Hospitals
from helpers.federation import Federation

SITES = ("east", "north", "south")
Found = Callable[..., Federation]


@pytest.fixture(scope="session")
def three(hospitals: Hospitals) -> Hospitals:
    return replace(hospitals, cohorts={name: hospitals.cohorts[name] for name in SITES})


@pytest.fixture(scope="module")
def found(hospitals: Hospitals, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    """Founds a federation whose server runs, and whose `running` sites take part in a study."""
    made: list[Federation] = []

    def make(study: Study, running: Sequence[str] = SITES, **server: Any) -> Federation:
        federation = Federation(tmp_path_factory.mktemp("federation"), hospitals, SITES, **server)
        made.append(federation)
        federation.start_server()
        for name in running:
            federation.join(name, study)
        federation.enrol(*running)
        for name in running:
            federation.start_site(name, study)
        return federation

    yield make
    for federation in made:
        federation.end()
