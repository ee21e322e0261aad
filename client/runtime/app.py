"""The ClientApp: answers three messages, ask, hello and visit, with the site's installed code. Thin on purpose."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedgraft.client.agreement.answering import GROUNDS, answer_study, demand_agreed
from fedgraft.client.governance.approval import what_is_wrong
from fedgraft.client.governance.pending_studies import keep_pending
from fedgraft.client.governance.plugins import demand_named, demand_plugins, only_listed
from fedgraft.client.privacy.guard.refused import Refused
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.runtime.log import site_log
from fedgraft.client.runtime.sessions import Session, Sessions, exchanges_of
from fedgraft.client.training.model.features import forget_features
from fedgraft.common.base.disk import DISK_FULL
from fedgraft.common.base.errors import ENDS, FedgraftError
from fedgraft.common.base.files import write_atomic
from fedgraft.common.plugins.loading import load_from_environment
from fedgraft.common.plugins.plugin import plugins_in
from fedgraft.common.protocol import wire
from fedgraft.common.protocol.answers import SiteAnswer
from fedgraft.common.protocol.bundle import WireError
from fedgraft.common.protocol.instructions import PROTOCOL, Answer, Code, Greeting, Hello, Instruction, Refusal
from fedgraft.common.study.study import Study, parse_study

_RAISED = 2
"""Flower's error code for a ClientApp that raised."""

_COUNTS = "counts of cases and labels where policy shows figures, else the public number of patients"

_Said = TypeVar("_Said", Greeting, SiteAnswer)
_Query = Callable[[Study, Session, Hello], _Said]

app = ClientApp()
_sessions = Sessions()


@app.query(wire.HELLO.partition(".")[2])
def hello(message: Message, context: Context) -> Message:
    """Take in the study, prepare the cohort, say who is here."""
    answer = _answer_query(message, context, _greet, _COUNTS)

    def pack() -> RecordDict:
        return wire.pack_greeting(answer) if isinstance(answer, Greeting) else wire.pack_reply(answer)

    return _sealed(message, context, pack)


@app.query(wire.ASK.partition(".")[2])
def ask(message: Message, context: Context) -> Message:
    """Say what the site could supply for a study that nobody here has approved yet, as its policy lets it."""
    answer = _answer_query(message, context, _supply, GROUNDS)

    def pack() -> RecordDict:
        return wire.pack_answer(answer) if isinstance(answer, SiteAnswer) else wire.pack_reply(answer)

    return _sealed(message, context, pack)


@app.train(wire.VISIT.partition(".")[2])
def visit(message: Message, context: Context) -> Message:
    """Carry out one instruction."""
    answer = _answer_visit(message, context)
    views = bool(context.node_config.get("views"))
    return _sealed(message, context, lambda: wire.pack_reply(answer, views=views))


@app.query(wire.PING.partition(".")[2])
def ping(message: Message, context: Context) -> Message:
    """Say that all that was asked before is answered."""
    note(context, "ping", {})
    return Message(RecordDict(), reply_to=message)


def forget() -> None:
    """Let go of all that this thread keeps, so that a second run in one process starts clean."""
    _sessions.forget()


def note(context: Context, kind: Literal["ping", "error"], words: Mapping[str, Any]) -> None:
    """Put constant words that are about to leave, and about no study, into the site's egress log, if there is one."""
    try:
        _sessions.at(_config_path(context)).egress.note(kind, words)
    except ENDS:
        raise
    except BaseException as error:  # the wall between a hospital and the network: no text may pass it
        name = type(error).__name__
        logging.getLogger(__name__).warning("a constant word leaves that the egress log does not have: %s", name)


def _sealed(message: Message, context: Context, pack: Callable[[], RecordDict]) -> Message:
    """The reply; or an error without words, because Flower sends the text of what a ClientApp raises."""
    try:
        return Message(pack(), reply_to=message)
    except ENDS:
        raise
    except BaseException:  # the wall between a hospital and the network: no text may pass it
        note(context, "error", {"code": _RAISED})
        return Message(Error(_RAISED), reply_to=message)


def _answer_query(message: Message, context: Context, do: _Query[_Said], why: str) -> _Said | Refusal:
    """What `do` says to a study that was sent, on record with the reason `why`; or why nothing is said."""
    # The site's own log may say what is wrong; the network may not.
    log, session, study, name = logging.getLogger(__name__), None, "", ""
    answer: _Said | Refusal
    try:
        session = _sessions.at(_config_path(context))
        name, log = session.config.name, site_log(session.config.state)
        hello = wire.unpack_hello(message.content)
        study = hashlib.sha256(hello.study).hexdigest()
        _refuse_faults(session)
        with only_listed(session.config.policy):
            asked = _asked(hello, session.config.policy)
            # Under the digest that all records know it by, however the coordinator spelt it.
            study = asked.digest
            answer = do(asked, session, hello)
    except WireError:
        answer = Refusal(0, Code.GARBAGE, name)
    except Refused as refused:
        log.warning("does not take part: %s (%s)", refused.code, refused.why)
        answer = Refusal(0, refused.code, name)
    except FedgraftError as error:
        log.error("cannot take part: %s", error)
        answer = Refusal(0, Code.BAD_DATA, name)
    except ENDS:
        raise
    except BaseException as error:  # the wall between a hospital and the network: no text may pass it
        log.exception("cannot take part")
        full = isinstance(error, OSError) and error.errno in DISK_FULL
        answer = Refusal(0, Code.DISK if full else Code.FAILED, name)
    return answer if _recorded(session, study, answer, why) else Refusal(0, Code.DISK, name)


