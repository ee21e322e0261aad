"""A Flower Grid whose sites work on the machines of a Ray cluster, each in one process of one machine."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Error, Message

from fedgraft.common.base.errors import RunError
from fedgraft.server.fleet.fleet import NODE_EXPIRED
from fedgraft.simulations.engines.cluster.node_messages import flat, freeze, thaw
from fedgraft.simulations.engines.cluster.node_worker import NodeWorker
from fedgraft.simulations.engines.cluster.places import ClusterNode, Places
from fedgraft.simulations.engines.grids import LocalGrid
from fedgraft.simulations.engines.node import deadline_of

_TRIES = 2
"""So often a visit is tried whose worker dies, as in a pool."""
_CONTINUE = "Continue with `fedgraft simulate --resume`; sites are then placed on the nodes that are there."

_log = logging.getLogger(__name__)


@dataclass
class ClusterWorker:
    """A process on a node, as an actor of Ray's: what it works on since when, and what waits for it."""

    node: ClusterNode
    actor: Any
    gpu_share: float
    sites: tuple[str, ...] = ()
    waiting: deque[Message] = field(default_factory=deque)
    starting: Any = None
    """What comes once a process that replaces another is ready; a deadline counts from then."""
    current: Message | None = None
    reply: Any = None
    since: float = 0.0
    died: int = 0
    """How many processes have died in a row on the message at hand."""


class ClusterGrid(LocalGrid):
    """Sites in processes on the nodes of the cluster that this process has joined; a site stays with its process.

    So a site's cases are loaded on one machine, once. `home` says for each configuration which of the `places` has it.
    A process that overruns a deadline is replaced on its node; so is one that dies, whose visit is then repeated, to
    the same bits. RunError if the next one dies on it too, as where the node is gone.
    """

    def __init__(self, configs: Sequence[Path], places: Places, home: Sequence[int]) -> None:
        super().__init__(configs)
        self._places = places
        self._plugins: tuple[str, ...] = ()
        self._stored: dict[int, tuple[ArrayRecord, Any]] = {}
        self._home = dict(zip(self._configs, home, strict=True))
        self.workers = [ClusterWorker(node, self._start(node), places.gpu_share) for node in places.nodes]
        for number, worker in enumerate(self.workers):
            worker.sites = tuple(config.parent.name for config, at in zip(configs, home, strict=True) if at == number)

    def load(self, plugins: tuple[str, ...]) -> list[Any]:
        """Let all processes load code of one's own, now and after each start; what each says of it, to be awaited."""
        self._plugins = plugins
        return [worker.actor.load.remote(plugins) for worker in self.workers]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages for their nodes; the tensors of an exchange that is over make room."""
        if not any(worker.current or worker.waiting for worker in self.workers):
            self._stored.clear()
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Give every idle process its next message, wait until one has answered, and give all replies there are."""
        import ray

        del message_ids  # whoever pulls has pushed all that waits here
        for worker in self.workers:
            self._feed(worker)
        busy = {worker.starting or worker.reply: worker for worker in self.workers if worker.current or worker.waiting}
        if not busy:
            return []
        ready, _ = ray.wait(list(busy), num_returns=1, timeout=self._patience())
        more, _ = ray.wait(list(busy), num_returns=len(busy), timeout=0)
        received = [self._hear(busy[one]) for one in dict.fromkeys([*ready, *more])]
        for worker in self.workers:
            self._feed(worker)
        return [reply for reply in [*received, *map(self._overdue, self.workers)] if reply is not None]

    def close(self) -> None:
        """End the processes and let go of what is on its way."""
        import ray

        for worker in self.workers:
            ray.kill(worker.actor)
        self._stored.clear()

    def _queue(self, message: Message) -> None:
        self.workers[self._home[message.metadata.dst_node_id]].waiting.append(message)

    def _start(self, node: ClusterNode) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        share = self._places.gpu_share
        options: dict[str, Any] = {
            "num_cpus": self._places.cpus,
            "num_gpus": share,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node.key, soft=False),
            "max_restarts": 0,
        }
        if not share:  # a card that Ray was not told of is not used by accident
            options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
        return ray.remote(NodeWorker).options(**options).remote(self._places.cpus)

    def _again(self, worker: ClusterWorker) -> None:
        """Another process, once the one before is surely gone: two must not write to a site's folder."""
        import ray

        ray.kill(worker.actor)
        worker.actor = self._start(worker.node)
        worker.starting = worker.actor.load.remote(self._plugins)

    def _feed(self, worker: ClusterWorker) -> None:
        if worker.current is not None or worker.starting is not None or not worker.waiting:
            return
        worker.current, worker.since = worker.waiting.popleft(), time.monotonic()
        frame, stored = freeze(worker.current, self._store)
        config = str(self._configs[worker.current.metadata.dst_node_id])
        worker.reply = worker.actor.answer.remote(config, frame, *stored)

    def _store(self, record: ArrayRecord) -> Any:
        """Ray's number of the bytes of a record; one that many messages share is stored once."""
        import ray

        if id(record) not in self._stored:
            self._stored[id(record)] = (record, ray.put(flat(record)))
        return self._stored[id(record)][1]

    def _hear(self, worker: ClusterWorker) -> Message | None:
        """The reply of a process, or None if it has only started, or has died."""
        import ray

        try:
            said = ray.get(worker.starting or worker.reply)
        except ray.exceptions.RayTaskError as error:
            raise RunError(
                f"A process on {worker.node.address} cannot answer: {error.cause!r}", fix=_CONTINUE
            ) from None
        except ray.exceptions.RayError as error:
            self._replace(worker, type(error).__name__)
            return None
        if worker.starting is not None:
            worker.starting = None
            return None
        worker.current, worker.reply, worker.died = None, None, 0
        return thaw(*said)

    def _replace(self, worker: ClusterWorker, why: str) -> None:
        """Give the message at hand of a process that has died to another one."""
        if worker.current is not None:
            worker.waiting.appendleft(worker.current)
            worker.current, worker.reply = None, None
        site = self._configs[worker.waiting[0].metadata.dst_node_id].parent.name
        said = f"The process on {worker.node.address} that simulated {site} has ended ({why})"
        if worker.died + 1 >= _TRIES:
            raise RunError(f"{said}, and so has the one before it.", fix=_CONTINUE)
        _log.warning("%s. Another one repeats the visit.", said)
        worker.died += 1
        self._again(worker)

    def _overdue(self, worker: ClusterWorker) -> Message | None:
        if worker.current is None or (limit := deadline_of(worker.current)) is None:
            return None
        if time.monotonic() - worker.since < limit:
            return None
        late, worker.current, worker.reply = worker.current, None, None
        self._again(worker)
        return Message(Error(NODE_EXPIRED), reply_to=late)

    def _patience(self) -> float | None:
        """Seconds until the next deadline; None if there is none."""
        ends = [w.since + limit for w in self.workers if w.current and (limit := deadline_of(w.current)) is not None]
        return max(0.0, min(ends) - time.monotonic()) + 0.01 if ends else None


def where(workers: Iterable[ClusterWorker]) -> Mapping[str, list[str]]:
    """The sites by the address of the node that has them."""
    found: dict[str, list[str]] = {}
    for worker in workers:
        found.setdefault(worker.node.address, []).extend(worker.sites)
    return {address: sorted(sites) for address, sites in sorted(found.items())}
