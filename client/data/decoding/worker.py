"""A process that decodes one file after another, so that one that never ends, or takes all memory, ends this alone.

Run by `decoder`: `python -m fedgraft.client.data.decoding.worker SECONDS [MEMORY]`. It reads requests, and ends when
there are no more, or none has come for so many seconds. MEMORY is the descriptor of what it shares with who asks.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from fedgraft.client.data.decoding import frames
from fedgraft.client.data.decoding.dicom.dicom_file import read_pictures
from fedgraft.client.data.decoding.images import read_pages
from fedgraft.client.data.decoding.unusable import FaultyError, UnusableError
from fedgraft.client.data.decoding.wall import wall
from fedgraft.client.data.spec import Window


def main(idle_s: float, memory: int | None = None) -> None:
    """Answer requests until their stream ends, or is silent for `idle_s` seconds."""
    shared = None if memory is None else frames.SharedNumbers(memory)
    asked = sys.stdin.buffer
    # Libraries of decoders print; what they print must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    frames.write(answers, {"ready": True})
    while select.select([asked], [], [], idle_s)[0]:
        try:
            request, _ = frames.read(asked)
        except EOFError:
            return
        _answer(request, answers, shared)


def _answer(request: dict[str, Any], answers: IO[bytes], shared: frames.SharedNumbers | None) -> None:
    _limit_memory(int(request["bytes"]))
    # Its default is to end the process, and it does so in the middle of a library that never comes back.
    signal.setitimer(signal.ITIMER_REAL, float(request["seconds"]))
    try:
        with wall("undecodable"):
            words, found = _decoded(request)
    except UnusableError as unusable:
        words, found = {"reason": unusable.reason}, []
    except FaultyError as faulty:
        words, found = {"fault": faulty.fault, "fix": faulty.fix}, []
    signal.setitimer(signal.ITIMER_REAL, 0)
    frames.write(answers, *(shared.put(words, found) if shared else (words, found)))


def _decoded(request: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    path = Path(request["path"])
    if request["kind"] == "call":
        module, _, name = request["function"].partition(":")
        words, found = getattr(import_module(module), name)(path, request["options"])
        return words, list(found)
    if request["kind"] == "image":
        notes, pages = read_pages(path, request["frames"])
        return frames.packed({"notes": notes}, pages)
    window = Window.model_validate(request["window"]) if request["window"] else None
    dicom, pictures = read_pictures(path, window, request["frames"], request["accept"])
    return frames.packed(asdict(dicom), pictures)


def _limit_memory(size: int) -> None:
    """Let this process have so many bytes beyond what it has now; where the system cannot say or do so, any number."""
    try:
        import resource

        with open("/proc/self/statm", "rb", buffering=0) as sizes:  # noqa: PTH123  (for every file, so without detours)
            pages = int(sizes.read(64).split()[0])
        limit = pages * resource.getpagesize() + size
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    except (ImportError, OSError, ValueError):
        return


if __name__ == "__main__":
    main(float(sys.argv[1]), *map(int, sys.argv[2:]))
