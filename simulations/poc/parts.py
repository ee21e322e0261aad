"""The processes of a local consortium: started here, looked after, and ended together, however this process ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from fedgraft.common.base.errors import RunError
from fedgraft.common.base.files import make_folder
from fedgraft.server.operations import supervise

_WATCH_S, _START_S = 0.2, 120.0
_ENDING_S = 15.0
"""So long a process has to end after each of the signals that it gets."""

_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Parts:
    """`fedgraft` commands as processes of their own, each with its output in a file of the folder `outputs`.

    Within the `with` block SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, and a part that ends though nobody asked
    ends the block with a RunError that names it. All parts end with the block, the first that was started at last; they
    end too if this process is killed.
    """

    def __init__(self, outputs: Path) -> None:
        self._outputs = outputs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._over = threading.Lock()
        self.ended = ""
        """The part that ended though nobody asked it to; "" as long as there is none."""
        self._before: dict[signal.Signals, Any] = {}
        self._watching = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        make_folder(self._outputs)
        self._before = {number: signal.signal(number, _interrupt) for number in _TO_END}
        self._watching.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in _TO_END:
            signal.signal(number, signal.SIG_IGN)  # all is being ended, within bounds
        self._over.acquire()  # from here on no part's end is anything to tell of
        try:
            self._end()
        finally:
            for number, before in self._before.items():
                signal.signal(number, before)
        if self.ended and isinstance(error, KeyboardInterrupt):
            raise self._fault() from None

    def start(self, name: str, *words: object) -> None:
        """Start `fedgraft WORDS`, and call it `name`."""
        with (self._outputs / f"{name}.log").open("ab") as output:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-P", supervise.__file__, str(os.getpid()), *_fedgraft(words)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for this process, which ends the others in their order
            )

    def await_port(self, port: int) -> None:
        """Wait until somebody listens on a port of the loopback address. RunError if nobody does in two minutes."""
        ends = time.monotonic() + _START_S
        while time.monotonic() < ends:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(_WATCH_S)
        raise RunError(f"Nobody listens on port {port}.", fix=f"See {self._outputs}.")

    def _watch(self) -> None:
        """Wake the main thread once a part has ended by itself."""
        while True:
            time.sleep(_WATCH_S)
            with self._over:
                ended = next((name for name, one in list(self._running.items()) if one.poll() is not None), "")
                if ended:
                    self.ended = ended
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return

    def _fault(self) -> RunError:
        code = self._running[self.ended].returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return RunError(
            f"{self.ended} {how}, and with it the whole consortium.",
            fix=f"Its last words are in {self._outputs / self.ended}.log.",
        )

    def _end(self) -> None:
        """End all, the first that was started at last: the server, without which sites would look for it in vain.

        A site that is asked twice leaves the instruction at hand undone; who does not hear is killed.
        """
        everything = list(self._running.values())
        for some in (everything[1:], everything[:1]):
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
                alive = [process for process in some if process.poll() is None]
                for process in alive:
                    os.killpg(process.pid, number)
                ends = time.monotonic() + _ENDING_S
                for process in alive:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(max(0.0, ends - time.monotonic()))


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fedgraft(words: Sequence[object]) -> list[str]:
    return [sys.executable, "-P", "-m", "fedgraft", *map(str, words)]
