"""A site whose keys are renewed while it works: time to take the new ones over, and then the old ones are refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from fedgraft.client.enrolment.home import SiteHome
from fedgraft.common.identity.keys import public_pem
from fedgraft.server.operations.control import RunControl
from fedgraft.server.provisioning.home import ServerHome
from helpers.federation import Federation, until

pytestmark = pytest.mark.deployment
METHOD = {"name": "fedavg", "rounds": 3000, "local": {"epochs": 4, "batch_size": 4, "lr": 0.003}}
"""So many that no study ends before the test does, however slow its commands are: it is stopped."""
ROUNDS = {"min_sites": 1}
"""To take new keys over changes the site's file, which costs the site the round that it is at work on."""


@pytest.fixture(scope="module")
def federation(found, make_study) -> Federation:
    return found(make_study(method=METHOD, rounds=ROUNDS), running=("east", "north"))


def state_of(federation: Federation, name: str) -> str:
    rows = json.loads(federation.fedgraft("server", "sites", "--home", federation.home, "--json").stdout)
    return {row["name"]: row["state"] for row in rows}[name]


def renewed(federation: Federation, name: str, *more: object) -> str:
    """A new kit, new keys made at the site, and the coordinator takes them in; what it was told."""
    federation.fedgraft("server", "renew", name, "--out", "kits")
    kit, code = federation.kits / f"{name}.zip", federation.kits / f"{name}.code"
    federation.fedgraft("site", "rejoin", kit, "--code-file", code, "--home", federation.site(name))
    enrolment = federation.site(name) / f"{name}.enrolment.json"
    return federation.fedgraft("server", "enrol", enrolment, "--out", "kits", *more).stdout


def test_a_site_takes_new_keys_over_while_a_study_runs(federation, make_study):
    """Nobody has to stop the study, or the site before its new keys are taken in; then it takes part with them."""
    study = make_study(method=METHOD, rounds=ROUNDS)
    process = federation.start_run(study, "run", "--sites", "2")
    federation.await_event("done", "run", exchange=1)
    old = public_pem(SiteHome(federation.site("north")).node_key())
    told = renewed(federation, "north")
    assert "old keys hold until" in told
    assert "Warning: north is connected at this moment" in told
    assert old != public_pem(SiteHome(federation.site("north")).node_key())
    done = len(federation.history())
    until(lambda: len(federation.history()) > done + 1, 200, "another round")
    assert federation.history()[-1]["sites_aggregated"] == ["east", "north"], "the old keys still hold"
    federation.processes["north"].terminate()
    federation.processes["north"].wait(60)
    federation.start_site("north")
    until(lambda: federation.output("north").count("connected") == 2, 120, "the renewed site")
    after = len(federation.history()) + 1  # one may have been at work without it
    until(
        lambda: any(row["sites_aggregated"] == ["east", "north"] for row in federation.history()[after:]),
        200,
        "the renewed site in the same study",
    )
    federation.fedgraft("server", "stop", "--home", federation.home)
    process.wait(120)


def test_when_the_time_is_over_the_old_keys_are_refused(federation):
    home = ServerHome(federation.home)
    until(lambda: "connected" in federation.output("east"), 120, "east, with the keys that it has")
    told = renewed(federation, "east", "--grace", 0.01)
    assert "old keys hold until" in told
    (old,) = home.sites()["east"].old
    online = state_of(federation, "east")
    assert online == "online" or datetime.now(UTC) > old.until, "with the keys that it has"
    until(lambda: federation.processes["east"].poll() is not None, 120, "the old keys to be refused")
    assert datetime.now(UTC) > old.until, "not before their time was over"
    assert "does not know this site's key, or no longer" in federation.output("east")
    with RunControl(home) as control:
        assert old.node not in {node.key for node in control.nodes()}, "Flower knows them no more either"
    assert state_of(federation, "east") == "offline"


def test_nothing_is_promised_of_a_server_that_is_not_here(federation, tmp_path, three):
    elsewhere = Federation(tmp_path / "elsewhere", three, ["east"])
    elsewhere.join("east")
    elsewhere.enrol("east")
    told = renewed(elsewhere, "east")
    assert "old keys hold until" in told
    assert "nobody knows whether east is connected" in told
