"""A study that nobody approved is refused, and kept for the site's people to read."""

from __future__ import annotations

from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.client.governance.approval import approve
from fedgraft.client.governance.pending_studies import find_study
from fedgraft.client.runtime.app import app, forget
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.instructions import (
    Code,
    Greeting,
    Hello,
    Refusal,
)
from helpers.site_home import Hospital, study


def greeted(hospital: Hospital) -> Greeting | Refusal:
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    context = Context(1, 2, {"site-config": str(hospital.home / "site.yaml")}, RecordDict(), {})
    records = wire.pack_hello(Hello(study().to_json()))
    message = Message(records, dst_node_id=2, message_type=wire.HELLO)
    return wire.unpack_greeting(app(message, context).content)


def test_what_was_offered_can_be_read_approved_and_then_run(hospital: Hospital) -> None:
    try:
        answer = greeted(hospital)
        assert isinstance(answer, Refusal)
        assert answer.code is Code.NOT_APPROVED
        offered = find_study(hospital.home, study().digest[:12])
        assert offered == study()
        approve(hospital.home, offered.digest, offered.name)
        assert isinstance(greeted(hospital), Greeting)
    finally:
        forget()
