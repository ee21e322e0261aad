"""Which node of a cluster has how many workers, and what each of them takes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedgraft.common.base.errors import InputError

_UNIT = 10_000
"""Ray counts parts of a GPU in so many."""


@dataclass(frozen=True)
class ClusterNode:
    """A machine of the cluster, with what Ray was told that it has."""

    key: str
    """Ray's own number of it."""
    address: str
    cpus: float
    gpus: float

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> ClusterNode:
        """From a row of `ray.nodes()`."""
        has = found["Resources"]
        return cls(found["NodeID"], found["NodeManagerAddress"], has.get("CPU", 0.0), has.get("GPU", 0.0))


@dataclass(frozen=True)
class Places:
    """Where the workers go: the node of each, and the CPUs and the part of a GPU that each takes."""

    nodes: tuple[ClusterNode, ...]
    cpus: int
    gpu_share: float


def places_for(nodes: Sequence[ClusterNode], sites: int, workers: int | None, threads: int) -> Places:
    """Room for `workers` that work at a time, or for as many as fit; never more than there are sites.

    A worker takes a CPU for each thread. If any node has GPUs, only such nodes are used: a site would get other last
    digits on a CPU than on a GPU. As many workers share a GPU as `workers` asks for. The workers are dealt out over the
    nodes in turn. InputError if not one fits, or fewer than were asked for.
    """
    cards = sum(int(node.gpus) for node in nodes)
    wanted = min(sites, workers) if workers is not None else sites
    per_card = max(1, math.ceil(wanted / cards)) if cards and workers is not None else 1
    free = {
        node: min(int(node.cpus // threads), int(node.gpus) * per_card) if cards else int(node.cpus // threads)
        for node in sorted(nodes, key=lambda node: node.address)
    }
    has = f"{_number(len(nodes), 'node')} with {sum(int(n.cpus) for n in nodes)} CPUs and {_number(cards, 'GPU')}"
    fit = sum(free.values())
    if not fit or (workers is not None and fit < wanted):
        raise InputError(
            f"The cluster has {has}: {fit} workers of {_number(threads, 'thread')} fit.",
            fix="Ask for fewer --workers or --threads, or add nodes.",
        )
    dealt: list[ClusterNode] = []
    while len(dealt) < min(wanted, fit):
        for node in [node for node, room in free.items() if room > 0][: min(wanted, fit) - len(dealt)]:
            dealt.append(node)
            free[node] -= 1
    return Places(tuple(dealt), threads, math.floor(_UNIT / per_card) / _UNIT if cards else 0.0)


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
