"""Files are decoded in a process of its own, within limits: a file that breaks them costs itself, and nothing else."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from fedgraft.client.data.decoding import frames as messages
from fedgraft.client.data.decoding.dicom.dicom_image import DicomImage
from fedgraft.client.data.decoding.images import ImageFile
from fedgraft.client.data.decoding.unusable import UnusableError
from fedgraft.client.data.spec import Window
from fedgraft.common.base.errors import DataError

Which = Literal["all", "middle", "first"]
_END_S, _IDLE_S = 5.0, 30.0
_LEFT = "left"
_ENDED: Mapping[int | None, str] = {signal.SIGALRM: "too_slow", signal.SIGKILL: "too_large", 0: _LEFT}
"""What the end of the process means: the clock's signal, the system's when memory ran out, or that it was idle."""


_SINGLE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_KEEPS = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
"""Of glibc: what an image took is kept for the next one. To get every page anew takes longer than to fill it."""


@dataclass(frozen=True)
class DecodingLimits:
    """What a single file may take until it is decoded."""

    seconds: float = 120.0
    gigabytes: float = 4.0


USUAL = DecodingLimits()
_THREAD = threading.local()


def read_dicom(
    path: Path, window: Window | None, frames: Which, accept: Collection[str] = (), limits: DecodingLimits = USUAL
) -> DicomImage:
    """As `dicom.read_dicom`, within limits. UnusableError also for a file that breaks them: too_slow, too_large."""
    request = {"kind": "dicom", "frames": frames, "accept": list(accept)}
    words, found = _decoder().ask(path, request | {"window": window and window.model_dump()}, limits)
    return DicomImage(**{**words, "frames": found, "notes": tuple(words["notes"])})


def read_images(path: Path, frames: Which, limits: DecodingLimits = USUAL) -> ImageFile:
    """As `images.read_images`, within limits. UnusableError as `read_dicom`."""
    words, found = _decoder().ask(path, {"kind": "image", "frames": frames}, limits)
    return ImageFile(found, tuple(words["notes"]))


def decode(
    function: str, path: Path, options: Mapping[str, Any], limits: DecodingLimits = USUAL
) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """What a function of a module, "module:name", gives for a file, in that process and within limits.

    It takes the path and the options, plain values, and gives words, plain values too, and arrays of numbers. It may
    raise UnusableError, or FaultyError, which becomes a DataError that names the file; all else means `undecodable`.
    """
    return _decoder().ask(path, {"kind": "call", "function": function, "options": dict(options)}, limits)


class DecodingProcess:
    """A process that decodes, for all threads that ask; started when first needed, and anew if a file has ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._shared: messages.SharedNumbers | None = None
        self._parent = 0
        self._over = False
        self._modules = ""
        """Where the process looks for modules: a plug-in's reader may have been found since it was started."""

    def ask(self, path: Path, request: dict[str, Any], limits: DecodingLimits) -> tuple[dict[str, Any], list[Any]]:
        """The words and frames of a file. UnusableError says why there are none."""
        try:
            path.open("rb").close()  # with this process's own rights
        except PermissionError:
            raise UnusableError("no_right_to_read") from None
        except OSError:
            raise UnusableError("unreadable") from None
        asked = request | {
            "path": str(path.absolute()),
            "seconds": limits.seconds,
            "bytes": int(limits.gigabytes * 1e9),
        }
        with self._lock:
            words, found = self._answer(asked)
            if words.get("reason") == _LEFT:
                words, found = self._answer(asked)
            if words.get("reason") == "too_large":
                self.close()  # what it has taken does not come back
        if "reason" in words:
            raise UnusableError(words["reason"])
        if "fault" in words:
            raise DataError(f"{path}: {words['fault']}.", fix=words["fix"])
        return words, found

    def _answer(self, asked: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            messages.write(process.stdin, asked)
            return messages.received(*messages.read(process.stdout), self._shared)
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
            ended = -process.returncode if process.returncode is not None else None
            self.close()
            return {"reason": _ENDED.get(ended, "undecodable")}, []
        except BaseException:  # Ctrl-C: half an answer must not be taken for the start of the next one
            process.kill()
            self.close()
            raise

    def _running(self) -> subprocess.Popen[bytes]:
        if self._parent != os.getpid():  # after a fork it is the parent's
            self._process, self._parent = None, os.getpid()
        if self._modules != (modules := _modules()):
            self.close()
        if self._process is None or self._process.poll() is not None:
            # Kept before it is ready, which takes seconds on a busy machine: `kill` must find it then, too.
            self._modules = modules
            self._process, self._shared = _started(modules)
            try:
                if self._over:
                    self._process.kill()
                _await_ready(self._process)
            except BaseException:  # Ctrl-C: what it says when it is ready must not be taken for an answer
                self._process.kill()
                self.close()
                raise
        return self._process

    def kill(self) -> None:
        """End the process at once, whatever it is doing; who waits for it gets a reason, and nobody is to ask again.

        One that is just being started ends as well.
        """
        self._over = True
        process = self._process
        if process is not None and self._parent == os.getpid():
            process.kill()

    def close(self) -> None:
        """End the process, if there is one of this process."""
        process, self._process, self._shared = self._process, None, None
        if process is None or self._parent != os.getpid():
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def with_own_decoder(own: list[DecodingProcess]) -> None:
    """Let this thread ask a process of its own from now on; it is added to `own`, for whoever closes it."""
    _THREAD.decoder = DecodingProcess()
    own.append(_THREAD.decoder)


def _decoder() -> DecodingProcess:
    own: DecodingProcess = getattr(_THREAD, "decoder", _DECODER)
    return own


def _modules() -> str:
    """Where this process looks for modules, but for the folder that somebody stands in."""
    return os.pathsep.join(filter(None, sys.path))


def _started(modules: str) -> tuple[subprocess.Popen[bytes], messages.SharedNumbers | None]:
    """A new process, which will say that it is ready, and what it shares. DataError if it cannot be had."""
    environment = os.environ | _SINGLE | _KEEPS | {"PYTHONPATH": modules}
    descriptor = messages.shared_memory()
    handed = () if descriptor is None else (descriptor,)
    try:
        shared = None if descriptor is None else messages.SharedNumbers(descriptor)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fedgraft.client.data.decoding.worker", str(_IDLE_S), *map(str, handed)],
            pass_fds=handed,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders quote what they read
            env=environment,
            start_new_session=True,  # a Ctrl-C is for whoever asks
        )
    except OSError as error:
        raise _not_started(str(error.strerror)) from None
    finally:
        for one in handed:
            os.close(one)
    return process, shared


def _await_ready(process: subprocess.Popen[bytes]) -> None:
    """Wait until a process says that it is ready. DataError if it ends before."""
    assert process.stdout is not None
    messages.widen(process.stdout)
    try:
        messages.read(process.stdout)
    except (EOFError, OSError):
        raise _not_started("it ended at once") from None


def _not_started(why: str) -> DataError:
    return DataError(
        f"The process that decodes files could not be started: {why}.",
        fix=f"Try `{sys.executable} -m fedgraft.client.data.decoding.worker 9` to see why.",
    )


_DECODER = DecodingProcess()
"""Of all threads that have none of their own."""
atexit.register(_DECODER.close)
