"""A site acts on what its people approved, by digest, in a simulation as in a deployment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.client.enrolment.config import read_site
from fedgraft.client.governance.approval import approve, withdraw
from fedgraft.client.governance.egress import EgressLog
from fedgraft.client.governance.records import Records
from fedgraft.client.runtime.app import app, forget
from fedgraft.client.runtime.sessions import exchanges_of
from fedgraft.common.base.errors import QuorumError
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.instructions import (
    Code,
    Greeting,
    Hello,
    Instruction,
    Refusal,
)
from fedgraft.common.study.study import Study
from fedgraft.simulations.engines.run import prepare
from helpers.simulated import resume


@pytest.fixture
def run(make_study, hospitals, tmp_path: Path) -> Path:
    prepare(make_study(), hospitals, tmp_path / "run")
    return tmp_path / "run"


def test_nobody_acts_on_a_study_that_nobody_approved(run):
    for file in (run / "sites").glob("*/approvals.json"):
        file.unlink()
    with pytest.raises(QuorumError, match="east: not_approved"):
        resume(run)
    assert not list((run / "sites").rglob("splits.csv")), "the data were not even looked at"


def test_an_approval_of_another_study_is_none(run, make_study):
    site = run / "sites" / "east"
    (site / "approvals.json").unlink()
    approve(site, make_study(seed=4).digest)
    resume(run)
    result = json.loads((run / "result.json").read_text())
    assert "east, not_approved" in result["headline"]
    assert "east" not in result["sites"]


@pytest.fixture
def ask(run) -> Iterator[Callable[[str, RecordDict], RecordDict]]:
    """Sends a message to the site `east`; the sites of this process are forgotten afterwards."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    context = Context(1, 1, {"site-config": str(run / "sites" / "east" / "site.json")}, RecordDict(), {})

    def send(kind: str, records: RecordDict) -> RecordDict:
        message = Message(records, dst_node_id=1, message_type=kind)
        message.metadata.__dict__["_message_id"] = "m"
        return app(message, context).content

    yield send
    forget()


def first_order(study: Study) -> RecordDict:
    instruction = Instruction(study.digest, 1, 0, 1, work=True, evaluate=None, tensors={})
    return wire.pack_instruction(instruction, wire.pack_tensors({}))


def test_an_approval_that_is_taken_back_stops_the_next_visit(run, make_study, ask):
    study = make_study()
    assert isinstance(wire.unpack_greeting(ask(wire.HELLO, wire.pack_hello(Hello(study.to_json())))), Greeting)
    withdraw(run / "sites" / "east", study.digest)
    answer = wire.unpack_reply(ask(wire.VISIT, first_order(study)))
    assert isinstance(answer, Refusal)
    assert answer.code is Code.NOT_APPROVED


def test_a_study_that_was_changed_on_disk_after_it_was_approved_is_not_taken_up_again(run, make_study, ask):
    study = make_study()
    ask(wire.HELLO, wire.pack_hello(Hello(study.to_json())))
    [kept] = (run / "sites" / "east").rglob(f"studies/{study.digest}.json")
    forget()  # as a process that begins anew, and reads what the one before it kept
    answer = wire.unpack_reply(ask(wire.VISIT, first_order(study)))
    assert answer.code is Code.MISSING_TENSORS, "the site took the study up again, and asks for the model"
    forget()
    kept.write_bytes(make_study(seed=4).to_json())
    answer = wire.unpack_reply(ask(wire.VISIT, first_order(study)))
    assert answer.code is Code.FAILED
    assert "is not the study that this site took in" in (run / "sites" / "east" / "site.log").read_text()


def test_a_study_that_is_spelt_otherwise_is_on_record_as_the_one_that_was_approved(run, make_study, ask):
    """A blank in the coordinator's JSON would be another study to the egress log, and no record would know of it.

    The site would then not start any more, until people had settled what nobody had lost.
    """
    study, home = make_study(), run / "sites" / "east"
    for spelt in (study.to_json() + b" ", json.dumps(json.loads(study.to_json()), indent=1).encode()):
        assert isinstance(wire.unpack_greeting(ask(wire.HELLO, wire.pack_hello(Hello(spelt)))), Greeting)
    config = read_site(home)
    assert {entry.study for entry in EgressLog(config.state).entries()} == {study.digest}
    assert Records(config, home, exchanges_of).contradictions() == ()
