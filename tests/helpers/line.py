"""A line between sites and server that can be slow, far, or cut: a TCP relay that looks at nothing."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator


class Line:
    """Relays `127.0.0.1:port` to `target`, `bytes_per_s` each way, every piece `delay_s` late."""

    def __init__(self, target: int, bytes_per_s: float, delay_s: float) -> None:
        self._target, self._rate, self._delay_s = target, bytes_per_s, delay_s
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._cut = False
        self.carried = 0
        self.port = 0
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        started.wait(10)

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Break all connections, and accept none meanwhile."""
        self._cut = True
        self._loop.call_soon_threadsafe(self._break)
        yield
        self._cut = False

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()

    def _break(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._relay(reader, far_writer), self._relay(far_reader, writer), return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)

        async def deliver() -> None:
            while True:
                due, piece = await pieces.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                if not piece:
                    writer.close()
                    return
                writer.write(piece)
                await writer.drain()

        delivery = asyncio.ensure_future(deliver())
        try:
            while piece := await reader.read(1 << 16):
                self.carried += len(piece)
                await asyncio.sleep(len(piece) / self._rate)
                await pieces.put((self._loop.time() + self._delay_s, piece))
        except OSError:
            pass
        await pieces.put((self._loop.time() + self._delay_s, b""))
        await delivery
