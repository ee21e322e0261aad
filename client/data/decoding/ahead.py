"""Files are decoded ahead of whoever takes them one after the other, by several processes at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

import torch

from fedgraft.client.data.decoding.decoder import DecodingProcess, with_own_decoder

T = TypeVar("T")
_MOST = 4
"""Processes at a time. So many files' images are in memory, and those of one or two more."""
_AFTER_S = 5.0
"""So long one process alone decodes: to start others takes seconds, too."""


class DecodingAhead(Generic[T]):
    """What `decode` gives for each of these files, taken in their order; while it is open the next are worked on.

    `decode` must depend on its file alone. There are as many processes as torch has threads here, up to four; with
    one, and in the first seconds, each file is decoded as it is asked for.
    """

    def __init__(self, decode: Callable[[Path], T], paths: Sequence[Path]) -> None:
        self._decode, self._paths = decode, iter(paths)
        self._waiting: deque[tuple[Path, Future[T]]] = deque()
        self._decoders: list[DecodingProcess] = []
        self._workers = min(_MOST, torch.get_num_threads())
        self._pool: ThreadPoolExecutor | None = None
        self._begun = time.monotonic()

    def __enter__(self) -> DecodingAhead[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        self._pool.shutdown(wait=False, cancel_futures=True)
        for decoder in self._decoders:
            decoder.kill()  # nobody waits for what it still works on
        self._pool.shutdown()
        for decoder in self._decoders:
            decoder.close()

    def of(self, path: Path) -> T:
        """What `decode` gives for the next of the files, which is this one; raises what it raises."""
        if self._pool is None and self._workers > 1 and time.monotonic() >= self._begun + _AFTER_S:
            self._pool = ThreadPoolExecutor(
                self._workers, "decoding", initializer=with_own_decoder, initargs=(self._decoders,)
            )
        if self._pool is None:
            expected = next(self._paths)
            assert expected == path
            return self._decode(path)
        for later in islice(self._paths, self._workers + 1 - len(self._waiting)):
            self._waiting.append((later, self._pool.submit(self._decode, later)))
        expected, decoded = self._waiting.popleft()
        assert expected == path
        return decoded.result()
