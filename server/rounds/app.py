"""The ServerApp: reads the run's folder, lets the rounds run, writes what they end with. Thin on purpose."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedgraft.common.agreement.agreement import SupplyAgreement
from fedgraft.common.base.disk import DISK_FULL, in_words
from fedgraft.common.base.environment import environment
from fedgraft.common.base.errors import FedgraftError, RunError
from fedgraft.common.models.initialise import initialise
from fedgraft.common.plugins.loading import load_from_environment
from fedgraft.common.protocol.instructions import Hello
from fedgraft.server.bodies.bodies import Bodies
from fedgraft.server.fleet.bell import Bell, Bells
from fedgraft.server.fleet.fleet import GridFleet
from fedgraft.server.fleet.presence import Presence
from fedgraft.server.rounds.results import write_model, write_result
from fedgraft.server.rounds.rounds import Coordinator
from fedgraft.server.runs.run_folder import REASON, RunFolder

DEPLOYED = "deployed"
"""The engine of a run over real sites."""

_MOMENT_S = 3.0
"""Longer than what is known of the sites is used."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study in the folder that the run's configuration names.

    `run`: the folder; `engine`: what carries the messages; `synthetic`: whether the data are phantoms; `away_s`: how
    long a round of a deployed run waits for a site, and `patience_s` for sites without which it cannot count. `ask`:
    only ask what sites could supply. `own_grid`: the grid is fedgraft's own, which answers for sites that are late.
    """
    config = context.run_config
    asks = bool(config.get("ask", False))
    folder, engine = RunFolder(Path(str(config["run"]))), str(config["engine"])
    if engine == "ray":
        load_from_environment()
    if engine != DEPLOYED:
        if asks:
            _ask(grid, folder)
        else:
            own = bool(config.get("own_grid", False))
            _run(grid, folder, engine, synthetic=bool(config["synthetic"]), own_grid=own)
        return
    try:
        folder.take()
        presence = Presence(partial(_enrolled, grid), float(config["patience_s"]), float(config["away_s"]))
        if asks:
            _ask(grid, folder, presence)
        else:
            _run(grid, folder, engine, synthetic=bool(config["synthetic"]), presence=presence)
    except FedgraftError as error:
        raise RunError(f"{REASON}{error}") from error
    except OSError as error:
        if error.filename is None and error.errno not in DISK_FULL:  # of the network, which comes back
            raise
        raise RunError(f"{REASON}{in_words(error)} Then continue with --resume.") from error


def _ask(grid: Grid, folder: RunFolder, presence: Presence | None = None) -> None:
    """Ask all sites what they could supply, and write the agreement that their answers make."""
    study = folder.study()
    fleet = GridFleet(grid)
    if presence is not None:
        from fedgraft.server.fleet.intake import WalledIntake, room_for

        intake = partial(WalledIntake, grid, room_for({}), Bodies.of_environment(), _bell())
        fleet = GridFleet(grid, presence=presence, intake=intake, expected=folder.sites())
    found = fleet.ask(Hello(study.to_json()), there=folder.had())
    folder.pin(SupplyAgreement.of(study, found, datetime.now(UTC).isoformat(timespec="seconds")))


def _run(
    grid: Grid,
    folder: RunFolder,
    engine: str,
    *,
    synthetic: bool,
    own_grid: bool = False,
    presence: Presence | None = None,
) -> None:
    study = folder.study()
    folder.write("environment.json", environment(study.seed, engine))
    begin = initialise(study)
    tags = begin.model.tags()
    fleet = GridFleet(grid, expires=own_grid, views=own_grid)
    if presence is not None:
        from fedgraft.server.fleet.intake import WalledIntake, room_for, send_beside  # no simulation has a use for it

        bodies = Bodies.of_environment()
        if bodies is not None:
            send_beside(grid, bodies)
        intake = partial(WalledIntake, grid, room_for(begin.state()), bodies, _bell())
        fleet = GridFleet(grid, presence=presence, intake=intake, expected=folder.sites())
    outcome = Coordinator(study, fleet, folder, begin.state(), tags).run()
    write_model(folder, study, outcome, begin.provenance, synthetic)
    write_result(folder, study, tags, outcome, begin.provenance, (engine, synthetic))
    folder.event("finished")


def _bell() -> Bell:
    """What rings for replies, in Flower's own folder, which the server and this process share."""
    return Bells(Path(os.environ["FLWR_HOME"])).up


def _enrolled(grid: Grid) -> Mapping[int, str]:
    """The sites that are online, and will be for a moment yet, under the names that they were provisioned with.

    Whoever asks about a site when Flower holds it for gone makes Flower forget what the site was sent. A site whose
    keys were renewed can be there twice for a while, with the old ones and the new: the new ones count.
    """
    until = time.time() + _MOMENT_S
    nodes = sorted((n for n in grid.get_nodes() if n.online_until > until), key=lambda node: node.registered_at)
    newest = {node.name: node.node_id for node in nodes}
    return {number: name for name, number in newest.items()}
