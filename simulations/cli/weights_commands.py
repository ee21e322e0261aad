"""What the front door does with weights. What takes long to import is imported where it is needed."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from fedgraft.common.base.console.terminal import OUT, figure, say
from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.errors import InputError
from fedgraft.common.base.files import read_json
from fedgraft.common.metrics.table import title
from fedgraft.common.models.packaged_weights import packaged
from fedgraft.common.models.weights import demand_id, load_weights, save_weights
from fedgraft.common.models.weights import list_weights as all_weights

if TYPE_CHECKING:
    from fedgraft.simulations.weights.weights_import import WeightsSource


def list_weights(*, as_json: bool) -> None:
    """All weights at hand."""
    manifests = all_weights()
    if as_json:
        sys.stdout.write(json.dumps([manifest.model_dump(mode="json") for manifest in manifests]) + "\n")
        return
    table = Table("id", "backbone", "trained on", "licence")
    for manifest in manifests:
        label = " (synthetic)" if manifest.synthetic else ""
        table.add_row(manifest.id + label, manifest.backbone, manifest.trained_on, manifest.licence)
    OUT.print(table)
    for ref in packaged():
        if ref not in {manifest.id for manifest in manifests}:
            say(f"{ref} comes with an installed package, and is unpacked when a study first names it.")


def import_weights(source: WeightsSource, name: str) -> None:
    """Take in weights, and say what became of every entry."""
    from fedgraft.simulations.weights.weights_import import import_weights as take_in

    manifest, report = take_in(source, name)
    say(
        f"{manifest.id}: {len(report.loaded)} entries of {manifest.backbone} taken in, {len(report.ignored)} left out "
        f"({', '.join(report.ignored) or 'none'})"
    )


def make_soup(refs: list[str], name: str) -> None:
    """Average finished models, and say where the mean is."""
    from fedgraft.simulations.weights.soup import soup

    manifest, folder = soup(refs, name)
    say(f"Weights {manifest.id}, the mean of {len(refs)} models, are in {folder}")
    say("Norm statistics were averaged too: let a study recalibrate them (plan: local: {kind: recalibrate}).")


def pretrain(path: Path, out: Path, name: str, licence: str, overrides: tuple[str, ...]) -> None:
    """Run a study and keep its model as weights of their own, with the figures that it reached."""
    from fedgraft.simulations.cli.commands import SimulateRequest, simulate
    from fedgraft.simulations.engines.engine import Engine

    demand_id(name)
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty.", fix="Choose another --out.")
    demand_place(out)
    with tempfile.TemporaryDirectory(prefix="fedgraft-") as temporary:
        run = Path(temporary) / "run"
        simulate(SimulateRequest(path, None, run, None, overrides), Engine(), as_json=False)
        result = read_json(run / "result.json")
        manifest, arrays = load_weights(str(run))
        figures = ", ".join(
            f"{task} test "
            + ", ".join(f"{title(key)} {figure(value)}" for key, value in list(values["macro"].items())[:2])
            for task, values in result["metrics"].items()
        )
        facts = manifest.model_dump(exclude={"sha256", "keys", "format"}) | {
            "id": name,
            "licence": licence,
            "how": f"fedgraft weights pretrain {path.name}; {manifest.how}; {figures}",
        }
        save_weights(out, arrays, facts)
    say(f"Weights {name} are in {out}")