def _asked(hello: Hello, policy: SitePolicy) -> Study:
    if hello.protocol != PROTOCOL:
        raise Refused(Code.OTHER_PROTOCOL)
    content, source = json.loads(hello.study), "the study sent by the coordinator"
    demand_named(policy, plugins_in(content, source))  # a study of code that is not here could not even be read
    return parse_study(content, source)


def _supply(study: Study, session: Session, hello: Hello) -> SiteAnswer:  # noqa: ARG001 - as `_greet` has it
    session.records.demand(study.digest)
    demand_plugins(session.config.policy, study)
    if not session.approves(study.digest):
        keep_pending(session.home, study)
    return answer_study(session.config, study)


def _greet(study: Study, session: Session, hello: Hello) -> Greeting:
    session.records.demand(study.digest)
    if not session.approves(study.digest):
        keep_pending(session.home, study)
        raise Refused(Code.NOT_APPROVED, what_is_wrong(session.home) or f"study {study.digest}")
    pin, begun = hello.pins.get(session.config.name), exchanges_of(session.config, study.digest)
    if pin is not None and not begun:  # once it has begun, what people add to the cases is no reason to end it
        demand_agreed(pin, session.config, study)
        site_log(session.config.state).info("the cases are those of agreement %s", hello.agreement)
    site = session.site(study)
    write_atomic(session.study_file(study.digest), study.to_json(), private=True, sync=session.config.sync)
    greeting = site.greet()
    forget_features(session.config.state, study.digest)
    return greeting


def _answer_visit(message: Message, context: Context) -> Answer:
    exchange, study, why, session = 0, "", "a constant word", None
    answer: Answer
    try:
        session = _sessions.at(_config_path(context))
        instruction = wire.unpack_instruction(message.content)
        exchange, study = instruction.exchange, instruction.study
        with only_listed(session.config.policy):
            answer = _carry_out(instruction, session)
        if not isinstance(answer, Refusal) and (site := session.known(study)) is not None:
            why = site.grounds(instruction)
    except WireError:
        answer = Refusal(exchange, Code.GARBAGE)
    except Refused as refused:
        if session is not None:
            site_log(session.config.state).warning("exchange %d: %s", exchange, refused.why or refused.code)
        answer = Refusal(exchange, refused.code)
    except ENDS:
        raise
    except BaseException:  # the wall between a hospital and the network: no text may pass it
        log = site_log(session.config.state) if session is not None else logging.getLogger(__name__)
        log.exception("visit failed")
        answer = Refusal(exchange, Code.FAILED)
    return answer if _recorded(session, study, answer, why) else Refusal(exchange, Code.DISK)


def _refuse_faults(session: Session) -> None:
    """Nothing is done under rules that cannot be read."""
    if session.fault:
        raise Refused(Code.POLICY, session.fault)


def _carry_out(instruction: Instruction, session: Session) -> Answer:
    _refuse_faults(session)
    session.records.demand(instruction.study)
    # Asked every time: a site may take an approval back.
    if not session.approves(instruction.study):
        raise Refused(Code.NOT_APPROVED, what_is_wrong(session.home) or f"study {instruction.study}")
    site = session.known(instruction.study)
    if site is None:
        return Refusal(instruction.exchange, Code.UNKNOWN_STUDY)
    answer = site.visit(instruction)
    # Once more: work takes hours, and what people at the site have changed meanwhile they mean for its answer too.
    if session.stale or not session.approves(instruction.study):
        raise Refused(
            Code.POLICY, "the site's file, or the approval, has changed during the work: nothing of it leaves"
        )
    return answer


def _recorded(session: Session | None, study: str, answer: SiteAnswer | Greeting | Answer, why: str) -> bool:
    """Whether `answer` stands in the site's egress log, without which it must not leave."""
    if session is None:  # a site without a configuration has no data either, and this is a refusal
        return True
    try:
        session.egress.record(study, answer, why)
    except (OSError, ValueError, FedgraftError):
        site_log(session.config.state).exception("the egress log cannot be written")
        return False
    return True


_path = lru_cache(Path)
"""Asked for every instruction."""


def _config_path(context: Context) -> Path:
    """Where the site's own configuration is; approvals lie beside it.

    In a simulation through Ray it is that of the node's number in the run's folder.
    """
    path = context.node_config.get("site-config")
    if path is not None:
        return _path(str(path))
    load_from_environment()  # the plug-ins of the simulation; a deployed site has a configuration, and never gets here
    sites = Path(str(context.run_config["run"])) / "sites"
    names = json.loads((sites / "index.json").read_text(encoding="utf-8"))
    return sites / str(names[int(context.node_config["partition-id"])]) / "site.json"
