"""Run a study over simulated hospitals on one machine: set up the run's folder, start an engine, report."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

from fedgraft.client.data.cohorts.cohort import Cohort, load_cohort
from fedgraft.client.data.kinds import reader_plugin
from fedgraft.client.data.spec import CohortSpec
from fedgraft.client.enrolment.cohort_request import cohort_request
from fedgraft.client.enrolment.config import SiteConfig, read_config, read_site
from fedgraft.client.enrolment.pseudonyms import keep_key, place_of
from fedgraft.client.governance.approval import approve
from fedgraft.client.privacy.policy import SitePolicy
from fedgraft.client.training.device.process import torch_threads
from fedgraft.common.agreement.agreement import SupplyAgreement
from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.errors import InputError, ResumeError
from fedgraft.common.base.files import home, is_there, make_folder, private_folder, read_json, write_json
from fedgraft.common.base.seeds import derive
from fedgraft.common.plugins.plugin import Plugin
from fedgraft.common.plugins.registry import loaded_digest, places
from fedgraft.common.study.study import Study
from fedgraft.server.report import build_report
from fedgraft.server.rounds.app import app as server_app
from fedgraft.server.runs.run_folder import RunFolder
from fedgraft.simulations.engines.engine import Engine
from fedgraft.simulations.engines.faults import Fault, FaultyGrid
from fedgraft.simulations.engines.first_look import first_look
from fedgraft.simulations.engines.grids import InProcessGrid, LocalGrid
from fedgraft.simulations.engines.keys import make_keys
from fedgraft.simulations.engines.people import SimulatedDecision, demand_decision, people
from fedgraft.simulations.engines.workers.pool import PoolGrid

OPEN = SitePolicy(
    allow_non_dp=True,
    metrics="exact",
    min_patients=1,
    epsilon_per_study=100.0,
    epsilon_lifetime=100.0,
    retain_statistics=True,
    agreement="exact",
)
"""Whoever simulates a hospital sees all its data anyway. Budgets are counted, and all but unlimited."""

_FACTS = "simulation.json"
_ANEW = "Restore the folder as it was, or begin a new run with another --out."


@dataclass(frozen=True)
class Hospitals:
    """The sites of a simulation: their cohorts and faults by name, and whether their images are phantoms."""

    cohorts: Mapping[str, CohortSpec]
    faults: Mapping[str, Fault] = field(default_factory=dict)
    observers: Collection[str] = ()
    """Sites that only evaluate, on public data."""
    public_sources: Collection[str] = ()
    """Sites that hold public source data."""
    sources: Mapping[str, CohortSpec] = field(default_factory=dict)
    """By site the source data that lie there beside its own."""
    policies: Mapping[str, SitePolicy] = field(default_factory=dict)
    """The rules of sites that have some; all others are as open as whoever simulates them."""
    partition: Mapping[str, Any] = field(default_factory=dict)
    """How one cohort was shared out among them, and from which seed; nothing if each has its own."""
    synthetic: bool = True
    allow_missing_sites: bool = False
    """Go on without sites whose data cannot be used; else they stop a simulation before it begins."""
    release: SimulatedDecision | None = None
    """What the people of sites whose policy says `release: hold` decide; without it such sites are not simulated."""

    def specs(self, name: str) -> tuple[CohortSpec, ...]:
        """All that lies at a site."""
        return (self.cohorts[name], *filter(None, [self.sources.get(name)]))


def simulate(study: Study, hospitals: Hospitals, out: Path, engine: Engine | None = None) -> Path:
    """Run `study` in the new folder `out`, and return it with result, model and report in it.

    InputError if `out` is in use; DataError if a hospital cannot take part; RunError if the run fails, and then
    `resume` continues it.
    """
    demand_place(out)
    check_hospitals(study, hospitals, logging.getLogger(__name__).warning)
    prepare(study, hospitals, out)
    return resume(out, engine)


def check_hospitals(study: Study, hospitals: Hospitals, say: Callable[[str], object]) -> None:
    """Before anything is spent: look at the data of all hospitals, and say what is odd.

    DataError with every one that cannot take part, unless the hospitals may be missing. Decoded images stay in the
    cache, where the run finds them.
    """
    with tempfile.TemporaryDirectory(prefix="fedgraft-look-") as folder:
        prepare(study, hospitals, Path(folder) / "run")
        first_look(study, Path(folder) / "run", say, allow_missing_sites=hospitals.allow_missing_sites)


def ask_hospitals(study: Study, hospitals: Hospitals) -> SupplyAgreement:
    """What the hospitals answer when they are asked what they could supply; nothing is left of it on disk."""
    with tempfile.TemporaryDirectory(prefix="fedgraft-ask-") as folder:
        run = Path(folder).resolve() / "run"
        prepare(study, hospitals, run)
        # Whoever is to play a fault in rounds can be asked all the same.
        with torch_threads(1), _grid(run, _names(run), Engine(), {}) as grid:
            config = _run_config(run, "inprocess", hospitals.synthetic)
            server_app(grid, Context(1, 1, {}, RecordDict(), config | {"ask": True}))
        found = RunFolder(run).agreement()
        assert found is not None
        return found


def prepare(study: Study, hospitals: Hospitals, out: Path) -> None:
    """Set up a run's folder, so that `resume` can start it."""
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty.", fix="Choose another --out, or continue that run with --resume.")
    demand_decision(hospitals.policies, hospitals.release)
    with private_folder(out):
        _write_sites(study, hospitals, out)


