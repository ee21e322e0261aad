"""What any engine does at a node: the ClientApp's context, its answer, and how long it may take."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.constants import DEFAULT_TTL
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.client.runtime.app import app as client_app
from fedgraft.common.base.errors import ENDS

_RAISED = 2
"""Flower's error code for a ClientApp that raised."""


def context_for(node: int, config: Path) -> Context:
    """Flower's context for a simulated site: its node number, and the path of its configuration."""
    node_config: dict[str, bool | str | int | float] = {"site-config": str(config), "views": True}
    return Context(run_id=1, node_id=node, node_config=node_config, state=RecordDict(), run_config={})


def deadline_of(message: Message) -> float | None:
    """Seconds that a node has for this message; None for Flower's default of half a day."""
    return None if message.metadata.ttl >= DEFAULT_TTL else message.metadata.ttl


def answer(message: Message, context: Context) -> Message:
    """The ClientApp's reply; an exception becomes an error without text, as between hospitals."""
    try:
        return client_app(message, context)
    except ENDS:
        raise
    except BaseException:  # the same wall as in a deployment
        return Message(Error(_RAISED), reply_to=message)


def asked(kind: str, content: RecordDict, context: Context) -> RecordDict:
    """What the site of this context says to one message, outside of any run; nothing if it is an error."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    message = Message(content, dst_node_id=1, message_type=kind)
    message.metadata.__dict__["_message_id"] = "asked"
    said = answer(message, context)
    return said.content if said.has_content() else RecordDict()
