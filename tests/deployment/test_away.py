"""Parts that are away for a while, longer than Flower bears with: all come back by themselves, and nothing is lost.

What is away here for half a minute may be for minutes: Flower holds a site for gone after 20 s.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from fedgraft.client.governance.approval import approve
from fedgraft.common.study.study import Study
from helpers.federation import Federation, Started, same_weights, until
from helpers.simulated import simulate

pytestmark = pytest.mark.deployment
SITES = ("east", "north", "south")
METHOD = {"name": "silobn", "rounds": 2, "local": {"epochs": 8, "batch_size": 4, "lr": 0.003}}
GONE_S = 25.0


@pytest.fixture(scope="module")
def study(make_study) -> Study:
    return make_study(method=METHOD, name="away")


@pytest.fixture(scope="module")
def masked(make_study) -> Study:
    """With three sites, none of which masks in any other group: every one of them is needed for every sum."""
    return make_study(method=METHOD, name="away_masked", secure_aggregation=True)


@pytest.fixture(scope="module")
def references(study, masked, three, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reference")
    return {one.digest: simulate(one, three, folder / one.digest[:8]) for one in (study, masked)}


@pytest.fixture(scope="module")
def federation(stand, study, masked) -> Federation:
    made = stand(study)
    for name in SITES:
        approve(made.site(name), masked.digest)
    return made


def at_work(federation: Federation, study: Study, out: str) -> Started:
    """A run of the study in the middle of its second exchange."""
    process = federation.start_run(study, out)
    federation.await_event("exchange", out, exchange=2)
    return process


def nothing_is_lost(federation: Federation, process: Started, out: str, reference: Path) -> None:
    assert process.wait(300) == 0, federation.output(out)
    assert [row["missing"] for row in federation.history(out)] == [{}] * 3
    assert same_weights(federation.root / out, reference)
    assert all(federation.processes[name].poll() is None for name in SITES)


def test_a_gate_that_stalls(federation, study, references):
    process = at_work(federation, study, "stalled")
    gate = federation.processes["server"]
    gate.send_signal(signal.SIGSTOP)
    time.sleep(GONE_S)
    gate.send_signal(signal.SIGCONT)
    nothing_is_lost(federation, process, "stalled", references[study.digest])


def test_a_laptop_that_sleeps_in_a_masked_study(federation, masked, references):
    process = at_work(federation, masked, "asleep")
    laptop = federation.processes["south"]
    laptop.send_signal(signal.SIGSTOP)
    time.sleep(GONE_S)
    laptop.send_signal(signal.SIGCONT)
    nothing_is_lost(federation, process, "asleep", references[masked.digest])


def test_a_server_that_is_away_in_a_masked_study(federation, masked, references):
    """No site is heard of when it is back, and the study cannot go on without any one of them."""
    process = at_work(federation, masked, "served")
    federation.processes["server"].kill()
    federation.processes["server"].wait()
    time.sleep(GONE_S)
    federation.start_server()
    nothing_is_lost(federation, process, "served", references[masked.digest])


def test_a_site_that_does_not_come_back_ends_no_study_that_can_do_without_it(federation, study):
    """As long as it is told to wait, and from then on the others wait for it no more."""
    process = federation.start_run(study, "gone", "--away", 25)
    federation.await_event("exchange", "gone", exchange=1)
    federation.processes["south"].kill()
    assert process.wait(300) in (0, 1), federation.output("gone")
    rows = federation.history("gone")
    whole = 0 if rows[0]["missing"] else 1  # on a busy machine it may have answered before the kill
    assert [row["missing"] for row in rows] == [{}] * whole + [{"south": "unreachable"}] * (3 - whole)
    assert rows[whole + 1]["seconds"] < rows[whole]["seconds"]
    federation.start_site("south")
    until(lambda: federation.output("south").count("connected") > 1, 60, "the site to be let in")