def _write_sites(study: Study, hospitals: Hospitals, out: Path) -> None:
    sites = out / "sites"
    make_folder(sites)
    for name in hospitals.cohorts:
        (sites / name).mkdir(mode=0o700)
    masking = [name for name in hospitals.cohorts if name not in hospitals.observers]
    secure_aggregation = make_keys(sites, masking) if study.secure_aggregation else {}
    for name, cohort in hospitals.cohorts.items():
        config = SiteConfig(
            name=name,
            cohort=cohort.below(Path.cwd()),
            source=source.below(Path.cwd()) if (source := hospitals.sources.get(name)) else None,
            public_source=name in hospitals.public_sources,
            observer=name in hospitals.observers,
            sync=False,
            policy=allowing(code_of(study, hospitals.specs(name)), hospitals.policies.get(name, opened(study))),
            secure_aggregation=secure_aggregation.get(name),
            state=(sites / name).resolve(),
            cache=home().resolve() / "cohorts",
        )
        # A deployed site draws its key; here it follows from the seed, since splits depend on it.
        keep_key(sites / name, derive(study.seed, name, "secret").to_bytes(16, "big"), sync=config.sync)
        config.write(sites / name / "site.json")
        approve(sites / name, study.digest, study.name, sync=config.sync)
    write_json(sites / "index.json", sorted(hospitals.cohorts))
    faults = {name: fault.model_dump(mode="json") for name, fault in hospitals.faults.items()}
    facts: dict[str, Any] = {"synthetic": hospitals.synthetic, "faults": faults, "study": study.digest}
    facts |= {"release": hospitals.release} if hospitals.release else {}
    facts |= {"partition": hospitals.partition} if hospitals.partition else {}
    write_json(out / _FACTS, facts)
    RunFolder(out).write_study(study)


def opened(study: Study) -> SitePolicy:
    """The policy of a site that has none of its own: open, to figures by the study's subgroups too."""
    return OPEN.model_copy(
        update={"subgroups": {one.name: one.values or one.bands for one in study.evaluate.subgroups}}
    )


def code_of(study: Study, specs: Iterable[CohortSpec]) -> tuple[Plugin, ...]:
    """The plug-ins that run at sites with these data: those that the study names, and readers."""
    return (*study.plugins, *filter(None, [reader_plugin(spec.kind) for spec in specs]))


def allowing(plugins: Iterable[Plugin], policy: SitePolicy) -> SitePolicy:
    """The policy with plug-ins listed as they are here: who simulates a hospital stands for its people.

    One that a site's own rules list stays as it is there.
    """
    here = {plugin.key: loaded_digest(plugin) for plugin in plugins if plugin.key not in policy.plugins}
    return policy.model_copy(update={"plugins": policy.plugins | here}) if here else policy


def resume(out: Path, engine: Engine | None = None, *, report: bool = True) -> Path:
    """Start or continue the run in `out`; ends bit-identical to a run that was never interrupted.

    RunError if another process is at work on it.
    """
    engine = engine or Engine()
    demand_simulated(out)
    out = out.resolve()
    with private_folder(out), RunFolder(out).held():
        facts = _facts(out)
        with people([out / "sites" / name for name in _names(out)], str(facts["study"]), facts.get("release")):
            _carry_out(out, engine, facts)
        if report:
            build_report(out)
    return out


def demand_simulated(out: Path) -> None:
    """InputError unless `out` is the folder of a simulated run."""
    if not is_there(out / _FACTS):
        raise InputError(
            f"{out} is no simulated run: there is no {_FACTS}.", fix="Give the folder that `fedgraft simulate` wrote."
        )


