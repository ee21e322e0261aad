"""Who may take part: wrong authorities, unknown, revoked and doubled keys are stopped; late sites are let in."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedgraft.client.enrolment.edit_yaml import change_values
from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.governance.approval import approve
from fedgraft.common.identity.keys import new_node_key, private_pem
from helpers.federation import Federation, until
from helpers.members import fingerprint_of

pytestmark = pytest.mark.deployment
METHOD = {"name": "fedavg", "rounds": 3, "local": {"epochs": 6, "batch_size": 4, "lr": 0.003}}


@pytest.fixture(scope="module")
def federation(found, make_study) -> Federation:
    return found(make_study(method=METHOD), running=("east", "north"))


def ended(federation: Federation, name: str, folder: Path) -> tuple[int, str]:
    """Start a site that should not be let in; its exit code and last words."""
    process = federation.start(name, "site", "start", "--home", folder)
    try:
        return process.wait(150), federation.output(name)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"{name} went on: {federation.output(name)}")


@pytest.fixture
def copy(federation: Federation, tmp_path: Path) -> Path:
    """A folder like that of north, as a thief or a careless operator might have it."""
    folder = tmp_path / "copy"
    shutil.copytree(federation.site("north"), folder)
    return folder


def test_another_authority_is_noticed(federation, copy, three, tmp_path):
    other = Federation(tmp_path / "other", three, ["north"])
    server = {"address": f"localhost:{federation.port}", "ca": str(other.kits / "server" / "ca.crt")}
    change_values(copy / "site.yaml", {"server": server})
    code, words = ended(federation, "wrong-ca", copy)
    assert code == 1
    assert "is not this consortium's server" in words


def test_an_unknown_key_is_denied(federation, copy):
    (copy / "node.key").write_bytes(private_pem(new_node_key()))
    code, words = ended(federation, "wrong-key", copy)
    assert code == 1
    assert "does not know this site's key" in words


def test_a_clock_that_is_ten_minutes_off_is_named(federation, copy, tmp_path):
    (tmp_path / "clock").mkdir()
    shift = "from datetime import timedelta\nimport flwr.supercore.date as d\n"
    shift += "import fedgraft.client.runtime.link as e\n"
    shift += "import flwr.supernode.node_auth_http_interceptor as i\nreal = d.now\n"
    shift += "i.now = lambda: real() - timedelta(minutes=10)\ne.this_moment = i.now\n"
    (tmp_path / "clock" / "shifted.py").write_text(shift)
    code = "import shifted, sys; sys.argv = ['fedgraft', 'site', 'start', '--home', sys.argv[1]]; "
    code += "from fedgraft.cli import main; main()"
    environment = federation.environment(tmp_path / "clock")
    command = [sys.executable, "-c", code, str(copy)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 1
    assert re.search(r"clock is (59\d|60\d) s behind the server's", done.stderr)


def test_two_sites_with_one_key_are_one_too_many(federation, copy):
    until(lambda: "connected" in federation.output("north"), 120, "north itself, who else would come second")
    code, words = ended(federation, "double", copy)
    assert code == 1
    assert "Is the site started twice" in words
    assert federation.processes["north"].poll() is None


def test_a_site_passes_for_no_other(federation, make_study):
    """A site that joined as north and calls itself east is refused by name."""
    study = make_study(method=METHOD, seed=91, rounds={"min_sites": 1})
    for name in ("east", "north"):
        approve(federation.site(name), study.digest)
    path = federation.site("north") / "site.yaml"
    honest = path.read_text()
    path.write_text(yaml.safe_dump(yaml.safe_load(honest) | {"name": "east"}))
    federation.processes["north"].terminate()
    federation.processes["north"].wait(30)
    federation.start_site("north")
    federation.run(study, "names", "--sites", "2")
    path.write_text(honest)
    federation.processes["north"].terminate()
    federation.processes["north"].wait(30)
    federation.start_site("north")
    result = json.loads((federation.root / "names" / "result.json").read_text())
    assert "north, wrong_name" in result["headline"]


def test_a_revoked_site_is_shut_out_while_it_runs(federation):
    federation.fedgraft("server", "revoke", "north", "--out", "kits")
    until(lambda: federation.processes["north"].poll() is not None, 120, "the revoked site to stop")
    assert federation.processes["north"].poll() == 1
    assert "does not know this site's key, or no longer" in federation.output("north")
    rows = json.loads(federation.fedgraft("server", "sites", "--home", federation.home, "--json").stdout)
    assert {row["name"]: row["state"] for row in rows}["north"] == "revoked"
    federation.provision(["east", "north", "south"])
    assert not (federation.kits / "north.zip").exists(), "provisioning again lets nobody in again"


def test_a_renewed_site_comes_back_with_new_keys_once_they_are_enrolled(federation, make_study):
    federation.fedgraft("server", "renew", "north", "--out", "kits")
    kit, code = federation.kits / "north.zip", federation.kits / "north.code"
    old = SiteHome(federation.site("north")).node_key()
    before = (federation.site("north") / "site.yaml").read_bytes()
    federation.fedgraft("site", "rejoin", kit, "--code-file", code, "--home", federation.site("north"))
    assert SiteHome(federation.site("north")).node_key() != old
    after = yaml.safe_load((federation.site("north") / "site.yaml").read_text())
    assert {**after, "secure_aggregation": None} == {**yaml.safe_load(before), "secure_aggregation": None}
    assert federation.start_site("north").wait(60) == 1, "its new keys are not enrolled"
    federation.fedgraft("server", "enrol", federation.site("north") / "north.enrolment.json", "--out", "kits")
    federation.await_admitted()
    connected = federation.output("north").count("connected")
    federation.start_site("north")
    until(lambda: federation.output("north").count("connected") > connected, 120, "the renewed site")


def test_a_site_is_added_while_the_server_runs_and_joins_a_running_study(federation, make_study):
    # Long enough for a site to start meanwhile.
    # A roster that is taken over changes the site's file, which costs the site the round that it is at work on.
    method = METHOD | {"rounds": 6, "local": METHOD["local"] | {"epochs": 60}}
    study = make_study(method=method, seed=92, rounds={"min_sites": 1})
    federation.provision(["east", "north", "south", "west"])
    federation.join("west", study)
    assert not (federation.site("west") / "west.enrolment.json").read_text().count("PRIVATE")
    for name in ("east", "north"):
        approve(federation.site(name), study.digest)
    process = federation.start_run(study, "late", "--sites", "2")
    federation.await_event("exchange", "late", exchange=1)
    federation.fedgraft("server", "enrol", federation.site("west") / "west.enrolment.json", "--out", "kits")
    federation.await_admitted()
    renewed = f"north={fingerprint_of(SiteHome(federation.site('north')))}"
    words = ("site", "roster", federation.kits / "roster.json", "--home", federation.site("east"))
    assert federation.fedgraft(*words, fails=True).returncode == 2, "north has other keys than the ones pinned"
    heard = federation.fedgraft(*words, "--accept", renewed).stdout
    assert "Not pinned, so that it masks in no group with them: west" in heard
    assert "west" in SiteHome(federation.site("east")).roster().members
    federation.start_site("west", study)
    assert process.wait(400) == 0, federation.output("late")
    assert "west" not in federation.history("late")[0]["sites_aggregated"]
    assert "west" in federation.history("late")[-1]["sites_aggregated"]
