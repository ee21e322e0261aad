"""A hospital restores a backup, or loses a file: the other records tell, and nothing leaves until it is settled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedgraft.client.governance import egress as egress_module
from fedgraft.client.governance.egress import EgressLog
from fedgraft.client.governance.records import Records
from fedgraft.client.governance.settlement import propose_settlement, settle
from fedgraft.client.privacy.guard.privacy_guard import PrivacyGuard
from fedgraft.client.privacy.ledger import ledger as ledger_module
from fedgraft.client.privacy.ledger.ledger import Ledger, ledger_mark
from fedgraft.client.privacy.ledger.small_records import SURVIVAL, UNKNOWN
from fedgraft.client.privacy.ledger.spending import largest, missing
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.runtime.sessions import exchanges_of
from fedgraft.client.runtime.visit.progress import Progress
from fedgraft.common.base.errors import InputError
from fedgraft.common.privacy.accountant import Event, epsilon
from fedgraft.common.protocol.instructions import (
    AggregationGroups,
    Code,
    Greeting,
    MaskedUpdate,
    Refusal,
    Update,
)
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.keys import make_keys
from helpers.played import PlayedSite

POLICY = SitePolicy(min_patients=1, epsilon_per_study=5.2, epsilon_lifetime=5.5)


@pytest.fixture
def private(make_study: Callable[..., Study]) -> Study:
    """A head that is trained with noise in 4 rounds, for epsilon 5 in all."""
    local = {"steps": 2, "lr": 0.01, "private": {"epsilon": 5.0, "sample_rate": 0.5}}
    return make_study(method={"name": "linear_probe", "rounds": 4, "local": local})


@pytest.fixture
def site(hospitals, tmp_path: Path) -> Iterator[PlayedSite]:
    made = PlayedSite(tmp_path / "north", hospitals.cohorts["north"], POLICY)
    yield made
    made.restart()


def wrong(site: PlayedSite) -> tuple[str, ...]:
    return Records(site.config, site.home, exchanges_of).contradictions()


def spent(site: PlayedSite) -> float:
    return site.held.open(100.0).spent().epsilon


def refusal(exchange: int) -> Refusal:
    return Refusal(exchange, Code.LEDGER)


LEDGER = ("state/ledger/ledger.sqlite", "state.witness/ledger.json", "state.witness/ledger.spent.json")
LOG = ("state/egress.jsonl", "state.witness/egress.witness", "state/ledger/egress.witness")
RESTORED: dict[str, tuple[str, ...]] = {
    "the ledger": LEDGER[:1],
    "the ledger and its witness": LEDGER,
    "ledger, witness and answers": (*LEDGER, "state/replies"),
    "the ledger's folder and all witnesses": ("state/ledger", "state.witness"),
    "the egress log": LOG[:1],
    "the egress log and its witness": LOG[:2],
    "ledger, egress log and all witnesses": ("state/ledger", "state.witness", "state/egress.jsonl"),
    "all but the ledger": ("state.witness", "state/egress.jsonl", "state/replies", "{study}"),
    "all but the ledger, its copy of the log's witness too": (*LOG, "state/replies", "state/studies", "{study}"),
    "the state folder": ("state",),
    "the study's folder": ("{study}",),
    "the studies": ("state/studies",),
    "the witnesses": ("state.witness",),
    "the public numbers": ("state/public_counts.json",),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", RESTORED)
@pytest.mark.parametrize("restarted", [False, True])
def test_whoever_restores_an_older_copy_releases_nothing(
    site: PlayedSite, private: Study, what: str, restarted: bool
) -> None:
    """Every part alone, and several together, put back to the time before the study or in the middle of it."""
    before = site.backup("before")
    assert isinstance(site.greets(private), Greeting)
    assert isinstance(site.visits(private, 1), Update)
    middle = site.backup("middle")
    for exchange in (2, 3):
        assert isinstance(site.visits(private, exchange), Update)
    paid = spent(site)
    assert wrong(site) == ()
    newest = site.backup("newest")
    parts = [part.format(study=f"state/{private.digest}") for part in RESTORED[what]]
    for backup in (before, middle):
        if what in ("the studies", "the public numbers") and backup is middle:
            continue  # as they were: the study had been taken in
        if what == "the witnesses" and backup is middle:
            continue  # a witness that is behind is what a crash leaves; without one, nobody knows
        site.restores(backup, *parts)
        if restarted:
            site.restart()
        assert site.visits(private, 4) == refusal(4), backup.name
        assert site.greets(private) == Refusal(0, Code.LEDGER, "north"), backup.name
        assert wrong(site)
        assert not [entry for entry in site.log.entries() if entry.exchange == 4 and entry.kind != "refusal"]
        site.restores(newest, "state", "state.witness")
        site.restart()
    assert isinstance(site.visits(private, 4), Update), "with the newest copies it goes on"
    assert spent(site) > paid


def test_answers_that_nobody_charged_are_noticed(site: PlayedSite, private: Study) -> None:
    """All is restored but the folder of kept answers."""
    before = site.backup("before")
    site.greets(private)
    site.visits(private, 1)
    site.restores(before, "state/ledger", "state.witness", "state/egress.jsonl", "state/studies")
    (found,) = wrong(site)
    assert "answers with noise" in found
    site.restart()
    assert site.visits(private, 2) == refusal(2)


def test_a_witness_on_another_disk_outlives_a_restore_of_the_whole_home(hospitals, private, tmp_path: Path) -> None:
    disk = tmp_path / "other" / "disk"
    disk.mkdir(parents=True)
    site = PlayedSite(tmp_path / "north", hospitals.cohorts["north"], POLICY, witness=disk)
    site.greets(private)
    site.visits(private, 1)
    middle = site.backup("middle")
    site.visits(private, 2)
    assert {path.name for path in disk.iterdir()} == {"ledger.json", "ledger.spent.json", "egress.witness"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in disk.iterdir())
    shutil.rmtree(site.home)
    shutil.copytree(middle, site.home)
    site.restart()
    assert site.visits(private, 2) == refusal(2)
    proposed = propose_settlement(site.config, site.home, exchanges_of)
    assert proposed.before < proposed.after == pytest.approx(2 * epsilon_of_round(site, private), rel=0.5)
    disk.rename(tmp_path / "unplugged")
    site.restart()
    assert site.visits(private, 2) == refusal(2)
    assert "is its disk mounted?" in wrong(site)[0]
    assert not disk.exists(), "it is not made anew in place of one that is not mounted"
    with pytest.raises(InputError, match="mounted"):
        propose_settlement(site.config, site.home, exchanges_of)
    site.restart()


def epsilon_of_round(site: PlayedSite, study: Study) -> float:
    _, account = ledger_mark(site.held.ledger, study.digest)
    return epsilon(account.spent[study.digest], account.delta)


def test_a_link_to_a_witness_elsewhere_stays_a_link(site: PlayedSite, private: Study, tmp_path: Path) -> None:
    """As an operator has it who moved the file and left a link."""
    site.greets(private)
    site.visits(private, 1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("ledger.json", "egress.witness"):
        link = site.home / "state.witness" / name
        link.rename(elsewhere / name)
        link.symlink_to(elsewhere / name)
    before = {path.name: path.read_text() for path in elsewhere.iterdir()}
    assert set(before) == {"ledger.json", "egress.witness"}
    assert isinstance(site.visits(private, 2), Update)
    for name, text in before.items():
        assert (site.home / "state.witness" / name).is_symlink()
        assert (elsewhere / name).read_text() != text
    assert wrong(site) == ()


def test_a_mask_is_not_used_twice_after_a_restore(hospitals, make_study, tmp_path: Path) -> None:
    """The record of used masks goes back in time, and the coordinator asks for another model under the same number.

    The difference of the two uploads would be the site's own, bare of every mask.
    """
    study = make_study(secure_aggregation=True)
    for name in ("north", "south", "west"):
        (tmp_path / "keys" / name).mkdir(parents=True)
    keys = make_keys(tmp_path / "keys", ("north", "south", "west"))["north"]
    site = PlayedSite(tmp_path / "north", hospitals.cohorts["north"], secure_aggregation=keys)
    greeting = site.greets(study)
    backup = site.backup("backup")
    group = {"north": greeting.nonce, "south": "0" * 32, "west": "1" * 32}
    groups = AggregationGroups(1, {"tensors": group})
    assert isinstance(site.visits(study, 1, groups), MaskedUpdate)
    site.restores(backup, "state/masks.sqlite", f"state/{study.digest}")
    assert site.visits(study, 1, groups, shift=0.5) == refusal(1)
    site.restart()
    assert site.visits(study, 1, groups, shift=0.5) == refusal(1)
    assert any("used masks" in what for what in wrong(site))
    site.restart()


@pytest.mark.parametrize("part", ["state/shown.json", "state/releases"])
def test_coarse_counts_that_were_shown_once_are_not_shown_again_after_a_restore(
    hospitals, make_study, tmp_path: Path, part: str
) -> None:
    """Exact counts of the test cases, once in a study and in few studies: whoever forgets that shows them again."""
    policy = SitePolicy(min_patients=1, allow_non_dp=True, metrics="suppressed", metrics_studies=1)
    site, study = PlayedSite(tmp_path / "north", hospitals.cohorts["north"], policy), make_study()
    site.greets(study)
    for exchange in (1, 2):
        assert isinstance(site.visits(study, exchange), Update)
    backup = site.backup("backup")
    answer = site.visits(study, 3, evaluate="test")
    assert answer.metrics
    site.restores(backup, part)
    site.restart()
    assert site.visits(study, 3, evaluate="test", shift=0.5) == refusal(3)
    other = make_study(seed=4)
    assert site.greets(other) == Refusal(0, Code.LEDGER, "north")
    settle(site.config, propose_settlement(site.config, site.home, exchanges_of), "J. Operator")
    lost = SURVIVAL + UNKNOWN  # nor is it known that nobody was counted by who left when
    assert json.loads((site.state / "shown.json").read_text()) == sorted({study.digest, other.digest, lost})
    site.restart()


class Killed(SystemExit):
    """The machine is gone."""


KILLS = {
    "before anything": (Progress, "take_up"),
    "before the charge": (Ledger, "charge"),
    "after the charge": (Ledger, "_bear_witness"),
    "between witness and its account": (ledger_module, "write_witness"),
    "before the answer is kept": (PrivacyGuard, "keep"),
    "before the log's line": (egress_module, "_facts"),
    "before the log's witness": (EgressLog, "_bear_witness"),
}


@pytest.mark.parametrize("where", KILLS)
def test_a_site_that_is_killed_anywhere_goes_on(
    site: PlayedSite, private: Study, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """What a kill leaves behind is not what a restore leaves behind."""
    site.greets(private)
    site.visits(private, 1)

    def gone(*_: object, **__: object) -> None:
        raise Killed

    for exchange in (2, 3):
        with monkeypatch.context() as patch:
            patch.setattr(*KILLS[where], gone)
            with pytest.raises(Killed):
                site.visits(private, exchange)
        site.restart()
        assert wrong(site) == ()
    answer = site.visits(private, 3)
    assert answer == Refusal(3, Code.BUDGET) if where in _CHARGED else isinstance(answer, Update)
    assert isinstance(site.visits(private, 4), Update)
    assert wrong(site) == ()
    assert [row.round for row in site.held.open(100.0).rows()][-1] == 4


_CHARGED = ("after the charge", "between witness and its account", "before the answer is kept")
"""There the charge is lost: the round was paid for, and there is no answer."""


# --- settling


def lost(site: PlayedSite, study: Study, *parts: str) -> float:
    """Two rounds of a study, of which a restore forgets the second; what was truly spent."""
    site.greets(study)
    site.visits(study, 1)
    middle = site.backup("middle")
    site.visits(study, 2)
    paid = spent(site)
    site.restores(middle, *parts)
    site.restart()
    return paid


LOSSES: dict[str, tuple[str, ...]] = {
    "ledger and witness, known to the log": LEDGER,
    "the state folder, known to the witness": ("state",),
    "the egress log": LOG[:1],
    "the study's folder": ("{study}",),
}


@pytest.mark.parametrize("what", LOSSES)
def test_a_settlement_assumes_all_that_any_record_tells_of(
    site: PlayedSite, private: Study, make_study, command, what: str
) -> None:
    paid = lost(site, private, *(part.format(study=f"state/{private.digest}") for part in LOSSES[what]))
    frozen = contents(site.home)
    code, out, _ = command("site", "settle", "--home", site.home)
    assert (code, "Nothing was changed" in out) == (1, True)
    assert contents(site.home) == frozen
    assert f"{paid:.2f} of 5.5" in out
    assert private.digest[:12] in out.rpartition("Studies that end here")[2]
    code, out, _ = command("site", "settle", "--home", site.home, "--by", "J. Operator")
    assert (code, "decided by J. Operator" in out) == (0, True)
    assert spent(site) == pytest.approx(paid, rel=1e-9)
    assert wrong(site) == ()
    assert command("site", "settle", "--home", site.home)[:2] == (
        0,
        "All records of this site agree: there is nothing to settle.\n",
    )
    line = [entry for entry in site.log.entries() if entry.kind == "settlement"][-1]
    assert (line.words["by"], line.words["closed"]) == ("J. Operator", [private.digest])
    assert line.words["found"]
    # The study is over here, whatever the coordinator makes of it; another one finds what is left of the budget.
    assert site.visits(private, 2) == refusal(2)
    assert site.greets(private) == Refusal(0, Code.LEDGER, "north")
    dear = private.model_copy(update={"seed": 4})
    assert site.greets(dear) == Refusal(0, Code.BUDGET, "north"), "5.5 in all, some is spent, and this asks for 5 of it"
    code, out, _ = command("site", "budget", site.home)
    assert f"{paid:.2f}" in out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.parent.glob("north*/**/*")) if path.is_file()}


def test_a_ledger_that_is_gone_begins_anew_with_all_that_was_spent(site: PlayedSite, private: Study) -> None:
    site.greets(private)
    site.visits(private, 1)
    paid, delta = spent(site), site.held.open(100.0).delta
    shutil.rmtree(site.state / "ledger")
    site.restart()
    proposed = propose_settlement(site.config, site.home, exchanges_of)
    assert (proposed.before, proposed.sound) == (0.0, False)
    settle(site.config, proposed, "J. Operator")
    assert spent(site) == pytest.approx(paid, rel=1e-9)
    assert site.held.open(100.0).delta == delta
    assert site.held.open(100.0).verify() == len(site.held.open(100.0).rows())


def test_a_damaged_log_and_a_damaged_ledger_are_set_aside_and_count_all_the_same(
    site: PlayedSite, private: Study
) -> None:
    site.greets(private)
    site.visits(private, 1)
    paid = spent(site)
    log = site.state / "egress.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"site":"north"', b'"site":"south"'))
    with_sqlite(site, "UPDATE charges SET round = 7")
    shutil.rmtree(site.home / "state.witness")
    site.restart()
    settle(site.config, propose_settlement(site.config, site.home, exchanges_of), "J. Operator")
    assert spent(site) == pytest.approx(paid, rel=1e-9)
    assert wrong(site) == ()
    (line,) = site.log.entries()
    assert line.words["log_before"]["file"] == "egress.jsonl.before-1"
    assert (site.state / "egress.jsonl.before-1").exists()
    assert (site.state / "ledger" / "ledger.sqlite.before-1").exists()


def with_sqlite(site: PlayedSite, statement: str) -> None:
    import sqlite3

    with sqlite3.connect(site.held.ledger) as db:
        db.execute(statement)


def test_an_answer_that_nobody_knows_the_price_of_costs_the_whole_study(site: PlayedSite, private: Study) -> None:
    site.greets(private)
    site.visits(private, 1)
    for path in (site.state / "ledger", site.home / "state.witness", site.state / "egress.jsonl"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    site.restart()
    assert site.visits(private, 2) == refusal(2)
    proposed = propose_settlement(site.config, site.home, exchanges_of)
    assert proposed.assumed.keys() == {private.digest}
    assert proposed.after == pytest.approx(POLICY.epsilon_per_study, rel=2e-3)
    settle(site.config, proposed, "J. Operator")
    assert spent(site) == pytest.approx(POLICY.epsilon_per_study, rel=2e-3)


def test_a_settlement_that_was_broken_off_is_settled_once(
    site: PlayedSite, private: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine is gone after the charges, before the line in the log: again, and nothing is assumed twice."""
    paid = lost(site, private, *LEDGER)

    def gone(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(EgressLog, "settle", gone)
        with pytest.raises(Killed):
            settle(site.config, propose_settlement(site.config, site.home, exchanges_of), "J. Operator")
    proposed = propose_settlement(site.config, site.home, exchanges_of)
    assert proposed.assumed == {}
    settle(site.config, proposed, "J. Operator")
    assert spent(site) == pytest.approx(paid, rel=1e-9)
    assert wrong(site) == ()


def test_what_is_assumed_is_never_less_than_any_record_tells_of() -> None:
    rng = np.random.default_rng(5)
    kinds = [(1.0, 0.1), (2.0, 0.5), (4.0, 1.0)]

    def drawn() -> dict[str, tuple[Event, ...]]:
        return {
            job: tuple(Event(*kinds[at], int(rng.integers(1, 9))) for at in rng.integers(0, 3, rng.integers(0, 4)))
            for job in "abc"
            if rng.random() < 0.8
        }

    for _ in range(200):
        records = [drawn() for _ in range(3)]
        ledger = records[0]
        added = missing(largest(records), ledger)
        for record in records:
            for job, events in record.items():
                have = epsilon((*ledger.get(job, ()), *added.get(job, ())), 1e-3)
                assert have >= epsilon(events, 1e-3) - 1e-12
        assert missing(largest(records), largest(records)) == {}


# --- where people see it


def test_a_site_whose_records_do_not_agree_does_not_start_and_says_what_to_do(
    site: PlayedSite, private: Study, command
) -> None:
    lost(site, private, *LEDGER)
    for words in (("site", "egress", site.home), ("site", "egress", site.home, "--json")):
        code, _, err = command(*words)
        assert (code, "fedgraft site settle" in err) == (2, True)
    code, out, _ = command("site", "check", "--home", site.home, "--part", "environment", "--json")
    line = {line["name"]: line for line in json.loads(out)["lines"]}["records"]
    assert (code, line["level"]) == (1, "fails")
    assert "fedgraft site settle" in line["fix"]
    assert str(site.home) not in out, "the report names no folder"


def test_a_joined_site_does_not_start_on_records_that_do_not_agree(tmp_path: Path, private: Study, command) -> None:
    from fedgraft.server.provisioning.consortium import Consortium
    from fedgraft.server.provisioning.provision import Authority
    from helpers.members import joined

    content = {"name": "trial", "server": {"host": "localhost"}, "sites": ["north"]}
    Authority(tmp_path / "kits").provision(Consortium.model_validate(content))
    home = joined(tmp_path / "kits")
    log = EgressLog(home.state)
    log.record(private.digest, Refusal(1, Code.POLICY), "a constant word")
    assert sorted(path.name for path in home.path.iterdir() if "state" in path.name) == ["state", "state.witness"]
    (home.state / "egress.jsonl").unlink()
    code, _, err = command("site", "start", "--home", home.path)
    assert (code, "fedgraft site settle" in err) == (2, True)
