"""The connection of a site to the server's gate, over Flower's Fleet API: every call is repeated until it is answered.

A site outlasts what is away: a server that restarts, a gate that stalls, a network that is cut, a certificate that has
expired. It ends only where a person must act at the site: another authority's server, a key that is not let in, a clock
that is wrong.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
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
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.enrolment.server_address import server_of
from fedgraft.client.runtime.certificate import CertificateWatch, fault_of
from fedgraft.client.runtime.incoming import Incoming, bound, message_of
from fedgraft.client.runtime.many import PieceCalls, PiecesClient, together
from fedgraft.common.base.errors import ENDS, RunError
from fedgraft.common.identity.keys import load_bundle, public_pem
from fedgraft.common.messages.cut import Parts, cut
from fedgraft.common.messages.pieces import Take

HEARTBEAT_S = 10
"""How often the site says that it is there; Flower calls it gone after two that did not come."""

_SLOWEST_S = 15.0
_DENIED_TIMES = 3
_REFUSED_TIMES = 40
"""So often a call is repeated that the server answers with a status that no site expects: whoever stands in front of a
server that restarts may answer for it."""

_PASSES = frozenset({httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_EARLY, httpx.codes.TOO_MANY_REQUESTS})
"""Statuses below 500 that pass by themselves; a gate that stalled finds the bodies of requests come too late."""

_CLOCK_S = 4.0
"""Flower takes no signature that is older than five minutes, or more than five seconds from the future."""

_TAKEN_S, _TAKEN_POLL_S = 2.0 * HEARTBEAT_S + 10.0, 2.0
"""A site that was killed is let in again as soon as its own last heartbeat is forgotten."""

_log = logging.getLogger("fedgraft.site")
Answer = TypeVar("Answer")


class Stopped(Exception):
    """The site was told to stop while it waited for the server."""


class OverToo(Exception):
    """The run that a message belongs to is over."""


class _Taken(Exception):
    pass


@dataclass(frozen=True)
class Work:
    """One message: its bare form, and the tree of its parts."""

    bare: Message
    tree: ObjectTree

    @property
    def run(self) -> int:
        """Flower's number of the run that the message belongs to."""
        return int(self.bare.metadata.run_id)

    @property
    def kind(self) -> str:
        """What sort of message it is, of those that `wire` names."""
        return str(self.bare.metadata.message_type)


