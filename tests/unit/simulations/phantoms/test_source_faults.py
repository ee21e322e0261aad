"""What a scenario lacks of the sources that a study needs is said before anything is generated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fedgraft.common.base.errors import StudyError
from fedgraft.common.study.methods.presets import expand
from fedgraft.common.study.methods.recipes import NamedMethod
from fedgraft.common.study.study import Study, parse_study
from fedgraft.simulations.phantoms.scenario import Scenario, load_scenario, source_faults

SITE = {"phantom": {"patients": 4}}


def study(method: str) -> Study:
    plan = [stage.model_dump() for stage in expand(NamedMethod(name=method), table=False)]
    return parse_study({"name": "x", "tasks": [{"name": "cls", "classes": ["a", "b"]}], "plan": plan}, "here")


def scenario(**more: dict[str, Any]) -> Scenario:
    sites = [{"name": name, **SITE, **changes} for name, changes in more.items()]
    return Scenario.model_validate({"name": "x", "sites": sites})


def test_each_site_needs_a_source_where_the_loss_does() -> None:
    lacking = scenario(north={"source": "south"}, south={}, public={"public_source": True})
    (fault,) = source_faults(study("dann"), lacking)
    assert "but south have no `source`" in fault
    assert source_faults(study("dann"), scenario(north={"source": "south"}, south={"source": "north"})) == []
    assert source_faults(study("fedavg"), lacking) == []


@pytest.mark.parametrize("method", ["three_step", "joint", "moment_alignment"])
def test_some_site_must_hold_the_public_source(method: str) -> None:
    (fault,) = source_faults(study(method), scenario(north={}, south={}))
    assert "a site that holds the source" in fault
    assert source_faults(study(method), scenario(north={}, public={"public_source": True})) == []


@pytest.mark.parametrize("named", ["east", "north"])
def test_a_source_is_another_site_of_the_scenario(tmp_path: Path, named: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "sites": [{"name": "north", **SITE, "source": named}]}))
    with pytest.raises(StudyError, match=f"north.source: no other site is called {named}"):
        load_scenario(path)