def _facts(out: Path) -> Mapping[str, Any]:
    """What the run was begun with. ResumeError if this is none any more, or one of another study."""
    match read_json(out / _FACTS):
        case {"synthetic": bool(), "faults": dict(), "study": str(digest)} as facts:
            RunFolder(out).demand_study(digest, _FACTS)
            found: dict[str, Any] = facts
        case _:
            raise ResumeError(f"{out / _FACTS}: is damaged.", fix=_ANEW)
    for name in _names(out):
        read_config(out / "sites" / name / "site.json")
    return found


def _names(out: Path) -> list[str]:
    """The sites of the run; ResumeError unless all of them are there, and no other, since fewer give another model."""
    source = out / "sites" / "index.json"
    if not is_there(source):
        raise ResumeError(f"{source}: is gone, and with it what the simulated sites are.", fix=_ANEW)
    match read_json(source):
        case [*names] if names and all(isinstance(name, str) and name for name in names):
            there = {path.parent.name for path in (out / "sites").glob("*/site.json")}
            for name in sorted(set(names) - there):
                if not is_there(lost := out / "sites" / name / "site.json"):
                    raise ResumeError(f"{lost}: is gone, and {source.name} names that site.", fix=_ANEW)
            if more := sorted(there - set(names)):
                raise ResumeError(f"{source}: does not name {', '.join(more)}, which is there.", fix=_ANEW)
            return list(map(str, names))
    raise ResumeError(f"{source}: does not list the simulated sites.", fix=_ANEW)


def _carry_out(out: Path, engine: Engine, facts: Mapping[str, Any]) -> None:
    if engine.name == "ray" and engine.cluster is None:
        from fedgraft.simulations.engines.ray import run_with_ray

        if facts["faults"]:
            raise InputError(
                "Flower's runtime plays no faults.", fix="Use --engine inprocess or pool, or a Ray cluster."
            )
        code = _places(out, RunFolder(out).study(), _names(out))
        run_with_ray(out, (engine.processes, engine.threads), code, synthetic=bool(facts["synthetic"]))
    else:
        names = _names(out)
        with torch_threads(engine.threads), _grid(out, names, engine, facts["faults"]) as grid:
            config = _run_config(out, engine.name, bool(facts["synthetic"])) | {"own_grid": True}
            server_app(grid, Context(1, 1, {}, RecordDict(), config))


def simulated_cohort(study: Study, out: Path, site: str) -> Cohort:
    """The cohort that a site of the run in `out` works with."""
    config = read_site(out / "sites" / site)
    return load_cohort(config.name, config.cohort, cohort_request(config, study), place_of(config, study.digest))


def _run_config(out: Path, engine: str, synthetic: bool) -> dict[str, bool | str | int | float]:
    return {"run": str(out), "engine": engine, "synthetic": synthetic}


@contextmanager
def _grid(out: Path, names: list[str], engine: Engine, faults: Mapping[str, object]) -> Iterator[Grid]:
    study = RunFolder(out).study()
    if engine.cluster is not None:
        from fedgraft.simulations.engines.cluster.run_on_cluster import cluster_grid

        size = engine.workers, engine.threads
        with cluster_grid(out, names, engine.cluster, size, _places(out, study, names)) as far:
            yield _faulty(far, names, faults)
        return
    configs = [out / "sites" / name / "site.json" for name in names]
    grid: LocalGrid
    if engine.name == "pool":
        grid = PoolGrid(configs, engine.processes, [_files(path) for path in configs], _places(out, study, names))
    else:
        grid = InProcessGrid(configs, deadlines=study.rounds.deadline_s is not None)
    try:
        yield _faulty(grid, names, faults)
    finally:
        grid.close()


def _faulty(grid: LocalGrid, names: Iterable[str], faults: Mapping[str, object]) -> Grid:
    """The grid with its sites' faults, if there are any."""
    nodes = dict(zip(names, grid.get_node_ids(), strict=True))
    played = {nodes[name]: Fault.model_validate(fault) for name, fault in faults.items()}
    return FaultyGrid(grid, played) if played else grid


def _places(out: Path, study: Study, names: Iterable[str]) -> tuple[str, ...]:
    """What processes of the sites must load before. InputError for what they cannot."""
    configs = [read_site(out / "sites" / name) for name in names]
    specs = [spec for config in configs for spec in (config.cohort, config.source) if spec is not None]
    return places(code_of(study, specs))


def _files(config: Path) -> int:
    """How many files a site has: a guess at its share of the work."""
    root = read_config(config).cohort.root
    return sum(1 for path in root.rglob("*") if path.is_file()) if root.is_dir() else 1
