"""Real sites are asked over the running server what they could supply, and a run that is pinned to it begins or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedgraft.client.governance.approval import approve
from fedgraft.client.governance.egress import EgressLog
from helpers.federation import Federation

pytestmark = pytest.mark.deployment
SITES = ("east", "north", "south")


@pytest.fixture(scope="module")
def federation(stand, make_study) -> Federation:
    """A server and three sites; nobody has to approve what is only asked."""
    return stand(make_study())


def test_sites_answer_and_are_held_to_it(federation, three, make_study) -> None:
    study = make_study(name="asked", seed=11)
    path = federation.write(study, "asked.yaml")
    done = federation.fedgraft("study", "ask", path, "--home", federation.home, "--out", "asked")
    assert "Nothing stands against the study" in done.stdout
    told = json.loads((federation.root / "asked" / "agreement.json").read_text())["agreement"]
    cases = {name: answer["patients"] for name, answer in told["answers"].items()}
    assert cases == {"east": [48, 48], "north": [24, 24], "south": [60, 60]}
    for name in SITES:
        (line,) = [one for one in EgressLog(federation.site(name) / "state").entries() if one.study == study.digest]
        assert (line.kind, line.words) == ("answer", told["answers"][name])
        assert (federation.site(name) / "pending_studies" / f"{study.digest}.json").is_file()
    before = (labels := Path(three.cohorts["east"].labels)).read_bytes()
    labels.write_bytes(
        before.replace(b",left,", b",right,", 1)
    )  # a patient's label is corrected after the site was asked
    try:
        for name in SITES:
            approve(federation.site(name), study.digest)
        done = federation.run(study, "held", "--agreement", "asked", fails=True)
    finally:
        labels.write_bytes(before)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "pinned to agreement" in done.stdout
    assert "east has other cases than those over which it answered" in done.stderr
    assert federation.history("held") == []
    assert (
        "the cases are not those over which this site answered"
        in (federation.site("east") / "state" / "site.log").read_text()
    )
