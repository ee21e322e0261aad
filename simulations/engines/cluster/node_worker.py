"""What runs on a node of a cluster: a process that answers for sites, and first looks at what the node has."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context

from fedgraft.client.runtime.log import site_log
from fedgraft.common.base.environment import environment
from fedgraft.common.base.errors import FedgraftError
from fedgraft.common.plugins.loading import load_plugins
from fedgraft.simulations.engines.cluster.node_messages import Bytes, flat, freeze, thaw
from fedgraft.simulations.engines.node import answer, context_for


@dataclass(frozen=True)
class NodeView:
    """What a process has before it: versions by name, the device, a file's text, and digests of what sites' paths hold.

    None where there is nothing to be read, or nothing to be written.
    """

    versions: Mapping[str, str]
    device: str
    text: str | None
    can_write: bool
    files: Mapping[str, str | None]


def look(mark: Path, paths: Mapping[str, Sequence[Path]]) -> NodeView:
    """What this process sees: the text of the file `mark`, its folder, and for each site the files below its paths."""
    import torch  # a node without it is told of as another error

    found = environment(0, "")
    versions = {"Python": found["python"], **found["packages"], "the code of fedgraft": found["code_digest"][:12]}
    device = f"{found['device']}, {torch.backends.cpu.get_cpu_capability()}"
    try:
        text = mark.read_text(encoding="utf-8")
    except OSError:
        text = None
    return NodeView(versions, device, text, _can_write(mark.parent), {site: listed(of) for site, of in paths.items()})


def listed(paths: Iterable[Path]) -> str | None:
    """A digest of the names and sizes of all files at and below these paths; None if one of them is not there."""
    digest = hashlib.sha256()
    for path in paths:
        if not os.access(path, os.R_OK):
            return None
        for file in [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file()):
            digest.update(f"{file}\0{file.stat().st_size}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _can_write(folder: Path) -> bool:
    trial = folder / f".trial-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        trial.write_bytes(b"")
        trial.unlink()
    except OSError:
        return False
    return True


class NodeWorker:
    """Answers for its sites as long as the run lasts; Ray makes an actor of it."""

    def __init__(self, threads: int) -> None:
        import torch

        os.umask(0o077)  # what a site writes is below the run's folder
        torch.set_num_threads(threads)
        self._contexts: dict[int, Context] = {}

    def look(self, mark: Path, paths: Mapping[str, Sequence[Path]]) -> NodeView:
        """What this node has before it."""
        return look(mark, paths)

    def load(self, plugins: tuple[str, ...]) -> str:
        """Load files and modules with code of one's own; what is wrong with them, or nothing."""
        try:
            load_plugins(plugins)
        except FedgraftError as error:
            return str(error)
        return ""

    def answer(self, config: str, frame: bytes, *arrays: Bytes) -> tuple[bytes, list[Bytes]]:
        """The reply of the site with this configuration to a message, both as `node_messages` has them."""
        message = thaw(frame, arrays)
        node = message.metadata.dst_node_id
        if node not in self._contexts:
            self._contexts[node] = context_for(node, Path(config))
            site_log(Path(config).parent).info("simulated on %s by process %d", platform.node(), os.getpid())
        return freeze(answer(message, self._contexts[node]), flat)
