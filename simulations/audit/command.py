"""`fedgraft privacy audit`: attack a study, show what was found, and keep it beside the run or alone."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.progress import track
from rich.table import Table
from rich.text import Text

from fedgraft.client.training.device.process import torch_threads
from fedgraft.common.base.console.terminal import Terminal
from fedgraft.common.base.disk import demand_place
from fedgraft.common.base.errors import InputError, RunError
from fedgraft.common.base.files import private_folder, write_json
from fedgraft.common.checks.explain import check_study
from fedgraft.common.study.study import Study
from fedgraft.server.report import build_audit_page, build_report
from fedgraft.server.runs.run_folder import RunFolder
from fedgraft.simulations.audit.attack import (
    NO_NOISE,
    Audit,
    attack,
    finished,
)
from fedgraft.simulations.audit.findings import Finding

_out, _err = Terminal(), Terminal(stderr=True)


def audit(study: Study, source: str, out: Path | None, patients: int, *, allow_plain: bool, as_json: bool) -> None:
    """Carry out all attacks; RunError if a claim does not hold.

    `out` is a folder of its own, or that of a run of the same study, whose report then shows the audit.
    """
    check_study(study, source)
    folder = out or Path("runs") / f"{study.name}-audit"
    demand_place(folder)
    _refuse_other_runs(study, folder)
    attempts = attack(study, patients, allow_plain=allow_plain)
    shown = track(attempts, "attacking", console=_err, transient=True, disable=not _err.is_terminal)
    with torch_threads(1):
        result = finished(study, patients, [attempt.find() for attempt in shown])
    with private_folder(folder):
        page = _keep(result, folder)
    if as_json:
        sys.stdout.write(json.dumps(_plain(result)) + "\n")
    else:
        _show(result, page)
    failed = [finding for finding in result.findings if finding.fails]
    if failed:
        what = "; ".join(f"{finding.stage}: {finding.name}" for finding in failed)
        tested = sum(finding.passed is not None for finding in result.findings)
        raise RunError(f"{len(failed)} of {tested} claims do not hold: {what}.", fix=_advice(failed))


def _refuse_other_runs(study: Study, folder: Path) -> None:
    if (folder / "study.yaml").is_file() and RunFolder(folder).study().digest != study.digest:
        raise InputError(f"{folder} holds a run of another study.", fix="Choose another --out.")


def _keep(result: Audit, folder: Path) -> Path:
    """Write the findings, and the page that shows them."""
    write_json(folder / "audit.json", _plain(result))
    is_run = (folder / "history.jsonl").is_file()
    return build_report(folder) if is_run else build_audit_page(folder)


def _plain(result: Audit) -> dict[str, Any]:
    return {"schema": 1, "holds": result.holds} | asdict(result)


def _show(result: Audit, page: Path) -> None:
    """The findings stage by stage, and below what they mean."""
    table = Table("attack", "verdict", "found", "bound", box=SIMPLE, title=f"{result.study}: privacy under attack")
    for stage, findings in groupby(result.findings, lambda finding: finding.stage):
        table.add_section()
        table.add_row(Text(stage, "bold"))
        for finding in findings:
            bound = "-" if finding.bound is None else f"{finding.sense} {finding.bound:g}"
            table.add_row(f"  {finding.name}", verdict(finding), Text(finding.words), bound)
    _out.print(table)
    for finding in result.findings:
        if finding.name == NO_NOISE:
            _say(f"Updates of {finding.stage} are invertible: {finding.words}.")
    _say(
        f"{result.seconds:.0f} s of attacks, with the noise of a site of {result.patients} patients in training. They "
        "show what fails, never that nothing can: the guarantee is the epsilon of `fedgraft study explain`."
    )
    _say(f"Report: {page}")


def verdict(finding: Finding) -> str:
    """Says "holds", "FAILS", "fails, accepted" or "not tested"."""
    if finding.passed is None:
        return "not tested"
    if finding.passed:
        return "holds"
    return "fails, accepted" if finding.accepted else "FAILS"


def _advice(failed: list[Finding]) -> str:
    if all(finding.name == NO_NOISE for finding in failed):
        return "Train with `private`, or accept it with --allow-plain: sites must then allow it too (allow_non_dp)."
    return "Do not run this study before it is understood why."


def _say(text: str) -> None:
    _out.print(text, highlight=False, markup=False, soft_wrap=True)
