"""The running site: takes instructions from the server, carries them out with the installed code, sends the answers.

It speaks Flower's Fleet API as a SuperNode does, in one process that stays: imports, model and cohort are kept between
instructions, and nothing listens at the site. The bundle with code that Flower offers is never asked for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.client.enrolment.home import SiteHome
from fedgraft.client.runtime.app import app, note
from fedgraft.client.runtime.link import Link, OverToo, Stopped, Work
from fedgraft.client.training.device.process import keep_freed
from fedgraft.common.base.environment import give_back
from fedgraft.common.base.errors import ENDS, RunError
from fedgraft.common.messages.pieces import TooLargeMessage
from fedgraft.common.protocol import wire

_BUSY_S, _IDLE_S, _HELD_S = 0.4, 2.0, 1.0
_QUIET_S = 120.0
"""So long after its last instruction a site still asks for the next one often."""

_MOST_WAITING = 64

_log = logging.getLogger("fedgraft.site")


def run_site(home: SiteHome, stop: threading.Event) -> None:
    """Take part until `stop` is set, and finish the instruction at hand. RunError if the server refuses the site."""
    link = Link(home, stop)
    context = Context(0, 0, {"site-config": str(home.config)}, RecordDict(), {})
    keep_freed()
    try:
        _log.info("connecting to the server at %s", link.where)
        context.node_id = link.open()
        _log.info("connected")
        last, waiting = time.monotonic(), Waiting(link)
        while not stop.is_set():
            asked = time.monotonic()
            work = waiting.next()
            if work is None:
                now = time.monotonic()
                # Whom the server has held until it had nothing to say has waited, and is there again for what comes.
                held = now - asked > _HELD_S
                if now - last >= _QUIET_S or not held:
                    stop.wait(_BUSY_S if now - last < _QUIET_S else _IDLE_S)
                continue
            _serve(link, work, context)
            give_back()  # a site may now wait for days
            last = time.monotonic()
    except Stopped:
        pass
    finally:
        link.close()


class Waiting:
    """What the server has sent and the site has not begun, in the order in which it was sent.

    Of several instructions of one run only the newest is worth any work: a site that was away for some rounds would
    run after the others to the end of the study, and spend its patients' budget on rounds that nobody counts.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: deque[Work] = deque()

    def next(self) -> Work | None:
        """What to do now; None if there is nothing."""
        while len(self._waiting) < _MOST_WAITING and (work := self._receive()) is not None:
            if work.kind == wire.VISIT:
                older = [one for one in self._waiting if (one.kind, one.run) == (work.kind, work.run)]
                for one in older:
                    self._waiting.remove(one)
                    _log.info("an instruction is left undone, since a newer one has come")
            self._waiting.append(work)
        return self._waiting.popleft() if self._waiting else None

    def _receive(self) -> Work | None:
        try:
            return self._link.receive()
        except OverToo:
            return None


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
        _log.info("instruction of kind %s answered after %.1f s", ascii(work.kind), seconds)
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
    except (ObjectPullError, TooLargeMessage) as error:
        if isinstance(error, TooLargeMessage):
            _log.error("an instruction takes more than a third of this machine's memory, and is left undone")
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
