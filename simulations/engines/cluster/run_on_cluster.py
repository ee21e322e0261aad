"""A run's sites on a Ray cluster: nodes are looked at before anything is spent, and refused where bits would differ."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.config import read_config
from fedgraft.common.base.errors import InputError, RunError
from fedgraft.common.base.files import home, write_atomic, write_json
from fedgraft.simulations.engines.child_path import SAFE_PATH
from fedgraft.simulations.engines.cluster.cluster_grid import ClusterGrid, ClusterWorker, where
from fedgraft.simulations.engines.cluster.connection import joined
from fedgraft.simulations.engines.cluster.node_worker import NodeView, listed, look
from fedgraft.simulations.engines.cluster.places import places_for
from fedgraft.simulations.engines.workers.pool import spread

PLACES = "places.json"
"""In the run's folder: the sites by the node that has them."""

_ROOM_S = 300.0
_SAME = "Install the same on all nodes, and run `ray start` in it."
_SHARE = "Nodes need a file system that they share, as the same user: put the run, the data and $FEDGRAFT_HOME there."

_log = logging.getLogger(__name__)


@contextmanager
def cluster_grid(
    run: Path, names: Sequence[str], address: str, size: tuple[int | None, int], plugins: tuple[str, ...]
) -> Iterator[ClusterGrid]:
    """A grid of the run's sites on the cluster at `address`, whose nodes see what this machine sees.

    `size` is how many sites work at a time, or None for as many as fit, and torch's threads of each. InputError if the
    cluster cannot be joined or has no room, or for each node on which something is missing or of another version.
    """
    workers, threads = size
    configs = [run / "sites" / name / "site.json" for name in names]
    paths = [_paths(config) for config in configs]
    variables = {"OMP_NUM_THREADS": str(threads), "FEDGRAFT_HOME": str(home().resolve()), SAFE_PATH: "1"}
    with joined(address, variables) as nodes:
        places = places_for(nodes, len(configs), workers, threads)
        homes = spread(range(len(configs)), [_files(of) for of in paths], len(places.nodes))
        grid = ClusterGrid(configs, places, [homes[at] for at in range(len(configs))])
        try:
            _demand_like_here(grid, run, dict(zip(names, paths, strict=True)))
            for worker, said in zip(grid.workers, _await(grid.workers, grid.load(plugins)), strict=True):
                if said:
                    raise InputError(f"{worker.node.address}: {said}", fix=_SHARE)
            write_json(run / PLACES, where(grid.workers))
            yield grid
        finally:
            grid.close()


def _demand_like_here(grid: ClusterGrid, run: Path, paths: Mapping[str, Sequence[Path]]) -> None:
    """InputError with all that a node lacks, or has otherwise than this machine, before a site does any work."""
    mark = run / ".seen-by-nodes"
    word = secrets.token_hex(16)
    write_atomic(mark, word.encode(), private=True)
    try:
        asked = [
            worker.actor.look.remote(mark, {site: paths[site] for site in worker.sites}) for worker in grid.workers
        ]
        here = look(mark, {})
        files = {site: listed(of) for site, of in paths.items()}
        found = list(zip(grid.workers, _await(grid.workers, asked), strict=True))
    finally:
        mark.unlink(missing_ok=True)
    wrong: dict[str, None] = {}
    for worker, view in found:
        wrong |= dict.fromkeys(_otherwise(worker, view, here, files, word, run))
    if wrong:
        raise InputError("The nodes cannot simulate this run:\n" + "\n".join(f"  - {one}" for one in wrong))
    if len(devices := {view.device for _, view in found}) > 1:
        _log.warning("The nodes are of several kinds (%s): last digits may depend on where a site is.", sorted(devices))


def _otherwise(
    worker: ClusterWorker, view: NodeView, here: NodeView, files: Mapping[str, str | None], word: str, run: Path
) -> Iterator[str]:
    at = worker.node.address
    for name in sorted(view.versions.keys() | here.versions.keys()):
        if (there := view.versions.get(name)) != (own := here.versions.get(name)):
            yield f"{at} has {name} {there or '(none)'}, and this machine {own or '(none)'}. {_SAME}"
    if view.text != word:
        yield f"{at} does not see the run's folder {run}. {_SHARE}"
    elif not view.can_write:
        yield f"{at} cannot write to the run's folder {run}. {_SHARE}"
    if hidden := [site for site, digest in view.files.items() if digest is None]:
        yield f"{at} cannot read the data of {', '.join(hidden)}. {_SHARE}"
    if other := [site for site, digest in view.files.items() if digest not in (None, files[site])]:
        yield f"{at} has other files as the data of {', '.join(other)} than this machine. {_SHARE}"
    if worker.gpu_share and view.device.startswith("cpu,"):
        yield f"{at} was given to Ray with a GPU, and torch sees none there. Start it with `ray start --num-gpus 0`."


def _await(workers: Sequence[ClusterWorker], asked: Sequence[Any]) -> list[Any]:
    """What each process answers. InputError for one that cannot load fedgraft, RunError if there is no room for it."""
    import ray

    found = []
    for worker, reference in zip(workers, asked, strict=True):
        try:
            found.append(ray.get(reference, timeout=_ROOM_S))
        except ray.exceptions.GetTimeoutError:
            raise RunError(
                f"{worker.node.address} gave no process within {_ROOM_S:.0f} s: others may have its CPUs or GPUs.",
                fix="Ask for fewer --workers, or wait; continue with --resume.",
            ) from None
        except ray.exceptions.RayError as error:
            said = str(error).strip().splitlines()[-1][:200]
            raise InputError(f"{worker.node.address}: fedgraft cannot be run there: {said}", fix=_SAME) from None
    return found


def _paths(config: Path) -> list[Path]:
    """All that a site's data consist of."""
    site = read_config(config)
    specs: list[CohortSpec] = [spec for spec in (site.cohort, site.source) if spec is not None]
    return [value for spec in specs for _, value in spec if isinstance(value, Path)]


def _files(paths: Sequence[Path]) -> int:
    """How many files a site has: a guess at its share of the work."""
    return max(1, sum(len(files) for path in paths for _, _, files in os.walk(path)))
