"""`fedgraft study ask`: what sites could supply, simulated or real, as a table, a verdict and files."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from fedgraft.common.agreement.agreement import SupplyAgreement
from fedgraft.common.base.console.terminal import ERR, OUT, say
from fedgraft.common.base.errors import InputError
from fedgraft.common.checks.check_plugins import read_pinned
from fedgraft.common.checks.explain import check_study
from fedgraft.common.study.study import Study
from fedgraft.server.agreement.pages import write_agreement
from fedgraft.server.agreement.tables import SupplyPage, supply_page
from fedgraft.server.provisioning.actions import NOBODY, ByWhom


@dataclass(frozen=True)
class AskRequest:
    """What was asked of `fedgraft study ask`. With `home`, the server's folder, real sites are asked."""

    study: Path
    overrides: tuple[str, ...]
    out: Path | None
    scenario: str | None
    home: Path | None
    sites: int | None
    wait_s: float
    by: ByWhom = NOBODY


def ask(request: AskRequest, *, as_json: bool) -> None:
    """Ask, write what came, and show it: as one JSON object, or as tables with the verdict below."""
    study, _ = read_pinned(request.study, request.overrides)
    check_study(study, str(request.study))
    out = request.out or Path("runs") / f"{study.name}-ask"
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty.", fix="Choose another --out.")
    if request.home is not None and request.scenario is not None:
        raise InputError("--home asks real sites, and --scenario simulated ones.", fix="Give one of them.")
    agreement = _simulated(request) if request.home is None else _deployed(request, request.home, study, out)
    files, page = write_agreement(study, agreement, out), supply_page(study, agreement)
    if as_json:
        points = [vars(point) for point in page.points]
        sys.stdout.write(json.dumps(agreement.content() | {"verdict": points, "folder": str(out)}) + "\n")
        return
    _show(page)
    say(f"Written: {', '.join(str(path) for path in files)}")
    say(f"Agreement {agreement.digest}")
    say(f"Pin a run to it: --agreement {out}")


def _simulated(request: AskRequest) -> SupplyAgreement:
    from fedgraft.simulations.api.simulate import choose
    from fedgraft.simulations.engines.run import ask_hospitals
    from fedgraft.simulations.phantoms.hospitals import hospitals_of

    chosen = choose(request.study, request.overrides, request.scenario)
    return ask_hospitals(chosen.study, hospitals_of(chosen.scenario))


def _deployed(request: AskRequest, home: Path, study: Study, out: Path) -> SupplyAgreement:
    from fedgraft.server.operations.deploy import Wait, ask_sites, prepare
    from fedgraft.server.provisioning.actions import ActionLog
    from fedgraft.server.provisioning.home import ServerHome

    server = ServerHome(home)
    server.facts()
    ActionLog(server.path).record(request.by, "ask", {"study": study.digest, "run": str(out)})
    prepare(study, set(server.admitted().values()), out)
    return ask_sites(server, out, Wait(request.sites, request.wait_s), say_aside)


def say_aside(text: str) -> None:
    """How it gets on, apart from what comes out."""
    ERR.print(text, highlight=False, markup=False, soft_wrap=True)


def _show(page: SupplyPage) -> None:
    for title, rows in page.tables:
        shown = Table(*rows.columns, title=title, title_justify="left")
        for line in rows.rows:
            shown.add_row(*line.cells)
        OUT.print(shown)
    against = [point for point in page.points if point.kind == "against"]
    for point in against:
        say(f"against: {point.text}")
    for point in page.points:
        if point not in against:
            say(f"note: {point.text}")
    if not against:
        say("Nothing stands against the study, by what the sites told.")
