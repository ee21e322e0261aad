"""What says between the server's processes that a message has come, so that nobody asks Flower in vain.

A question to Flower costs some milliseconds of its one process, and a site that waits asks more than twice a second.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

ASK_ANYWAY_S = 4.0
"""After so long Flower is asked, whether the bell has rung or not."""

_HOLD_S, _LISTEN_S = 2.0, 0.1

Answer = TypeVar("Answer")


class Bell:
    """A file whose time changes whenever something has come; it need not be there before that."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def ring(self) -> None:
        """Say that something has come. Nothing happens if there is no room even for that: who waits asks anyway."""
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600)
            try:
                os.utime(descriptor, ns=(time.time_ns(), time.time_ns()))
            finally:
                os.close(descriptor)
        except OSError:
            return

    def rung(self) -> int:
        """A number that is another one once it has rung again."""
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return 0


class Bells:
    """Those of a server: `down` rings for messages to sites, `up` for replies."""

    def __init__(self, folder: Path) -> None:
        self.down, self.up = Bell(folder / "down.bell"), Bell(folder / "up.bell")


@dataclass(frozen=True)
class _Empty(Generic[Answer]):
    question: object
    rung: int
    at: float
    answer: Answer


class Waits(Generic[Answer]):
    """Who asked in vain, by name, and waits for the bell when asking again. For one event loop."""

    def __init__(self, bell: Bell, clock: Callable[[], float] = time.monotonic) -> None:
        self._bell, self._clock = bell, clock
        self._empty: dict[str, _Empty[Answer]] = {}

    async def ask(
        self, name: str, question: object, asked: Callable[[], Awaitable[Answer]], is_empty: Callable[[Answer], bool]
    ) -> Answer:
        """The answer to a question. Of one that was answered with nothing, the next waits for the bell.

        It waits two seconds at most, and is then answered with nothing again, without that anybody was asked. The
        first question after something has come is answered at once, and so is the first of all.
        """
        before = self._empty.get(name)
        if before is not None and before.question == question and await self._silent(before):
            return before.answer
        rung, now = self._bell.rung(), self._clock()
        answer = await asked()
        if is_empty(answer):
            self._empty[name] = _Empty(question, rung, now, answer)
        else:
            self._empty.pop(name, None)
        return answer

    async def _silent(self, before: _Empty[Answer]) -> bool:
        """Whether the bell has not rung since, and does not for a while."""
        began = self._clock()
        while self._bell.rung() == before.rung and self._clock() - before.at < ASK_ANYWAY_S:
            if self._clock() - began >= _HOLD_S:
                return True
            await asyncio.sleep(_LISTEN_S)
        return False
