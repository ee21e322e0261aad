"""A hospital that holds the last that leaves, in a real deployment: restarts change nothing, a person's word does."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from fedgraft.client.evidence.passport import passport
from fedgraft.client.evidence.release import HeldRelease
from fedgraft.client.evidence.statement import Statement
from helpers.federation import Federation, lines, same_weights, until
from helpers.simulated import simulate

pytestmark = pytest.mark.deployment
METHOD = {"name": "fedavg", "rounds": 2, "local": {"steps": 2, "batch_size": 8, "lr": 0.003}}


def of_north(federation: Federation, study: str) -> list[dict[str, Any]]:
    path = federation.site("north") / "state" / "egress.jsonl"
    return [line for line in lines(path) if line["study"] == study]


def test_a_held_answer_outlasts_restarts_and_leaves_once_it_is_signed(stand, three, make_study, tmp_path):
    study = make_study(method=METHOD, name="held")
    federation: Federation = stand(study)
    config = federation.site("north") / "site.yaml"
    before = config.read_text()
    content = yaml.safe_load(before)
    config.write_text(yaml.safe_dump(content | {"policy": content["policy"] | {"release": "hold"}}))
    try:
        process = federation.start_run(study, "waits")
        federation.await_event("held", "waits", sites=["north"])
        federation.processes["north"].kill()
        federation.processes["server"].kill()
        federation.processes["north"].wait(60)
        federation.start_server()
        federation.start_site("north")
        asked = len(of_north(federation, study.digest))
        until(lambda: len(of_north(federation, study.digest)) > asked + 1, 120, "north to be asked again")
        held = HeldRelease.of(federation.site("north"), study.digest[:12]).held
        assert held.decision is None
        assert process.poll() is None
        assert [line["exchange"] for line in of_north(federation, study.digest) if line["kind"] == "update"] == [1]
        words = (study.digest[:12], "--sign", "--by", "Anna Berg", "--home", federation.site("north"))
        assert "may leave" in federation.fedgraft("site", "release", *words).stdout
        assert process.wait(300) == 0, federation.output("waits")
    finally:
        config.write_text(before)
    assert same_weights(federation.root / "waits", simulate(study, three, tmp_path / "reference"))
    kinds = [(line["exchange"], line["kind"]) for line in of_north(federation, study.digest)]
    assert kinds.index((2, "release")) < kinds.index((2, "update"))
    (decided,) = [line for line in of_north(federation, study.digest) if line["kind"] == "release"]
    words = decided["words"]
    assert (words["decision"], words["by"], words["digest"]) == ("signed", "Anna Berg", held.digest)
    told = passport(Statement.of(federation.site("north"), federation.root / "waits"))["releases"]
    assert [(one["exchange"], one["by"], one["at"]) for one in told["decided"]] == [(2, "Anna Berg", words["at"])]
