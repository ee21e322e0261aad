"""Joining a Ray cluster that somebody has started, and what is wrong where it cannot be joined."""

from __future__ import annotations

import logging
import signal
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from fedgraft.common.base.errors import InputError
from fedgraft.simulations.engines.cluster.places import ClusterNode

_REACH_S = 5.0
_START = "Start it with `ray start --head`, join every other machine to it, and run fedgraft on one of them."


@contextmanager
def joined(address: str, variables: Mapping[str, str]) -> Iterator[tuple[ClusterNode, ...]]:
    """Be a driver of the cluster at `address` (host:port, or auto); gives its nodes.

    Processes that are started for it have `variables` in their environment. InputError if nobody answers there, if
    this machine is none of its nodes, or if it runs another Ray or Python.
    """
    if find_spec("ray") is None:
        raise InputError("The ray engine is not installed.", fix="Install fedgraft[ray].")
    import ray

    if ray.is_initialized():
        raise InputError("This process has joined a Ray cluster already.", fix="Leave it first: ray.shutdown().")
    _demand_reachable(address)
    at_term = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of a default of Ray's that nothing here relies on
            ray.init(
                address=address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env={"env_vars": dict(variables)},
            )
    except (RuntimeError, ValueError, OSError, AssertionError, KeyError) as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(f"The Ray cluster at {address} cannot be joined: {said}", fix=_START) from None
    try:
        _restore(at_term)
        yield tuple(ClusterNode.of(node) for node in _rows() if node["Alive"])
    finally:
        ray.shutdown()
        _restore(at_term)


def _rows() -> list[Mapping[str, Any]]:
    import ray

    return list(ray.nodes())  # type: ignore[no-untyped-call]


def _restore(at_term: object) -> None:
    """Ray puts a handler of its own in place, and it is not Ray's to say how this program ends."""
    try:
        signal.signal(signal.SIGTERM, at_term)  # type: ignore[arg-type] # as it was given by signal itself
    except ValueError:  # not in the main thread, where Ray changed nothing
        return


def _demand_reachable(address: str) -> None:
    """Ray itself would try for a minute and more."""
    if "://" in address:
        raise InputError(f"{address}: only nodes of a cluster can run a simulation.", fix="Give HOST:PORT of its head.")
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"{address}: is no address of a Ray cluster.", fix="Give HOST:PORT of its head, or auto.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"No Ray cluster answers at {address} ({error}).", fix=_START) from None
