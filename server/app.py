"""The ServerApp: reads the run's folder, lets the rounds run, writes what they end with. Thin on purpose."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.environment import environment
from common.start import start
from server.fleet import GridFleet
from server.folder import RunFolder
from server.results import write_model, write_result
from server.rounds import Rounds

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study in the folder that the run's configuration names.

    `run`: the folder; `engine`: what carries the messages; `synthetic`: whether the data are phantoms.
    """
    config = context.run_config
    folder, engine = RunFolder(Path(str(config["run"]))), str(config["engine"])
    synthetic = bool(config["synthetic"])
    study = folder.study()
    folder.write("environment.json", environment(study.seed, engine))
    begin = start(study)
    tags = begin.model.tags()
    ours = engine in ("inprocess", "pool")
    fleet = GridFleet(grid, expires=ours, views=ours)
    outcome = Rounds(study, fleet, folder, begin.state(), tags).run()
    write_model(folder, study, outcome, begin.manifest, synthetic)
    write_result(folder, study, tags, outcome, engine, synthetic)
    folder.event("finished")
