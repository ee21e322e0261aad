"""The running site: takes instructions from the server, carries them out with the installed code, sends the answers.

It speaks Flower's Fleet API as a SuperNode does, in one process that stays: imports, model and cohort are kept between
instructions, and nothing listens at the site. The bundle with code that Flower offers is never asked for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar

import httpx
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.date import now as this_moment
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.enrolment.server_address import server_of
from fedgraft.client.runtime.app import app, note
from fedgraft.common.base.errors import ENDS, FedgraftError, RunError
from fedgraft.common.identity.keys import load_bundle, public_pem

HEARTBEAT_S = 10
"""How often the site says that it is there; Flower calls it gone after two that did not come."""

_BUSY_S, _IDLE_S = 0.4, 2.0
_QUIET_S = 120.0
"""So long after its last instruction a site still asks for the next one often."""

_SLOWEST_S = 15.0
_DENIED_TIMES = 3
_CLOCK_S = 4.0
"""Flower takes no signature that is older than five minutes, or more than five seconds from the future."""

_TAKEN_S = 2.0 * HEARTBEAT_S + 2.0
"""A site that was killed is let in again when its own last heartbeat is forgotten; and it must have been away for long
enough for the server to notice, or the instruction that it had would be waited for in vain."""

_log = logging.getLogger("fedgraft.site")
Answer = TypeVar("Answer")


class Stopped(Exception):
    """The site was told to stop while it waited for the server."""


class OverToo(Exception):
    """The run that a message belongs to is over."""


@dataclass(frozen=True)
class Work:
    """One message: its bare form, and the tree of its parts."""

    bare: Message
    tree: ObjectTree

    @property
    def run(self) -> int:
        """Flower's number of the run that the message belongs to."""
        return int(self.bare.metadata.run_id)


class Link:
    """The connection to the server's gate. Waits for a server that is away; RunError if it refuses the site."""

    def __init__(self, home: SiteHome, stop: threading.Event) -> None:
        server, key = server_of(home), home.node_key()
        self.where = f"{server.host} port {server.port}"
        self._stop = stop
        self._public = public_pem(key)
        self._client = FleetHttpClient.from_server_address(
            server.address,
            False,
            load_bundle(server.ca),
            [RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(key, key.public_key())],
        )
        self._node = Node()
        self._beat = threading.Thread(target=self._heartbeat, daemon=True)
        self._closed = threading.Event()

    def open(self) -> int:
        """Tell the server that the site is there; Flower's number for the site."""
        try:
            self._activate()
        except _Taken:
            _log.info("the server still holds the site for connected; waiting")
            self._pause(_TAKEN_S)
            try:
                self._activate()
            except _Taken:
                fix = "Is the site started twice, or was its folder copied? If not, ask for a new kit."
                raise RunError(f"The server at {self.where} holds this site for connected.", fix=fix) from None
        self._beat.start()
        return int(self._node.node_id)

    def receive(self) -> Work | None:
        """The next message for this site, without its tensors; None if the server has none."""
        answer = self._call(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not answer.messages_list:
            return None
        return Work(message_from_proto(answer.messages_list[0]), answer.message_object_trees[0])

    def read(self, work: Work) -> Message:
        """A message with all that belongs to it."""
        pull = make_pull_object_fn_protobuf(partial(self._call, self._client.PullObject), self._node, work.run)
        confirm = make_confirm_message_received_fn_protobuf(
            partial(self._call, self._client.ConfirmMessageReceived), self._node, work.run
        )
        message = pull_and_inflate_object_from_tree(work.tree, pull, confirm, return_type=Message)
        # A message does not travel with its own number.
        message.metadata.__dict__["_message_id"] = work.tree.object_id
        return message

    def send(self, reply: Message) -> None:
        """Send an answer and all that belongs to it. How long it took is not said: that would tell of the patients."""
        reply.metadata.__dict__["_message_id"] = reply.object_id
        run = reply.metadata.run_id
        with no_object_id_recompute():
            bare = remove_content_from_message(reply) if reply.has_content() else reply
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(bare)],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[0.0],
            )
            answer = self._call(self._client.PushMessages, request)
            push = make_push_object_fn_protobuf(
                partial(self._call, self._client.PushObject), self._node, run, answer.session_id
            )
            push_objects(get_all_nested_objects(reply), push, object_ids_to_push=set(answer.objects_to_push))

    def close(self) -> None:
        """Tell the server that the site leaves."""
        self._closed.set()
        try:
            if self._node.node_id:
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))
        except (httpx.HTTPError, RuntimeError):
            _log.info("the server did not hear that the site leaves")

    def _activate(self) -> None:
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_S)
        self._node = Node(node_id=self._call(self._client.ActivateNode, request).node_id)

    def _heartbeat(self) -> None:
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
        while not self._closed.wait(0.8 * HEARTBEAT_S):
            try:
                if not self._client.SendNodeHeartbeat(request).success:
                    self._activate()
            except (httpx.HTTPError, FedgraftError, _Taken, Stopped):
                _log.info("a heartbeat did not come through")

    def _call(self, function: Callable[[Any], Answer], request: object) -> Answer:
        """One call of the Fleet API, repeated until the server answers."""
        delay, denied = 0.5, 0
        while True:
            try:
                return function(request)
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                if status == httpx.codes.UNAUTHORIZED:
                    denied += 1
                    if denied >= _DENIED_TIMES:
                        raise _denied(self.where, error.response.headers.get("date", "")) from None
                elif status == httpx.codes.FORBIDDEN:
                    raise OverToo from None
                elif status != httpx.codes.TOO_MANY_REQUESTS and status < 500:
                    _raise(status, error, self.where)
            except httpx.TransportError as error:
                _check_certificate(error, self.where)
                _log.info("the server does not answer; trying again")
            self._pause(delay)
            delay = min(2 * delay, _SLOWEST_S)

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped


