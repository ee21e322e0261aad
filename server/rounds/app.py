"""The ServerApp: reads the run's folder, lets the rounds run, writes what they end with. Thin on purpose."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedgraft.common.base.disk import DISK_FULL, told
from fedgraft.common.base.environment import environment
from fedgraft.common.base.errors import FedgraftError, RunError
from fedgraft.common.models.initialise import initialise
from fedgraft.server.fleet.fleet import GridFleet
from fedgraft.server.rounds.results import write_model, write_result
from fedgraft.server.rounds.rounds import Coordinator
from fedgraft.server.runs.run_folder import REASON, RunFolder

DEPLOYED = "deployed"
"""The engine of a run over real sites."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study in the folder that the run's configuration names.

    `run`: the folder; `engine`: what carries the messages; `synthetic`: whether the data are phantoms.
    """
    config = context.run_config
    folder, engine = RunFolder(Path(str(config["run"]))), str(config["engine"])
    if engine != DEPLOYED:
        _run(grid, folder, engine, synthetic=bool(config["synthetic"]))
        return
    try:
        folder.take()
        _run(grid, folder, engine, synthetic=bool(config["synthetic"]))
    except FedgraftError as error:
        raise RunError(f"{REASON}{error}") from error
    except OSError as error:
        if error.filename is None and error.errno not in DISK_FULL:  # of the network, which comes back
            raise
        raise RunError(f"{REASON}{told(error)} Then continue with --resume.") from error


def _run(grid: Grid, folder: RunFolder, engine: str, *, synthetic: bool) -> None:
    study = folder.study()
    folder.write("environment.json", environment(study.seed, engine))
    begin = initialise(study)
    tags = begin.model.tags()
    ours = engine in ("inprocess", "pool")
    fleet = GridFleet(grid, expires=ours, views=ours)
    if engine == DEPLOYED:
        from fedgraft.server.fleet.intake import WalledIntake, room_for  # what a simulation has no use for

        intake = partial(WalledIntake, grid, room_for(begin.state()))
        fleet = GridFleet(grid, enrolled=partial(_enrolled, grid), intake=intake, expected=folder.sites())
    outcome = Coordinator(study, fleet, folder, begin.state(), tags).run()
    write_model(folder, study, outcome, begin.provenance, synthetic)
    write_result(folder, study, tags, outcome, begin.provenance, (engine, synthetic))
    folder.event("finished")


def _enrolled(grid: Grid) -> Mapping[int, str]:
    """The sites that are online, under the names that they were provisioned with.

    A site whose keys were renewed can be there twice for a while, with the old ones and the new: the new ones count.
    """
    nodes = sorted(grid.get_nodes(), key=lambda node: node.registered_at)
    newest = {node.name: node.node_id for node in nodes}
    return {number: name for name, number in newest.items()}
