"""Figures of a site for Prometheus: those of its records, nothing that names a patient, and for this machine alone."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.runtime.exposition import exposed
from fedgraft.common.protocol.instructions import Greeting, Refusal, Update
from fedgraft.common.study.study import Study
from helpers.played import PlayedSite

POLICY = SitePolicy(min_patients=1, epsilon_per_study=5.2, epsilon_lifetime=5.5)


def figures(site: PlayedSite) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(exposed(site.config)[1].decode())
    return {
        (sample.name.removeprefix("fedgraft_site_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture
def site(hospitals, tmp_path: Path) -> PlayedSite:
    return PlayedSite(tmp_path / "north", hospitals.cohorts["north"], POLICY)


@pytest.fixture
def private(make_study: Callable[..., Study]) -> Study:
    local = {"steps": 2, "lr": 0.01, "private": {"epsilon": 5.0, "sample_rate": 0.5}}
    return make_study(method={"name": "linear_probe", "rounds": 2, "local": local})


def test_figures_are_those_of_the_records(site: PlayedSite, private: Study) -> None:
    before = figures(site)
    assert before == {
        ("records_sound",): 1.0,
        ("epsilon_spent",): 0.0,
        ("epsilon_lifetime",): 5.5,
        ("charges_refused_total",): 0.0,
    }
    assert isinstance(site.greets(private), Greeting)
    assert isinstance(site.visits(private, 1), Update)
    assert isinstance(site.visits(private, 1, shift=0.5), Refusal)
    after = figures(site)
    assert after["epsilon_spent",] == pytest.approx(site.held.open(100.0).spent().epsilon)
    assert 0 < after["epsilon_spent",] < 5.5
    assert {key[1]: value for key, value in after.items() if key[0] == "messages_total"} == {
        "greeting": 1.0,
        "update": 1.0,
        "refusal": 1.0,
    }
    assert sum(value for key, value in after.items() if key[0] == "refusals_total") == 1.0
    assert 0 <= after["silent_seconds",] < 600
    ledger = site.state / "ledger" / "ledger.sqlite"
    ledger.write_bytes(ledger.read_bytes()[: ledger.stat().st_size // 2])
    assert figures(site) == {("records_sound",): 0.0}


@pytest.mark.slow
def test_the_command_serves_this_machine_and_no_page_of_another_name(site: PlayedSite) -> None:
    words = [sys.executable, "-m", "fedgraft", "site", "metrics", "--home", str(site.home), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = process.stdout.readline()
            port = int(re.search(r"http://127\.0\.0\.1:(\d+)/metrics", said).group(1))
            answers = []
            for host in (f"127.0.0.1:{port}", "evil.example.org"):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
                connection.request("GET", "/metrics", headers={"Host": host})
                answer = connection.getresponse()
                answers.append((answer.status, b"fedgraft_site_epsilon_lifetime 5.5" in answer.read()))
                connection.close()
            assert answers == [(200, True), (421, False)]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