def run_site(home: SiteHome, stop: threading.Event) -> None:
    """Take part until `stop` is set, and finish the instruction at hand. RunError if the server refuses the site."""
    link = Link(home, stop)
    context = Context(0, 0, {"site-config": str(home.config)}, RecordDict(), {})
    try:
        _log.info("connecting to the server at %s", link.where)
        context.node_id = link.open()
        _log.info("connected")
        last = time.monotonic()
        while not stop.is_set():
            work = link.receive()
            if work is None:
                stop.wait(_BUSY_S if time.monotonic() - last < _QUIET_S else _IDLE_S)
                continue
            _serve(link, work, context)
            last = time.monotonic()
    except Stopped:
        pass
    finally:
        link.close()


def _serve(link: Link, work: Work, context: Context) -> None:
    """Carry out one instruction. Trouble on the way costs the instruction, never the site."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = work.run, 0, context.node_id
    context.run_id = work.run
    try:
        message = _read(link, work, context)
        started = time.monotonic()
        reply = _answer(message, context)
        seconds = time.monotonic() - started
        link.send(reply)
        _log.info("instruction of kind %s answered after %.1f s", message.metadata.message_type, seconds)
    except OverToo:
        _log.info("an instruction came for a run that is over")
    except (RunError, Stopped):
        raise
    except ENDS:
        raise
    except BaseException as error:  # a message that cannot be read or sent must not end the site
        # Its kind alone: the text of an exception may name a patient.
        _log.error("an instruction was lost on its way: %s", type(error).__name__)


def _read(link: Link, work: Work, context: Context) -> Message:
    """The whole message. If it cannot be had, the server is told, so that it does not wait."""
    try:
        return link.read(work)
    except ObjectPullError:
        link.send(_error(ErrorCode.MESSAGE_UNAVAILABLE, "lost", work.bare, context))
        raise


def _answer(message: Message, context: Context) -> Message:
    try:
        return app(message, context)
    except ENDS:
        raise
    except BaseException as error:  # Flower's own way would send the exception's text to the server
        _log.error("an instruction could not be carried out: %s", type(error).__name__)
        return _error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "failed", message, context)


def _error(code: int, word: str, message: Message, context: Context) -> Message:
    """A constant word instead of an answer; the site's egress log has it too."""
    note(context, "error", {"code": code, "word": word})
    return Message(Error(code, word), reply_to=message)


class _Taken(Exception):
    pass


def _denied(where: str, date: str) -> RunError:
    """Why the server denies the site: most often its clock, which is compared with what the server's answer says."""
    try:
        off_s = (this_moment() - parsedate_to_datetime(date)).total_seconds()
    except ValueError:
        off_s = 0.0
    if abs(off_s) > _CLOCK_S:
        way = "ahead of" if off_s > 0 else "behind"
        return RunError(f"This machine's clock is {abs(off_s):.0f} s {way} the server's.", fix="Set it, by NTP say.")
    return RunError(
        f"The server at {where} does not know this site's key, or no longer.",
        fix="Ask the coordinator whether the site is enrolled, and not revoked.",
    )


def _raise(status: int, error: httpx.HTTPStatusError, where: str) -> None:
    if error.request.url.path.endswith("/activate-node"):
        raise _Taken
    raise RunError(f"The server at {where} refused a call with status {status}.") from None


def _check_certificate(error: httpx.TransportError, where: str) -> None:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        raise RunError(
            f"What answers at {where} is not this consortium's server: its certificate does not fit.",
            fix="Is there a proxy that breaks TLS open? Is the kit the newest?",
        ) from None