class Link:
    """The connection to the server's gate. Waits for a server that is away; RunError if it refuses the site."""

    def __init__(self, home: SiteHome, stop: threading.Event) -> None:
        server, key = server_of(home), home.node_key()
        self.where = f"{server.host} port {server.port}"
        self._stop = stop
        self._public = public_pem(key)
        self._client = PiecesClient.from_server_address(
            server.address,
            False,
            load_bundle(server.ca),
            [RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(key, key.public_key())],
        )
        wire = self._client._client
        wire.event_hooks = {"response": [CertificateWatch(self.where), bound]}
        wire.headers["accept-encoding"] = "identity"
        wire.follow_redirects = False  # what is for this server is for no other machine that it names
        self._known = False
        """Whether this server was ever spoken with: then what answers in its place for a while is waited out."""
        self._node = Node()
        self._beat = threading.Thread(target=self._heartbeat, daemon=True)
        self._closed = threading.Event()

    def open(self) -> int:
        """Tell the server that the site is there; Flower's number for the site."""
        ends, told = time.monotonic() + _TAKEN_S, False
        while True:
            try:
                self._activate()
                break
            except _Taken:
                if time.monotonic() > ends:
                    fix = "Is the site started twice, or was its folder copied? If not, ask for a new kit."
                    raise RunError(f"The server at {self.where} holds this site for connected.", fix=fix) from None
            if not told:
                _log.info("the server still holds the site for connected; waiting")
                told = True
            self._pause(_TAKEN_POLL_S)
        self._known = True
        self._beat.start()
        return int(self._node.node_id)

    def receive(self) -> Work | None:
        """The next message for this site, without its tensors; None if the server has none."""
        answer = self._call(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not answer.messages_list:
            return None
        try:
            return Work(message_from_proto(answer.messages_list[0]), answer.message_object_trees[0])
        except ENDS:
            raise
        except BaseException:  # whatever the server says, the site goes on
            _log.error("a message came that cannot be read, and is left undone")
            return None

    def read(self, work: Work) -> Message:
        """A message with all that belongs to it. TooLargeMessage; ObjectPullError if it cannot be had."""
        calls = PieceCalls(self._client, self._node, work.run)
        confirm = make_confirm_message_received_fn_protobuf(
            partial(self._call, self._client.ConfirmMessageReceived), self._node, work.run
        )

        def pull(names: Collection[str], take: Take) -> None:
            self._call(lambda _: calls.pull(names, take), None)

        contents = Incoming(pull, self._pause).gather(work.tree)
        confirm(work.tree.object_id)
        message = message_of(work.tree.object_id, contents)
        # A message does not travel with its own number.
        message.metadata.__dict__["_message_id"] = work.tree.object_id
        return message

    def send(self, reply: Message) -> None:
        """Send an answer and all that belongs to it. How long it took is not said: that would tell of the patients."""
        pieces, run = cut([reply]), reply.metadata.run_id
        bare = remove_content_from_message(reply) if reply.has_content() else reply
        request = PushMessagesRequest(
            node=self._node,
            messages_list=[message_to_proto(bare)],
            message_object_trees=pieces.trees,
            clientapp_runtime_list=[0.0],
        )
        answer = self._call(self._client.PushMessages, request)
        wanted = set(answer.objects_to_push)
        self._push([(name, pieces.parts(name)) for name in pieces.objects if name in wanted], run, answer.session_id)

    def _push(self, pieces: list[tuple[str, Parts]], run: int, session: str) -> None:
        """Send the pieces of a reply; of those that were not taken at once, half as many at the next attempt."""
        calls = PieceCalls(self._client, self._node, run)
        while pieces:
            count = 2 * together(pieces)

            def attempt(_: None) -> None:
                nonlocal count
                count = max(1, count // 2)
                calls.push(pieces[:count], session)

            self._call(attempt, None)
            del pieces[:count]

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
            except ENDS:
                raise
            except BaseException:  # whatever it is, a site whose heart has stopped would be away for good
                _log.info("a heartbeat did not come through")

    def _call(self, function: Callable[[Any], Answer], request: object) -> Answer:
        """One call of the Fleet API, repeated until the server answers."""
        delay, denied, refused = 0.5, 0, 0
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
                elif status not in _PASSES and status < 500:
                    refused += 1
                    _refused(error, self.where, refused)
            except httpx.TransportError as error:
                self._explain(error)
            except ValueError:  # no answer of Flower's: a page of a proxy's, or something far too large
                refused += 1
                if refused >= _REFUSED_TIMES:
                    raise RunError(f"What answers at {self.where} does not speak as Flower does.") from None
                _log.info("the server's answer cannot be read; trying again")
            self._pause(delay)
            delay = min(2 * delay, _SLOWEST_S)

    def _explain(self, error: httpx.TransportError) -> None:
        """Say in the log what is waited for. RunError if what answers was never this consortium's server."""
        match fault_of(error):
            case None:
                _log.info("the server does not answer; trying again")
            case "expired":
                _log.warning(
                    "the certificate of the server at %s has expired; the coordinator renews it with `fedgraft server "
                    "renew`, and this site waits for that",
                    self.where,
                )
            case "early":
                _log.warning(
                    "the certificate of the server at %s is not valid yet: is this machine's clock right? "
                    "The site waits",
                    self.where,
                )
            case "other" if self._known:
                _log.warning("what answers at %s is not this consortium's server; the site waits for it", self.where)
            case _:
                raise RunError(
                    f"What answers at {self.where} is not this consortium's server: its certificate does not fit.",
                    fix="Is there a proxy that breaks TLS open? Is the kit the newest?",
                ) from None

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped


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


def _refused(error: httpx.HTTPStatusError, where: str, times: int) -> None:
    """Bear with a status that no site expects, for a while."""
    if error.request.url.path.endswith("/activate-node"):
        raise _Taken
    status = error.response.status_code
    if times >= _REFUSED_TIMES:
        raise RunError(f"The server at {where} refused a call with status {status}.") from None
    _log.info("the server answers with status %d; trying again", status)
